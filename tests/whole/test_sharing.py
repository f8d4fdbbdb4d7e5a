"""Tests in several processes: what belongs together stays together."""

import subprocess
import sys
from collections import defaultdict

import pytest
import sharing
from project import ROOT, environment

WRITES = """
import os
import pathlib
import pytest

@pytest.mark.parametrize("k", range(8))
def test_{name}(k):
    with open({log!r}, "a") as log:
        print("{name}", os.environ["PYTEST_XDIST_WORKER"], os.environ["OMP_NUM_THREADS"], file=log)
"""


def test_units_name_what_is_there():
    names = [name for name in (*sharing.LONGEST, *sharing.TOGETHER) if "/" in name]
    for name in names:
        file, _, test = name.partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text(), name


@pytest.mark.parametrize(
    "nodeid, unit",
    [
        ("tests/sweeps/test_slurm.py::test_x[1]", "sweeps"),
        ("tests/data/test_formats.py::test_a_large_file_is_never_held[csv]", "clock"),
        ("tests/data/test_formats.py::test_other", "data/test_formats.py"),
        ("tests/storage/test_runs.py::test_x", "storage/test_runs.py"),
    ],
)
def test_a_unit_is_a_file_or_what_wants_the_machine(nodeid, unit):
    assert sharing.unit(nodeid) == unit


def test_a_file_s_tests_run_in_one_process_and_each_process_has_one_thread(tmp_path):
    """A small suite with this project's conftest; by itself, xdist would share single tests out."""
    log = tmp_path / "log"
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    for name in ("one", "two", "three"):
        (tmp_path / f"test_{name}.py").write_text(WRITES.format(name=name, log=str(log)))
    options = ["-n", "2", "--dist", "load", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    workers = defaultdict(set)
    for line in log.read_text().splitlines():
        name, worker, threads = line.split()
        workers[name].add(worker)
        assert threads == "1"
    assert len(workers) == 3 and all(len(found) == 1 for found in workers.values())
    assert len(set.union(*workers.values())) == 2
