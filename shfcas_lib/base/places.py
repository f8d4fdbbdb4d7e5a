"""Where things lie: the project folder, the run folders, paths of the user's and what stands in
them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """The project folder that relative paths start from: the environment variable SHFCAS_HOME, or
    the nearest folder upwards that holds notebooks/ and params/."""
    if os.environ.get("SHFCAS_HOME"):
        return Path(os.environ["SHFCAS_HOME"])
    here = Path.cwd()
    return next(
        (
            p
            for p in (here, *here.parents)
            if (p / "notebooks").is_dir() and (p / "params").is_dir()
        ),
        here,
    )


def user_path(path: str | Path) -> Path:
    """A path of the user's: as it is, or below the project folder where it is relative."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def content_hash(path: str | Path | None) -> str | None:
    """Sixteen hex digits of everything in a file or folder of the user's; None where there is
    none, as with a hub id."""
    if path is None or not user_path(path).exists():
        return None
    place, digest = user_path(path), hashlib.sha256()
    for file in sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]:
        digest.update(f"{file.relative_to(place)}\n".encode() if place.is_dir() else b"")
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def runs_dir() -> Path:
    """Where run folders live: the environment variable SHFCAS_RUNS, or runs/ in the project
    folder."""
    return Path(os.environ.get("SHFCAS_RUNS") or home() / "runs").expanduser()
