"""Which comparisons to ask: the conflict table and a budget go in, comparisons come out.

    chosen = select("shf_cas", conflict, 120, rng(seed, "selection"), params.selection)

The strategies themselves are in module strategies; none of them sees gold.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Selection
from shfcas_lib.strategies import STRATEGIES, Fitted, View

COLUMNS = ["prompt_id", "i", "j", "rank", "strategy", "reason"]


def all_pairs(conflict: pd.DataFrame, asked: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every unordered pair of completions of one prompt, without those in `asked` (prompt_id, i,
    j).

    Columns prompt_id, i, j (i < j), the prompt's kendall, mean_abs_pacs and degenerate, and of
    both completions pacs, reward, z_reward and z_logp with the endings _i and _j; sorted by
    (prompt_id, i, j)."""
    parts = []
    size = conflict.groupby("prompt_id")["index"].transform("size")
    for n, part in conflict.sort_values(["prompt_id", "index"]).groupby(size):
        first, second = np.triu_indices(n, 1)
        table = part.iloc[::n][["prompt_id", "kendall", "mean_abs_pacs", "degenerate"]]
        table = table.loc[table.index.repeat(len(first))]
        for name, ending in (
            ("index", ""),
            ("pacs", "pacs_"),
            ("reward", "reward_"),
            ("z_reward", "z_reward_"),
            ("z_logp", "z_logp_"),
        ):
            value = part[name].to_numpy().reshape(-1, n)
            table[f"{ending}i"], table[f"{ending}j"] = (
                value[:, first].ravel(),
                value[:, second].ravel(),
            )
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
    chosen = STRATEGIES[strategy](
        pairs, len(pairs) if budget is None else budget, generator, View(settings, strategy, fitted)
    )
    reason = (
        "K "
        + chosen["kendall"].round(3).astype(str)
        + ", PACS "
        + chosen["pacs_i"].round(2).astype(str)
        + " and "
        + chosen["pacs_j"].round(2).astype(str)
    )
    return chosen.assign(rank=range(1, len(chosen) + 1), strategy=strategy, reason=reason)[
        COLUMNS
    ].reset_index(drop=True)
