"""The way back: how much of what a flaw cost labels undo.

    shares(table, params)      # 0: as good as the biased proxy, 1: as good as clean labels

table: `replication.replicates`' table `way`, the gold reward of every seed's optimised policy by
strategy, refinement and number of labels. A share is a ratio of means over seeds,

    (gold with labels - gold of the proxy) / (gold of clean labels - gold of the proxy)

and its interval resamples seeds. It exists where the flaw cost something: where the interval of
the cost is clear of 0.
"""

from __future__ import annotations

import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.params.schema import Params

_KEY = ["policy", "refinement", "labels"]


def cost(table: pd.DataFrame, params: Params) -> stats.Interval:
    """What the flaw cost: gold of clean labels over that of the proxy, mean over seeds."""
    ends = _ends(table)
    draw = rng(params.seed, "way/cost")
    lost = ends["clean"] - ends["proxy"]
    return stats.mean_interval(lost, draw, params.evaluation.bootstrap)


def shares(table: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Columns policy, refinement, labels, value, low, high; no rows where the flaw cost nothing
    that could be undone."""
    columns = [*_KEY, "value", "low", "high"]
    if cost(table, params).low <= 0:
        return pd.DataFrame(columns=columns)
    ends = _ends(table)
    rows = []
    for key, part in table[table["labels"] > 0].groupby(_KEY, sort=False):
        gold = part.set_index("seed")["gold"]
        draw = rng(params.seed, "way/" + "/".join(map(str, key)))
        gained, lost = gold - ends["proxy"], ends["clean"] - ends["proxy"]
        interval = stats.ratio_interval(gained, lost, draw, params.evaluation.bootstrap)
        rows.append((*key, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=columns)


def headline(table: pd.DataFrame, params: Params) -> dict[str, str]:
    """What the flaw cost and what the whole budget brought back, a line each."""
    lost = cost(table, params)
    numbers = {"what the flaw cost: gold of clean labels over the proxy": str(lost)}
    back = shares(table, params)
    if not len(back):
        return numbers | {"what labels undo": "nothing to undo: the cost is not clear of 0"}
    for row in back[back["labels"] == back["labels"].max()].itertuples():
        how = row.policy
        if row.refinement != params.reward.refinement:
            how += f", refined by {row.refinement}"
        share = f"{row.value:.0%} [{row.low:.0%}, {row.high:.0%}]"
        numbers[f"{row.labels} labels bring back, {how}"] = share
    return numbers


def _ends(table: pd.DataFrame) -> pd.DataFrame:
    """Gold of the proxy and of clean labels, by seed."""
    ends = table[table["policy"].isin(["proxy", "clean"])]
    return ends.pivot(index="seed", columns="policy", values="gold")
