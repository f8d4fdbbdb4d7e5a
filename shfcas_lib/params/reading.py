"""Parameters from outside: a YAML file, or any mapping, becomes one validated object.

    params = load("params/quickstart.yaml")
    params.sampling.n

Bad input raises InputError: one sentence that names the file, the key, what was found and what
was expected.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import problems
from shfcas_lib.params.schema import MECHANISMS, Block, Params

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


def changed(params: Params) -> dict[str, Any]:
    """What a run says beyond the defaults, by name: every block is there, empty where it says
    nothing. `validate` makes the same parameters of it."""
    values = params.model_dump()
    for name in values:
        block = getattr(params, name)
        if isinstance(block, BaseModel):
            values[name] = block.model_dump(exclude_defaults=True)
    return values


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
