"""Which labels deserve a second opinion: a pool and preferences that people gave go in, each pair
with what proxy and policy say against its label comes out.

    pairs = audit.cross_fitted(pool, preferences, seed=0)    # every pair scored out of fold
    audit.ranked(pairs, "proxy").head(100)                   # those to look at first
    audit.accuracy(pairs, category, seed=0)                  # how good the proxy is, by category

A proxy contradicts few of the pairs that trained it, right or wrong as they are. So it is
cross-fitted: the prompts are dealt into folds, and the pairs of each are judged by a probe that
learnt from the others. Nothing here needs gold, or two of anybody's opinions.

Conflict (PACS) has no say: a labelled pair has two completions, where it is 0 or 2.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import trust
from shfcas_lib.analysis import stats
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.params.schema import Reward
from shfcas_lib.rewards import LEARNT, fit_probe, locate

FOLDS = 5
FEWEST = 20  # pairs, on twice as many prompts as there are folds: of fewer nothing can be learnt
BY = ("proxy", "policy", "both")
L2 = Reward().l2
# what judges a pair, and what it is called
JUDGES = {
    "proxy": "the proxy, on pairs that it has not seen",
    "learnt": "the proxy, on the pairs that it learnt from",
    "length": "length alone",
    "policy": "the policy's log-probability",
}


def cross_fitted(
    pool: pd.DataFrame, preferences: pd.DataFrame, seed: int, l2: float = L2, folds: int = FOLDS
) -> pd.DataFrame:
    """Every pair, judged by a probe that never saw a label of its prompt.

    pool: a pool table with features that holds every completion named. preferences: prompt_id, i,
    j, label (probability that i is preferred). l2: unit of the ridge penalty; l2 / tau is used,
    with the tau of `trust.believe` under which the pairs of the other folds are most probable.
    Returns the preferences with

        fold     the pair's fold; prompts are dealt by the seed
        proxy    log odds of i over j, by the probe of the other folds
        learnt   the same by the probe of all pairs, this one among them
        policy   log-probability of i less that of j, in nats
        longer   characters of i less those of j
        length   +1 where the rule that length alone gives (the longer, or the shorter, whichever
                 the other folds prefer) takes i, -1 where j, 0 where both are of one length

    Raises InputError for fewer than FEWEST pairs that are no tie, or too few prompts to deal out.
    """
    check(preferences, folds)
    table = with_facts(pool, preferences)
    table = table.assign(fold=_folds(table["prompt_id"], folds, seed))
    first, second = (locate(pool, table, side) for side in ("i", "j"))

    proxy, length = np.zeros(len(table)), np.zeros(len(table))
    for fold in range(folds):
        here = (table["fold"] == fold).to_numpy()
        rest = table[~here]
        odds = _log_odds(pool, rest, l2)
        proxy[here] = odds[first[here]] - odds[second[here]]
        length[here] = by_length(table[here], rest)
    every = _log_odds(pool, table, l2)
    return table.assign(proxy=proxy, learnt=every[first] - every[second], length=length)


def check(preferences: pd.DataFrame, folds: int = FOLDS) -> None:
    """Raise InputError where there is too little to learn from. preferences: prompt_id, label."""
    decided = preferences[preferences["label"] != 0.5]
    prompts = decided["prompt_id"].nunique()
    if len(decided) < FEWEST or prompts < 2 * folds:
        raise InputError(
            f"audit: found {len(decided)} pairs that are no tie, on {prompts} prompts, expected at"
            f" least {FEWEST} on {2 * folds}: the proxy of every pair learns from the others"
        )


def _folds(prompts: pd.Series, folds: int, seed: int) -> np.ndarray:
    """The fold of each row, (rows,): prompts dealt out in a random order."""
    names = np.sort(prompts.unique())
    dealt = rng(seed, "audit/folds").permutation(len(names)) % folds
    return prompts.map(dict(zip(names, dealt, strict=True))).to_numpy()


def _log_odds(pool: pd.DataFrame, preferences: pd.DataFrame, l2: float) -> np.ndarray:
    """What a probe of these preferences gives every completion of a pool, log odds, (rows,)."""
    tau = trust.believe(pool, preferences, l2).tau
    probe = fit_probe(pool, preferences, l2 / tau)
    return probe.score(pool) * probe.spread


def with_facts(pool: pd.DataFrame, preferences: pd.DataFrame) -> pd.DataFrame:
    """The preferences with their columns policy and longer, see `cross_fitted`."""
    table = preferences.reset_index(drop=True)
    first, second = (locate(pool, table, side) for side in ("i", "j"))
    size, logp = pool["completion"].str.len().to_numpy(), pool["logp"].to_numpy(float)
    return table.assign(policy=logp[first] - logp[second], longer=size[first] - size[second])


def by_length(pairs: pd.DataFrame, rest: pd.DataFrame) -> np.ndarray:
    """What the rule of length that `rest` gives says of pairs, (pairs,): +1 for i, -1 for j. Both:
    column longer; rest: label."""
    lean = np.sign(rest["label"] - 0.5) * np.sign(rest["longer"])
    direction = 1.0 if lean.sum() >= 0 else -1.0
    return direction * np.sign(pairs["longer"].to_numpy())


def ranked(pairs: pd.DataFrame, by: str = "proxy", seed: int = 0) -> pd.DataFrame:
    """The pairs, those most worth a second opinion first.

    pairs: from `cross_fitted`. by: what contradicts the label. `proxy`: log odds against it, out
    of fold. `policy`: the log-probability that the other answer has more. `both`: the mean of the
    pair's places in those two orders. Adds

        against_proxy, against_policy  above 0: against the label; NaN for a tie, which nothing
                                       contradicts and which comes last
        rank                           1: first; what is equal comes in an order of the seed
    """
    if by not in BY:
        raise InputError(f"audit: found by {by!r}, expected one of {', '.join(BY)}")
    side = np.sign(pairs["label"] - 0.5).replace(0, np.nan)
    table = pairs.assign(
        against_proxy=-side * pairs["proxy"], against_policy=-side * pairs["policy"]
    )
    places = table[["against_proxy", "against_policy"]].rank(pct=True)
    wanted = places.mean(axis=1) if by == "both" else table[f"against_{by}"]
    chance = rng(seed, "audit/ties").permutation(len(table))
    table = table.assign(wanted=wanted, chance=chance)
    table = table.sort_values(["wanted", "chance"], ascending=[False, True], ignore_index=True)
    return table.drop(columns=["wanted", "chance"]).assign(rank=range(1, len(table) + 1))


def accuracy(pairs: pd.DataFrame, category: dict[str, str], seed: int) -> pd.DataFrame:
    """How often the label is what a judge would have said, for all pairs and by category.

    pairs: prompt_id, label, and a column for each judge that is there: proxy, learnt, policy,
    length (above 0: i; NaN where it says nothing of a pair, which then has no place in its share).
    category: prompt_id to its category. Ties have no place; a judge that
    finds both answers alike is half right. Columns

        group, judge      `all pairs` first
        value, low, high  share of pairs, 95% bootstrap over prompts
        pairs, prompts    how many
    """
    decided = pairs[pairs["label"] != 0.5].reset_index(drop=True)
    group = decided["prompt_id"].map(category)
    groups = [("all pairs", decided)]
    if group.nunique() > 1:
        groups += [(str(name), part) for name, part in decided.groupby(group)]
    rows = []
    for name, part in groups:
        for judge in [judge for judge in JUDGES if judge in part]:
            judged = part.dropna(subset=[judge])
            if not len(judged):
                continue
            right = (np.sign(judged[judge]) * np.sign(judged["label"] - 0.5) + 1) / 2
            draw = rng(seed, f"audit/{judge}/{name}")
            found = stats.cluster_mean(right, judged["prompt_id"], draw)
            limits = (found.value, found.low, found.high)
            rows.append((name, judge, *limits, len(judged), judged["prompt_id"].nunique()))
    columns = ["group", "judge", "value", "low", "high", "pairs", "prompts"]
    return pd.DataFrame(rows, columns=columns)


def beside_length(table: pd.DataFrame) -> pd.DataFrame:
    """What `figures.proxy_errors` draws of `accuracy`: the proxy on pairs that it has not seen, and
    length alone; judge is called reward."""
    shown = table[table["judge"].isin(["proxy", "length"])]
    return shown.rename(columns={"judge": "reward"}).drop(columns="pairs").reset_index(drop=True)


def unlearnt(table: pd.DataFrame) -> str | None:
    """One sentence where a proxy has not learnt its own pairs; None where it has, or none is known.
    table: from `accuracy`."""
    whole = table[(table["group"] == "all pairs") & (table["judge"] == "learnt")]
    if not len(whole) or whole["value"].iloc[0] >= LEARNT:
        return None
    return (
        f"the proxy ranks {whole['value'].iloc[0]:.0%} of the pairs that it learnt from as they"
        " say: it has not learnt them, and what it says of others is close to chance (with"
        " reward.kind lora: more reward.epochs, or a higher reward.learning_rate)"
    )
