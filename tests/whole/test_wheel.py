"""The built package holds everything that the library reads, and works alone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from project import CORE, ROOT
from tiny_notebooks import settings

from shfcas_lib.experiment import study

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


def shipped():
    """The notebooks, parameter files and profiles of the checkout, where the package has them."""
    return {
        f"shfcas_lib/study/{name}"
        for name in tracked()
        if name.partition("/")[0] in study.PARTS and (ROOT / name).is_file()
    }


def test_the_wheel_holds_every_file_of_the_library_and_the_study_and_no_other(wheel):
    ours = {name for name in tracked() if name.startswith("shfcas_lib/") and (ROOT / name).exists()}
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if ".dist-info/" not in name}
    assert held == ours | shipped()
    kinds = {os.path.splitext(name)[1] or name for name in held}
    code = {".py", ".pyi", ".js", ".css", ".jsonl", "shfcas_lib/sweeps/Snakefile"}
    assert kinds == code | {".ipynb", ".yaml"}


def closure(names):
    """The distributions that these need, with themselves, their extras left out."""
    found, ahead = set(), list(names)
    while ahead:
        name = canonicalize_name(ahead.pop())
        if name in found:
            continue
        found.add(name)
        needed = [Requirement(line) for line in metadata.requires(name) or []]
        ahead += [
            one.name for one in needed if not one.marker or one.marker.evaluate({"extra": ""})
        ]
    return found


@pytest.fixture(scope="module")
def core(wheel, tmp_path_factory):
    """An empty environment with the wheel in it, and of all other packages the core's alone, lent
    by the tests' own environment. Returns its folder of programs."""
    folder = tmp_path_factory.mktemp("core")
    venv.create(folder / "env", with_pip=False)
    programs = folder / "env" / "bin"
    run(*PIP, "--python", programs / "python", "install", *OFFLINE, wheel, cwd=folder)
    lent = folder / "lent"
    lent.mkdir()
    for name in closure(one.name for one in CORE):
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files if file.parts[0] != ".."}:
            if not (lent / top).exists():
                (lent / top).symlink_to(found.locate_file(top))
    (site,) = (folder / "env").glob("lib/python*/site-packages")
    (site / "lent.pth").write_text(f"{lent}\n")
    return programs


def alone(*words, programs, cwd, **options):
    """A command of the installed package, far from the checkout."""
    place = {"HOME": str(cwd), "PATH": os.environ["PATH"], "TQDM_DISABLE": "1"}
    return subprocess.run(
        [programs / "shfcas", *map(str, words)],
        cwd=cwd,
        env=place | options,
        capture_output=True,
        text=True,
    )


def test_the_core_alone_imports_without_the_checkout_and_without_torch(core, tmp_path):
    code = (
        "import importlib.util, shfcas_lib as shf; from shfcas_lib.base import extras;"
        " print(shf.__file__);"
        " print([name for names in extras.EXTRAS.values() for name in names"
        " if importlib.util.find_spec(name)]);"
        " print(callable(shf.select), callable(shf.conflict_table), callable(shf.LabelStore))"
    )
    said = run(core / "python", "-c", code, cwd=tmp_path, env={"PATH": os.environ["PATH"]})
    file, heavy, there = said.splitlines()
    assert file.startswith(str(core.parent)) and heavy == "[]" and there == "True True True"


def test_the_core_alone_runs_its_commands_and_names_the_extra_of_others(core, tmp_path):
    made = alone("init", "my-study", programs=core, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    unpacked = {
        f"shfcas_lib/study/{path.relative_to(tmp_path / 'my-study')}"
        for path in (tmp_path / "my-study").rglob("*")
        if path.is_file()
    }
    assert unpacked == shipped()
    inside = tmp_path / "my-study"
    keys = alone("keys", programs=core, cwd=inside)
    assert "selection.budget" in keys.stdout and "policy.beta" in keys.stdout
    checked = alone("check", "params/quickstart.yaml", programs=core, cwd=inside)
    assert checked.stdout.startswith("params/quickstart.yaml: fine; 160 prompts"), checked.stderr
    refused = alone("run", "params/quickstart.yaml", programs=core, cwd=inside)
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert "pip install 'shfcas[notebooks]'" in refused.stderr


def test_with_the_notebooks_a_study_of_the_users_runs(wheel, tiny_model, tmp_path):
    """The four notebooks, out of a folder that `init` made, by the installed package."""
    venv.create(tmp_path / "env", with_pip=False)
    programs = tmp_path / "env" / "bin"
    run(*PIP, "--python", programs / "python", "install", *OFFLINE, wheel, cwd=tmp_path)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    # .pth files there are not read: the checkout's editable install does not come along
    (site / "lent.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert alone("init", "my-study", programs=programs, cwd=tmp_path).returncode == 0
    inside = tmp_path / "my-study"
    values = settings(tiny_model, gold={"kind": "own_gold:vowels"})
    values |= {"bias": [{"kind": "noise", "rate": 0.1}], "evaluation": {"replicates": 0}}
    # a module beside notebooks/ and params/ is found from there
    shutil.copy(ROOT / "tests" / "support" / "tiny_gold.py", inside / "own_gold.py")
    (inside / "params" / "mine.yaml").write_text(yaml.safe_dump(values))
    done = alone("run", "params/mine.yaml", programs=programs, cwd=inside, OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stderr[-3000:]
    facts = json.loads((inside / "runs" / "tiny" / "run.json").read_text())
    assert facts["seed"] == 0
    assert (inside / "runs" / "tiny" / "04_evaluation" / "metrics.json").is_file()
