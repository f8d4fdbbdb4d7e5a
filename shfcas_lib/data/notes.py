"""What a user should know of data of their own that is read without a fault.

    for note in notes(params, prompts): print(note)

How a text table was read, which rows were taken as votes about one pair, how many pairs are
there, and where fewer are there than `n` asks for.
"""

from __future__ import annotations

import pandas as pd

from shfcas_lib.base import places
from shfcas_lib.data import recipes
from shfcas_lib.data.preferences import own_pairs
from shfcas_lib.data.sheets import dialect_of, is_sheet
from shfcas_lib.params.schema import Params, Rows


def notes(params: Params, prompts: pd.DataFrame) -> list[str]:
    """One sentence each. prompts: those of the run, with their split."""
    told = []
    for key in ("preferences", "prompts"):
        told += _dialect(key, getattr(params, key))
    if params.preferences.given:
        told += _pairs(params, prompts)
    others = ~prompts["split"].isin(["train", "held_out"])
    there = others.sum() if params.preferences.given else len(prompts)
    if params.prompts.n and there < params.prompts.n:
        told.append(f"prompts.n: {params.prompts.n} asked for, the data has {there}")
    return told


def _dialect(key: str, block: Rows) -> list[str]:
    """How a text table was read, where that is no plain csv."""
    path = places.user_path(recipes.filled_in(block).file or "")
    if not block.file or not is_sheet(path):
        return []
    said = dialect_of(path).said
    return [f"{key}: {path} is read as a table {said}"] if said else []


def _pairs(params: Params, prompts: pd.DataFrame) -> list[str]:
    """How many pairs there are, and whether rows were votes."""
    pairs, told = own_pairs(params), []
    rows, several = int(pairs["votes"].sum()), int((pairs["votes"] > 1).sum())
    if several:
        differ = int((~pairs["label"].isin([0.5, 1.0])).sum())
        told.append(
            f"preferences: {rows} rows are votes about {len(pairs)} pairs ({several} have more than"
            f" one, on {differ} of them people differ): a pair has the mean of its votes as label"
        )
    split = pairs["prompt_id"].map(dict(zip(prompts["prompt_id"], prompts["split"], strict=True)))
    counts = split.value_counts()
    by_split = ", ".join(f"{count} {name}" for name, count in counts.items())
    left = f"; {split.isna().sum()} on prompts that are left out" if split.isna().any() else ""
    told.append(f"preferences: {len(pairs)} pairs: {by_split}{left}")
    if params.preferences.n and len(pairs) < params.preferences.n:
        told.append(f"preferences.n: {params.preferences.n} asked for, the data has {len(pairs)}")
    return told
