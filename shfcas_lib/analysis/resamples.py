"""Rank statistics in every resample of clusters at once: columns go in, one number a resample
comes out.

    resamples = draw(table["prompt_id"], rng(seed, "predicts"), 1000)
    areas = resamples.area(table["wrong"], [table["score"]])    # (1001,), the sample itself first

A bootstrap over prompts repeats whole prompts. How the rows of two prompts compare is the same in
every resample, so it is counted once; a resample only says how often each prompt counts. The
numbers are those of `stats.roc_auc` and `stats.spearman` on the repeated rows, in a fraction of
their time, which is what makes placebos beside every measure affordable. Memory: a few arrays of
resamples x rows.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def area(self, positive: ArrayLike, scores: Sequence[ArrayLike]) -> np.ndarray:
        """Area under the ROC curve in every resample, (1 + resamples,), the mean over `scores`;
        ties count one half. NaN where a resample has one class alone.

        positive: (rows,); scores: one or several, (rows,) each."""
        positive = np.asarray(positive, bool)
        sides = self.cluster[positive], self.cluster[~positive]
        # wins[a, b]: how often a positive of cluster a lies above a negative of cluster b. Halves
        # and whole numbers, whose sums are exact: threads cannot change them.
        wins = np.zeros((self.counts.shape[1],) * 2)
        for score in np.asarray(scores, float):
            above = self._below(score[positive], score[~positive], sides[1])
            np.add.at(wins, sides[0], above)
        positives, negatives = (np.bincount(side, minlength=len(wins)) for side in sides)
        pairs = (self.counts @ positives) * (self.counts @ negatives) * len(scores)
        won = ((self.counts @ wins) * self.counts).sum(1)
        return np.divide(won, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    def correlation(self, values: ArrayLike, scores: Sequence[ArrayLike]) -> np.ndarray:
        """Spearman's rank correlation in every resample, (1 + resamples,), the mean over `scores`;
        NaN where a side does not vary. values: (rows,); scores: one or several, (rows,) each."""
        if not len(self.cluster):
            return np.full(len(self.counts), np.nan)
        weight = self.counts[:, self.cluster]
        one = self._ranks(values, weight)
        found = [np.einsum("rn,rn->r", one, self._ranks(score, weight)) for score in scores]
        return np.mean(found, 0)

    def _ranks(self, values: ArrayLike, weight: np.ndarray) -> np.ndarray:
        """Ranks of the rows in every resample, less their mean, so that the squares of a resample
        sum to one: (1 + resamples, rows), each row times the root of its weight."""
        values = np.asarray(values, float)
        ranks = self.counts @ self._below(values, values, self.cluster).T
        mean = np.einsum("rn,rn->r", weight, ranks) / np.maximum(weight.sum(1), 1)
        ranks = (ranks - mean[:, None]) * np.sqrt(weight)
        size = np.sqrt(np.einsum("rn,rn->r", ranks, ranks))
        return ranks / np.where(size > 1e-6, size, np.nan)[:, None]

    def _below(self, values: np.ndarray, others: np.ndarray, cluster: np.ndarray) -> np.ndarray:
        """(values, clusters): how many of each cluster's others lie below a value, equal ones
        counted one half. others, cluster: (others,)."""
        below = np.zeros((len(values), self.counts.shape[1]))
        for k in range(below.shape[1]):
            own = np.sort(others[cluster == k])
            sides = (np.searchsorted(own, values, side) for side in ("left", "right"))
            below[:, k] = sum(sides) / 2
        return below


def draw(clusters: pd.Series, generator: np.random.Generator, resamples: int) -> Resamples:
    """As many clusters as there are, drawn with replacement, `resamples` times. clusters: (rows,),
    each row's. One cluster alone is not resampled: it says nothing about others."""
    cluster, names = pd.factorize(clusters, sort=True)
    resamples = resamples if len(names) > 1 else 0
    chosen = generator.integers(0, max(1, len(names)), (resamples, len(names)))
    counts = [np.bincount(row, minlength=len(names)) for row in chosen]
    return Resamples(cluster, np.vstack([np.ones(len(names)), *counts]))
