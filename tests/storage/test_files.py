"""Files are whole or absent, whatever happens while they are written."""

import json
import os
import stat
import subprocess
import sys

import numpy as np
import pytest
from folders import files
from project import ROOT

from shfcas_lib.storage.files import atomic, write_json

# --- atomic files


def test_atomic_writes_the_file(tmp_path):
    with atomic(tmp_path / "a" / "b.txt") as target:
        assert (
            target.parent.parent == tmp_path / "a"
            and target.name == "b.txt"
            and not (tmp_path / "a" / "b.txt").exists()
        )
        target.write_text("whole")
    assert files(tmp_path) == ["a/b.txt"] and (tmp_path / "a" / "b.txt").read_text() == "whole"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failure_inside_leaves_no_file(tmp_path, error):
    with pytest.raises(error):
        with atomic(tmp_path / "b.txt") as target:
            target.write_text("ha")
            raise error
    assert files(tmp_path) == []


def test_a_failure_inside_leaves_the_older_file_as_it_was(tmp_path):
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(ValueError):
        with atomic(tmp_path / "b.txt") as target:
            target.write_text("new")
            raise ValueError
    assert files(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "old"


def test_atomic_replaces_an_older_file(tmp_path):
    for text in ("old", "new"):
        with atomic(tmp_path / "b.txt") as target:
            target.write_text(text)
    assert files(tmp_path) == ["b.txt"] and (tmp_path / "b.txt").read_text() == "new"


def test_written_files_can_be_read_by_others(tmp_path):
    with atomic(tmp_path / "b.txt") as target:
        target.write_text("whole")
    assert stat.S_IMODE((tmp_path / "b.txt").stat().st_mode) == 0o644


def test_a_killed_process_leaves_no_half_file(tmp_path):
    program = (
        "import os, signal, sys; from pathlib import Path; from shfcas_lib.storage import files,"
        " runs\nwith runs.atomic(Path(sys.argv[1])) as target:\n    target.write_text('ha');"
        " os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert (
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "b.txt")], env=environment
        ).returncode
        == -9
    )
    assert not (tmp_path / "b.txt").exists()


# --- json


def test_json_is_written_readably(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 0.5, None], "a": "x"})
    text = (tmp_path / "a.json").read_text()
    assert (
        json.loads(text) == {"b": [1, 0.5, None], "a": "x"}
        and text.startswith('{\n  "b"')
        and text.endswith("}\n")
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -np.inf, np.float64("nan")])
def test_json_refuses_what_json_cannot_hold(tmp_path, value):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"deep": [{"value": value}]})
    assert files(tmp_path) == []
