"""Rank statistics in every resample of clusters at once: columns go in, one number a resample
comes out.

    resamples = draw(table["prompt_id"], rng(seed, "predicts"), 1000)
    areas = resamples.area(table["wrong"], table["score"])      # (1001,), the sample itself first

A bootstrap over prompts repeats whole prompts. How the rows of two prompts compare is the same in
every resample, so it is counted once; a resample only says how often each prompt counts. The
numbers are those of `stats.roc_auc` and `stats.spearman` on the repeated rows, in a fraction of
their time, which is what makes placebos beside every measure affordable.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike


@dataclass(frozen=True)
class Resamples:
    """How often each resample draws each cluster.

    cluster  (rows,) of the table: the number of its cluster
    counts   (1 + resamples, clusters): times drawn; the first resample is the sample itself
    """

    cluster: np.ndarray
    counts: np.ndarray

    def area(self, positive: ArrayLike, score: ArrayLike) -> np.ndarray:
        """Area under the ROC curve in every resample, (1 + resamples,); ties count one half. NaN
        where a resample has one class alone. positive, score: (rows,)."""
        positive, score = np.asarray(positive, bool), np.asarray(score, float)
        # wins[a, b]: positives of cluster a that lie above a negative of cluster b
        above = self._below(score[positive], score[~positive], self.cluster[~positive])
        wins = self._per_cluster(self.cluster[positive], above)
        size = np.bincount(self.cluster, minlength=len(wins))
        positives = np.bincount(self.cluster[positive], minlength=len(wins))
        pairs = (self.counts @ positives) * (self.counts @ (size - positives))
        won = np.einsum("ra,ab,rb->r", self.counts, wins, self.counts, optimize=True)
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    def correlation(self, first: ArrayLike, second: ArrayLike) -> np.ndarray:
        """Spearman's rank correlation in every resample, (1 + resamples,); NaN where a side does
        not vary. first, second: (rows,)."""
        weight = self.counts[:, self.cluster]
        one, other = self._ranks(first, weight), self._ranks(second, weight)
        moments = []
        for left, right in ((one, other), (one, one), (other, other)):
            moments.append(np.einsum("rn,rn,rn->r", weight, left, right))
        product, squares = moments[0], moments[1] * moments[2]
        varies = squares > 1e-9
        root = np.sqrt(squares, where=varies, out=np.ones_like(squares))
        return np.where(varies, product / root, np.nan)

    def _ranks(self, values: ArrayLike, weight: np.ndarray) -> np.ndarray:
        """Ranks of the rows in every resample, less their mean: (1 + resamples, rows)."""
        values = np.asarray(values, float)
        ranks = self.counts @ self._below(values, values, self.cluster).T
        mean = np.einsum("rn,rn->r", weight, ranks) / np.maximum(weight.sum(1), 1)
        return ranks - mean[:, None]

    def _below(self, values: np.ndarray, others: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """(values, clusters): how many of each cluster's others lie below a value, equal ones
        counted one half. others, cluster: (others,)."""
        below = np.zeros((len(values), self.counts.shape[1]))
        for k in range(below.shape[1]):
            own = np.sort(others[cluster == k])
            sides = (np.searchsorted(own, values, side) for side in ("left", "right"))
            below[:, k] = sum(sides) / 2
        return below

    def _per_cluster(self, cluster: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Sums of the rows of each cluster: (rows, columns) to (clusters, columns)."""
        sums = np.zeros((self.counts.shape[1], values.shape[1]))
        np.add.at(sums, cluster, values)
        return sums


def draw(clusters: pd.Series, generator: np.random.Generator, resamples: int) -> Resamples:
    """As many clusters as there are, drawn with replacement, `resamples` times. clusters: (rows,),
    each row's. One cluster alone is not resampled: it says nothing about others."""
    cluster, names = pd.factorize(clusters, sort=True)
    resamples = resamples if len(names) > 1 else 0
    chosen = generator.integers(0, max(1, len(names)), (resamples, len(names)))
    counts = [np.bincount(row, minlength=len(names)) for row in chosen]
    return Resamples(cluster, np.vstack([np.ones(len(names)), *counts]))
