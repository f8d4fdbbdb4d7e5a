"""The set-up cell of the notebooks: the same in each, nothing outside Colab, and on an empty
environment a project that imports."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

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


@pytest.mark.parametrize("name", NOTEBOOKS["run"])
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
    script = (
        "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
        + source
        + "\nimport shfcas_lib, os\nfrom shfcas_lib.base import places\nprint(shfcas_lib.__file__,"
        " places.home(), os.getcwd())\nprint(shfcas_lib.load('params/quickstart.yaml').run)\n"
    )
    lent = sysconfig.get_paths()["purelib"]
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "PYTHONPATH": lent,
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
    found, home, folder = done.stdout.splitlines()[-2].split()
    assert Path(found) == tmp_path / "content/shfcas_lib/__init__.py" and home == folder == str(
        tmp_path / "content"
    )
    assert list((tmp_path / "empty").rglob("__editable__*shfcas*")), (
        "it was installed into the empty environment"
    )
