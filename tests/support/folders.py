"""Runs of a test's own, and the files in a folder."""

from shfcas_lib.params import reading
from shfcas_lib.storage import runs


def open_run(**values):
    return runs.open_run(reading.validate({"run": "mine"} | values, "test"))


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
