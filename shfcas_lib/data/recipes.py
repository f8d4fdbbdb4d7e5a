"""Published data sets that this library knows: where each lies and how its columns are read.

    data = filled_in(params.preferences)     # the user's keys, over those of the recipe

Column names are those of the data sets' own cards. What was tested is in docs/data.md: no hub
is reached by the tests, which build small data sets in the same formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shfcas_lib.base import dialogues, places
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Columns, Rows

AnyRows = TypeVar("AnyRows", bound=Rows)


@dataclass(frozen=True)
class Known:
    """A published data set.

    place:    keys of `Rows` that say where it lies
    columns:  keys of `Columns`
    pairs:    does it hold pairs of answers?
    prepare:  turns a row into one that has the columns
    reads:    columns that only `prepare` looks at
    """

    place: dict
    columns: dict
    pairs: bool = True
    reads: tuple[str, ...] = ()
    prepare: Callable[[dict], dict] = field(default=lambda row: row)


def _pku(row: dict) -> dict:
    return row | {"harmful": not (row.get("is_response_0_safe") and row.get("is_response_1_safe"))}


def _hh(row: dict) -> dict:
    """Transcripts become messages.

    Copies in which the transcript up to the answer stands under `prompt` get it back before their
    answers. Text that is no transcript stays, and is refused later with its place.
    """
    texts = {name: row[name] for name in ("chosen", "rejected") if isinstance(row.get(name), str)}
    found = {name: dialogues.from_transcript(text) for name, text in texts.items()}
    before = dialogues.from_transcript(row["prompt"]) if isinstance(row.get("prompt"), str) else []
    if before and not before[-1]["content"]:
        before = before[:-1]  # the mark behind which the answer begins
    sides: dict[str, Any] = {}
    for name, text in texts.items():
        answer = {"role": "assistant", "content": text.strip()}
        sides[name] = found[name] or ([*before, answer] if before else text)
    return row | sides


def _xstest(row: dict) -> dict:
    label = row.get("label")
    harmful = label == "unsafe" if label in ("safe", "unsafe") else label
    return row | {"harmful": harmful}


RECIPES: dict[str, Known] = {
    "pku-saferlhf": Known(
        {"source": "PKU-Alignment/PKU-SafeRLHF", "config": "alpaca3-8b"},
        {
            "first": "response_0",
            "second": "response_1",
            "better": "safer_response_id",
            "category": ["response_0_harm_category", "response_1_harm_category"],
        },
        reads=("is_response_0_safe", "is_response_1_safe"),
        prepare=_pku,
    ),
    "hh-rlhf": Known(
        {"source": "Anthropic/hh-rlhf", "data_dir": ["helpful-base", "harmless-base"]},
        {"prompt": None, "category": "data_dir"},
        reads=("prompt",),
        prepare=_hh,
    ),
    "ultrafeedback": Known(
        {"source": "HuggingFaceH4/ultrafeedback_binarized", "split": "train_prefs"},
        {"rating_first": "score_chosen", "rating_second": "score_rejected"},
    ),
    "helpsteer2": Known(
        {"source": "nvidia/HelpSteer2", "data_dir": "preference"},
        {"first": "response_1", "second": "response_2", "preference": "preference_strength"},
    ),
    "helpsteer3": Known(
        {"source": "nvidia/HelpSteer3", "config": "preference"},
        {
            "prompt": "context",
            "first": "response1",
            "second": "response2",
            "preference": "overall_preference",
            "category": "domain",
        },
    ),
    "do-not-answer": Known(
        {"source": "LibrAI/do-not-answer"},
        {"prompt": "question", "category": "risk_area"},
        pairs=False,
        prepare=lambda row: row | {"harmful": True},
    ),
    "xstest": Known(
        {"source": "Paul/XSTest"},
        {"category": "type", "label": None},
        pairs=False,
        reads=("label",),
        prepare=_xstest,
    ),
}


def filled_in(data: AnyRows) -> AnyRows:
    """The same block with everything that its recipe knows; keys that the user set stay."""
    if data.recipe is None:
        return data
    known = RECIPES[data.recipe]
    changes: dict[str, Any] = {}
    if not data.file:
        changes |= {key: value for key, value in known.place.items() if getattr(data, key) is None}
        if _flat(data.source, changes.get("data_dir")):
            del changes["data_dir"]
    in_folders = not data.file and (data.data_dir or "data_dir" in changes)
    if data.bad_rows == "auto":
        changes["bad_rows"] = "drop"

    plain = Columns()
    columns = {}
    for key, name in known.columns.items():
        # rows say which folder they are from where there are folders
        if name == "data_dir" and not in_folders:
            continue
        if getattr(data.columns, key) == getattr(plain, key):
            columns[key] = name
    changes["columns"] = data.columns.model_copy(update=columns)
    return data.model_copy(update=changes)


def _flat(source: str | None, folders: str | list[str] | None) -> bool:
    """Is the source a local folder that has none of the recipe's folders in it?"""
    place = places.user_path(source) if source else None
    if not folders or place is None or not place.is_dir():
        return False
    names = [folders] if isinstance(folders, str) else folders
    return not any((place / name).is_dir() for name in names)


def prepare(data: Rows) -> Callable[[dict], dict]:
    """What turns a row as published into one whose columns `data.columns` names."""
    return RECIPES[data.recipe].prepare if data.recipe else lambda row: row


def wanted_columns(data: Rows) -> list[str]:
    """Every column that reading this data set looks at, made by `prepare` or not."""
    names: list[str] = []
    for key in Columns.model_fields:
        entry = getattr(data.columns, key)
        if entry is not None:
            names += entry if isinstance(entry, list) else [entry]
    if data.recipe:
        names += RECIPES[data.recipe].reads
    return list(dict.fromkeys(names))


def check_pairs(data: Rows, key: str) -> None:
    """Raise InputError where a recipe of prompts alone is asked for pairs."""
    if data.recipe and not RECIPES[data.recipe].pairs:
        others = [name for name, known in RECIPES.items() if known.pairs]
        raise InputError(
            f"{key}.recipe: found {data.recipe!r}, which holds prompts alone, expected one of "
            f"{', '.join(others)}"
        )
