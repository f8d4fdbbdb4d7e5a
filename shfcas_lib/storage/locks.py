"""File locks, and what to do where a file system has none.

Two writers to one label store, run or sweep are kept apart by the file system's locks. Some network
file systems have none, or wait for a lock server that never answers; there the user may say that
only one program writes (`SHFCAS_LOCKS=none`), or keep runs elsewhere (`SHFCAS_RUNS`).
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
from functools import cache
from pathlib import Path

from shfcas_lib.base.errors import InputError

_PATIENCE = 5.0  # seconds; a local disk answers in a millisecond


def wanted() -> bool:
    """Are locks used? `SHFCAS_LOCKS=none` says no. Raises InputError for another value."""
    value = os.environ.get("SHFCAS_LOCKS", "")
    if value not in ("", "none"):
        raise InputError(f"SHFCAS_LOCKS: found {value!r}, expected 'none' or nothing at all")
    return not value


def need(folder: Path) -> None:
    """Make sure that files in `folder` can be locked.

    Raises InputError, within seconds, where they cannot, unless no locks are wanted.
    """
    if wanted() and not _known(folder.resolve(), os.stat(folder).st_dev):
        raise missing(folder)


def missing(folder: Path) -> InputError:
    """The sentence about a folder whose file system has no locks."""
    return InputError(
        f"{folder} is on a file system without file locks: set SHFCAS_RUNS to a folder on a local"
        " disk, or SHFCAS_LOCKS=none where no two programs ever write there at once"
    )


@cache
def _known(folder: Path, device: int) -> bool:
    """Can files there be locked? Asked once for a folder and the device that it is on."""
    answer: list[bool] = []
    # a lock server that is gone keeps a call waiting, whatever it was asked
    asking = threading.Thread(target=lambda: answer.append(_try(folder)), daemon=True)
    asking.start()
    asking.join(_PATIENCE)
    return answer == [True]


def _try(folder: Path) -> bool:
    """Lock a file of our own there, both ways: SQLite's and the driver's.

    A folder that takes no file (read-only, full) has another trouble, which its writer will tell.
    """
    try:
        file = tempfile.TemporaryFile(dir=folder)
    except OSError:
        return True
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
    return True
