"""A prompt that is a chat history, in the one string that a prompt is everywhere else.

A request of one turn is its own text. A history of several turns is the JSON of its messages,
as `encode` writes it, so that prompt tables, ids and files need no second column, and a chat
template gets the turns back:

    prompt = encode([{"role": "user", ...}, {"role": "assistant", ...}, {"role": "user", ...}])
    messages(prompt)        # the same three
    plain(prompt)           # for people, judges and models without a chat template
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import re
import tokenize
from typing import Any

Message = dict[str, str]
NAMES = {"user": "User", "assistant": "Assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")
# what text starts with that some program made of messages
_NOTATION = re.compile(r"\s*(?:array\()?\[?\s*\{\s*['\"](?:role|content)['\"]\s*:")
_LONGEST_PYTHON = 1 << 20  # characters; Python's own parser takes a hundred times the memory
# what a chat template writes before its first turn, and other customs that no recipe knows
_TEMPLATE = re.compile(
    r"\s*(?:<s>|<bos>|<\|begin_of_text\|>)?\s*(###? ?(?:Human|User|Instruction):|<\|im_start\|>"
    r"|\[INST\]|<\|(?:user|system|prompter|start_header_id)\|>|<start_of_turn>)"
)


def encode(turns: list[Message]) -> str:
    """The prompt that stands for these turns; `messages` turns it back.

    A single user turn is its own text, everything else is JSON.
    """
    if len(turns) == 1 and turns[0]["role"] == "user":
        text = turns[0]["content"]
        if messages(text) == turns:
            return text
    plain_turns = [{"role": turn["role"], "content": turn["content"]} for turn in turns]
    return json.dumps(plain_turns, ensure_ascii=False)


def messages(prompt: str) -> list[Message]:
    """The turns of a prompt, each with role and content.

    Text that `encode` did not write is one user turn, whatever it looks like.
    """
    if prompt.startswith('[{"role": '):
        try:
            turns = json.loads(prompt)
        except (ValueError, RecursionError):
            turns = None
        if _are_turns(turns) and json.dumps(turns, ensure_ascii=False) == prompt:
            return turns
    return [{"role": "user", "content": prompt}]


def plain(prompt: str) -> str:
    """The prompt as text to read, with the speaker before each turn where there are several."""
    turns = messages(prompt)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{NAMES[turn['role']]}: {turn['content']}" for turn in turns)


def from_transcript(text: str) -> list[Message] | None:
    """The turns of a transcript in the form of HH-RLHF; None where the text is none.

    There the speakers are marked '\\n\\nHuman:' and '\\n\\nAssistant:'. Line ends of any kind
    become '\\n'.
    """
    text = re.sub("\r\n?", "\n", text)
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]

    turns = []
    for mark, end in zip(marks, ends, strict=True):
        role = "user" if mark[1] == "Human" else "assistant"
        turns.append({"role": role, "content": text[mark.end() : end].strip()})
    return turns


def transcript_mark(text: str) -> str | None:
    """What shows that a text is a dialogue written out: 'Human:' in the form of HH-RLHF, or the
    mark of a chat template; None for other text."""
    turns = from_transcript(text)
    if turns and turns[0]["role"] == "user" and (len(turns) > 1 or text.startswith("\n\n")):
        return "Human:"
    template = _TEMPLATE.match(text)
    return template[1] if template else None


def from_notation(text: str) -> list[dict[str, Any]] | None:
    """The messages that a text holds as JSON or as Python or numpy print them; None where it
    holds none.

    Roles and contents are as they stand there. Raises ValueError for text that starts like
    messages and cannot be read on, as where a spreadsheet cut it off.
    """
    if not _NOTATION.match(text):
        return None
    try:
        value = json.loads(text, object_pairs_hook=_once_each)
    except _Twice:  # in Python's notation the last would count, without a word
        raise
    except (ValueError, RecursionError):
        value = _python_value(text)
    value = [value] if isinstance(value, dict) else value
    if not isinstance(value, list) or not all(map(is_message, value)):
        return None
    return value


def is_message(value: object) -> bool:
    """Has a value a role and a content, of whatever kind?"""
    return isinstance(value, dict) and {"role", "content"} <= set(value)


class _Twice(ValueError):
    """A message has a key twice."""


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice("a key is given twice")
    return found


def _python_value(text: str) -> Any:
    """The value of a Python literal. Raises ValueError where the text is none."""
    text = text.strip().removeprefix("array(")
    text = re.sub(r",\s*dtype=object\)$", "", text)
    try:
        if len(text) > _LONGEST_PYTHON:
            raise ValueError("too long")
        return ast.literal_eval(_with_commas(text))
    except (ValueError, SyntaxError, RecursionError, MemoryError, tokenize.TokenError) as error:
        raise ValueError("neither JSON nor Python notation") from error


def _with_commas(text: str) -> str:
    """Commas between the dictionaries of a list: numpy prints none."""
    lines = text.splitlines(keepends=True)
    before = None
    places = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.NL, tokenize.NEWLINE):
            continue
        if before == "}" and token.string == "{":
            places.append(token.start)
        before = token.string
    for row, column in reversed(places):
        line = lines[row - 1]
        lines[row - 1] = line[:column] + "," + line[column:]
    return "".join(lines)


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_turn(turn) for turn in value)


def _is_turn(value: object) -> bool:
    if not isinstance(value, dict) or list(value) != ["role", "content"]:
        return False
    return value["role"] in NAMES and isinstance(value["content"], str)


def prompt_id(prompt: str) -> str:
    """Sixteen hex digits of the sha256 of a prompt's text."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
