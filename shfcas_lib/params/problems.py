"""What is wrong with a parameter file, in one sentence a user can act on.

A pydantic error goes in, words come out.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel


def sentence(
    error: Mapping[str, Any], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> str:
    """One pydantic error in words: the dotted key, what stands there, what was expected.

    root: the model that was validated. mechanisms: the members of the union under `bias`, by
    kind.
    """
    where = _dotted(error["loc"], root, mechanisms)
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
    text = json.dumps(value, default=str)
    if len(text) >= 80:
        text = text[:77] + "..."
    return f"{where or 'parameters'}: found {text}, {_wanted(error, root, mechanisms)}"


# What pydantic calls by names of its own, by the type of its error.
_WORDS = {
    "list_type": "expected a list, such as [one, two]",
    "int_type": "expected a whole number",
    "int_from_float": "expected a whole number",
    "int_parsing_size": "expected a whole number of fewer digits",
    "float_type": "expected a number",
    "finite_number": "expected a finite number",
    "bool_type": "expected true or false",
    "string_type": "expected text",
    "string_too_short": "expected text that is not empty",
    "invalid_key": "expected a name in letters as key",
}
_BLOCKS = ("model_type", "model_attributes_type", "dict_type", "mapping_type")
# What the patterns of the schema mean.
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$": (
        "expected a name of letters, digits, '.', '_' and '-', at most 64 of them, the first a"
        " letter or a digit"
    ),
    r"^(trained|given|model:.+)$": "expected 'trained', 'given' or 'model:' and a hub id or folder",
}


def _wanted(
    error: Mapping[str, Any], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> str:
    """What was expected, in words that need no knowledge of the validator."""
    kind, context, value = error["type"], error.get("ctx", {}), error.get("input")
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return f"expected a kind: {context.get('expected_tags') or _quoted(mechanisms)}"
    if kind in _BLOCKS:
        block = _block_at(error["loc"], root, mechanisms)
        if block is list:
            return f"expected keys, first of all kind: {_quoted(mechanisms)}"
        names = list(block.model_fields) if _is_block(block) else []
        return f"expected keys under it ({', '.join(names)})"
    choices = _union(error["loc"], root, mechanisms)
    if choices:
        return f"expected {choices}"
    if kind == "too_short":
        return f"expected a list of at least {context['min_length']}"
    if kind == "list_type" and isinstance(value, str):
        return f"expected a list: [{value[:40]}]"
    if kind == "string_pattern_mismatch":
        pattern = context["pattern"]
        return _PATTERNS.get(pattern, f"expected text of the form {pattern}")
    if kind in _WORDS:
        return _WORDS[kind]
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    message = message[0].lower() + message[1:]
    if kind == "literal_error" and isinstance(value, str):
        valid = re.findall(r"'([^']+)'", context["expected"])
        near = difflib.get_close_matches(value, valid, n=1, cutoff=0.6)
        message += f"; did you mean {near[0]!r}?" if near else ""
    return message


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _union(
    loc: tuple[int | str, ...], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> str:
    """What a key takes that takes one of several kinds of value; '' for every other key.

    Pydantic tries them all, and names the one that it tried after the key.
    """
    if not loc or _block_at(loc[:-1], root, mechanisms) is not _END:
        return ""
    annotation = None
    for end in range(len(loc) - 1, 0, -1):
        block = _block_at(loc[: end - 1], root, mechanisms)
        if _is_block(block) and loc[end - 1] in block.model_fields:
            annotation = block.model_fields[str(loc[end - 1])].annotation
            break
    words = []
    for member in get_args(annotation):
        if member in _PLAIN:
            words.append(_PLAIN[member])
        elif get_origin(member) is list:
            words.append("a list of texts")
        elif member is type(None):
            words.append("null")
    return ", ".join(words[:-1]) + f" or {words[-1]}" if len(words) > 1 else ""


_END = object()  # below a key that is no block


def _block_at(
    loc: tuple[int | str, ...], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> Any:
    """The block at a place of the parameters, `list` for a member of a list of blocks, else
    _END."""
    block: Any = root
    for part in loc:
        if block is list and part in mechanisms:
            block = mechanisms[str(part)]
        elif isinstance(part, int):
            block = list
        elif _is_block(block) and part in block.model_fields:
            block = block.model_fields[part].annotation
        else:
            return _END
    if block is list or _is_block(block):
        return block
    return _END


def _dotted(
    loc: tuple[int | str, ...], root: type[BaseModel], mechanisms: Mapping[str, type[BaseModel]]
) -> str:
    """The place of an error as the user's file has it: `bias.0.rate`.

    Pydantic names the branch of a union after the number or the key; the file has no such key.
    """
    keys = []
    for number, part in enumerate(loc):
        branch = part in mechanisms and number > 0 and isinstance(loc[number - 1], int)
        tried = isinstance(part, str) and re.fullmatch(r"(list\[\w+\]|str|int|float)", part)
        if not branch and not (tried and number > 1):
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
