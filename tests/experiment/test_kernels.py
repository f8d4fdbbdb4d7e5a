"""A kernel that dies or is missing ends in one sentence: which notebook, what to look at, and that
the same command goes on."""

import sys

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

from shfcas_lib.base.errors import Waiting
from shfcas_lib.cli import origins, program
from shfcas_lib.experiment.notebooks import run_notebook

DIES = {
    "killed, as the system does where memory ends": "import os, signal; os.kill(os.getpid(), 9)",
    "aborted": "import os; os.abort()",
    "left": "import os; os._exit(0)",
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A project folder whose only notebook holds this code."""
    monkeypatch.setenv("SHFCAS_HOME", str(tmp_path))

    def write(source):
        (tmp_path / "notebooks").mkdir()
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, tmp_path / "notebooks" / "deadly.ipynb")
        return tmp_path / "executed.ipynb"

    return write


@pytest.mark.parametrize("source", DIES.values(), ids=DIES)
def test_a_kernel_that_dies_is_one_sentence(study, source):
    said = run_notebook("deadly", {}, study(source))
    assert said.startswith("deadly stopped: its kernel died, most often for want of memory")
    assert "the same command goes on" in said and "\n" not in said


def test_a_kernel_that_cannot_start_is_one_sentence(study, tmp_path, monkeypatch):
    """A broken start-up file of IPython's, for one, ends it before its first cell."""
    executed = study("1")
    sitecustomize = tmp_path / "early"
    sitecustomize.mkdir()
    (sitecustomize / "sitecustomize.py").write_text("import os; os._exit(1)")
    monkeypatch.setenv("PYTHONPATH", str(sitecustomize))
    said = run_notebook("deadly", {}, executed)
    assert said.startswith("deadly stopped: its kernel died")


def test_a_missing_kernel_is_one_sentence(study, monkeypatch):
    executed = study("1")
    monkeypatch.setattr(KernelSpecManager, "_find_spec_directory", lambda self, name: None)
    monkeypatch.setitem(sys.modules, "ipykernel.kernelspec", None)
    said = run_notebook("deadly", {}, executed)
    assert "there is no Jupyter kernel 'python3'" in said and "install ipykernel" in said


def test_an_error_of_the_cell_is_told_as_before(study):
    said = run_notebook("deadly", {}, study("raise RuntimeError('kernel died? no, this cell')"))
    assert said == "deadly stopped in cell 1: RuntimeError: kernel died? no, this cell"


def test_waiting_for_people_is_no_fault(study):
    """The sentence comes through the kernel, the notebook holds it alone."""
    source = "from shfcas_lib.base.errors import Waiting\nraise Waiting('3 comparisons wait')"
    executed = study(source)
    with pytest.raises(Waiting, match="^3 comparisons wait$"):
        run_notebook("deadly", {}, executed)
    (output,) = nbformat.read(executed, 4).cells[-1].outputs
    assert output.traceback == ["3 comparisons wait"]


@pytest.mark.parametrize(
    "error, status, words",
    [
        (KeyboardInterrupt(), 130, "stopped; the same command goes on with what is finished"),
        (Waiting("3 comparisons wait"), 3, "3 comparisons wait"),
    ],
)
def test_how_a_command_ends_that_was_stopped_or_waits(monkeypatch, capsys, error, status, words):
    def act(options):
        raise error

    monkeypatch.setattr(origins, "_trace", act)
    assert program.main(["trace", "figure.png"]) == status
    said = capsys.readouterr().err
    assert words in said and len(said.strip().splitlines()) == 1
