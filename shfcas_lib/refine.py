"""The reward update: biased preferences and human labels go in, a refined reward comes out.

Where feedback speaks about a pair that the biased data also holds, feedback wins.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from shfcas_lib import rewards
from shfcas_lib.params import InputError, Reward

if TYPE_CHECKING:
    from shfcas_lib.models import Backbone


class RewardModel(Protocol):
    """Anything that scores the completions of a pool table."""

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """(rows,) float64, higher is better, of unit within-prompt spread on the completions it was fitted on."""


def merge(biased: pd.DataFrame, labels: pd.DataFrame, weight: float) -> pd.DataFrame:
    """One training set from observed biased preferences (prompt_id, i, j, label) and human labels (the same columns).

    Returns prompt_id, i, j, label, weight: 1 for a biased pair, `weight` for a human label; sorted by id.
    """
    key = ["prompt_id", "i", "j"]
    both = pd.concat([biased[[*key, "label"]].assign(weight=1.0), labels[[*key, "label"]].assign(weight=float(weight))])
    return both.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def fit(settings: Reward, pool: pd.DataFrame | None, preferences: pd.DataFrame | None, seed: int, name: str = "reward",
        folder: Path | None = None, backbone: Backbone | None = None) -> RewardModel:
    """Train the kind of reward that the parameters ask for, or read it back from `folder` if it stands there whole.

    `lora` needs the backbone, on which it becomes the adapter `name`; `probe` needs only the pool. With pool None the reward
    is only read; raises InputError where there is none.
    """
    if pool is None and not any((folder / name).exists() for name in ("reward.safetensors", "reward.json")):
        raise InputError(f"{folder} holds no finished reward: run the earlier notebooks with the same parameters first")
    if settings.kind == "probe":
        path = folder / "reward.safetensors" if folder else None
        if path and path.exists():
            return rewards.Probe.load(path)
        probe = rewards.fit_probe(pool, preferences, settings.l2)
        if path:
            probe.save(path)
        return probe
    from shfcas_lib import lora_reward

    if folder and (folder / "reward.json").exists():
        return lora_reward.load(backbone, name, folder)
    reward = lora_reward.train(backbone, name, pool, preferences, settings, seed)
    if folder:
        reward.save(folder)
    return reward
