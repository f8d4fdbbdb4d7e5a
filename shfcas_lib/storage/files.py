"""Files written whole or not at all, and locks that die with their process.

    with atomic(path) as target: table.to_parquet(target)

What is being written stands in a hidden, locked scratch folder beside its place; `clear`
removes those of killed processes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from shfcas_lib.base.errors import InputError


def sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TEMPORARY = ".part"  # ends the name of what is being written
# faults of the place, not of the caller
_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
)


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a scratch folder beside `path`.

    It is renamed over `path` when the block succeeds, and removed when it fails. Raises InputError
    where the disk is full or the folder cannot be written.
    """
    with writing(path), scratch(path.parent, path.name) as folder:
        yield folder / path.name
        with open(folder / path.name, "rb") as file:
            os.fsync(file.fileno())
        os.replace(folder / path.name, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise InputError where the block fails because `path` cannot be written.

    That is, because the disk is full or the folder forbids it.
    """
    try:
        yield
    except Exception as error:
        number = _errno(error)
        if number in _DISK:
            raise InputError(f"cannot write {path}: {os.strerror(number)}") from error
        raise


def _errno(error: Exception) -> int:
    """The system's number of a failure, 0 where there is none."""
    if isinstance(error, OSError):
        return error.errno or 0
    # safetensors says it in words alone
    match = re.search(r"\(os error (\d+)\)", str(error))
    return int(match[1]) if match else 0


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `folder`, for what is written there before it gets the name `name`.

    Removed at the end. It is locked as long as this process lives: `clear` removes it after a
    kill.
    """
    folder.mkdir(parents=True, exist_ok=True)
    temporary, lock = _locked_scratch(folder, name)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _locked_scratch(folder: Path, name: str) -> tuple[Path, int]:
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=TEMPORARY, dir=folder))
        # `clear` may come between the folder's making and its lock: then another one is made
        with contextlib.suppress(FileNotFoundError):
            lock = _lock(temporary)
            if temporary.exists():
                return temporary, lock
            os.close(lock)


def clear(folder: Path) -> None:
    """Remove what killed processes left half-written anywhere below `folder`.

    What a living process writes is locked, and stays.
    """
    # not rglob: that fails where a folder goes while it looks
    for place, folders, _ in os.walk(folder):
        left = [name for name in folders if name.startswith(".") and name.endswith(TEMPORARY)]
        for name in left:
            folders.remove(name)
            _remove_unlocked(Path(place, name))


def _remove_unlocked(folder: Path) -> None:
    """Remove a scratch folder, unless its writer lives, it has gone, or the disk is read-only."""
    with contextlib.suppress(OSError):
        lock = _lock(folder, wait=False)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread holds `folder`, and hold it.

    The kernel lets go when this process ends, however it ends.
    """
    lock = _lock(folder)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, wait: bool = True) -> int:
    """The handle of a locked folder.

    With `wait`, a file system that knows no locks is written to without; else every failure is
    raised.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if not wait:
            os.close(handle)
            raise
    return handle


def write_json(path: Path, values: dict) -> None:
    """Write a dict as indented JSON, whole or not at all. NaN and infinity are refused."""
    with atomic(path) as target:
        target.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def records(table: pd.DataFrame | None) -> list[dict]:
    """A table for JSON, row by row, NaN as null; nothing where there is no table."""
    if table is None:
        return []
    return table.astype(object).where(table.notna(), None).to_dict("records")


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())
