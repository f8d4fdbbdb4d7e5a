"""Error bars: tables go in, intervals and paired tests come out.

Every resampling draws from a generator that the caller hands in: two calls with generators from the same seed agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from shfcas_lib.params import InputError


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


def mean_interval(values, generator: np.random.Generator, resamples: int = 4000, level: float = 0.95) -> Interval:
    """Mean of independent units with a percentile bootstrap interval. values: (units,). For a paired comparison, hand in
    the differences. Raises InputError for no values or one that is not finite."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise InputError(f"mean_interval: found shape {values.shape}, expected at least one finite value per unit")
    if len(values) == 1:
        return Interval(values[0], values[0], values[0], level)
    draws = values[generator.integers(0, len(values), (resamples, len(values)))].mean(1)
    return Interval(values.mean(), *np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]), level)


def cluster_interval(table: pd.DataFrame, cluster: str, statistic: Callable[[pd.DataFrame], float],
                     generator: np.random.Generator, resamples: int = 1000, level: float = 0.95) -> Interval:
    """A statistic of a whole table with a bootstrap interval that resamples clusters (prompts), not rows.

    Completions of one prompt are not independent; resampling them one by one would make intervals too short. Resamples in
    which the statistic is undefined (NaN) are left out; the value is NaN where the whole table has none.
    """
    value = statistic(table)
    groups = [part for _, part in table.groupby(cluster, sort=True)]
    draws = []
    for _ in range(resamples):
        draws.append(statistic(pd.concat([groups[k] for k in generator.integers(0, len(groups), len(groups))])))
    draws = np.array(draws, float)
    draws = draws[np.isfinite(draws)]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) if len(draws) else (np.nan, np.nan)
    return Interval(value, low, high, level)


def spearman(first, second) -> float:
    """Spearman's rank correlation (scipy); NaN where one side does not vary."""
    from scipy.stats import spearmanr

    first, second = np.asarray(first, float), np.asarray(second, float)
    if len(first) < 3 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)


def roc_auc(positive, score) -> float:
    """Area under the ROC curve: the probability that a positive outranks a negative, ties counting one half; NaN for one class."""
    from scipy.stats import rankdata

    positive = np.asarray(positive, bool)
    n, m = positive.sum(), (~positive).sum()
    if not n or not m:
        return float("nan")
    ranks = rankdata(np.asarray(score, float))
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


def roc_curve(positive, score) -> pd.DataFrame:
    """Points of the ROC curve, from (0, 0) to (1, 1): columns false_positive_rate, true_positive_rate."""
    positive, score = np.asarray(positive, bool), np.asarray(score, float)
    order = np.argsort(-score, kind="stable")
    last = np.r_[np.diff(score[order]) != 0, True]  # equal scores move together
    hit = np.cumsum(positive[order])[last]
    miss = np.cumsum(~positive[order])[last]
    return pd.DataFrame({"false_positive_rate": np.r_[0, miss / max(1, miss[-1])], "true_positive_rate": np.r_[0, hit / max(1, hit[-1])]})


def wilcoxon_p(differences) -> float:
    """Two-sided p-value of Wilcoxon's signed-rank test on paired differences (scipy); 1 where all are zero."""
    from scipy.stats import wilcoxon

    differences = np.asarray(differences, float)
    return 1.0 if not differences.any() else float(wilcoxon(differences).pvalue)
