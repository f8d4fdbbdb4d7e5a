"""Parameters from outside: a YAML file, or a notebook's cells, become one validated object.

    params = load("params/quickstart.yaml")
    params.sampling.n

Bad input raises InputError: one sentence that names the file, the key, what was found and what
was expected.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import problems
from shfcas_lib.params.schema import MECHANISMS, Block, Params

_SAID = "_shfcas_parameters"  # in a notebook's namespace: cells that were read, what they set
_LONGEST_FILE = 1 << 19  # characters; reading so many takes seconds


def load(path: str | Path) -> Params:
    """Read and validate one YAML file. Raises InputError."""
    return validate(read_yaml(path), str(path))


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML file as a plain mapping; keys given twice, aliases and tags are refused.

    Raises InputError.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST_FILE + 1)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read parameter file {path}: {error}") from error
    if len(text) > _LONGEST_FILE:
        raise InputError(f"parameter file {path} is longer than {_LONGEST_FILE} characters")
    try:
        values = yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        # a whole number of thousands of digits is a ValueError
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise InputError(f"{path} is not valid YAML: nested too deeply") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, expected a mapping of parameters")
    return values


def from_notebook(namespace: dict[str, Any]) -> Params:
    """Validate the variables that a notebook's parameter cells set.

    Those are its own defaults, then what Papermill injected. The cells start with the word
    `# Parameters`, which is how Papermill heads its own. Where Papermill injected a whole run
    (it sets `run`), only that counts, so that `papermill -f mine.yaml` and `shfcas run
    mine.yaml` mean the same. A name in them that is no parameter is an error here, where
    Papermill alone would only warn. Where the kernel keeps no history of cells (nbval), the
    variables of the parameters' names are taken as they are. Raises InputError as `validate`
    does, and where the cell has not been run.
    """
    cells = _parameter_cells(namespace.get("In", []))
    values = _said(cells, namespace)
    if not cells:
        values = {name: namespace[name] for name in Params.model_fields if name in namespace}
    if not values:
        raise InputError("the notebook's parameter cell has not been run: run it first")
    return validate(values, "the notebook's parameters")


def _parameter_cells(history: list[str]) -> list[str]:
    """The sources of the cells that count: those of a whole run, where one was injected."""
    cells = [source for source in history if source.startswith("# Parameters")]
    injected = [source for source in cells if source.startswith("# Parameters\n")]
    whole = [source for source in injected if re.search(r"^run = ", source, re.MULTILINE)]
    return whole or cells


def _said(cells: list[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """What the cells set, by name; kept in the namespace until one of them runs again.

    What a cell computes is in the variables alone, which later cells use for something else.
    """
    ran, values = namespace.get(_SAID, ([], {}))
    if ran != cells:
        values = {}
        for source in cells:
            values |= _assigned(source, namespace)
        namespace[_SAID] = cells, values
    return values


def _assigned(source: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """What one cell sets, by name."""
    values = {}
    for node in ast.parse(source).body:
        targets: list[ast.expr]
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name):
                values[target.id] = _value(node.value, namespace.get(target.id))
    return values


def _value(node: ast.expr | None, otherwise: Any) -> Any:
    """What a cell says, where it says it literally; else what the variable holds.

    Later cells may use the same name for something else.
    """
    if node is None:  # a bare annotation sets nothing
        return otherwise
    try:
        return ast.literal_eval(node)
    except ValueError:
        return otherwise


def validate(values: dict[str, Any], origin: str) -> Params:
    """Parameters from a mapping; `origin` is what an error calls it.

    Raises InputError, one sentence, for a key or a value that cannot be.
    """
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        # A misspelt key shows up twice, as an unknown and as a missing one: the first says what
        # to do.
        errors = sorted(error.errors(), key=lambda e: e["type"] == "missing")
        message = problems.sentence(errors[0], Params, MECHANISMS)
        raise InputError(f"{origin}: {message}") from error


def fingerprint(*parts: Any) -> str:
    """Sixteen hex digits that change when any of the parts (blocks or plain data) changes."""
    plain = [part.model_dump() if isinstance(part, BaseModel) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, default=_dump)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _dump(value: Any) -> Any:
    return value.model_dump() if isinstance(value, BaseModel) else str(value)


def keys() -> list[tuple[str, str, str]]:
    """Every parameter as (dotted name, default, description), in the order of the file."""
    return list(_keys(Params, ""))


def _keys(block: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in block.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Block):
            yield from _keys(inner, f"{prefix}{name}.")
            continue
        default = "(required)"
        if not field.is_required():
            default = json.dumps(field.get_default(), default=_dump)
        yield prefix + name, default, field.description or ""
        if name == "bias":
            yield from _mechanism_keys()


def _mechanism_keys() -> Iterator[tuple[str, str, str]]:
    """The keys of every member of the union under `bias`, all of them required."""
    for kind, mechanism in MECHANISMS.items():
        for key, field in mechanism.model_fields.items():
            if key != "kind":
                yield f"bias[kind: {kind}].{key}", "(required)", field.description or ""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses keys given twice, and aliases.

    Aliases can make a small file explode.
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        names = Counter(repr(self.construct_object(key, deep=True)) for key, _ in node.value)
        for name, count in names.items():
            if count > 1:
                raise yaml.YAMLError(f"key {name} is given twice")
        return super().construct_mapping(node, deep)
