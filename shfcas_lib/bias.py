"""Injected proxy bias: clean preferences go in; biased ones come out, with what was done to every
row.

Three mechanisms, after the causes that the paper's abstract names, applied in the order of
`params.bias`:

    noise      a label is flipped with probability epsilon
    attribute  with probability s the annotator follows a surface attribute: longer wins, ...
    coverage   preferences of chosen categories are absent

Columns added to the preferences:

    label_clean        the label before any bias
    done_<k>_<kind>    True where mechanism k changed the row (noise, attribute: the label;
                       coverage: the row is absent)
    absent             True where any mechanism removed the row
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.params.schema import Attribute, Coverage, Mechanism
from shfcas_lib.tasks.attributes import attribute


def inject(
    preferences: pd.DataFrame,
    completions: pd.DataFrame,
    category: dict[str, str],
    mechanisms: list[Mechanism],
    seed: int,
) -> pd.DataFrame:
    """Apply the mechanisms in order.

    preferences: prompt_id, i, j, label. completions: prompt_id, index, completion. category:
    prompt_id to category. Ties stay ties under noise. Where the attribute does not tell a pair
    apart, the label stays. No row is removed: absent ones are marked, `observed` leaves them out.
    Returns the preferences with what was done to each row (label_clean, absent and a column a
    mechanism). Raises InputError for an attribute that gives no finite number.
    """
    table = preferences.sort_values(["prompt_id", "i", "j"], ignore_index=True)
    table = table.assign(label_clean=table["label"], absent=False)
    for number, mechanism in enumerate(mechanisms, 1):
        generator = rng(seed, f"bias/{number}/{mechanism.kind}")
        before = table["label"].to_numpy()
        if isinstance(mechanism, Coverage):
            done = table["prompt_id"].map(category).isin(mechanism.absent).to_numpy()
            table["absent"] |= done
        else:
            if isinstance(mechanism, Attribute):
                struck = generator.random(len(table)) < mechanism.strength
                after = np.where(struck, _follow(table, completions, mechanism.attribute), before)
            else:
                after = np.where(generator.random(len(table)) < mechanism.rate, 1 - before, before)
            table["label"], done = after, after != before
        table[f"done_{number}_{mechanism.kind}"] = done
    return table


def observed(biased: pd.DataFrame) -> pd.DataFrame:
    """The preferences that the proxy is trained on: biased labels, absent rows left out; columns
    prompt_id, i, j, label."""
    return biased.loc[~biased["absent"], ["prompt_id", "i", "j", "label"]].reset_index(drop=True)


def summary(biased: pd.DataFrame) -> pd.DataFrame:
    """How many rows each mechanism changed: columns mechanism, rows, share."""
    rows = []
    for column in biased:
        if column.startswith("done_"):
            done = biased[column]
            rows.append((column.removeprefix("done_"), int(done.sum()), float(done.mean())))
    wrong = (biased["label"] != biased["label_clean"]) & ~biased["absent"]
    share = float(wrong.sum() / max(1, (~biased["absent"]).sum()))
    rows.append(("labels that are now wrong", int(wrong.sum()), share))
    return pd.DataFrame(rows, columns=["mechanism", "rows", "share"])


def attribute_values(completions: pd.DataFrame, name: str) -> np.ndarray:
    """The attribute called `name` of each completion, (rows,). completions: prompt_id, index,
    completion. Raises InputError for a name that leads nowhere, or no finite number."""
    function = attribute(name)
    columns = (completions[column] for column in ("prompt_id", "index", "completion"))
    values = []
    for prompt_id, index, completion in zip(*columns, strict=True):
        number = function(completion)
        if not isinstance(number, (int, float, np.number)) or not np.isfinite(number):
            raise InputError(
                f"attribute {name!r} gives {number!r} for completion {index} of prompt"
                f" {prompt_id}, expected a finite number"
            )
        values.append(float(number))
    return np.array(values)


def _follow(table: pd.DataFrame, completions: pd.DataFrame, name: str) -> np.ndarray:
    """The label that somebody gives who looks at the attribute alone; the present label where it
    does not decide."""
    values = attribute_values(completions, name)
    keys = zip(completions["prompt_id"], completions["index"], strict=True)
    value = dict(zip(keys, values, strict=True))
    first = np.array([value[row.prompt_id, row.i] for row in table.itertuples()])
    second = np.array([value[row.prompt_id, row.j] for row in table.itertuples()])
    return np.where(first == second, table["label"], (first > second).astype(float))
