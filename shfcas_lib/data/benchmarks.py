"""Sets on which reward models are compared: chosen and rejected answers to one prompt.

    table = read_benchmark("rm_bench/chat.json.gz")     # one row a completion
    table = read_benchmark("reward-bench")              # a published set, through `datasets`

Three layouts are read: lists of answers (RM-Bench: the same content in three styles, concise,
detailed, detailed with markdown; RewardBench 2), one answer a side (RewardBench), and preference
files of the user's own, as `preferences` reads them.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.places import user_path
from shfcas_lib.data import formats
from shfcas_lib.data.preferences import load_pairs
from shfcas_lib.params.schema import Columns, Preferences, Rows

# where a published set lies: hub id and split
PUBLISHED = {
    "rm-bench": ("THU-KEG/RM-Bench", "train"),
    "reward-bench": ("allenai/reward-bench", "filtered"),
}
COLUMNS = ["prompt_id", "index", "prompt", "completion", "side", "style", "subset"]


def read_benchmark(named: str) -> pd.DataFrame:
    """A benchmark as a table of completions, named by a file, a folder of files or `PUBLISHED`.

    Columns prompt_id (one for each row of the set), index, prompt, completion, side (chosen or
    rejected), style (place in its list), subset (of the row, or the file's name). Raises
    InputError.
    """
    if named in PUBLISHED:
        source, split = PUBLISHED[named]
        return _table([(named, _Origin(Rows(source=source, split=split)))])
    path = user_path(named)
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if _readable(file))
        if not files:
            raise InputError(f"{path} holds no benchmark file (.json, .jsonl, .parquet, .csv)")
    else:
        files = [path]
    if not files[0].is_file():
        raise InputError(
            f"{named!r} is no file, no folder and no published set ({', '.join(PUBLISHED)})"
        )
    return _table([(_stem(file), _Origin(Rows(file=str(file)))) for file in files])


def _readable(path: Path) -> bool:
    ends = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet", ".csv")
    return path.is_file() and path.name.lower().endswith(ends)


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]


class _Origin:
    """Rows of one file or published set."""

    def __init__(self, rows: Rows):
        self.rows = rows

    def read(self) -> Iterator[tuple[str, dict]]:
        """(place, row). Raises InputError."""
        file = self.rows.file
        if file and file.lower().endswith((".json", ".json.gz")):
            return _read_array(Path(file))
        return formats.read_rows(self.rows)

    def pairs(self, category: str) -> pd.DataFrame:
        """The rows as preference pairs. category: the column that names their subset."""
        given = self.rows.model_dump(include={"file", "source", "split"})
        return load_pairs(Preferences(**given, columns=Columns(category=category)))


def _read_array(path: Path) -> Iterator[tuple[str, dict]]:
    """Rows of a JSON file that holds one list of objects."""
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            rows = json.load(file)
    except (EOFError, OSError, ValueError, RecursionError, zlib.error) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects")
    return ((f"{path}, entry {n}", row) for n, row in enumerate(rows, 1))


def _table(origins: list[tuple[str, _Origin]]) -> pd.DataFrame:
    """The completions of several origins, each with the name of its subset where rows have none."""
    rows: list[tuple] = []
    for name, origin in origins:
        first = next(iter(origin.read()), None)
        if first is None:
            raise InputError(f"{name} holds no row")
        _check(*first)
        listed = isinstance(first[1]["chosen"], list) and not _are_messages(first[1]["chosen"])
        entries = _listed(origin, name) if listed else _paired(origin, name, first[1])
        for prompt, sides, subset in entries:
            prompt_id = f"row_{len(rows):07d}"
            places = [(side, k, text) for side in sides for k, text in enumerate(sides[side])]
            for index, (side, style, text) in enumerate(places):
                rows.append((prompt_id, index, prompt, text, side, style, subset))
    return pd.DataFrame(rows, columns=COLUMNS)


def _check(where: str, row: dict) -> None:
    missing = [name for name in ("chosen", "rejected") if name not in row]
    if missing:
        raise InputError(
            f"{where}: no {missing[0]!r}, expected prompt, chosen and rejected (columns found:"
            f" {', '.join(map(str, list(row)[:20]))})"
        )


Entry = tuple[str, dict[str, list[str]], str]  # prompt, answers by side, subset


def _listed(origin: _Origin, name: str) -> Iterator[Entry]:
    """Rows whose two sides are lists of answers. RM-Bench calls its subset domain."""
    for where, row in origin.read():
        _check(where, row)
        sides = {side: _answers(row[side], side, where) for side in ("chosen", "rejected")}
        prompt: Any = row.get("prompt")
        if _are_messages(prompt):
            prompt = dialogues.encode(prompt)
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"{where}: 'prompt' is {type(prompt).__name__}, expected text")
        yield prompt, sides, str(row.get("domain") or name)


def _answers(value: Any, side: str, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise InputError(f"{where}: {side!r} is no list of texts, none of them empty")
    return texts


def _are_messages(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(turn, dict) for turn in value) and value != []


def _paired(origin: _Origin, name: str, first: dict) -> Iterator[Entry]:
    """Rows with one answer a side; ties say nothing here and are left out."""
    category = "subset" if "subset" in first else "category"
    table = origin.pairs(category)
    for pair in table[table["label"] != 0.5].itertuples():
        subset = name if pair.category == "all" else str(pair.category)
        sides = {"chosen": [str(pair.chosen)], "rejected": [str(pair.rejected)]}
        yield str(pair.prompt), sides, subset
