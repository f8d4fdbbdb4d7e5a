"""The project that is tested: its folder, its pins, and the environment of its own processes."""

import os
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = _PROJECT["optional-dependencies"]
# extras of the environment that `make` builds; the others are tools of make targets that no run
# needs
RUNNING = (
    "test",
    "sweep",
)
PINS = _PROJECT["dependencies"] + [pin for name in RUNNING for pin in EXTRAS[name]]
TOOLS = [pin for name, pins in EXTRAS.items() if name not in RUNNING for pin in pins]
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support", ROOT / "tools")))


def environment(runs_folder=None, **more):
    """What a process of ours is started with: this checkout's library and the tests' helpers, no
    bars, one thread."""
    place = {} if runs_folder is None else {"SHFCAS_RUNS": str(runs_folder)}
    return (
        os.environ
        | {"PYTHONPATH": PATHS, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        | place
        | more
    )
