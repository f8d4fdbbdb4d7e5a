"""Tables that callers hand in: are the columns there, and does what stands beside them belong to
the same rows?

    need(table, ["prompt_id", "index"], "a pool")
    reward = beside(table, reward, "reward")        # (rows,) float64, in the table's order
"""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError

# What others call these columns; a name's neighbours in spelling are found without.
_ALSO_CALLED = {
    "prompt": ("question", "instruction", "query", "request", "input", "messages"),
    "completion": ("response", "answer", "output", "generation", "text"),
    "logp": ("logprob", "log_prob", "logprobs", "cumulative_logprob", "loglikelihood"),
    "token_logps": ("logprobs", "token_logprobs", "logps"),
    "reward": ("score", "rewards", "rm_score", "reward_score"),
    "gold": ("rating", "gold_reward", "label"),
    "model": ("generator", "policy", "source"),
    "index": ("sample", "sample_id", "completion_id"),
}


def need(table: pd.DataFrame, names: Iterable[str], what: str) -> None:
    """Raise InputError where a table lacks one of the columns; it names those found and the one
    that may be meant. what: the table in words."""
    for name in names:
        if name not in table:
            raise InputError(f"{what} has no column {name!r}{columns_found(name, table)}")


def columns_found(name: str, there: Iterable[Hashable]) -> str:
    """The rest of a sentence that says a column is missing: those found, and the nearest."""
    names = [str(column)[:60] for column in there]
    shown = ", ".join(names[:30]) + (f" and {len(names) - 30} more" if len(names) > 30 else "")
    near = nearest(name, names)
    hint = f"; is it {near!r}?" if near else ""
    return f" (columns found: {shown or 'none'}{hint})"


def nearest(name: str, there: Sequence[str]) -> str | None:
    """The one of the columns that most likely is `name` under another name; None: none is near."""
    lower = {column.lower(): column for column in there}
    for other in (name, *_ALSO_CALLED.get(name, ())):
        if other in lower:
            return lower[other]
    near = difflib.get_close_matches(name, list(lower), n=1, cutoff=0.6)
    return lower[near[0]] if near else None


def beside(table: pd.DataFrame | pd.Series, values: Any, name: str) -> np.ndarray:
    """Numbers that belong to the rows of a table, (rows,) float64, in the table's order.

    values: an array or list in the table's order; or a Series, whose index then says which row
    each number belongs to: that of the table in any order, or (prompt_id, index). Nothing is ever
    taken by position against its index. Raises InputError for another length or index.
    """
    if isinstance(values, pd.Series):
        values = _in_order(table, values, name)
    array = np.asarray(values, float)
    if array.shape != (len(table),):
        raise InputError(
            f"{name} has shape {array.shape}, expected one number for each of the {len(table)} rows"
            " of the table"
        )
    return array


def _in_order(table: pd.DataFrame | pd.Series, values: pd.Series, name: str) -> pd.Series:
    """A Series in the order of a table's rows. Raises InputError where its index does not say."""
    if values.index.equals(table.index):
        return values
    index = table.index
    if list(values.index.names) == ["prompt_id", "index"] and isinstance(table, pd.DataFrame):
        index = pd.MultiIndex.from_frame(table[["prompt_id", "index"]])
    known = index.is_unique and values.index.is_unique and len(values) == len(table)
    rows = values.index.get_indexer(index) if known else np.array([-1])
    if (rows < 0).any():
        raise InputError(
            f"{name} is a Series of {len(values)} values whose index is not that of the table of"
            f" {len(table)} rows: index it as the table is, or by (prompt_id, index); if it stands"
            " in the table's order, pass its .to_numpy()"
        )
    return values.iloc[rows]


def alike(first: Any, others: Mapping[str, Any]) -> dict[str, Any]:
    """Values that go with `first`, row by row, by name; arrays are taken as they are.

    Where both are Series, the index says which value belongs to which, as in `beside`. Raises
    InputError where it does not, and for a reordered Series beside something without an index.
    """
    aligned = {}
    for name, values in others.items():
        if isinstance(values, pd.Series) and isinstance(first, (pd.Series, pd.DataFrame)):
            values = _in_order(first, values, name)
        elif isinstance(values, pd.Series) and not values.index.is_monotonic_increasing:
            raise InputError(
                f"{name} is a Series whose index is not in order, and what it stands beside has no"
                " index to go by: pass both as Series, or both as arrays"
            )
        aligned[name] = values
    return aligned
