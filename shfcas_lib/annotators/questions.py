"""A comparison as a question that travels in a file, and an answer to it.

A question's id holds the comparison, the order in which it is shown, and a hash of its texts:
`q-PROMPT_ID-4-1-HASH` shows completion 4 on the left and 1 on the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage.labels import ANSWERS

KEY = ["prompt_id", "i", "j"]
COLUMNS = ["question", "prompt", "left", "right", "answer", "annotator"]
# of the two as shown; the other answers have the same name on either side
SIDES = {"left": "first", "right": "second"}
SHOWN = [*SIDES, *(answer for answer in ANSWERS if answer not in SIDES.values())]


@dataclass(frozen=True)
class Answer:
    """One answer in terms of the comparison.

    key: prompt_id, i, j, hash of the texts; left: the completion that stood on the left; where:
    its place in the file, for messages.
    """

    key: tuple[str, int, int, str]
    left: int
    answer: str
    annotator: str
    where: str


def answer_of(name, answer: str, annotator: str, where: str) -> Answer:
    """An answer about what stood left and right as one about the comparison, i < j."""
    prompt, left, right, code = parsed(name, where)
    word = "_".join(answer.lower().split())
    if word not in SHOWN:
        raise InputError(f"{where}: answer {answer[:80]!r}, expected {', '.join(SHOWN)}")
    sides = SIDES if left < right else {"left": "second", "right": "first"}
    key = (prompt, min(left, right), max(left, right), code)
    return Answer(key, left, sides.get(word, word), annotator, where)


def parsed(name, where: str) -> tuple[str, int, int, str]:
    """(prompt_id, left, right, hash) of a question's id."""
    parts = re.fullmatch(r"q-(.+)-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{8})", str(name), re.DOTALL)
    if not parts or parts[2] == parts[3]:
        raise InputError(
            f"{where}: question {str(name)[:80]!r} is none of ours, expected one like"
            " q-0123456789abcdef-4-1-0f1e2d3c"
        )
    return parts[1], int(parts[2]), int(parts[3]), parts[4]
