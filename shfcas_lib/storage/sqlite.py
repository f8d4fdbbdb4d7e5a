"""How SQLite is opened here: write-ahead, patient, durable."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path


def open_store(path: Path, *schema: str) -> sqlite3.Connection:
    """The connection to an append-only store, whose folder and tables are made where missing.

    schema: statements that may be run again. What was committed survives a power cut, not only
    a crash. The connection may be used from several threads, one at a time: the caller's lock
    serialises them. Raises sqlite3.Error and OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
    write_ahead(connection)
    connection.execute("PRAGMA synchronous=FULL")
    for statement in schema:
        connection.execute(statement)
    return connection


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
