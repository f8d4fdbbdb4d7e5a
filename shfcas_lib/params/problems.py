"""What is wrong with a parameter file, in one sentence a user can act on: a pydantic error goes
in, words come out."""

from __future__ import annotations

import difflib
import json
import math
import re
from typing import Any

from pydantic import BaseModel


def sentence(error: dict, root: type[BaseModel], mechanisms: dict[str, type[BaseModel]]) -> str:
    """One pydantic error in words: the dotted key, what was found, what was expected. root: the
    model that was validated; mechanisms: the members of the union under `bias`, by kind."""
    # Pydantic names the branch of a union; the user's file has no such key.
    where = ".".join(
        str(part)
        for i, part in enumerate(error["loc"])
        if not (part in mechanisms and i and isinstance(error["loc"][i - 1], int))
    )
    found = error.get("input")
    if error["type"] == "extra_forbidden":
        valid = _siblings(error["loc"], root, mechanisms)
        near = difflib.get_close_matches(str(error["loc"][-1]), valid, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"unknown parameter {where!r}{hint} (valid: {', '.join(valid)})"
    if isinstance(found, str) and error["type"] in ("float_type", "int_type"):
        whole = error["type"] == "int_type"
        advice = "" if whole and not found.strip().lstrip("+-").isdigit() else _as_number(found)
        return f"{where}: YAML read {found!r} as text, expected a number{advice}"
    if error["type"] == "missing":
        return f"{where}: missing"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    shown = json.dumps(found, default=str)
    return (
        f"{where or 'parameters'}: found {shown if len(shown) < 80 else shown[:77] + '...'},"
        f" {message[0].lower() + message[1:]}"
    )


def _as_number(text: str) -> str:
    """How to write a number so that YAML reads it as one; nothing where the text is no finite
    number."""
    parts = re.fullmatch(r"([+-]?\d+)(\.\d+)?(?:[eE]([+-]?)(\d+))?", text.strip())
    if not parts or not math.isfinite(float(text)):
        return ""
    whole, fraction, sign, exponent = parts.groups()
    if exponent is None:
        return f" (write {text.strip()} without quotes)"
    return f" (write {whole}{fraction or '.0'}e{sign or '+'}{exponent})"


def _siblings(
    loc: tuple, root: type[BaseModel], mechanisms: dict[str, type[BaseModel]]
) -> list[str]:
    """The keys that stand where the unknown one was found."""
    block: Any = root
    for part in loc[:-1]:
        if part in mechanisms and block is list:
            block = mechanisms[part]
        elif isinstance(part, int):
            block = list
        elif isinstance(block, type) and issubclass(block, BaseModel):
            block = block.model_fields[part].annotation
    return (
        list(block.model_fields) if isinstance(block, type) and issubclass(block, BaseModel) else []
    )
