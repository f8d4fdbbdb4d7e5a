"""A file system without locks is told within seconds, with a way out that loses no answer."""

import errno
import fcntl
import sqlite3
import time

import pytest

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import locks, sqlite
from shfcas_lib.storage.labels import LabelStore

QUESTION = {"prompt_id": "p", "i": 0, "j": 1, "strategy": "random", "reason": ""}
WORDS = "is on a file system without file locks: set SHFCAS_RUNS to a folder on a local disk, or"


@pytest.fixture(autouse=True)
def fresh():
    known = locks._known
    known.cache_clear()
    yield
    known.cache_clear()


@pytest.fixture(params=["lockf", "flock"])
def lockless(request, monkeypatch):
    """One of the two ways to lock a file does not work, as on some network file systems."""

    def refuse(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, request.param, refuse)


def test_a_file_system_without_locks_is_one_sentence(tmp_path, lockless):
    with pytest.raises(InputError, match=WORDS):
        LabelStore(tmp_path / "labels.sqlite")


def test_a_lock_server_that_does_not_answer_is_told_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_PATIENCE", 0.2)
    monkeypatch.setattr(fcntl, "lockf", lambda file, operation: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(InputError, match=WORDS):
        LabelStore(tmp_path / "labels.sqlite")
    assert time.monotonic() - start < 10


@pytest.mark.parametrize("code", ["SQLITE_IOERR_SHMMAP", "SQLITE_IOERR_LOCK", "SQLITE_PROTOCOL"])
def test_a_file_system_where_sqlite_cannot_write_ahead_is_the_same_sentence(
    tmp_path, monkeypatch, code
):
    def fail(connection):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = code
        raise error

    monkeypatch.setattr(sqlite, "write_ahead", fail)
    with pytest.raises(InputError, match=WORDS):
        LabelStore(tmp_path / "labels.sqlite")


def test_the_way_out_works_and_keeps_what_was_answered_before(tmp_path, monkeypatch, lockless):
    """The same store, with locks and without and with them again; two connections at once."""
    path = tmp_path / "labels.sqlite"
    monkeypatch.setattr(locks, "_known", lambda folder, device: True)
    with LabelStore(path) as store:
        store.add(QUESTION, "first", "anna")
    monkeypatch.setenv("SHFCAS_LOCKS", "none")
    with LabelStore(path) as store, LabelStore(path) as other:
        store.add(QUESTION | {"prompt_id": "q"}, "second", "anna")
        other.add(QUESTION | {"prompt_id": "r"}, "tie", "anna")
        store.add(QUESTION | {"prompt_id": "s"}, "tie", "anna")
        assert len(store.labels()) == len(other.labels()) == 4
    assert not list(tmp_path.glob("*-wal"))
    monkeypatch.delenv("SHFCAS_LOCKS")
    with LabelStore(path) as store:
        assert store.labels()["label"].tolist() == [1.0, 0.0, 0.5, 0.5]


def test_another_value_of_the_variable_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SHFCAS_LOCKS", "no")
    with pytest.raises(InputError, match="SHFCAS_LOCKS: found 'no', expected 'none'"):
        LabelStore(tmp_path / "labels.sqlite")


def test_a_folder_that_takes_no_file_has_another_trouble(tmp_path, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(locks.tempfile, "TemporaryFile", full)
    assert locks._known(tmp_path, 0)
