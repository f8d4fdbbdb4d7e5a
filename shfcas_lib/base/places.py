"""Where things lie: the project folder, the run folders and paths of the user's."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """The project folder that relative paths start from.

    It is what the environment variable SHFCAS_HOME names, or the nearest folder upwards that
    holds notebooks/ and params/.
    """
    if os.environ.get("SHFCAS_HOME"):
        return Path(os.environ["SHFCAS_HOME"])
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "notebooks").is_dir() and (folder / "params").is_dir():
            return folder
    return here


def shipped() -> Path:
    """The folder whose notebooks/, params/ and profiles/ came with the library.

    `study` inside the installed package, or the checkout that the library lies in.
    """
    package = Path(__file__).parents[1]
    inside = package / "study"
    return inside if (inside / "notebooks").is_dir() else package.parent


def user_path(path: str | Path) -> Path:
    """A path of the user's: as it is, or below the project folder where it is relative."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def content_hash(path: str | Path | None) -> str | None:
    """Sixteen hex digits of everything in a file or folder of the user's.

    None where there is none, as with a hub id.
    """
    if path is None or not user_path(path).exists():
        return None
    place = user_path(path)
    digest = hashlib.sha256()
    if place.is_dir():
        for file in sorted(file for file in place.rglob("*") if file.is_file()):
            digest.update(f"{file.relative_to(place)}\n".encode())
            _add_bytes(digest, file)
    else:
        _add_bytes(digest, place)
    return digest.hexdigest()[:16]


def _add_bytes(digest: hashlib._Hash, path: Path) -> None:
    """Feed a file to a digest, a mebibyte at a time."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def runs_dir() -> Path:
    """Where run folders live.

    That is what the environment variable SHFCAS_RUNS names, or runs/ in the project folder.
    """
    return Path(os.environ.get("SHFCAS_RUNS") or home() / "runs").expanduser()
