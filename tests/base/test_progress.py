"""Progress is seen wherever a long step runs: in a terminal, and through a kernel."""

import io
import time

import nbformat
import pytest
from faces import modules
from project import ROOT

from shfcas_lib.base import progress
from shfcas_lib.experiment.notebooks import run_notebook


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch):
    """What goes to a terminal's stderr from here on; pytest would take it back from a fixture."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    return terminal


@pytest.fixture(autouse=True)
def wanted(monkeypatch):
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


def test_a_terminal_sees_a_bar_with_its_end(monkeypatch):
    terminal = shown(monkeypatch)
    monkeypatch.setattr(progress, "_SHORT", 0)
    assert list(progress.over([4, 5, 6], "scoring", "batch")) == [4, 5, 6]
    assert "scoring: " in terminal.getvalue() and "3/3" in terminal.getvalue()


def test_a_short_step_shows_none_and_a_long_one_does(monkeypatch, capsys):
    list(progress.over(range(3), "scoring", "batch"))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SHORT", 0.05)
    monkeypatch.setattr(progress, "_PAUSE", 0.05)
    for _ in progress.over(range(3), "scoring", "batch"):
        time.sleep(0.05)
    assert "scoring: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, value, quiet", [("TQDM_DISABLE", "1", False), ("RANK", "1", False), ("X", "", True)]
)
def test_nothing_is_shown_where_nobody_wants_it(monkeypatch, name, value, quiet):
    terminal = shown(monkeypatch)
    monkeypatch.setenv(name, value)
    list(progress.over(range(3), "scoring", "batch", quiet=quiet))
    assert terminal.getvalue() == ""


def test_a_generator_without_length_is_counted(monkeypatch):
    terminal = shown(monkeypatch)
    monkeypatch.setattr(progress, "_SHORT", 0)
    assert list(progress.over(iter("ab"), "reading", "row", total=2)) == ["a", "b"]
    assert "2/2" in terminal.getvalue()


def test_a_kernel_shows_bars_here_and_keeps_the_last_in_the_executed_notebook(
    tmp_path, monkeypatch
):
    """Through Papermill and a real kernel, whose stderr is no terminal."""
    (tmp_path / "notebooks").mkdir()
    source = (
        "import time\nfrom shfcas_lib.base import progress\n"
        "for _ in progress.over(range(20), 'sampling', 'completion'):\n    time.sleep(0.02)"
    )
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    nbformat.write(notebook, tmp_path / "notebooks" / "long.ipynb")
    monkeypatch.setenv("SHFCAS_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("TQDM_MININTERVAL", "0.05")
    monkeypatch.setenv("TQDM_DELAY", "0.01")
    terminal, executed = io.StringIO(), tmp_path / "executed.ipynb"
    assert run_notebook("long", {}, executed, terminal) is None
    assert terminal.getvalue().count("sampling: ") > 2 and "20/20" in terminal.getvalue()
    outputs = nbformat.read(executed, 4).cells[0].outputs
    kept = "".join(output.get("text", "") for output in outputs)
    assert kept.count("sampling: ") == 1 and "20/20" in kept


def test_no_other_module_makes_bars_of_its_own():
    """So that every long step is seen through a kernel too."""
    found = [name for name, path in modules().items() if "tqdm import" in path.read_text()]
    assert found == ["shfcas_lib.base.progress"]
