"""How SQLite is opened here: write-ahead, patient, durable."""

from __future__ import annotations

import sqlite3
import time


def write_ahead(connection: sqlite3.Connection, patience: float = 60.0) -> None:
    """Switch to WAL mode. SQLite does not wait for a lock here, so we do: another process may be
    creating the file."""
    end = time.monotonic() + patience
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if (
                error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
                or time.monotonic() > end
            ):
                raise  # a read-only folder, for example
            time.sleep(0.05)
