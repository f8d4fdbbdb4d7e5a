"""The built package holds everything that the library reads, and works alone."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from project import ROOT, environment

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
OFFLINE = ["--no-deps", "--no-index"]


def run(*words, cwd, **options):
    done = subprocess.run([*map(str, words)], cwd=cwd, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


def tracked():
    """The files of the checkout that belong to the project."""
    return run("git", "ls-files", "-z", cwd=ROOT).split("\0")[:-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the tracked files, so that nothing but they can be in it."""
    if not (ROOT / ".git").exists():
        pytest.skip("no checkout of git: what belongs to the project is not known")
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        if (ROOT / name).is_file():
            (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "copy" / name)
    run(*PIP, "wheel", *OFFLINE, "--no-build-isolation", "-w", "out", "./copy", cwd=folder)
    (built,) = (folder / "out").glob("*.whl")
    return built


def test_the_wheel_holds_every_file_of_the_library_and_no_other(wheel):
    ours = {name for name in tracked() if name.startswith("shfcas_lib/") and (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == ours
    kinds = {os.path.splitext(name)[1] or name for name in held}
    assert kinds == {".py", ".pyi", ".js", ".css", ".jsonl", "shfcas_lib/sweeps/Snakefile"}


def test_installed_alone_it_imports_and_answers(wheel, tmp_path):
    """In a folder that holds nothing but the wheel, away from the checkout."""
    target, place = tmp_path / "target", tmp_path / "elsewhere"
    place.mkdir()
    run(*PIP, "install", *OFFLINE, "--target", target, wheel, cwd=place)
    alone = environment(tmp_path / "runs", PYTHONPATH=str(target))
    code = (
        "import shfcas_lib as shf; from shfcas_lib.tasks.embedded import embedded_prompts;"
        " from shfcas_lib.screen import widget; from shfcas_lib.sweeps import driver;"
        " print(shf.__file__, len(embedded_prompts('safety')), callable(shf.select))"
    )
    said = run(sys.executable, "-c", code, cwd=place, env=alone).split()
    assert said[0] == str(target / "shfcas_lib" / "__init__.py") and int(said[1]) > 900
    keys = run(sys.executable, "-m", "shfcas_lib", "keys", cwd=place, env=alone)
    assert "selection.budget" in keys and "policy.beta" in keys
