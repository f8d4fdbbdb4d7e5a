"""What is wrong with a parameter file, in one sentence a user can act on.

A pydantic error goes in, words come out.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def sentence(
    error: Mapping[str, Any], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> str:
    """One pydantic error in words: the dotted key, what stands there, what was expected.

    root: the model that was validated. mechanisms: the members of the union under `bias`, by
    kind.
    """
    where = _dotted(error["loc"], mechanisms)
    value = error.get("input")
    if error["type"] == "extra_forbidden":
        valid = _siblings(error["loc"], root, mechanisms)
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown parameter {where!r}{hint} (valid: {', '.join(valid)})"

    # YAML 1.1 takes 1e-4 and quoted numbers for text: say how to write them
    if isinstance(value, str) and error["type"] in ("float_type", "int_type"):
        fraction = error["type"] == "int_type" and not value.strip().lstrip("+-").isdigit()
        advice = "" if fraction else _as_number(value)
        return f"{where}: YAML read {value!r} as text, expected a number{advice}"

    if error["type"] == "missing":
        return f"{where}: missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = message[0].lower() + message[1:]
    text = json.dumps(value, default=str)
    if len(text) >= 80:
        text = text[:77] + "..."
    return f"{where or 'parameters'}: found {text}, {message}"


def _dotted(loc: tuple[int | str, ...], mechanisms: Mapping[str, type[BaseModel]]) -> str:
    """The place of an error as the user's file has it: `bias.0.rate`.

    Pydantic names the branch of a union after the number; the file has no such key.
    """
    keys = []
    for number, part in enumerate(loc):
        branch = part in mechanisms and number > 0 and isinstance(loc[number - 1], int)
        if not branch:
            keys.append(str(part))
    return ".".join(keys)


def _as_number(text: str) -> str:
    """How to write a number so that YAML reads it as one.

    Nothing where the text is no finite number.
    """
    parts = re.fullmatch(r"([+-]?\d+)(\.\d+)?(?:[eE]([+-]?)(\d+))?", text.strip())
    if not parts or not math.isfinite(float(text)):
        return ""
    whole, fraction, sign, exponent = parts.groups()
    if exponent is None:
        return f" (write {text.strip()} without quotes)"
    return f" (write {whole}{fraction or '.0'}e{sign or '+'}{exponent})"


def _siblings(
    loc: tuple[int | str, ...], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> list[str]:
    """The keys that are valid where the unknown one stands."""
    block: Any = root
    for part in loc[:-1]:
        if block is list and part in mechanisms:
            block = mechanisms[str(part)]
        elif isinstance(part, int):
            block = list
        elif _is_block(block):
            block = block.model_fields[part].annotation
    return list(block.model_fields) if _is_block(block) else []


def _is_block(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseModel)
