"""The lowest versions that pyproject.toml allows, installed into build/lowest, under tests.

    python tools/lowest.py          the core, which has no torch
    python tools/lowest.py sweep    with this extra, and a run on the tiny model

`make test-lowest` does it. uv finds the versions, pip installs them: from wherever pip is told to,
so that a machine without a GPU gets the CPU build of torch.
"""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
UV = BUILD / "tools" / "bin" / "uv"
# what the tests themselves import
TESTING = ("hypothesis", "pytest", "pytest-timeout", "pytest-xdist", "scikit-learn")
# The libraries that come with a CUDA build: torch names its own.
CUDA = re.compile(r"(nvidia|triton|cuda)\b", re.IGNORECASE)
CORE = (
    "tests/whole/test_light_core.py",
    "tests/base/test_extras.py",
    "tests/method/test_conflict.py",
    "tests/method/test_policies.py",
    "tests/method/test_selection.py",
    "tests/method/test_trust.py",
    "tests/analysis/test_resamples.py",
    "tests/analysis/test_stats.py",
    "tests/annotators/test_exchange.py",
    "tests/storage/test_labels.py",
)
MODELS = (
    "tests/method/test_pool.py",
    "tests/models/test_models.py",
    "tests/training/test_training.py",
    "tests/experiment/test_notebooks.py",
)


def lowest(project: dict, extra: str | None) -> list[str]:
    """Name==version of every package of the lowest environment that this Python allows."""
    more = ["--extra", extra] if extra else []
    version = ".".join(map(str, sys.version_info[:3]))
    command = [UV, "pip", "compile", "--quiet", "--resolution", "lowest-direct"]
    command += ["--python-version", version, "--no-header", "--no-annotate", *more]
    said = subprocess.run(
        [*command, "pyproject.toml"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    return [line for line in said.splitlines() if "==" in line and not CUDA.match(line)]


def testing(project: dict) -> list[str]:
    """The pins of what the tests import."""
    pins = project["optional-dependencies"]["test"]
    return [pin for pin in pins if pin.partition("==")[0] in TESTING]


def main(extra: str | None) -> int:
    """Make the environment and run the tests in it; returns the exit status of pytest."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    packages = lowest(project, extra)
    print("\n".join(packages), flush=True)
    place = BUILD / "lowest"
    shutil.rmtree(place, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", place], check=True)
    python = place / "bin" / "python"
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *packages, *testing(project)], check=True)
    tests = CORE + (MODELS if extra else ())
    return subprocess.run([python, "-m", "pytest", "-n", "0", *tests], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if sys.argv[1:] else None))
