from . import kinds as kinds
from . import origins as origins
from . import people as people
from . import program as program
from . import runs as runs
from . import sweeps as sweeps
from .program import main as main
