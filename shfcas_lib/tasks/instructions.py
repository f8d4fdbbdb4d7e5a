"""Exact instruction following: requests with one constraint that a program can check.

    attached(rows)                   # the constraint is the last paragraph of each prompt
    followed(prompt, completion)     # 1, 0.5 or 0

A completion gets 1 where it follows the constraint to the letter, 0.5 where it does so apart
from a stray first or last line or asterisks. The same prompt has the same constraint every time.

The checks are those of IFEval (Zhou et al. 2023), from the package if-verifiable. Left out are
the kinds that need downloaded word lists or guess the language, which differ between machines
or runs. A prompt of your own is scored too if it ends in a constraint worded as here
(`CONSTRAINTS`). A model must be able to follow such constraints now and then for the task to
show anything.
"""

from __future__ import annotations

import hashlib
from typing import Any

from shfcas_lib.base.errors import InputError

Fact = tuple[str, str, bool]
Constraint = tuple[str, str, dict[str, Any]]  # wording, id in IFEval's registry, arguments
_CLOSING = ("Let me know if you want more.", "That is all there is to it.", "I hope this helps.")
_WORDS = ("because", "however", "example", "important", "together", "simple")
_FEW = {2: "two", 3: "three", 4: "four"}


def _catalogue() -> dict[str, tuple[str, dict[str, Any]]]:
    """Wording of every constraint: its id in IFEval's registry and the arguments of its check.

    The order decides which constraint a prompt gets.
    """
    every = [*_of_form(), *_of_length(), *_of_parts(), *_of_words()]
    return {wording: (kind, arguments) for wording, kind, arguments in every}


def _of_form() -> list[Constraint]:
    title = "Give the answer a title in double angular brackets, such as <<a title>>."
    postscript = "End with a postscript that begins with P.S."
    return [
        ("Do not use any commas.", "punctuation:no_comma", {}),
        ("Put the whole answer in double quotation marks.", "startend:quotation", {}),
        (title, "detectable_format:title", {}),
        (postscript, "detectable_content:postscript", {"postscript_marker": "P.S."}),
        ("Give the whole answer as JSON.", "detectable_format:json_format", {}),
    ]


def _of_length() -> list[Constraint]:
    constraints: list[Constraint] = []
    kind = "length_constraints:number_words"
    for n in (30, 40):
        wording = f"Use at least {n} words."
        constraints.append((wording, kind, {"num_words": n, "relation": "at least"}))
    for n in (15, 25):
        wording = f"Use fewer than {n} words."
        constraints.append((wording, kind, {"num_words": n, "relation": "less than"}))
    return constraints


def _of_parts() -> list[Constraint]:
    constraints: list[Constraint] = []
    kind = "detectable_format:number_bullet_lists"
    for n in (2, 3, 4):
        wording = f"Answer in exactly {_FEW[n]} bullet points, each on a line that begins with an"
        constraints.append((f"{wording} asterisk.", kind, {"num_bullets": n}))
    kind = "detectable_format:number_highlighted_sections"
    for n in (2, 3):
        wording = f"Set at least {_FEW[n]} phrases between asterisks, like *this one*."
        constraints.append((wording, kind, {"num_highlights": n}))
    kind = "detectable_content:number_placeholders"
    for n in (2, 3):
        wording = f"Leave at least {_FEW[n]} things for me to fill in, in square brackets, such as"
        constraints.append((f"{wording} [name].", kind, {"num_placeholders": n}))
    return constraints


def _of_words() -> list[Constraint]:
    constraints: list[Constraint] = []
    for word in _WORDS:
        constraints.append((f"Use the word {word!r}.", "keywords:existence", {"keywords": [word]}))
    for word in ("the", "you", "and"):
        arguments = {"forbidden_words": [word]}
        constraints.append(
            (f"Do not use the word {word!r}.", "keywords:forbidden_words", arguments)
        )
    for text in _CLOSING:
        wording = f"Close with this very sentence and nothing after it: {text}"
        constraints.append((wording, "startend:end_checker", {"end_phrase": text}))
    return constraints


CONSTRAINTS = _catalogue()


def attached(rows: list[Fact]) -> list[Fact]:
    """Requests (prompt, category, harmful) with a constraint at their end.

    It is picked by a hash of the prompt. The category becomes the kind of constraint, of which
    there are a dozen.
    """
    kinds: dict[str, list[str]] = {}
    for wording, (kind, _) in CONSTRAINTS.items():
        kinds.setdefault(kind, []).append(wording)
    names = list(kinds)

    requests = []
    for prompt, _, harmful in rows:
        digest = hashlib.sha256(f"constraint/{prompt}".encode()).digest()
        number = int.from_bytes(digest[:8], "big")
        kind = names[number % len(names)]
        wordings = kinds[kind]
        wording = wordings[number // len(names) % len(wordings)]
        requests.append((f"{prompt}\n\n{wording}", kind.split(":")[1], harmful))
    return requests


def constraint(prompt: str) -> tuple[str, dict]:
    """Kind and arguments of the constraint at a prompt's end.

    Raises InputError for a prompt that ends in no known constraint.
    """
    wording = prompt.rpartition("\n\n")[2]
    if wording not in CONSTRAINTS:
        raise InputError(
            f"gold instructions: prompt {prompt[:60]!r} ends in no constraint that can be checked"
            " (instructions.CONSTRAINTS)"
        )
    return CONSTRAINTS[wording]


def followed(prompt: str, completion: str) -> float:
    """Gold of one completion: 1, 0.5 or 0.

    Raises InputError for a prompt that ends in no known constraint.
    """
    from if_verifiable import IFEvalSample, evaluate_output_for_sample

    kind, arguments = constraint(prompt)
    sample = IFEvalSample(0, prompt, [kind], [arguments])
    _, scores = evaluate_output_for_sample("ifeval", sample, completion)
    return (scores.binary_strict + scores.binary_loose) / 2
