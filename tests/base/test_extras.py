"""Packages that not everybody installs: which they are, and one sentence where one is missing."""

import ast
import sys

import pytest
from faces import modules
from packaging.utils import canonicalize_name
from project import CORE, EXTRAS

from shfcas_lib.base import extras
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli.program import main

# The module of a distribution that is called otherwise.
MODULE = {"pyyaml": "yaml", "python-dateutil": "dateutil"}
# Asked for where a run is quantised, or wants another engine; what needs them says so itself.
OWN_WORDS = {"bitsandbytes", "vllm"}
# What a declared package promises to bring.
BROUGHT = {"traitlets": "anywidget", "nbclient": "papermill", "jupyter_client": "papermill"}
BROUGHT |= {"huggingface_hub": "transformers"}


def module_of(name):
    return MODULE.get(name, name).replace("-", "_")


def imports(tree):
    """The top packages that a tree imports, with whether the import runs with the module."""
    later = set()
    for node in ast.walk(tree):
        inside = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        typing = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if inside or typing:
            later |= set(ast.walk(node))
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module]
        for name in names:
            yield name.partition(".")[0], node not in later


def used():
    """(module of this library, package, imported with it?) of everything that is not Python's."""
    for module, path in modules().items():
        for name, at_once in imports(ast.parse(path.read_text())):
            if name not in sys.stdlib_module_names and name != "shfcas_lib":
                yield module, name, at_once


def test_every_package_that_the_library_imports_is_declared():
    core = {module_of(one.name) for one in CORE}
    known = core | {name for names in extras.EXTRAS.values() for name in names} | OWN_WORDS
    found = set(used())
    assert {name for _, name, _ in found} <= known | set(BROUGHT)
    # the screen is a widget, and the probe's class leaves this library as a file of its own:
    # nothing else imports the two; all other modules load with the core
    heavy = {(module, name) for module, name, at_once in found if at_once and name not in core}
    assert {module for module, _ in heavy} == {
        "shfcas_lib.screen.widget",
        "shfcas_lib.out.modeling_probe_reward",
    }


def test_the_extras_are_those_of_the_project():
    for extra, names in extras.EXTRAS.items():
        lines = [line for line in EXTRAS[extra] if not line.startswith("shfcas[")]
        declared = {module_of(canonicalize_name(line.split("=")[0].rstrip("><"))) for line in lines}
        plugins = {name for name in declared if name.startswith("snakemake_executor")}
        assert set(names) == declared - plugins - OWN_WORDS, extra
    for extra, parts in extras._BRINGS.items():
        (line,) = [line for line in EXTRAS[extra] if line.startswith("shfcas[")]
        named = line.removeprefix("shfcas[").rstrip("]").split(",")
        deeper = {part for name in named for part in extras._BRINGS.get(name, ())}
        assert set(parts) == {*named, *deeper}


@pytest.mark.parametrize(
    "asked, missing, words",
    [
        (("models",), {"models": ("no_a",)}, "needs no_a, which is not installed"),
        (("models",), {"models": ("no_a", "json", "no_b")}, "no_a, no_b, which are not"),
        (("models",), {"models": ("no_a",)}, "pip install 'shfcas[models]'"),
        (("sweep", "models"), {"models": ("no_a",), "sweep": ("no_b",)}, "'shfcas[sweep]'"),
        (
            ("screen", "models"),
            {"models": ("no_a",), "screen": ("no_b",)},
            "[screen,models]'",
        ),
        (("models",), {"models": tuple("qwxyz")}, "q, w, x and 2 more packages, which are"),
    ],
)
def test_a_missing_extra_is_one_sentence(asked, missing, words, monkeypatch):
    for extra, names in missing.items():
        monkeypatch.setitem(extras.EXTRAS, extra, names)
    with pytest.raises(InputError) as caught:
        extras.need(*asked, what="this test")
    assert words in str(caught.value) and str(caught.value).startswith("this test needs")


def test_an_extra_that_is_there_is_no_error(monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "models", ("json", "ast"))
    extras.need("models")


@pytest.mark.parametrize(
    "words, needed",
    [
        (["run", "params/quickstart.yaml"], "models"),
        (["stage", "pools", "params/quickstart.yaml"], "models"),
        (["plan", "params/quickstart.yaml"], "models"),
        (["assets"], "models"),
        (["annotate", "params/annotate.yaml"], "screen"),
        (["run", "params/quickstart.yaml"], "notebooks"),
        (["sweep", "params/sweeps/smoke.yaml"], "sweep"),
        (["job", "nowhere"], "notebooks"),
    ],
)
def test_a_command_without_its_extra_does_not_start(words, needed, monkeypatch, capsys):
    for extra, names in extras.EXTRAS.items():
        there = ("no_such_package",) if extra == needed else ("json",)
        monkeypatch.setitem(extras.EXTRAS, extra, there if names else names)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert said == (
        f"shfcas: shfcas {words[0]} needs no_such_package, which is not installed:"
        f" pip install 'shfcas[{needed}]'\n"
    )


def test_a_package_that_turns_out_to_be_missing_is_the_same_sentence(monkeypatch, capsys):
    """As one that only some parameters need."""

    def act(name):
        def raises(*_):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return raises

    monkeypatch.setattr("shfcas_lib.params.reading.keys", act("trl.trainer"))
    assert main(["keys"]) == 2
    assert "needs trl.trainer, which is not installed: pip install 'shfcas[models]'" in (
        capsys.readouterr().err
    )
    monkeypatch.setattr("shfcas_lib.params.reading.keys", act("a_module_of_the_users"))
    with pytest.raises(ModuleNotFoundError):
        main(["keys"])
