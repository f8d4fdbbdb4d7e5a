"""Where the project and its runs lie."""

import pytest
from folders import open_run

from shfcas_lib.base import places

# --- where runs live


def test_runs_live_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("SHFCAS_RUNS", str(tmp_path / "elsewhere"))
    assert places.runs_dir() == tmp_path / "elsewhere"
    assert open_run().folder == tmp_path / "elsewhere" / "mine"


@pytest.mark.parametrize("value", [None, ""])
def test_or_in_the_project_folder(monkeypatch, tmp_path, value):
    (
        monkeypatch.delenv("SHFCAS_RUNS", raising=False)
        if value is None
        else monkeypatch.setenv("SHFCAS_RUNS", value)
    )
    for name in ("notebooks", "params"):
        (tmp_path / "project" / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project" / "notebooks")
    assert (
        places.home() == tmp_path / "project" and places.runs_dir() == tmp_path / "project" / "runs"
    )


def test_outside_a_project_home_is_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert places.home() == tmp_path
