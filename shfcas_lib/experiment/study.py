"""A folder of the user's own with the notebooks, parameter files and profiles of the project."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import files

PARTS = ("notebooks", "params", "profiles")
_LEFT = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.pyc")


def make(folder: Path) -> Path:
    """Put notebooks/, params/ and profiles/ into a new or empty folder; returns it, absolute.

    It is there whole or not at all. Raises InputError where the folder holds something already,
    is no folder, or cannot be written.
    """
    folder = folder.expanduser().absolute()
    _check_free(folder)
    with files.writing(folder):
        _make_parents(folder)
        with files.scratch(folder.parent, folder.name) as place:
            for part in PARTS:
                shutil.copytree(places.shipped() / part, place / "study" / part, ignore=_LEFT)
            # over an empty folder a rename is as whole as over none
            os.replace(place / "study", folder)
    return folder


def _check_free(folder: Path) -> None:
    expected = "expected the name of a new folder, or of an empty one"
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"{folder}: is a file or a link, {expected}")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds files already, {expected}")


def _make_parents(folder: Path) -> None:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: {error.filename} is no folder, so nothing can lie in it"
        ) from error
