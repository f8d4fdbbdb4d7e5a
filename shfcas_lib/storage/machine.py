"""What ran here: versions of packages, the commit of the code, the machine and its device."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from shfcas_lib import __version__

_PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "numpy",
    "scipy",
    "pandas",
)


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, without importing them."""
    installed = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {"shfcas": __version__, "python": platform.python_version(), **installed}


def commit() -> str | None:
    """The git commit of the code, with '+changes' when files other than docs/ differ from it.

    None outside a checkout.
    """
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "HEAD").strip()
        # results are released into docs/: the second of two sweeps must not look changed because
        # the first one was released
        changes = _git(here, "status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)docs")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if changes.strip() else "")


def _git(folder: Path, *words: str) -> str:
    """What a git command writes in this folder."""
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def description() -> str:
    """The machine, in a few words."""
    gpu = ", NVIDIA GPU" if Path("/proc/driver/nvidia/version").exists() else ""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores{gpu}"


def device() -> dict[str, str]:
    """The device that torch would use, if torch is loaded."""
    if "torch" not in sys.modules:
        return {}
    import torch

    return {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
