"""Which comparisons to ask: the conflict table and a budget go in, comparisons come out.

    chosen = select("shf_cas", conflict, 120, rng(seed, "selection"), params.selection)
    chosen = choose(completions, 120)         # from a table that has logp and reward, no run

The strategies themselves are in module strategies; none of them sees gold. A share of the budget
(`selection.random_share`) may be drawn by chance instead: labels of those pairs say how wrong a
reward is on all pairs (module analysis.stopping), which labels of chosen pairs cannot.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.conflict import COLUMNS as SCORES
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.params.schema import Selection
from shfcas_lib.strategies import SIGHTED, STRATEGIES, Fitted, View, top_prompts

COLUMNS = ["prompt_id", "i", "j", "rank", "strategy", "reason", "drawn"]
_KEY = ["prompt_id", "i", "j"]
_STRIDES = np.array([0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9], np.uint64)  # odd, of mixed bits
MOST_PAIRS = 2_000_000  # that `choose` looks at together where it may look at parts
# these take the pairs with the largest of some number, of all or of the top prompts
_BY_KEY = ("shf_cas", "pacs", "pacs_difference", "extreme_reward", "margin", "low_conflict")
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
    parts, places = [], []
    conflict = conflict.sort_values(["prompt_id", "index"], ignore_index=True)
    size = conflict.groupby("prompt_id")["index"].transform("size")
    for n, part in conflict.groupby(size):
        first, second = np.triu_indices(n, 1)
        table = part.iloc[::n][["prompt_id", "kendall", "mean_abs_pacs", "degenerate"]]
        table = table.loc[table.index.repeat(len(first))].assign(size=n)
        places.append(table.index.to_numpy())
        for name, ending in _OF_BOTH.items():
            value = part[name].to_numpy().reshape(-1, n)
            table[f"{ending}i"] = value[:, first].ravel()
            table[f"{ending}j"] = value[:, second].ravel()
        parts.append(table)
    # a prompt's pairs are in order: what is left is the order of prompts
    pairs = pd.concat(parts, ignore_index=True)
    if len(parts) > 1:
        order = np.argsort(np.concatenate(places), kind="stable")
        pairs = pairs.take(order).reset_index(drop=True)
    if asked is not None:
        pairs = _without(pairs, asked).reset_index(drop=True)
    return pairs


def choose(
    completions: pd.DataFrame,
    budget: int,
    strategy: str = "shf_cas",
    seed: int = 0,
    settings: Selection | None = None,
) -> pd.DataFrame:
    """`select` from a table of completions with their logp and reward: no model, no run.

    completions: prompt_id, index, completion, logp, reward (`data.completions.read_completions`).
    settings: what a strategy may be told beside its budget; default the schema's. Two completions
    of one text are never compared. Columns as `select` has them. Raises InputError for a strategy
    that needs a model's features, a budget under 1 or above the pairs there are, and what
    `conflict_table` refuses."""
    conflict = conflict_table(completions)
    return choose_from(conflict, completions, budget, strategy, seed, settings)


def choose_from(
    conflict: pd.DataFrame,
    completions: pd.DataFrame,
    budget: int,
    strategy: str,
    seed: int,
    settings: Selection | None = None,
) -> pd.DataFrame:
    """`choose` where the conflict table is there already."""
    check_strategy(strategy)
    if budget < 1:
        raise InputError(f"budget: found {budget}, expected 1 or more comparisons")
    settings = settings or Selection(rounds=1)
    drawn, same = rng(seed, f"selection/{strategy}"), _same_text(completions)
    if strategy in _BY_KEY and not settings.random_share:
        conflict, settings = _contenders(strategy, conflict, budget, settings, same, drawn)
    return select(strategy, conflict, budget, drawn, settings, same)


def _contenders(
    strategy: str,
    conflict: pd.DataFrame,
    budget: int,
    settings: Selection,
    same: pd.DataFrame,
    generator: np.random.Generator,
) -> tuple[pd.DataFrame, Selection]:
    """The prompts that hold what a strategy will choose, and settings under which it then chooses
    the same. A table of more than MOST_PAIRS pairs is looked at in parts: the best pairs of all
    are among the best of each part. Not so where prompts of two completions stand beside larger
    ones, which are brought onto one scale together."""
    sizes = conflict.groupby("prompt_id").size()
    pairs = (sizes * (sizes - 1) // 2).sub(same.groupby("prompt_id").size(), fill_value=0)
    mixed = (sizes == 2).any() and (sizes > 2).any()
    if mixed or pairs.sum() <= max(MOST_PAIRS, budget):
        return conflict, settings
    key = strategy
    if strategy == "shf_cas":
        prompts = by_prompt(conflict).assign(i=0, j=1)
        prompts = _with_turns(prompts, generator)
        for name, known in (("pairs", pairs), ("size", sizes)):
            prompts[name] = prompts["prompt_id"].map(known)
        kept = top_prompts(prompts[prompts["pairs"] > 0], budget, settings.top_share)
        conflict = conflict[conflict["prompt_id"].isin(kept)]
        key, settings = "pacs", settings.model_copy(update={"top_share": 1.0})
        pairs = pairs[pairs.index.isin(kept)]

    part = (pairs.cumsum() // MOST_PAIRS).rename("part")
    view = View(settings, strategy)
    winners = []
    for _, rows in conflict.groupby(conflict["prompt_id"].map(part)):
        there = _with_turns(all_pairs(rows, same), generator)
        winners.append(STRATEGIES[key](there, min(budget, len(there)), generator, view))
    best = STRATEGIES[key](pd.concat(winners), budget, generator, view)
    return conflict[conflict["prompt_id"].isin(best["prompt_id"])], settings


def check_strategy(strategy: str) -> None:
    """Raise InputError for a strategy that cannot choose from rewards and log-probabilities."""
    rest = ", ".join(name for name in STRATEGIES if name not in SIGHTED)
    if strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}: choose {rest}")
    if strategy in SIGHTED:
        raise InputError(
            f"strategy {strategy} weighs the uncertainty of a probe, which needs a model's"
            " features: a run has them (`completions` of a parameter file); from a table choose"
            f" {rest}"
        )


def _same_text(completions: pd.DataFrame) -> pd.DataFrame:
    """The pairs of completions of one prompt that have one text: prompt_id, i, j."""
    key = ["prompt_id", "completion"]
    again = completions[completions.duplicated(key, keep=False)][[*key, "index"]]
    pairs = again.merge(again, on=key, suffixes=("_i", "_j"))
    pairs = pairs[pairs["index_i"] < pairs["index_j"]]
    return pairs.rename(columns={"index_i": "i", "index_j": "j"})[_KEY]


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

    conflict: a row per completion, of `conflict_table`. generator: draws what is left to chance.
    asked: comparisons (prompt_id, i, j) that were asked before and are not asked again.

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
    """The pairs with `turn`, a random number that breaks ties, and `prompt_turn`, their prompt's.
    Ids would pick the same prompts in every run.

    A pair's turn depends on the generator and on the pair alone, so that a table which is looked
    at in parts gives what it gives as a whole."""
    # the generator goes on as if nothing had been drawn: without ties nothing changes
    bits: Any = generator.bit_generator
    salt = np.random.Generator(bits.jumped()).integers(1 << 63)
    ids = pd.util.hash_array(pairs["prompt_id"].to_numpy(object))
    own = ids + pairs["i"].to_numpy(np.uint64) * _STRIDES[0] + pairs["j"].to_numpy(np.uint64)
    turns = [pd.util.hash_array(key ^ np.uint64(salt)) / 2**64 for key in (own * _STRIDES[1], ids)]
    return pairs.assign(turn=turns[0], prompt_turn=turns[1])


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
    # an index of millions takes seconds: only the prompts of `some` are looked at
    near = pairs["prompt_id"].isin(some["prompt_id"]).to_numpy(copy=True)
    near[near] = pd.MultiIndex.from_frame(pairs.loc[near, _KEY]).isin(known)
    return pairs[~near]


def _reason(pairs: pd.DataFrame) -> pd.Series:
    """Why each pair is asked about, in a few words."""
    kendall = pairs["kendall"].round(3).astype(str)
    first, second = (pairs[f"pacs_{side}"].round(2).astype(str) for side in ("i", "j"))
    return "K " + kendall + ", PACS " + first + " and " + second
