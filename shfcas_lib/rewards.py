"""Reward models: preferences go in, a reward comes out; reward and pool give scores.

    reward = fit_probe(pool, preferences, l2=60)
    reward.score(pool)                  # (completions,) float64

`probe` is a Bradley-Terry head on the backbone's frozen, pooled hidden states, which the pool
stores as it samples. It is convex: the same data gives the same reward. `lora` (module
`training.reward`) is the paper's: LoRA and a score head, by TRL. A published reward model
(`models.published`) is read from the pool's column `proxy`; what labels teach is a correction on
top of it. Every reward is scaled to unit spread (mean within-prompt standard deviation over the
completions it was fitted on), so that one beta means the same for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np
import pandas as pd

from shfcas_lib import pool as pools
from shfcas_lib.base.alignment import alike, beside
from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import files

LEARNT = 0.6  # share of its own pairs that a reward ranks rightly if it learnt anything
BLOCK = 8192  # completions scored at a time: a million of them need no more memory than these


class RewardModel(Protocol):
    """Anything that scores the completions of a pool table, and can be kept in a folder."""

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """(rows,) float64, higher is better, of unit within-prompt spread on the completions it
        was fitted on."""

    def save(self, folder: Path) -> None:
        """Write the reward; the file that marks it whole comes last."""


@dataclass(frozen=True)
class Probe:
    """A linear reward on the `design` of pooled features.

    mean, std  (2, 4 x hidden), of the features and of the products
    weight     (4 x hidden,) for the completion's mean, start and end, and for mean times prompt
    spread     what scores are divided by
    """

    MARKER: ClassVar[str] = "reward.safetensors"

    mean: np.ndarray
    std: np.ndarray
    weight: np.ndarray
    spread: float = 1.0

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,)."""
        starts = range(0, len(pool), BLOCK)
        blocks = [self.columns(pool.iloc[start : start + BLOCK]) @ self.weight for start in starts]
        return np.concatenate(blocks) / self.spread

    def columns(self, pool: pd.DataFrame) -> np.ndarray:
        """What the weights multiply, (rows, 4 x hidden)."""
        return design(pools.features(pool), self.mean, self.std)

    def save(self, folder: Path) -> None:
        """Write reward.safetensors, whole or not at all."""
        from safetensors.numpy import save_file

        spread = np.array([self.spread])
        arrays = {"mean": self.mean, "std": self.std, "weight": self.weight, "spread": spread}
        with files.atomic(folder / self.MARKER) as target:
            save_file(arrays, target)

    @classmethod
    def load(cls, folder: Path) -> Probe:
        """Read what `save` wrote."""
        from safetensors.numpy import load_file

        arrays = load_file(folder / cls.MARKER)
        return cls(arrays["mean"], arrays["std"], arrays["weight"], float(arrays["spread"][0]))


@dataclass(frozen=True)
class Published:
    """A published proxy's scores, which the pool carries in its column `proxy`; `spread` is what
    they are divided by."""

    MARKER: ClassVar[str] = "published.json"

    spread: float = 1.0

    @classmethod
    def on(cls, pool: pd.DataFrame) -> Published:
        """The published proxy with unit spread on a pool's completions."""
        return cls(spread(cls().score(pool), pool["prompt_id"].to_numpy()))

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,). Raises InputError if one is missing."""
        if "proxy" not in pool or pool["proxy"].isna().any():
            raise InputError(
                "the pool holds completions that the published proxy has not scored (column proxy)"
            )
        return pool["proxy"].to_numpy(float) / self.spread

    def save(self, folder: Path) -> None:
        """Write published.json."""
        files.write_json(folder / self.MARKER, {"spread": self.spread})

    @classmethod
    def load(cls, folder: Path) -> Published:
        """Read what `save` wrote."""
        return cls(files.read_json(folder / cls.MARKER)["spread"])


@dataclass(frozen=True)
class Corrected:
    """A published proxy and what labels taught on top of it; `spread` is what the sum is divided
    by."""

    MARKER: ClassVar[str] = "correction.json"
    PART: ClassVar[str] = "correction"  # the folder of what labels taught

    base: Published
    correction: RewardModel
    spread: float = 1.0

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,)."""
        return (self.base.score(pool) + self.correction.score(pool)) / self.spread

    def save(self, folder: Path) -> None:
        """Write the correction into a folder of its own, then correction.json."""
        self.correction.save(folder / self.PART)
        facts = {"base": self.base.spread, "spread": self.spread}
        files.write_json(folder / self.MARKER, facts)

    @classmethod
    def load(cls, folder: Path, correction: RewardModel) -> Corrected:
        """Read what `save` wrote; correction: read from the folder `PART` in it."""
        facts = files.read_json(folder / cls.MARKER)
        return cls(Published(facts["base"]), correction, facts["spread"])


def design(features: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """What the probe is linear in, (rows, 4 x hidden): the completion's mean, start and end
    states, standardised, and the product of mean state and prompt state. A reward compares
    completions of one prompt, so the prompt alone would cancel; the product lets it say which
    completions suit this prompt."""
    standard = (features - mean[0]) / std[0]
    hidden = standard.shape[1] // 4
    product = (standard[:, :hidden] * standard[:, 3 * hidden :] - mean[1, :hidden]) / std[
        1, :hidden
    ]
    return np.hstack([standard[:, : 3 * hidden], product])


def fit_probe(
    pool: pd.DataFrame, preferences: pd.DataFrame, l2: float, offset: np.ndarray | None = None
) -> Probe:
    """Maximum a posteriori Bradley-Terry fit (Bradley and Terry 1952) on differences of the design.

    pool: pool table that holds every completion named. preferences: prompt_id, i, j, label in [0,
    1], optional weight. Minimises sum_k weight_k * crossentropy(label_k, sigmoid(w . (d_i -
    d_j))) + l2 / 2 |w|^2, standardised on the completions that the preferences name. offset:
    (pool rows,), a reward that is given and to which the probe is a correction, left at its own
    scale (spread 1). Raises InputError for no preferences or a completion that is missing."""
    from scipy.optimize import minimize
    from scipy.special import expit

    if not len(preferences):
        raise InputError("no preferences to train a reward on")
    first, second = (locate(pool, preferences, column) for column in ("i", "j"))
    used, rows = np.unique(np.concatenate([first, second]), return_inverse=True)
    # one row a completion, however many pairs name it
    features = pools.features(pool.iloc[used])
    columns, mean, std = standardised(features)
    difference = columns[rows[: len(first)]] - columns[rows[len(first) :]]
    label, weight = preferences["label"].to_numpy(float), weights(preferences)
    given = np.zeros(len(first))
    if offset is not None:
        offset = beside(pool, offset, "offset")
        given = offset[first] - offset[second]

    # convex, with its gradient: where it starts is no matter
    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        margin = difference @ w + given
        value = weight @ (np.logaddexp(0, margin) - label * margin) + l2 / 2 * w @ w
        return value, difference.T @ (weight * (expit(margin) - label)) + l2 * w

    w = minimize(
        loss,
        np.zeros(difference.shape[1]),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6},
    ).x
    if offset is not None:
        return Probe(mean, std, w, 1.0)
    return Probe(mean, std, w, spread(columns @ w, pool["prompt_id"].to_numpy()[used]))


def information(
    probe: Probe, pool: pd.DataFrame, preferences: pd.DataFrame, l2: float
) -> np.ndarray:
    """What the training pairs say about the weights: A, (pairs, 4 x hidden), such that the
    Laplace posterior's covariance is (I - A'A) / l2. It is the inverse of the loss's Hessian, l2
    I + sum_k weight_k p_k (1 - p_k) d_k d_k', by Woodbury's identity."""
    from scipy.linalg import cholesky, solve_triangular
    from scipy.special import expit

    columns = probe.columns(pool)
    difference = columns[locate(pool, preferences, "i")] - columns[locate(pool, preferences, "j")]
    p = expit(difference @ probe.weight)
    curvature = np.maximum(weights(preferences) * p * (1 - p), 1e-12)
    inner = difference @ difference.T + np.diag(l2 / curvature)
    return solve_triangular(cholesky(inner, lower=True), difference, lower=True)


def weights(preferences: pd.DataFrame) -> np.ndarray:
    """What each preference counts, (rows,): its weight, or 1."""
    return (
        preferences["weight"].to_numpy(float)
        if "weight" in preferences
        else np.ones(len(preferences))
    )


def standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`design` of these features by their own means and standard deviations, and those, each (2,
    4 x hidden); a feature that does not vary gets 1."""
    mean, std = (np.zeros((2, features.shape[1])), np.ones((2, features.shape[1])))
    mean[0], std[0] = features.mean(0), _or_one(features.std(0))
    hidden = features.shape[1] // 4
    standard = (features - mean[0]) / std[0]
    product = standard[:, :hidden] * standard[:, 3 * hidden :]
    mean[1, :hidden], std[1, :hidden] = product.mean(0), _or_one(product.std(0))
    product = (product - mean[1, :hidden]) / std[1, :hidden]
    return np.hstack([standard[:, : 3 * hidden], product]), mean, std


def _or_one(std: np.ndarray) -> np.ndarray:
    return np.where(std < 1e-8, 1.0, std)


def spread(scores: np.ndarray, prompt_ids: np.ndarray) -> float:
    """Mean within-prompt population standard deviation of scores; 1 where nothing varies."""
    scores = np.asarray(alike(prompt_ids, {"scores": scores})["scores"])
    deviation = pd.Series(scores).groupby(np.asarray(prompt_ids)).std(ddof=0)
    mean = float(deviation.mean())
    return mean if mean > 1e-12 else 1.0


def named(preferences: pd.DataFrame) -> pd.DataFrame:
    """The completions that preferences name: columns prompt_id, index, each once."""
    both = [
        preferences[["prompt_id", column]].rename(columns={column: "index"})
        for column in ("i", "j")
    ]
    return pd.concat(both).drop_duplicates()


def locate(pool: pd.DataFrame, pairs: pd.DataFrame, column: str) -> np.ndarray:
    """Row in `pool` of completion `column` (i or j) of each pair, (pairs,). Raises InputError for
    one that is not there."""
    position = pd.MultiIndex.from_frame(pool[["prompt_id", "index"]])
    rows = position.get_indexer(pd.MultiIndex.from_frame(pairs[["prompt_id", column]]))
    missing = np.flatnonzero(rows < 0)
    if len(missing):
        row = pairs.iloc[missing[0]]
        raise InputError(
            f"preferences name completion {row[column]} of prompt {row['prompt_id']}, which is not"
            " in the pool"
        )
    return rows
