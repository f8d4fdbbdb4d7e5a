"""Error bars: tables go in, intervals and paired tests come out.

Every resampling draws from a generator that the caller hands in: two calls with generators from
the same seed agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng


@dataclass(frozen=True)
class Interval:
    """A point estimate with its interval; `level` is the two-sided coverage aimed at."""

    value: float
    low: float
    high: float
    level: float = 0.95

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def dict(self) -> dict[str, float]:
        """Plain dict, for JSON."""
        return {k: float(v) for k, v in asdict(self).items()}


def direction(interval: Interval) -> str:
    """'higher' or 'lower' where the interval is clear of 0, else 'not significant'."""
    if interval.low > 0:
        return "higher"
    return "lower" if interval.high < 0 else "not significant"


def mean_interval(
    values, generator: np.random.Generator, resamples: int = 4000, level: float = 0.95
) -> Interval:
    """Mean of independent units with a percentile bootstrap interval. values: (units,). For a
    paired comparison, hand in the differences. Raises InputError for no values or one that is not
    finite."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(
            f"mean_interval: found shape {values.shape}, expected at least one finite value per"
            " unit"
        )
    if len(values) == 1:
        return Interval(values[0], values[0], values[0], level)
    draws = values[generator.integers(0, len(values), (resamples, len(values)))].mean(1)
    return Interval(values.mean(), *np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]), level)


def cluster_interval(
    table: pd.DataFrame,
    cluster: str,
    statistic: Callable[[pd.DataFrame], float],
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A statistic of a whole table with a bootstrap interval that resamples clusters (prompts),
    not rows.

    Completions of one prompt are not independent; resampling them one by one would make intervals
    too short. Resamples in which the statistic is undefined (NaN) are left out; the value is NaN
    where the whole table has none."""
    value = statistic(table)
    groups = [part for _, part in table.groupby(cluster, sort=True)]
    draws = []
    for _ in range(resamples):
        draws.append(
            statistic(
                pd.concat([groups[k] for k in generator.integers(0, len(groups), len(groups))])
            )
        )
    draws = np.array(draws, float)
    draws = draws[np.isfinite(draws)]
    low, high = (
        np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) if len(draws) else (np.nan, np.nan)
    )
    return Interval(value, low, high, level)


def cluster_mean(
    values, clusters, generator: np.random.Generator, resamples: int = 4000, level: float = 0.95
) -> Interval:
    """Mean of all values with a bootstrap interval that resamples clusters (prompts), each with
    all its values: `cluster_interval` for a mean, faster. values, clusters: (rows,)."""
    groups = pd.Series(np.asarray(values, float)).groupby(np.asarray(clusters))
    sums, sizes = groups.sum().to_numpy(), groups.size().to_numpy()
    drawn = generator.integers(0, len(sums), (resamples, len(sums)))
    return Interval(
        float(np.mean(values)),
        *np.quantile(sums[drawn].sum(1) / sizes[drawn].sum(1), [(1 - level) / 2, (1 + level) / 2]),
        level,
    )


def spearman(first, second) -> float:
    """Spearman's rank correlation (scipy); NaN where one side does not vary."""
    from scipy.stats import spearmanr

    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def roc_auc(positive, score) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties
    counting one half; NaN for one class."""
    from scipy.stats import rankdata

    positive = np.asarray(positive, bool)
    n, m = positive.sum(), (~positive).sum()
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.asarray(score, float))
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def roc_curve(positive, score) -> pd.DataFrame:
    """Points of the ROC curve, from (0, 0) to (1, 1): columns false_positive_rate,
    true_positive_rate."""
    positive, score = np.asarray(positive, bool), np.asarray(score, float)
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.diff(score[order]) != 0, True]  # equal scores move together
    hit = np.cumsum(positive[order])[last]
    miss = np.cumsum(~positive[order])[last]
    return pd.DataFrame(
        {
            "false_positive_rate": np.r_[0, miss / max(1, miss[-1])],
            "true_positive_rate": np.r_[0, hit / max(1, hit[-1])],
        }
    )


def wilcoxon_p(differences) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired differences (scipy); 1 where all
    are zero."""
    from scipy.stats import wilcoxon

    differences = np.asarray(differences, float)
    return 1.0 if not differences.any() else float(wilcoxon(differences).pvalue)


def nested_interval(
    table: pd.DataFrame,
    outer: str,
    value: str,
    generator: np.random.Generator,
    resamples: int = 4000,
    level: float = 0.95,
) -> Interval:
    """Mean of `value` with a bootstrap interval on two levels: the groups of `outer` (pools) are
    drawn first, then units (seeds) within each drawn group. It covers both kinds of randomness;
    groups weigh equally. Raises InputError for no values or one that is not finite."""
    groups = [part[value].to_numpy(float) for _, part in table.groupby(outer, sort=True)]
    if not groups or not all(np.isfinite(g).all() for g in groups):
        raise InputError(
            f"nested_interval: found {len(table)} rows of {value!r}, expected at least one, all"
            " finite"
        )
    draws = np.zeros(resamples)
    which = generator.integers(0, len(groups), (resamples, len(groups)))
    for k, group in enumerate(groups):  # all draws of this group at once
        times = (which == k).sum(1)
        means = group[generator.integers(0, len(group), (int(times.sum()), len(group)))].mean(1)
        draws += np.bincount(
            np.repeat(np.arange(resamples), times), means, minlength=resamples
        ) / len(groups)
    return Interval(
        float(np.mean([g.mean() for g in groups])),
        *np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]),
        level,
    )


def interquartile_mean(values) -> float:
    """Mean of the middle half (Agarwal et al. 2021), by scipy."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, float), 0.25))


def probability_of_improvement(differences) -> float:
    """Share of paired units on which the first is better, ties counting one half (Agarwal et al.
    2021, paired)."""
    return float((np.sign(np.asarray(differences, float)) + 1).mean() / 2)


def effect_size(differences) -> float:
    """Cohen's d of paired differences: mean over standard deviation; NaN where they do not vary."""
    differences = np.asarray(differences, float)
    return (
        float(differences.mean() / differences.std(ddof=1))
        if len(differences) > 1 and differences.std(ddof=1) > 0
        else float("nan")
    )


def holm(p_values) -> np.ndarray:
    """Holm's step-down correction of a family of p-values, by statsmodels; (tests,)."""
    from statsmodels.stats.multitest import multipletests

    return (
        multipletests(np.asarray(p_values, float), method="holm")[1]
        if len(p_values)
        else np.zeros(0)
    )


def compare(
    table: pd.DataFrame, against: str, seed: int, value: str = "gold", level: float = 0.95
) -> pd.DataFrame:
    """Every policy against one, paired by pool and seed.

    table: pool, seed, policy and `value`, one row each. Returns policy, difference, low, high
    (nested bootstrap over pools and seeds), interquartile_mean, effect_size, improvement
    (probability), p (Wilcoxon), p_holm (over the policies compared), units, pools, agree (pools
    whose mean has the sign of the whole) and verdict: see `verdicts`. Policies that share no unit
    with `against` are left out."""
    wide = table.pivot(index=["pool", "seed"], columns="policy", values=value)
    others = [name for name in table["policy"].drop_duplicates() if name != against]
    rows = [row for name in others if (row := paired(wide, name, against, seed, value, level))]
    result = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["policy", "against", *_PAIRED])
    return verdicts(result, level).drop(columns="against")


_PAIRED = [
    "difference",
    "low",
    "high",
    "interquartile_mean",
    "effect_size",
    "improvement",
    "p",
    "units",
    "pools",
    "agree",
]


def paired(
    wide: pd.DataFrame,
    policy: str,
    against: str,
    seed: int,
    value: str = "gold",
    level: float = 0.95,
) -> dict | None:
    """One row of `compare`, without correction or verdict; None where the two share no unit.
    wide: (pool, seed) by policy."""
    differences = (wide[policy] - wide[against]).dropna()
    if not len(differences):
        return None
    i = nested_interval(
        differences.rename("d").reset_index(),
        "pool",
        "d",
        rng(seed, f"compare/{value}/{policy}/{against}"),
        level=level,
    )
    by_pool = differences.groupby("pool").mean()
    return {
        "policy": policy,
        "against": against,
        "difference": i.value,
        "low": i.low,
        "high": i.high,
        "interquartile_mean": interquartile_mean(differences),
        "effect_size": effect_size(differences),
        "improvement": probability_of_improvement(differences),
        "p": wilcoxon_p(differences),
        "units": len(differences),
        "pools": len(by_pool),
        "agree": int((np.sign(by_pool) == np.sign(i.value)).sum()),
    }


def verdicts(result: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Add p_holm, corrected over the rows, and verdict: 'higher' or 'lower' where p_holm < 1 -
    level, the interval does not hold 0, and every pool agrees in sign; else 'not significant'.
    (Wilcoxon's test takes units of one pool for independent; with few pools the other two
    conditions keep a difference between pools from passing for one between policies.)"""
    result = result.assign(p_holm=holm(result["p"]) if len(result) else [])
    clear = (
        (result["p_holm"] < 1 - level)
        & ((result["low"] > 0) | (result["high"] < 0))
        & (result["agree"] == result["pools"])
    )
    return result.assign(
        verdict=np.where(
            clear, np.where(result["difference"] > 0, "higher", "lower"), "not significant"
        )
    )


def label_efficiency(
    table: pd.DataFrame,
    reference: str,
    budget: int,
    seed: int,
    resamples: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """The budget at which each policy reaches the gold reward that `reference` reaches at `budget`.

    table: pool, seed, policy, budget (0: the proxy before feedback, under every policy's name),
    gold. Units that lack a budget are left out. Mean gold is taken linear between budgets and
    made non-decreasing from the left; a level that is not reached at the largest budget counts as
    that budget, and `reached` is the share of resamples that got there. Pools and seeds are
    resampled together. Returns policy, labels, low, high, ratio (budget / labels), ratio_low,
    ratio_high, reached, units, and `flat`: the share of resamples in which the reference had
    gained nothing at `budget`, so that the question has no answer; they are left out, and where
    they are more than a tenth everything is NaN."""
    budgets = np.sort(table["budget"].unique())
    names = list(table["policy"].drop_duplicates())
    cube = table.pivot_table(index=["pool", "seed"], columns=["policy", "budget"], values="gold")
    cube = cube.reindex(columns=pd.MultiIndex.from_product([names, budgets])).dropna()
    columns = [
        "policy",
        "labels",
        "low",
        "high",
        "ratio",
        "ratio_low",
        "ratio_high",
        "reached",
        "units",
        "flat",
    ]
    if not len(cube):
        return pd.DataFrame(columns=columns)
    # policies x units x budgets
    values = cube.to_numpy().reshape(len(cube), len(names), len(budgets)).swapaxes(0, 1)
    pools = cube.index.get_level_values(0).to_numpy()
    draw = rng(seed, f"label_efficiency/{reference}/{budget}")
    groups = [np.flatnonzero(pools == p) for p in np.unique(pools)]
    at = names.index(reference), int(np.searchsorted(budgets, budget))
    found = []
    for k in range(resamples + 1):  # the first is the sample itself
        rows = (
            np.arange(len(pools))
            if k == 0
            else np.concatenate(
                [
                    draw.choice(groups[g], len(groups[g]))
                    for g in draw.integers(0, len(groups), len(groups))
                ]
            )
        )
        curves = np.maximum.accumulate(values[:, rows].mean(1), axis=1)
        target = curves[at]
        found.append(
            [
                _first_reach(budgets, curve, target) if target > curves[at[0], 0] else -1.0
                for curve in curves
            ]
        )
    labels = np.array(found, float)
    flat = (labels[1:] < 0).any(1)
    usable = flat.mean() <= 0.1 and not (labels[0] < 0).any()
    tail = [(1 - level) / 2, (1 + level) / 2]
    result = []
    for k, name in enumerate(names):
        if not usable:
            result.append((name, *[np.nan] * 7, len(cube), float(flat.mean())))
            continue
        drawn = labels[1:][~flat, k]
        capped = np.where(np.isnan(drawn), budgets[-1], drawn)
        own = budgets[-1] if np.isnan(labels[0, k]) else labels[0, k]
        result.append(
            (
                name,
                own,
                *np.quantile(capped, tail),
                budget / own,
                *np.quantile(budget / capped, tail),
                float(np.isfinite(drawn).mean()),
                len(cube),
                float(flat.mean()),
            )
        )
    return pd.DataFrame(result, columns=columns)


def _first_reach(budgets: np.ndarray, curve: np.ndarray, target: float) -> float:
    """Where a non-decreasing, piecewise linear curve that starts below the target first reaches
    it; NaN where it never does."""
    if curve[-1] < target:
        return float("nan")
    k = max(1, int(np.argmax(curve >= target)))
    return float(np.interp(target, curve[k - 1 : k + 1], budgets[k - 1 : k + 1]))
