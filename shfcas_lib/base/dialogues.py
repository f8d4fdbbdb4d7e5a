"""A prompt that is a chat history, in the one string that a prompt is everywhere else.

A request of one turn is its own text. A history of several turns is the JSON of its messages,
as `encode` writes it, so that prompt tables, ids and files need no second column, and a chat
template gets the turns back:

    prompt = encode([{"role": "user", ...}, {"role": "assistant", ...}, {"role": "user", ...}])
    messages(prompt)        # the same three
    plain(prompt)           # for people, judges and models without a chat template
"""

from __future__ import annotations

import hashlib
import json
import re

Message = dict[str, str]
NAMES = {"user": "User", "assistant": "Assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ \t]?")


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

    There the speakers are marked '\\n\\nHuman:' and '\\n\\nAssistant:'.
    """
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]

    turns = []
    for mark, end in zip(marks, ends, strict=True):
        role = "user" if mark[1] == "Human" else "assistant"
        turns.append({"role": role, "content": text[mark.end() : end].strip()})
    return turns


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(_is_turn(turn) for turn in value)


def _is_turn(value: object) -> bool:
    if not isinstance(value, dict) or list(value) != ["role", "content"]:
        return False
    return value["role"] in NAMES and isinstance(value["content"], str)


def prompt_id(prompt: str) -> str:
    """Sixteen hex digits of the sha256 of a prompt's text."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
