"""A folder of the user's own: what is in it, and where it is refused."""

import os

import pytest
from project import ROOT

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli.program import main
from shfcas_lib.experiment import notebooks, study


def held(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["new", "empty", "deep"])
def test_a_study_holds_notebooks_params_and_profiles(kind, tmp_path, monkeypatch):
    place = tmp_path / ("a/b/my study" if kind == "deep" else "my-study")
    if kind == "empty":
        place.mkdir()
    made = study.make(place)
    kinds = (".ipynb", ".yaml")
    expected = set()
    for part in study.PARTS:
        files = [path for path in (ROOT / part).rglob("*") if path.suffix in kinds]
        expected |= {
            str(path.relative_to(ROOT)) for path in files if ".ipynb_checkpoints" not in path.parts
        }
    assert expected and expected <= held(made)
    assert sorted(os.listdir(made)) == sorted(study.PARTS), "and nothing hidden is left"
    assert sorted(os.listdir(made.parent)) == [made.name]
    monkeypatch.delenv("SHFCAS_HOME", raising=False)
    monkeypatch.chdir(made / "params")
    assert places.home() == made
    assert notebooks.located(notebooks.RUN[0]) == made / "notebooks" / f"{notebooks.RUN[0]}.ipynb"


@pytest.mark.parametrize("kind", ["full", "file", "link", "dangling"])
def test_what_is_there_already_is_never_touched(kind, tmp_path):
    place = tmp_path / "mine"
    if kind == "full":
        place.mkdir()
        (place / "notes.txt").write_text("mine")
    elif kind == "file":
        place.write_text("mine")
    else:
        target = tmp_path / "elsewhere"
        if kind == "link":
            target.mkdir()
        place.symlink_to(target)
    before = held(tmp_path)
    with pytest.raises(InputError, match="expected the name of a new folder"):
        study.make(place)
    assert held(tmp_path) == before


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/my-study"):
        study.make(tmp_path / "file" / "my-study")


def test_init_says_what_to_type_next(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "my-study"]) == 0
    said = capsys.readouterr().out
    assert "cd my-study" in said and "shfcas run params/quickstart.yaml" in said
    assert main(["init", "my-study"]) == 2


def test_outside_a_study_a_run_says_how_to_make_one(tmp_path, monkeypatch):
    monkeypatch.delenv("SHFCAS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="shfcas init my-study"):
        notebooks.located("01_proxy_bias_injection")


def test_a_run_elsewhere_is_refused_before_its_files_are_read(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SHFCAS_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("prompts: {file: not_there.csv}")
    assert main(["run", "mine.yaml"]) == 2
    said = capsys.readouterr().err
    assert "inside a folder that `shfcas init my-study` made" in said and "not_there" not in said
    assert not (tmp_path / "runs").exists()
