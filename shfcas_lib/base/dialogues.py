"""A prompt that is a chat history, in the one string that a prompt is everywhere else.

A request of one turn is its own text. A history of several turns is the JSON of its messages, as
`encode` writes it, so that prompt tables, ids and files need no second column, and a chat
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
    """The prompt that stands for these turns: the text of a single user turn, else JSON.
    `messages` turns it back."""
    if len(turns) == 1 and turns[0]["role"] == "user" and messages(turns[0]["content"]) == turns:
        return turns[0]["content"]
    return json.dumps(
        [{"role": turn["role"], "content": turn["content"]} for turn in turns], ensure_ascii=False
    )


def messages(prompt: str) -> list[Message]:
    """The turns of a prompt, each with role and content. Text that `encode` did not write is one
    user turn, whatever it looks like."""
    if prompt.startswith('[{"role": '):
        try:
            turns = json.loads(prompt)
        except (ValueError, RecursionError):
            turns = None
        if _are_turns(turns) and json.dumps(turns, ensure_ascii=False) == prompt:
            return turns
    return [{"role": "user", "content": prompt}]


def plain(prompt: str) -> str:
    """The prompt as text to read: as it is, or with the speaker before each turn where there are
    several."""
    turns = messages(prompt)
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n\n".join(f"{NAMES[turn['role']]}: {turn['content']}" for turn in turns)


def from_transcript(text: str) -> list[Message] | None:
    """The turns of a transcript whose speakers are marked '\\n\\nHuman:' and '\\n\\nAssistant:'
    (HH-RLHF); None where it is none."""
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip():
        return None
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [
        {
            "role": "user" if mark[1] == "Human" else "assistant",
            "content": text[mark.end() : end].strip(),
        }
        for mark, end in zip(marks, ends)
    ]


def _are_turns(value) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(
            isinstance(turn, dict)
            and list(turn) == ["role", "content"]
            and turn["role"] in NAMES
            and isinstance(turn["content"], str)
            for turn in value
        )
    )


def prompt_id(prompt: str) -> str:
    """Sixteen hex digits of the sha256 of a prompt's text."""
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()[:16]
