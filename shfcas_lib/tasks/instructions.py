"""Exact instruction following: requests with one constraint that a program can check, and gold
that checks it.

    attached(rows)                   # the constraint is the last paragraph of each prompt, the same one every time
    followed(prompt, completion)     # 1 to the letter, 0.5 apart from a stray first or last line or asterisks, 0 otherwise

The checks are those of IFEval (Zhou et al. 2023), from the package if-verifiable. Left out are
the kinds that need downloaded word lists or guess the language, which differ between machines or
runs. A prompt of your own is scored too if it ends in a constraint worded as here
(`CONSTRAINTS`). A model must be able to follow such constraints now and then for the task to show
anything."""

from __future__ import annotations

import hashlib
from typing import Any

from shfcas_lib.base.errors import InputError

Fact = tuple[str, str, bool]
_CLOSING = ("Let me know if you want more.", "That is all there is to it.", "I hope this helps.")
_WORDS = ("because", "however", "example", "important", "together", "simple")
_FEW = {2: "two", 3: "three", 4: "four"}


def _catalogue() -> dict[str, tuple[str, dict[str, Any]]]:
    """Wording of every constraint: its id in IFEval's registry and the arguments of its check."""
    several = [
        ("Do not use any commas.", "punctuation:no_comma", {}),
        ("Put the whole answer in double quotation marks.", "startend:quotation", {}),
        (
            "Give the answer a title in double angular brackets, such as <<a title>>.",
            "detectable_format:title",
            {},
        ),
        (
            "End with a postscript that begins with P.S.",
            "detectable_content:postscript",
            {"postscript_marker": "P.S."},
        ),
        ("Give the whole answer as JSON.", "detectable_format:json_format", {}),
    ]
    words, bullets = "length_constraints:number_words", "detectable_format:number_bullet_lists"
    marks = "detectable_format:number_highlighted_sections"
    several += [
        (f"Use at least {n} words.", words, {"num_words": n, "relation": "at least"})
        for n in (30, 40)
    ]
    several += [
        (f"Use fewer than {n} words.", words, {"num_words": n, "relation": "less than"})
        for n in (15, 25)
    ]
    several += [
        (
            (
                f"Answer in exactly {_FEW[n]} bullet points, each on a line that begins with an"
                " asterisk."
            ),
            bullets,
            {"num_bullets": n},
        )
        for n in (2, 3, 4)
    ]
    several += [
        (
            f"Set at least {_FEW[n]} phrases between asterisks, like *this one*.",
            marks,
            {"num_highlights": n},
        )
        for n in (2, 3)
    ]
    several += [
        (
            (
                f"Leave at least {_FEW[n]} things for me to fill in, in square brackets, such as"
                " [name]."
            ),
            "detectable_content:number_placeholders",
            {"num_placeholders": n},
        )
        for n in (2, 3)
    ]
    several += [
        (f"Use the word {word!r}.", "keywords:existence", {"keywords": [word]}) for word in _WORDS
    ]
    several += [
        (f"Do not use the word {word!r}.", "keywords:forbidden_words", {"forbidden_words": [word]})
        for word in ("the", "you", "and")
    ]
    several += [
        (
            f"Close with this very sentence and nothing after it: {text}",
            "startend:end_checker",
            {"end_phrase": text},
        )
        for text in _CLOSING
    ]
    return {wording: (kind, arguments) for wording, kind, arguments in several}


CONSTRAINTS = _catalogue()


def attached(rows: list[Fact]) -> list[Fact]:
    """Requests (prompt, category, harmful) with a constraint at their end, picked by a hash of
    the prompt; the category becomes the kind of constraint, of which there are a dozen."""
    kinds: dict[str, list[str]] = {}
    for wording, (kind, _) in CONSTRAINTS.items():
        kinds.setdefault(kind, []).append(wording)
    names = list(kinds)
    out = []
    for prompt, _, harmful in rows:
        number = int.from_bytes(hashlib.sha256(f"constraint/{prompt}".encode()).digest()[:8], "big")
        kind = names[number % len(names)]
        wordings = kinds[kind]
        out.append(
            (
                f"{prompt}\n\n{wordings[number // len(names) % len(wordings)]}",
                kind.split(":")[1],
                harmful,
            )
        )
    return out


def followed(prompt: str, completion: str) -> float:
    """Gold of one completion: 1, 0.5 or 0. Raises InputError for a prompt that ends in no known
    constraint."""
    from if_verifiable import IFEvalSample, evaluate_output_for_sample

    wording = prompt.rpartition("\n\n")[2]
    if wording not in CONSTRAINTS:
        raise InputError(
            f"gold instructions: prompt {prompt[:60]!r} ends in no constraint that can be checked"
            " (instructions.CONSTRAINTS)"
        )
    kind, arguments = CONSTRAINTS[wording]
    _, scores = evaluate_output_for_sample(
        "ifeval", IFEvalSample(0, prompt, [kind], [arguments]), completion
    )
    return (scores.binary_strict + scores.binary_loose) / 2
