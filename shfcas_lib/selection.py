"""Which comparisons to ask: the conflict table and a budget go in, comparisons come out.

    chosen = select("shf_cas", conflict, 120, rng(seed, "selection"), params.selection)

The strategies themselves are in module strategies; none of them sees gold.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.conflict import COLUMNS as SCORES
from shfcas_lib.params.schema import Selection
from shfcas_lib.strategies import STRATEGIES, Fitted, View

COLUMNS = ["prompt_id", "i", "j", "rank", "strategy", "reason"]
# Columns of completions, and what a pair calls them before the ending i or j.
_OF_BOTH = {
    "index": "",
    "pacs": "pacs_",
    "reward": "reward_",
    "z_reward": "z_reward_",
    "z_logp": "z_logp_",
}


def all_pairs(conflict: pd.DataFrame, asked: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every unordered pair of completions of one prompt, but those in `asked` (prompt_id, i, j).

    Columns, sorted by (prompt_id, i, j):

        prompt_id, i, j                     i < j
        kendall, mean_abs_pacs, degenerate  of the prompt
        pacs_i, pacs_j                      of both completions, and so reward, z_reward, z_logp
    """
    parts = []
    size = conflict.groupby("prompt_id")["index"].transform("size")
    for n, part in conflict.sort_values(["prompt_id", "index"]).groupby(size):
        first, second = np.triu_indices(n, 1)
        table = part.iloc[::n][["prompt_id", "kendall", "mean_abs_pacs", "degenerate"]]
        table = table.loc[table.index.repeat(len(first))]
        for name, ending in _OF_BOTH.items():
            value = part[name].to_numpy().reshape(-1, n)
            table[f"{ending}i"] = value[:, first].ravel()
            table[f"{ending}j"] = value[:, second].ravel()
        parts.append(table)
    pairs = pd.concat(parts)
    if asked is not None and len(asked):
        known = pd.MultiIndex.from_frame(asked[["prompt_id", "i", "j"]])
        pairs = pairs[~pd.MultiIndex.from_frame(pairs[["prompt_id", "i", "j"]]).isin(known)]
    return pairs.sort_values(["prompt_id", "i", "j"], ignore_index=True)


def select(
    strategy: str,
    conflict: pd.DataFrame,
    budget: int | None,
    generator: np.random.Generator,
    settings: Selection,
    asked: pd.DataFrame | None = None,
    fitted: Fitted | None = None,
) -> pd.DataFrame:
    """Choose at most `budget` comparisons by `strategy`; columns prompt_id, i, j, rank (1 is
    first), strategy, reason.

    fitted: the probe and what it was trained on, for the strategies that weigh its uncertainty.
    Raises InputError for an unknown strategy, a budget larger than the pairs that are left, or a
    strategy that needs `fitted` and has none."""
    if strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}: choose {', '.join(STRATEGIES)}")
    pairs = all_pairs(conflict, asked)
    if budget is not None and budget > len(pairs):
        raise InputError(
            f"selection.budget: {budget} comparisons asked for, but only {len(pairs)} pairs are"
            " left to ask"
        )
    wanted = len(pairs) if budget is None else budget
    view = View(settings, strategy, fitted, conflict[SCORES])
    chosen = STRATEGIES[strategy](pairs, wanted, generator, view)
    rank = range(1, len(chosen) + 1)
    chosen = chosen.assign(rank=rank, strategy=strategy, reason=_reason(chosen))
    return chosen[COLUMNS].reset_index(drop=True)


def _reason(pairs: pd.DataFrame) -> pd.Series:
    """Why each pair is asked about, in a few words."""
    kendall = pairs["kendall"].round(3).astype(str)
    first, second = (pairs[f"pacs_{side}"].round(2).astype(str) for side in ("i", "j"))
    return "K " + kendall + ", PACS " + first + " and " + second
