"""A comparison as a question that travels in a file, and an answer to it.

A question's id holds the comparison, the order in which it is shown, and a hash of its texts:
`q-PROMPT_ID-4-1-HASH` shows completion 4 on the left and 1 on the right.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage.labels import ANSWERS, BETTER, MUCH_BETTER, said

KEY = ["prompt_id", "i", "j"]
COLUMNS = ["question", "prompt", "left", "right", "answer", "annotator"]
# of the two as shown; the other answers have the same name on either side
SIDES = {"left": "first", "right": "second"}
_NEITHER = [answer for answer in ANSWERS if answer not in SIDES.values()]
MUCH = "much_"  # before a side, where answers are graded


def offered(graded: bool) -> list[str]:
    """The answers to choose from, in terms of what stands left and right."""
    sides = [f"{MUCH}left", *SIDES, f"{MUCH}right"] if graded else SIDES
    return [*sides, *_NEITHER]


@dataclass(frozen=True)
class Answer:
    """One answer in terms of the comparison.

    key        prompt_id, i, j, hash of the texts
    left       the completion that stood on the left
    answer     of ANSWERS or GRADED
    annotator  who gave it
    where      its place in the file, for messages
    aliases    other names of the same person, as a number beside a mail address
    """

    key: tuple[str, int, int, str]
    left: int
    answer: str
    annotator: str
    where: str
    aliases: tuple[str, ...] = ()


def answer_of(
    name,
    answer: str,
    annotator: str,
    where: str,
    graded: bool = False,
    aliases: tuple[str, ...] = (),
) -> Answer:
    """An answer about what stood left and right as one about the comparison, i < j.

    Raises InputError for a word that is not among those offered.
    """
    prompt, left, right, code = parsed(name, where)
    word = "_".join(answer.lower().split())
    words = offered(graded)
    if word not in words:
        raise InputError(f"{where}: answer {answer[:80]!r}, expected {', '.join(words)}")
    side = word.removeprefix(MUCH)
    grade = (MUCH_BETTER if word.startswith(MUCH) else BETTER) if graded else None
    sides = SIDES if left < right else {"left": "second", "right": "first"}
    key = (prompt, min(left, right), max(left, right), code)
    word = said(sides.get(side, side), grade)
    return Answer(key, left, word, annotator, where, aliases)


STUDIO = "label-studio:"  # before the names of people whom Label Studio knows


def studio_names(mail: object, number: object = None) -> list[str]:
    """What a person of Label Studio is called, by mail address (or whatever a table holds) and by
    number; the first is the name that is stored."""
    names = [f"{STUDIO}{name}" for name in (mail, number) if name not in (None, "")]
    return [*names, str(mail)] if "@" in str(mail) else names


def parsed(name, where: str) -> tuple[str, int, int, str]:
    """(prompt_id, left, right, hash) of a question's id."""
    parts = re.fullmatch(r"q-(.+)-([0-9]{1,9})-([0-9]{1,9})-([0-9a-f]{8})", str(name), re.DOTALL)
    if not parts or parts[2] == parts[3]:
        raise InputError(
            f"{where}: question {str(name)[:80]!r} is none of ours, expected one like"
            " q-0123456789abcdef-4-1-0f1e2d3c"
        )
    return parts[1], int(parts[2]), int(parts[3]), parts[4]
