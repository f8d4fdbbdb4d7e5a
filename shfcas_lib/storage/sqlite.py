"""How SQLite is opened here: write-ahead, patient, durable."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path

from shfcas_lib.storage import locks

MEMORY = ":memory:"  # sqlite's name for a store that dies with its connection
_NO_LOCKS = ("SQLITE_IOERR_LOCK", "SQLITE_IOERR_SHM", "SQLITE_PROTOCOL")


def open_store(path: Path, *schema: str) -> sqlite3.Connection:
    """The connection to an append-only store, whose folder and tables are made where missing.

    schema: statements that may be run again. What was committed survives a power cut, not only
    a crash. The connection may be used from several threads, one at a time: the caller's lock
    serialises them. The path MEMORY is a store of its own, never written. Where the file system
    knows no locks and the user said that one program writes, the journal is one that needs none.
    Raises sqlite3.Error, OSError, and InputError where locks are missing.
    """
    if str(path) == MEMORY:
        connection = _connect(MEMORY)
    else:
        path.parent.mkdir(parents=True, exist_ok=True)
        locks.need(path.parent)
        vfs = "" if locks.wanted() else "?vfs=unix-none"
        connection = _connect(f"{path.absolute().as_uri()}{vfs}")
        if locks.wanted():
            _share(connection, path)
        else:
            _own(connection)
    connection.execute("PRAGMA synchronous=FULL")
    for statement in schema:
        connection.execute(statement)
    return connection


def _connect(name: str) -> sqlite3.Connection:
    return sqlite3.connect(
        name,
        uri=name != MEMORY,
        timeout=60,
        isolation_level=None,
        check_same_thread=False,
    )


def _share(connection: sqlite3.Connection, path: Path) -> None:
    """Write ahead, so that several processes may write. That needs locks and memory that they
    share, which a file system may lack even where a file can be locked."""
    try:
        write_ahead(connection)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname.startswith(_NO_LOCKS):
            raise locks.missing(path.parent) from error
        raise


def _own(connection: sqlite3.Connection) -> None:
    """The journal that needs no locks. A file that was left in the other mode is brought back by
    the one process that there is."""
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.execute("PRAGMA locking_mode=NORMAL")
    connection.execute("SELECT count(*) FROM sqlite_master")


def add_column(connection: sqlite3.Connection, table: str, name: str, kind: str) -> None:
    """Give a table of an older version a column; its rows have NULL there.

    One transaction: a kill leaves the table as it was, and of several processes that open the
    file at once one does it. Raises sqlite3.Error.
    """
    if _has_column(connection, table, name):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if not _has_column(connection, table, name):  # another process may have been quicker
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {name} {kind}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _has_column(connection: sqlite3.Connection, table: str, name: str) -> bool:
    rows = connection.execute(f"PRAGMA table_info({table})").fetchall()
    return name in [row[1] for row in rows]


def write_ahead(connection: sqlite3.Connection, patience: float = 60.0) -> None:
    """Switch to WAL mode.

    SQLite does not wait for a lock here, so we do: another process may be creating the file.
    """
    end = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > end:
                raise  # a read-only folder, for example
            time.sleep(0.05)
