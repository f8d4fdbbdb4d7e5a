"""Which comparisons to ask: the conflict table and a budget go in, comparisons come out.

Every strategy is one small function (pairs, budget, generator, settings) -> chosen pairs, listed in STRATEGIES. None of them
sees gold. `pairs` has one row per unordered pair of completions that was not asked before: prompt_id, i, j (i < j), the two
PACS as pacs_i and pacs_j, and the prompt's kendall, mean_abs_pacs and degenerate, sorted by (prompt_id, i, j).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from shfcas_lib.params import InputError, Selection

Strategy = Callable[[pd.DataFrame, int, np.random.Generator, Selection], pd.DataFrame]
COLUMNS = ["prompt_id", "i", "j", "rank", "strategy", "reason"]


def all_pairs(conflict: pd.DataFrame, asked: pd.DataFrame | None = None) -> pd.DataFrame:
    """Every unordered pair of completions of one prompt, without those in `asked` (prompt_id, i, j)."""
    parts = []
    size = conflict.groupby("prompt_id")["index"].transform("size")
    for n, part in conflict.sort_values(["prompt_id", "index"]).groupby(size):
        first, second = np.triu_indices(n, 1)
        index, score = (part[c].to_numpy().reshape(-1, n) for c in ("index", "pacs"))
        prompt = part.iloc[::n][["prompt_id", "kendall", "mean_abs_pacs", "degenerate"]]
        parts.append(prompt.loc[prompt.index.repeat(len(first))].assign(
            i=index[:, first].ravel(), j=index[:, second].ravel(),
            pacs_i=score[:, first].ravel(), pacs_j=score[:, second].ravel()))
    pairs = pd.concat(parts)
    if asked is not None and len(asked):
        known = pd.MultiIndex.from_frame(asked[["prompt_id", "i", "j"]])
        pairs = pairs[~pd.MultiIndex.from_frame(pairs[["prompt_id", "i", "j"]]).isin(known)]
    return pairs.sort_values(["prompt_id", "i", "j"], ignore_index=True)


def select(strategy: str, conflict: pd.DataFrame, budget: int | None, generator: np.random.Generator, settings: Selection,
           asked: pd.DataFrame | None = None) -> pd.DataFrame:
    """Choose at most `budget` comparisons by `strategy`; columns prompt_id, i, j, rank (1 is first), strategy, reason.

    Raises InputError for an unknown strategy or a budget larger than the pairs that are left.
    """
    if strategy not in STRATEGIES:
        raise InputError(f"unknown strategy {strategy!r}: choose {', '.join(STRATEGIES)}")
    pairs = all_pairs(conflict, asked)
    if budget is not None and budget > len(pairs):
        raise InputError(f"selection.budget: {budget} comparisons asked for, but only {len(pairs)} pairs are left to ask")
    chosen = STRATEGIES[strategy](pairs, len(pairs) if budget is None else budget, generator, settings)
    reason = "K " + chosen["kendall"].round(3).astype(str) + ", PACS " + chosen["pacs_i"].round(2).astype(str) + " and " + chosen["pacs_j"].round(2).astype(str)
    return chosen.assign(rank=range(1, len(chosen) + 1), strategy=strategy, reason=reason)[COLUMNS].reset_index(drop=True)


def shf_cas(pairs: pd.DataFrame, budget: int, generator: np.random.Generator, settings: Selection) -> pd.DataFrame:
    """SHF-CAS, budget form: keep the top share of prompts by K, then the pairs whose completions carry the largest |PACS|."""
    return _largest(_top_prompts(pairs, budget, settings), _weight, budget)


def shf_cas_threshold(pairs: pd.DataFrame, budget: int, generator: np.random.Generator, settings: Selection) -> pd.DataFrame:
    """SHF-CAS, the paper's form: all pairs of the prompts with mean |PACS| > delta and K >= tau, most conflicted prompts first."""
    kept = pairs[(pairs["mean_abs_pacs"] > settings.delta) & (pairs["kendall"] >= settings.tau)]
    return _largest(kept, lambda p: p["mean_abs_pacs"], budget)


def pacs_only(pairs: pd.DataFrame, budget: int, generator: np.random.Generator, settings: Selection) -> pd.DataFrame:
    """Ablation: the largest |PACS| anywhere, K unused."""
    return _largest(pairs, _weight, budget)


def kendall_only(pairs: pd.DataFrame, budget: int, generator: np.random.Generator, settings: Selection) -> pd.DataFrame:
    """Ablation: random pairs of the top share of prompts by K, PACS unused."""
    return random(_top_prompts(pairs, budget, settings), budget, generator, settings)


def random(pairs: pd.DataFrame, budget: int, generator: np.random.Generator, settings: Selection) -> pd.DataFrame:
    """The first baseline: pairs drawn uniformly."""
    return pairs.iloc[generator.permutation(len(pairs))[:budget]]


STRATEGIES: dict[str, Strategy] = {
    "shf_cas": shf_cas,
    "shf_cas_threshold": shf_cas_threshold,
    "pacs": pacs_only,
    "kendall": kendall_only,
    "random": random,
}


def _top_prompts(pairs: pd.DataFrame, budget: int, settings: Selection) -> pd.DataFrame:
    """Pairs of the top share of prompts by K, ties broken by id; of more prompts where these hold fewer pairs than the budget."""
    prompts = pairs.groupby("prompt_id").agg(kendall=("kendall", "first"), pairs=("i", "size")).reset_index()
    prompts = prompts.sort_values(["kendall", "prompt_id"], ascending=[False, True])
    enough = int(np.searchsorted(prompts["pairs"].cumsum(), budget)) + 1
    kept = prompts["prompt_id"].head(max(enough, int(np.ceil(settings.top_share * len(prompts)))))
    return pairs[pairs["prompt_id"].isin(kept)]


def _weight(pairs: pd.DataFrame) -> pd.Series:
    return pairs["pacs_i"].abs() + pairs["pacs_j"].abs()


def _largest(pairs: pd.DataFrame, key: Callable[[pd.DataFrame], pd.Series], budget: int) -> pd.DataFrame:
    """The `budget` pairs with the largest key; ties are broken by id."""
    ordered = pairs.assign(key=key(pairs)).sort_values(["key", "prompt_id", "i", "j"], ascending=[False, True, True, True])
    return ordered.head(budget).drop(columns="key")
