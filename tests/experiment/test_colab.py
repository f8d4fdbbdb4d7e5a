"""The set-up cell of the notebooks: the same in each, nothing outside Colab, and on an empty
environment a project that imports. What it installs leaves Colab's own packages as they are."""

import os
import subprocess
import sys
import sysconfig
import venv
from importlib import metadata
from pathlib import Path

import colab_setup
import nbformat
import pytest
from project import ROOT

from shfcas_lib.sweeps.digests import NOTEBOOKS


def cell(name):
    """The code cell that follows the parameters."""
    code = [
        c
        for c in nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
        if c.cell_type == "code"
    ]
    return code[
        next(k for k, c in enumerate(code) if "parameters" in c.metadata.get("tags", [])) + 1
    ].source


@pytest.mark.parametrize("name", [*NOTEBOOKS["run"], "audit_your_labels"])
def test_outside_colab_the_cell_does_nothing(name, monkeypatch):
    monkeypatch.setattr(
        subprocess, "run", lambda *command, **more: pytest.fail(f"it ran {command}")
    )
    path, here = list(sys.path), os.getcwd()
    exec(cell(name), {})  # noqa: S102 (a cell of this repository)
    assert (sys.path, os.getcwd()) == (path, here) and "google.colab" in cell(name)
    assert cell(name) == cell(NOTEBOOKS["run"][0])


def test_on_an_empty_environment_the_cell_installs_a_project_that_imports(tmp_path):
    """Shown: the commands are right, a clone alone is enough to build and install from, and the
    next cell finds it. Not shown: the download of the dependencies (their pins are tested
    elsewhere; here those of the test environment are lent), and Colab's own packages."""
    venv.create(tmp_path / "empty", with_pip=True)
    source = (
        cell(NOTEBOOKS["run"][0])
        .replace("https://github.com/OWNER/shfcas", f"file://{ROOT}")
        .replace("/content/shfcas", str(tmp_path / "content"))
    )
    # what Colab's own package has of what the cell uses; its kernel has imported it
    colab = tmp_path / "image" / "google" / "colab"
    colab.mkdir(parents=True)
    (colab / "__init__.py").write_text("")
    (colab / "output.py").write_text(
        "def enable_custom_widget_manager():\n    print('widgets of others are shown')\n"
    )
    script = (
        "import google.colab\n"
        + source
        + "\nimport shfcas_lib, os\nfrom shfcas_lib.base import places\nprint(shfcas_lib.__file__,"
        " places.home(), os.getcwd())\nprint(shfcas_lib.load('params/quickstart.yaml').run)\n"
    )
    lent = sysconfig.get_paths()["purelib"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "image"), lent]),
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_NO_INDEX": "1",
    }
    done = subprocess.run(
        [str(tmp_path / "empty/bin/python"), "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("widgets of others are shown") == 1
    assert "Restart" not in done.stdout, "nothing that was loaded has changed"
    found, home, folder = done.stdout.splitlines()[-2].split()
    assert Path(found) == tmp_path / "content/shfcas_lib/__init__.py" and home == folder == str(
        tmp_path / "content"
    )
    assert list((tmp_path / "empty").rglob("__editable__*shfcas*")), (
        "it was installed into the empty environment"
    )


# --- what the cell calls


@pytest.fixture
def pip(monkeypatch):
    """Every call of pip, with the constraints that it was given."""
    calls = []

    def run(command, **options):
        held = Path(command[command.index("--constraint") + 1]).read_text()
        calls.append((command, held.splitlines()))
        return subprocess.CompletedProcess(command, pip_says[0], "", pip_says[1])

    pip_says = [0, ""]
    monkeypatch.setattr(subprocess, "run", run)
    run.calls, run.says = calls, pip_says
    return run


def test_pip_may_not_touch_torch_and_numpy(pip):
    colab_setup.install("/content/shfcas")
    ((command, held),) = pip.calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-2:] == ["--editable", "/content/shfcas[notebooks]"]
    names = {line.split("==")[0] for line in held}
    assert {"torch", "numpy"} <= names <= set(colab_setup.KEPT)
    assert f"numpy=={metadata.version('numpy')}" in held


def test_what_pip_could_not_do_is_one_sentence(pip):
    pip.says[:] = [1, "Collecting x\nERROR: no room\n"]
    with pytest.raises(RuntimeError, match="could not install /content/shfcas: ERROR: no room"):
        colab_setup.install("/content/shfcas")


@pytest.mark.parametrize(
    "before, after, said",
    [
        ({"pandas": "2.2.2"}, {"pandas": "2.2.2"}, ""),
        ({"pandas": "2.2.2"}, {"pandas": "3.1.1"}, "pandas 2.2.2 is now 3.1.1"),
        ({"a": "1", "b": "2", "c": "3"}, {"a": "2", "b": "2"}, "a 1 is now 2, c 3 is now None"),
        ({}, {"pandas": "3.1.1"}, ""),
    ],
)
def test_a_restart_is_asked_for_where_a_loaded_package_changed(before, after, said, monkeypatch):
    monkeypatch.setattr(colab_setup, "versions", lambda names: after)
    assert colab_setup.differing(before) == said


def test_loaded_modules_lead_to_their_distributions():
    loaded = colab_setup.distributions(["yaml.reader", "numpy.linalg", "json", "no_such_module"])
    assert {"PyYAML", "numpy"} <= set(loaded)
    found = colab_setup.versions([*loaded, "no-such-package"])
    assert found["numpy"] == metadata.version("numpy") and set(found) == set(loaded)
