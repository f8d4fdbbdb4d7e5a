"""The project that is tested: its folder, its packages, and the environment of its
processes."""

import os
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
_PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = _PROJECT["optional-dependencies"]
# extras of the environment that `make` builds; the others are tools of make targets that no run
# needs
RUNNING = ("models", "screen", "notebooks", "sweep", "test")
# one that brings others along names them as shfcas[...]
_ALL = [*_PROJECT["dependencies"], *(line for name in RUNNING for line in EXTRAS[name])]
CORE = [Requirement(line) for line in _PROJECT["dependencies"]]
REQUIREMENTS = [Requirement(line) for line in _ALL if not line.startswith("shfcas[")]
TOOLS = [pin for name, pins in EXTRAS.items() if name not in RUNNING for pin in pins]
PATHS = os.pathsep.join(map(str, (ROOT, ROOT / "tests" / "support", ROOT / "tools")))


def locked() -> dict[str, str]:
    """Normalised name to version of every package in requirements.lock."""
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line)
    return {canonicalize_name(name): version for name, version in pairs}


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
