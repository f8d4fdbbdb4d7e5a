"""Which comparisons to ask: the conflict table and a budget go in, comparisons come out.

    chosen = select("shf_cas", conflict, 120, rng(seed, "selection"), params.selection)

The strategies themselves are in module strategies; none of them sees gold. A share of the budget
(`selection.random_share`) may be drawn by chance instead: labels of those pairs say how wrong a
reward is on all pairs (module analysis.stopping), which labels of chosen pairs cannot.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.conflict import COLUMNS as SCORES
from shfcas_lib.params.schema import Selection
from shfcas_lib.strategies import STRATEGIES, Fitted, View

COLUMNS = ["prompt_id", "i", "j", "rank", "strategy", "reason", "drawn"]
_KEY = ["prompt_id", "i", "j"]
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
        size                                how many completions the prompt has
        pacs_i, pacs_j                      of both completions, and so reward, z_reward, z_logp
    """
    parts = []
    size = conflict.groupby("prompt_id")["index"].transform("size")
    for n, part in conflict.sort_values(["prompt_id", "index"]).groupby(size):
        first, second = np.triu_indices(n, 1)
        table = part.iloc[::n][["prompt_id", "kendall", "mean_abs_pacs", "degenerate"]]
        table = table.loc[table.index.repeat(len(first))].assign(size=n)
        for name, ending in _OF_BOTH.items():
            value = part[name].to_numpy().reshape(-1, n)
            table[f"{ending}i"] = value[:, first].ravel()
            table[f"{ending}j"] = value[:, second].ravel()
        parts.append(table)
    pairs = pd.concat(parts)
    if asked is not None:
        pairs = _without(pairs, asked)
    return pairs.sort_values(_KEY, ignore_index=True)


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
    first), strategy, reason, drawn.

    Pairs that a strategy wants alike take the turn that the generator gives them. drawn: true
    where chance alone chose the pair among all that were not asked before. These are
    `settings.random_share` of the budget, rounded up, at random places among the others; all of
    them where the strategy is `random`. fitted: the probe and what it was trained on, for the
    strategies that weigh its uncertainty. Raises InputError for an unknown strategy, a budget
    larger than the pairs that are left, or a strategy that needs `fitted` and has none."""
    if strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}: choose {', '.join(STRATEGIES)}")
    pairs = all_pairs(conflict, asked)
    if budget is not None and budget > len(pairs):
        raise InputError(
            f"selection.budget: {budget} comparisons asked for, but only {len(pairs)} pairs are"
            " left to ask"
        )
    wanted = len(pairs) if budget is None else budget
    pairs = _with_turns(pairs, generator)
    drawn = _drawn(strategy, pairs, wanted, generator, settings)
    rest, wanted = _without(pairs, drawn), wanted - len(drawn)
    view = View(settings, strategy, fitted, conflict[SCORES])
    chosen = STRATEGIES[strategy](rest, wanted, generator, view)
    chosen = chosen.assign(drawn=strategy == "random", reason=_reason(chosen))
    if len(drawn):
        chosen = _mixed(chosen, drawn.assign(drawn=True, reason="drawn by chance"), generator)
    chosen = chosen.assign(rank=range(1, len(chosen) + 1), strategy=strategy)
    return chosen[COLUMNS].reset_index(drop=True)


def _with_turns(pairs: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The pairs with the column `turn`: their places in a random order, which breaks ties. Ids
    would pick the same prompts in every run."""
    # the generator goes on as if nothing had been drawn: without ties nothing changes
    aside = np.random.Generator(generator.bit_generator.jumped())
    return pairs.assign(turn=aside.permutation(len(pairs)))


def _drawn(
    strategy: str,
    pairs: pd.DataFrame,
    wanted: int,
    generator: np.random.Generator,
    settings: Selection,
) -> pd.DataFrame:
    """The random share of the budget. It is drawn before the strategy chooses, so that every pair
    has the same chance, one that the strategy would have taken too."""
    if strategy == "random" or not settings.random_share:
        return pairs.head(0)
    # 0.1 * 30 is a little above 3, and would round up to 4
    size = math.ceil(round(settings.random_share * wanted, 9))
    return pairs.iloc[generator.permutation(len(pairs))[:size]]


def _mixed(
    chosen: pd.DataFrame, drawn: pd.DataFrame, generator: np.random.Generator
) -> pd.DataFrame:
    """Both in their own order, the drawn ones at random places."""
    total = len(chosen) + len(drawn)
    place = np.sort(generator.permutation(total)[: len(drawn)])
    others = np.setdiff1d(np.arange(total), place)
    both = pd.concat([chosen, drawn])
    return both.iloc[np.argsort(np.concatenate([others, place]))]


def _without(pairs: pd.DataFrame, some: pd.DataFrame) -> pd.DataFrame:
    """The pairs that are not among `some`; both: prompt_id, i, j."""
    if not len(some):
        return pairs
    known = pd.MultiIndex.from_frame(some[_KEY])
    return pairs[~pd.MultiIndex.from_frame(pairs[_KEY]).isin(known)]


def _reason(pairs: pd.DataFrame) -> pd.Series:
    """Why each pair is asked about, in a few words."""
    kendall = pairs["kendall"].round(3).astype(str)
    first, second = (pairs[f"pacs_{side}"].round(2).astype(str) for side in ("i", "j"))
    return "K " + kendall + ", PACS " + first + " and " + second
