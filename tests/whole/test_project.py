"""The project's own promises: ranges and one lock, parameter files that load, README commands that
exist."""

import importlib.util
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement
from project import EXTRAS, REQUIREMENTS, ROOT, TOOLS, locked

from shfcas_lib.experiment import checks
from shfcas_lib.params import reading

README = (ROOT / "README.md").read_text()


def bounds(requirement):
    """The operators of a range, or of a pin."""
    return sorted(part.operator for part in requirement.specifier)


def test_every_dependency_is_a_range_with_two_ends_and_every_tool_is_pinned():
    testing = [Requirement(pin) for pin in EXTRAS["test"]]
    for one in REQUIREMENTS:
        assert bounds(one) in (["<", ">="], ["=="]), one
    assert all(bounds(one) == ["=="] for one in testing)
    assert all(re.fullmatch(r"[a-z0-9_-]+==[0-9][0-9a-z.]*", pin) for pin in TOOLS)
    assert all(pin in (ROOT / "Makefile").read_text() for pin in TOOLS), (
        "the make target installs the version of pyproject.toml"
    )


def test_the_lock_holds_a_version_of_every_range():
    lock = locked()
    outside = {
        str(one): lock.get(one.name)
        for one in REQUIREMENTS
        if one.name not in lock or not one.specifier.contains(lock[one.name])
    }
    assert outside == {}


def test_ranges_leave_torch_and_numpy_of_others_alone():
    """As Colab's, which a pin of ours would replace."""
    ranges = {one.name: one.specifier for one in REQUIREMENTS}
    for name, others in {"torch": ("2.14.1", "2.15.0"), "numpy": ("2.0.2", "2.3.5")}.items():
        assert all(ranges[name].contains(version) for version in others)


def test_make_and_conda_install_the_locked_versions_of_the_same_extras():
    pip = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"][-1]["pip"]
    makefile = (ROOT / "Makefile").read_text()
    assert pip == ["--constraint requirements.lock", "--editable .[test,sweep]"]
    assert "--constraint requirements.lock --editable '.[test,sweep]'" in makefile


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.name)
def test_every_parameter_file_loads_and_its_data_is_there(path):
    settings = reading.load(path)
    if (
        not settings.prompts.recipe and not settings.preferences.recipe
    ):  # those of hubs are tested in test_real_runs
        assert len(checks.check(settings)) >= 6
    assert path.read_text().startswith("# "), "a header says what the run does"


def test_every_make_line_of_the_readme_is_a_target():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = set(re.findall(r"^\s+make ([a-z-]+)", README, re.MULTILINE)) | set(
        re.findall(r"`make ([a-z-]+)", README)
    )
    assert used and used <= targets


def test_every_command_of_the_readme_is_run_by_a_test():
    commands = set(re.findall(r"^    python -m shfcas_lib (\w+)", README, re.MULTILINE))
    tested = {
        name
        for path in (ROOT / "tests").rglob("*.py")
        for name in re.findall(r'"shfcas_lib",\s+"(\w+)"', path.read_text())
    }
    assert commands and commands <= tested


def test_every_file_the_readme_shows_exists():
    for target in re.findall(r"\]\(((?!http)[^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_make_help_lists_the_targets():
    printed = subprocess.run(
        ["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert all(f"make {name}" in printed for name in ("demo", "test", "lab", "format", "clean"))


def test_keys_lists_every_parameter():
    printed = subprocess.run(
        [sys.executable, "-m", "shfcas_lib", "keys"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert all(name in printed for name, _, _ in reading.keys())


def test_a_reader_who_has_read_enough_sees_no_traceback():
    """As with `| head`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "shfcas_lib", "keys"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 1


def test_a_bad_parameter_file_ends_in_one_sentence(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("sampling: {n: 1}\n")
    done = subprocess.run(
        [sys.executable, "-m", "shfcas_lib", "run", str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
    assert "bad.yaml" in done.stderr and "sampling.n" in done.stderr and "1" in done.stderr


def test_every_table_of_the_results_page_is_what_its_rows_say(monkeypatch):
    """statsmodels collects garbage after each of 133 corrections: half a second each where torch
    is loaded, four fifths of the time that the page takes."""
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    page = ROOT / "docs" / "results.md"
    spec = importlib.util.spec_from_file_location("tables", ROOT / "docs" / "results" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    assert tables.fill(page.read_text()) == page.read_text(), "run `make claims`"
    assert all(f"<!-- table: {name} -->" in page.read_text() for name in tables.BLOCKS)
