"""The house stands as drawn: imports flow one way, modules know each other by their own names, and
the public faces are true and light."""

import importlib
import shutil
import statistics
import subprocess
import sys

import pytest
from faces import LIBRARY, faces, modules, through_faces
from project import ROOT, environment

FACES = faces()
HEAVY = ("torch", "transformers", "trl", "matplotlib", "pandas", "numpy")
CHECK = (
    "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
)


# --- imports flow one way


def contract(folder):
    """What import-linter says of the library in a folder that holds it and the contract."""
    return subprocess.run(
        [sys.executable, "-c", CHECK],
        cwd=folder,
        env=environment(PYTHONPATH=str(folder), NO_COLOR="1", COLUMNS="200"),
        capture_output=True,
        text=True,
    )


@pytest.fixture
def copied(tmp_path):
    """A copy of the library and its contract, to build on."""
    shutil.copytree(
        ROOT / LIBRARY, tmp_path / LIBRARY, ignore=shutil.ignore_patterns("__pycache__")
    )
    shutil.copy(ROOT / ".importlinter", tmp_path)
    return tmp_path


def test_imports_keep_the_contract():
    said = contract(ROOT)
    assert said.returncode == 0, said.stdout + said.stderr
    assert " 0 broken" in said.stdout


@pytest.mark.parametrize(
    "file, text, words",
    [
        ("newcomer.py", "x = 1\n", ["Imports flow one way BROKEN", "newcomer"]),
        ("newroom/__init__.py", "", ["Imports flow one way BROKEN", "newroom"]),
        (
            "base/upwards.py",
            "def later():\n    from shfcas_lib.storage import files\n    return files\n",
            ["Imports flow one way BROKEN", "shfcas_lib.base.upwards -> shfcas_lib.storage.files"],
        ),
        (
            "conflict.py",
            "from shfcas_lib.screen import widget\n",
            ["The method knows no screen, sweep, cluster or judge BROKEN"],
        ),
        ("tasks/safety.py", "from shfcas_lib.tasks import embedded\n", []),
        (
            "storage/sqlite.py",
            "from shfcas_lib.storage import labels\n",
            ["No room has a circle BROKEN"],
        ),
    ],
)
def test_a_breach_of_the_contract_is_told(copied, file, text, words):
    """A module or room without a floor, an import upwards, even inside a function, the method
    that looks at a screen, a circle in a room; what is allowed stays allowed."""
    place = copied / LIBRARY / file
    place.parent.mkdir(exist_ok=True)
    old = place.read_text() if place.exists() else ""
    place.write_text(old + text)
    said = contract(copied)
    assert said.returncode == (1 if words else 0), said.stdout + said.stderr
    assert all(word in said.stdout for word in words), said.stdout


# --- a module is imported by its own name: what a job of a sweep uses is read from such imports


def test_no_module_imports_through_a_public_face():
    assert through_faces() == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("from shfcas_lib.data import load_prompts", "load_prompts"),
        ("from ..data import load_prompts", "load_prompts"),
        ("def f():\n    from shfcas_lib import select", "select"),
        ("import shfcas_lib as shf", "shfcas_lib"),
        ("import shfcas_lib.data", "shfcas_lib.data"),
        ("from shfcas_lib import data", "data"),
        ("from shfcas_lib.data.prompts import load_prompts", None),
        ("from shfcas_lib.data import prompts", None),
        ("from shfcas_lib import pool, __version__", None),
    ],
)
def test_an_import_through_a_face_is_found(copied, text, found):
    place = copied / LIBRARY / "experiment" / "newcomer.py"
    place.write_text(text + "\n")
    named = [line.split(" ")[1] for line in through_faces(copied)]
    assert named == ([found] if found else [])


# --- the public faces


def test_every_package_has_a_face():
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert packages == set(FACES)


@pytest.mark.parametrize("package", FACES)
def test_every_public_name_is_the_object_of_its_module(package):
    found = importlib.import_module(package)
    assert FACES[package]
    for name, home in FACES[package].items():
        module, _, inner = home.partition(":")
        meant = importlib.import_module(module)
        assert getattr(found, name) is (getattr(meant, inner) if inner else meant), name
    assert set(found.__all__) == set(FACES[package])


@pytest.mark.parametrize("package", FACES)
def test_no_public_name_is_hidden_by_a_module_of_the_same_name(package):
    """A module, once imported, stands in its package under its own name, whatever the face says;
    which of the two one gets would depend on what was imported before."""
    known = modules()
    for name, home in FACES[package].items():
        assert f"{package}.{name}" not in known or home == f"{package}.{name}", name


def seconds_of(statement):
    """CPU seconds of a fresh interpreter that runs one statement, until it is done."""
    code = f"import sys, time; {statement}; sys.stdout.write(str(time.process_time()))"
    return float(
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )


def test_importing_the_library_takes_under_50_ms():
    """Of the processor, beyond the start of Python itself: other work on the machine does not
    count."""
    seconds_of("import shfcas_lib")  # compiled once
    alone, ours = (
        statistics.median(seconds_of(statement) for _ in range(7))
        for statement in ("pass", "import shfcas_lib")
    )
    assert ours - alone < 0.05, f"{ours - alone:.3f} s"


@pytest.mark.parametrize("package", FACES)
def test_importing_the_library_is_light(package):
    """A room's face opens no room: nothing is imported before it is asked for."""
    code = (
        f"import {package}, sys; print([m for m in {HEAVY} if m in sys.modules],"
        f" [m for m in sys.modules if m.startswith('{LIBRARY}.') and m != '{package}'])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip() == "[] []"
