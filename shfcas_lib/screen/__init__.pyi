from . import session as session
from . import widget as widget
from .session import Session as Session
from .session import arranged as arranged
from .widget import Screen as Screen
from .widget import annotate as annotate
from .widget import rate as rate
