"""Error bars: tables go in, intervals and paired tests come out.

Every resampling draws from a generator that the caller hands in: two calls with generators from
the same seed agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng

Columns = Mapping[str, np.ndarray]  # the columns of a table, each of shape (rows,)


@dataclass(frozen=True)
class Interval:
    """A point estimate with its interval; `level` is the two-sided coverage aimed at, `p` the
    two-sided bootstrap p-value of 0 being the truth, where one was asked for."""

    value: float
    low: float
    high: float
    level: float = 0.95
    p: float = field(default=float("nan"), compare=False)

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(
    values: ArrayLike, generator: np.random.Generator, resamples: int = 4000, level: float = 0.95
) -> Interval:
    """Mean of independent units with a percentile bootstrap interval.

    values: (units,); for a paired comparison, hand in the differences. generator: draws the
    resamples, of which the interval leaves (1 - level) / 2 out on each side. Raises InputError
    for no values or one that is not finite.
    """
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(
            f"mean_interval: found shape {values.shape}, expected at least one finite value per"
            " unit"
        )
    if len(values) == 1:
        return Interval(values[0], values[0], values[0], level)
    drawn = generator.integers(0, len(values), (resamples, len(values)))
    means = values[drawn].mean(1)
    return Interval(values.mean(), *_percentiles(means, level), level)


def ratio_interval(
    numerator: ArrayLike,
    denominator: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 4000,
    level: float = 0.95,
) -> Interval:
    """Ratio of two means over the same independent units with a percentile bootstrap interval.

    numerator, denominator: (units,). Raises InputError for no units or a value that is not finite.
    """
    both = np.stack([np.asarray(numerator, float), np.asarray(denominator, float)])
    if not both.size or not np.isfinite(both).all():
        raise InputError(
            f"ratio_interval: found shape {both.shape}, expected at least one finite value per unit"
        )
    drawn = generator.integers(0, both.shape[1], (resamples, both.shape[1]))
    above, below = both[:, drawn].mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = above / below
    value = float(both[0].mean() / both[1].mean()) if both[1].mean() else float("nan")
    return Interval(value, *_percentiles(ratios[np.isfinite(ratios)], level), level)


def cluster_interval(
    table: pd.DataFrame,
    cluster: str,
    statistic: Callable[[Columns], float],
    generator: np.random.Generator,
    resamples: int = 1000,
    level: float = 0.95,
) -> Interval:
    """A statistic of a table with a bootstrap interval that resamples clusters, not rows.

    cluster: the column that names each row's cluster (its prompt); statistic: gets the columns of
    the table, or of a resample, as arrays of shape (rows,).

    Completions of one prompt are not independent; resampling them one by one would make intervals
    too short. Resamples in which the statistic is undefined (NaN) are left out; the value is NaN
    where the whole table has none.
    """
    columns = {str(name): table[name].to_numpy() for name in table}
    value = statistic(columns)
    groups = _rows_by_cluster(table[cluster])

    draws = np.empty(resamples)
    for k in range(resamples):
        chosen = generator.integers(0, len(groups), len(groups))
        draws[k] = statistic(_Resample(columns, np.concatenate([groups[g] for g in chosen])))

    # a resample can lack what the statistic needs, such as a second class
    return from_draws(value, draws, level)


class _Resample(Mapping[str, np.ndarray]):
    """The columns of a table at some of its rows; a column is taken when it is asked for."""

    def __init__(self, columns: Columns, rows: np.ndarray):
        self._columns, self._rows = columns, rows

    def __getitem__(self, name: str) -> np.ndarray:
        return self._columns[name].take(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


def _rows_by_cluster(clusters: pd.Series) -> list[np.ndarray]:
    """The row positions of every cluster, clusters sorted; rows without a cluster are in none."""
    codes, names = pd.factorize(clusters, sort=True)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(names)))
    return np.split(order, starts)[1:]


def from_draws(value: float, draws: ArrayLike, level: float = 0.95) -> Interval:
    """The percentile interval of a statistic from its bootstrap draws, (resamples,), with its p.

    p is twice the share of draws on the far side of 0, never below 2 / (draws + 1) and never
    above 1. Draws that are not finite are left out; the limits are NaN where none is left.
    """
    finite = np.asarray(draws, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return Interval(value, np.nan, np.nan, level)
    far = min((finite <= 0).sum(), (finite >= 0).sum())
    p = min(1.0, float(2 * (far + 1) / (len(finite) + 1)))
    return Interval(value, *_percentiles(finite, level), level, p)


def _percentiles(draws: np.ndarray, level: float) -> tuple[float, float]:
    """Both ends of the percentile interval that holds a share `level` of the draws."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return low, high


def cluster_mean(
    values: ArrayLike,
    clusters: ArrayLike,
    generator: np.random.Generator,
    resamples: int = 4000,
    level: float = 0.95,
) -> Interval:
    """Mean of all values with a bootstrap interval that resamples clusters (prompts).

    values, clusters: (rows,). A cluster is drawn with all its values: `cluster_interval` for a
    mean, faster.
    """
    values = np.asarray(values, float)
    groups = pd.Series(values).groupby(np.asarray(clusters))
    sums, sizes = groups.sum().to_numpy(), groups.size().to_numpy()
    drawn = generator.integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    return from_draws(float(np.mean(values)), means, level)


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation; NaN where one side does not vary."""
    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    ranks = np.stack([_ranks(first), _ranks(second)])
    return float(np.corrcoef(ranks)[1, 0])


def roc_auc(positive: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative.

    Ties count one half. NaN for one class.
    """
    positive = np.asarray(positive, bool)
    n = int(positive.sum())
    m = len(positive) - n
    if not n or not m:
        return float("nan")
    ranks = _ranks(np.asarray(score, float))
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1, equal values sharing their mean rank; all NaN where one value is NaN.

    values: (rows,). The same numbers as scipy's rankdata, in a fraction of its time: bootstraps
    call it thousands of times.
    """
    if np.isnan(values).any():
        return np.full(len(values), np.nan)
    order = np.argsort(values)
    ordered = values[order]
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) + 1
    counts = np.diff(last, prepend=0)
    ranks = np.empty(len(values))
    ranks[order] = np.repeat(last - (counts - 1) / 2, counts)
    return ranks


def roc_curve(positive: ArrayLike, score: ArrayLike) -> pd.DataFrame:
    """Points of the ROC curve, from (0, 0) to (1, 1).

    Columns: false_positive_rate, true_positive_rate.
    """
    positive, score = np.asarray(positive, bool), np.asarray(score, float)
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.diff(score[order]) != 0, True]  # equal scores move together
    hits = np.cumsum(positive[order])[last]
    misses = np.cumsum(~positive[order])[last]
    false_positive = np.r_[0, misses / max(1, misses[-1])]
    true_positive = np.r_[0, hits / max(1, hits[-1])]
    return pd.DataFrame(
        {"false_positive_rate": false_positive, "true_positive_rate": true_positive}
    )


def wilcoxon_p(differences: ArrayLike) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired differences (scipy).

    1 where all differences are zero.
    """
    from scipy.stats import wilcoxon

    differences = np.asarray(differences, float)
    if not differences.any():
        return 1.0
    return float(wilcoxon(differences).pvalue)


def nested_interval(
    table: pd.DataFrame,
    outer: str,
    value: str,
    generator: np.random.Generator,
    resamples: int = 4000,
    level: float = 0.95,
) -> Interval:
    """Mean of `value` with a bootstrap interval on two levels.

    The groups of `outer` (pools) are drawn first, then units (seeds) within each drawn group: the
    interval covers both kinds of randomness. Groups weigh equally. Raises InputError for no
    values or one that is not finite.
    """
    groups = [part[value].to_numpy(float) for _, part in table.groupby(outer, sort=True)]
    if not groups or not all(np.isfinite(group).all() for group in groups):
        raise InputError(
            f"nested_interval: found {len(table)} rows of {value!r}, expected at least one, all"
            " finite"
        )

    draws = np.zeros(resamples)
    which = generator.integers(0, len(groups), (resamples, len(groups)))
    for k, group in enumerate(groups):  # all draws of this group at once
        times = (which == k).sum(1)
        drawn = generator.integers(0, len(group), (int(times.sum()), len(group)))
        means = group[drawn].mean(1)
        resample = np.repeat(np.arange(resamples), times)
        draws += np.bincount(resample, means, minlength=resamples) / len(groups)

    centre = float(np.mean([group.mean() for group in groups]))
    return Interval(centre, *_percentiles(draws, level), level)


def interquartile_mean(values: ArrayLike) -> float:
    """Mean of the middle half (Agarwal et al. 2021), by scipy."""
    from scipy.stats import trim_mean

    return float(trim_mean(np.asarray(values, float), 0.25))


def probability_of_improvement(differences: ArrayLike) -> float:
    """Share of paired units on which the first is better (Agarwal et al. 2021, paired).

    Ties count one half.
    """
    signs = np.sign(np.asarray(differences, float))
    return float((signs + 1).mean() / 2)


def effect_size(differences: ArrayLike) -> float:
    """Cohen's d of paired differences: mean over standard deviation; NaN where they do not vary."""
    differences = np.asarray(differences, float)
    if len(differences) < 2:
        return float("nan")
    spread = differences.std(ddof=1)
    return float(differences.mean() / spread) if spread > 0 else float("nan")


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down correction of a family of p-values, by statsmodels; (tests,)."""
    from statsmodels.stats.multitest import multipletests

    p_values = np.asarray(p_values, float)
    if not len(p_values):
        return np.zeros(0)
    return multipletests(p_values, method="holm")[1]


def compare(
    table: pd.DataFrame, against: str, seed: int, value: str = "gold", level: float = 0.95
) -> pd.DataFrame:
    """Every policy against one, paired by pool and seed.

    table: pool, seed, policy and `value`, one row each. Policies that share no unit with
    `against` are left out. Returns:

        policy
        difference          its mean
        low, high           nested bootstrap over pools and seeds
        interquartile_mean  of the differences
        effect_size         Cohen's d
        improvement         probability of improvement
        p, p_holm           Wilcoxon; corrected over the policies compared
        units, pools        how many
        agree               pools whose mean has the sign of the whole
        verdict             see `verdicts`
    """
    wide = table.pivot(index=["pool", "seed"], columns="policy", values=value)
    policies = [name for name in table["policy"].drop_duplicates() if name != against]
    compared = [paired(wide, name, against, seed, value, level) for name in policies]
    rows = [row for row in compared if row]
    columns = list(rows[0]) if rows else ["policy", "against", *_PAIRED]
    result = pd.DataFrame(rows, columns=columns)
    return verdicts(result, level=level).drop(columns="against")


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

    wide: (pool, seed) by policy.
    """
    differences = (wide[policy] - wide[against]).dropna()
    if not len(differences):
        return None
    units = differences.rename("d").reset_index()
    generator = rng(seed, f"compare/{value}/{policy}/{against}")
    interval = nested_interval(units, "pool", "d", generator, level=level)
    by_pool = differences.groupby("pool").mean()
    return {
        "policy": policy,
        "against": against,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "interquartile_mean": interquartile_mean(differences),
        "effect_size": effect_size(differences),
        "improvement": probability_of_improvement(differences),
        "p": wilcoxon_p(differences),
        "units": len(differences),
        "pools": len(by_pool),
        "agree": int((np.sign(by_pool) == np.sign(interval.value)).sum()),
    }


def verdicts(
    result: pd.DataFrame, within: str | None = None, prefix: str = "", level: float = 0.95
) -> pd.DataFrame:
    """Add p_holm and verdict to rows of differences: the one rule behind the words *higher*,
    *lower* and *not significant*.

    result: p, low and high, one row a difference; agree and pools where there are pools.
    within: the column that names each row's family, over which Holm's correction runs; None: all
    rows are one. prefix: how low and high begin where they have a longer name ('gain_').

    verdict: 'higher' or 'lower' where p_holm < 1 - level, the interval does not hold 0, and every
    pool agrees in sign; else 'not significant'. (Wilcoxon's test takes units of one pool for
    independent; with few pools the other two conditions keep a difference between pools from
    passing for one between policies.)
    """
    family = np.zeros(len(result)) if within is None else result[within]
    p_holm = result["p"].astype(float).groupby(family).transform(holm)
    clear = p_holm < 1 - level
    if "pools" in result:
        clear &= result["agree"] == result["pools"]
    above, below = result[f"{prefix}low"] > 0, result[f"{prefix}high"] < 0
    words = np.select([clear & above, clear & below], ["higher", "lower"], "not significant")
    return result.assign(p_holm=p_holm, verdict=words)


_EFFICIENCY = [
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
    that budget. Pools and seeds are resampled together. Returns:

        policy
        labels, low, high             the budget that reaches it
        ratio, ratio_low, ratio_high  budget / labels
        reached                       share of resamples that got there
        units                         how many
        flat                          share of resamples left out, in which the reference had
                                      gained nothing at `budget`; above a tenth all is NaN
    """
    budgets = np.sort(table["budget"].unique())
    names = list(table["policy"].drop_duplicates())
    cube = table.pivot_table(index=["pool", "seed"], columns=["policy", "budget"], values="gold")
    cube = cube.reindex(columns=pd.MultiIndex.from_product([names, budgets])).dropna()
    if not len(cube):
        return pd.DataFrame(columns=_EFFICIENCY)
    labels = _labels_needed(
        cube.to_numpy().reshape(len(cube), len(names), len(budgets)).swapaxes(0, 1),
        cube.index.get_level_values(0).to_numpy(),
        budgets,
        (names.index(reference), int(np.searchsorted(budgets, budget))),
        rng(seed, f"label_efficiency/{reference}/{budget}"),
        resamples,
    )
    numbers, flat = _efficiencies(labels, budget, budgets[-1], level)
    rows = [(name, *own, len(cube), flat) for name, own in zip(names, numbers, strict=True)]
    return pd.DataFrame(rows, columns=_EFFICIENCY)


def _labels_needed(
    values: np.ndarray,
    pools: np.ndarray,
    budgets: np.ndarray,
    at: tuple[int, int],
    generator: np.random.Generator,
    resamples: int,
) -> np.ndarray:
    """The labels that each policy needs, in the sample itself and then in every resample.

    values: (policies, units, budgets); pools: (units,); at: the position of the reference and of
    its budget. Returns (1 + resamples, policies): NaN where the level is not reached, -1 where the
    reference had gained nothing.
    """
    groups = [np.flatnonzero(pools == pool) for pool in np.unique(pools)]
    rows = np.arange(len(pools))
    labels = np.empty((resamples + 1, len(values)))
    for k in range(resamples + 1):
        if k > 0:  # the first is the sample itself
            rows = _draw_units(groups, generator)
        curves = np.maximum.accumulate(values[:, rows].mean(1), axis=1)
        target = curves[at]
        gained = target > curves[at[0], 0]
        labels[k] = [_first_reach(budgets, c, target) for c in curves] if gained else -1.0
    return labels


def _draw_units(groups: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """A resample of units: as many pools as there are, then units within each drawn pool."""
    pools = generator.integers(0, len(groups), len(groups))
    return np.concatenate([generator.choice(groups[p], len(groups[p])) for p in pools])


def _efficiencies(
    labels: np.ndarray, budget: int, largest: float, level: float
) -> tuple[list[list[float]], float]:
    """`_efficiency` of every policy, and the share of resamples that have no answer.

    labels: as `_labels_needed` returns them.
    """
    sample, resamples = labels[0], labels[1:]
    flat = (resamples < 0).any(1)
    share = float(flat.mean())
    if flat.mean() > 0.1 or (sample < 0).any():
        return [[np.nan] * 7 for _ in sample], share
    answered = resamples[~flat]
    numbers = [
        _efficiency(own, answered[:, k], budget, largest, level) for k, own in enumerate(sample)
    ]
    return numbers, share


def _efficiency(
    own: float, drawn: np.ndarray, budget: int, largest: float, level: float
) -> list[float]:
    """One policy's labels, low, high, ratio, ratio_low, ratio_high and reached.

    own: the labels it needs in the sample; drawn: in each resample, NaN where not reached.
    """
    capped = np.where(np.isnan(drawn), largest, drawn)
    if np.isnan(own):
        own = largest
    labels = [own, *_percentiles(capped, level)]
    ratios = [budget / own, *_percentiles(budget / capped, level)]
    return [*labels, *ratios, float(np.isfinite(drawn).mean())]


def _first_reach(budgets: np.ndarray, curve: np.ndarray, target: float) -> float:
    """Where a curve that starts below the target first reaches it; NaN where it never does.

    curve: (budgets,), non-decreasing and taken linear between budgets.
    """
    if curve[-1] < target:
        return float("nan")
    k = max(1, int(np.argmax(curve >= target)))
    return float(np.interp(target, curve[k - 1 : k + 1], budgets[k - 1 : k + 1]))
