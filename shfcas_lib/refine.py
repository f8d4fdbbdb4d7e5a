"""The reward update: biased preferences and human labels go in, a refined reward comes out.

    preferences = merge(observed, labels, weight=3.0, much=2.0)
    reward = kept(stage / "round_1", params.reward, pool, preferences, seed)

Where feedback speaks about a pair that the biased data also holds, feedback wins. A published
proxy was trained on none of this run's preferences: there the labels alone train a correction on
top of it. With r the proxy's reward in units of its spread, the correction c is fitted by maximum
a posteriori Bradley-Terry with r as offset,

    P(i beats j) = sigmoid(r_i - r_j + c_i - c_j),      refined reward r + c,

so that the refined reward is the proxy where labels say nothing. The weight of r stays 1: labels
are asked for where proxy and policy conflict, and a weight learnt there would condemn the proxy
everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import rewards
from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Reward, Training
from shfcas_lib.rewards import Corrected, Probe, Published, RewardModel
from shfcas_lib.storage.labels import margin
from shfcas_lib.training import trainer

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.storage.runs import Memory, Stage


@dataclass(frozen=True)
class Adapter:
    """What a LoRA reward needs beside data: a name on a backbone, and how it is trained. A probe
    needs none of it."""

    name: str = "reward"
    backbone: Backbone | None = None
    training: Training = trainer.PLAIN


def grade_weight(labels: pd.DataFrame, much: float = 2.0) -> np.ndarray:
    """(rows,): what the grade of a label multiplies its weight by.

    labels: grade (1 better, 2 much better, in between for several people, missing for a tie and
    an ungraded label), or no such column. 1 for better and where there is no grade, `much` for
    much better, in proportion between them.
    """
    return 1 + (much - 1) * margin(labels)


def merge(
    biased: pd.DataFrame, labels: pd.DataFrame, weight: float, much: float = 1.0
) -> pd.DataFrame:
    """One training set from observed biased preferences (prompt_id, i, j, label) and human labels
    (the same columns, and grade where they are graded).

    Returns prompt_id, i, j, label, weight, and grade where labels have it: the weight is 1 for a
    biased pair, `weight` for a human label, `much` times that where it says much better; sorted
    by id.
    """
    key = ["prompt_id", "i", "j"]
    given = biased[[*key, "label"]].assign(weight=1.0)
    graded = ["grade"] if "grade" in labels else []
    learnt = labels[[*key, "label", *graded]].assign(weight=weight * grade_weight(labels, much))
    both = pd.concat([given, learnt])
    return both.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def fit(
    settings: Reward,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    seed: int,
    base: RewardModel | None = None,
    adapter: Adapter = Adapter(),
    checkpoints: Path | None = None,
) -> RewardModel:
    """Train the kind of reward that the parameters ask for.

    pool: a pool table that holds every completion named. preferences: prompt_id, i, j, label in
    [0, 1], optional weight and grade. base: the run's proxy; where it is a published model, what
    is trained is a correction on top of it. checkpoints: a folder that a killed training goes on
    from. Raises InputError for no preferences or a completion that is missing.
    """
    if not isinstance(base, Published):
        return _train(settings, pool, preferences, seed, adapter, checkpoints, None)

    offset = base.score(pool)
    correction = _train(settings, pool, preferences, seed, adapter, checkpoints, offset)
    reward = Corrected(base, correction)
    used = pool.merge(rewards.named(preferences), on=["prompt_id", "index"])
    return replace(reward, spread=rewards.spread(reward.score(used), used["prompt_id"].to_numpy()))


def kept(
    stage: Stage | Memory,
    settings: Reward,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    seed: int,
    base: RewardModel | None = None,
    adapter: Adapter = Adapter(),
) -> RewardModel:
    """`fit`, its result kept in the stage's folder and read back from there the next time."""
    checkpoints = stage.folder / "checkpoints" if stage.folder else None
    reward = stage.reward(
        lambda: fit(settings, pool, preferences, seed, base, adapter, checkpoints),
        lambda folder: read(settings, folder, adapter),
    )
    if checkpoints:  # the reward is whole; a kill may have come between, so this is done each time
        trainer.forget(checkpoints)
    return reward


def proxy(
    stage: Stage | Memory,
    settings: Reward,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    seed: int,
    adapter: Adapter = Adapter("proxy"),
) -> RewardModel:
    """The proxy that a run starts from, kept like any reward: trained on the biased preferences,
    or a published model's scores over their spread on `pool`."""
    if settings.published:
        return stage.reward(
            lambda: Published.on(pool), lambda folder: read(settings, folder, adapter)
        )
    return kept(stage, settings, pool, preferences, seed, adapter=adapter)


def finished(settings: Reward, folder: Path, adapter: Adapter = Adapter()) -> RewardModel:
    """The reward that an earlier notebook kept in `folder`. Raises InputError if there is none."""
    reward = read(settings, folder, adapter)
    if reward is None:
        raise InputError(
            f"{folder} holds no finished reward: run the earlier notebooks with the same"
            " parameters first"
        )
    trainer.forget(folder / "checkpoints")
    return reward


def read(settings: Reward, folder: Path, adapter: Adapter = Adapter()) -> RewardModel | None:
    """The reward that stands whole in a folder, of whatever kind; None where there is none."""
    if _stands(folder / Published.MARKER):
        return Published.load(folder)
    if _stands(folder / Corrected.MARKER):
        return Corrected.load(folder, _load(settings, folder / Corrected.PART, adapter))
    if _stands(folder / (Probe.MARKER if settings.kind == "probe" else "reward.json")):
        return _load(settings, folder, adapter)
    return None


def _stands(marker: Path) -> bool:
    """Is there a finished reward of the kind that this file marks? Of several processes the main
    one says so."""
    return processes.agreed(marker.exists())


def _train(
    settings: Reward,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    seed: int,
    adapter: Adapter,
    checkpoints: Path | None,
    offset: np.ndarray | None,
) -> RewardModel:
    if settings.kind == "probe":
        return rewards.fit_probe(pool, preferences, settings.l2, offset)
    from shfcas_lib.training import reward as lora_reward

    return lora_reward.train(
        _needed(adapter),
        adapter.name,
        pool,
        preferences,
        settings,
        seed,
        adapter.training,
        checkpoints,
        offset,
    )


def _load(settings: Reward, folder: Path, adapter: Adapter) -> RewardModel:
    if settings.kind == "probe":
        return Probe.load(folder)
    from shfcas_lib.training import reward as lora_reward

    return lora_reward.load(_needed(adapter), adapter.name, folder)


def _needed(adapter: Adapter) -> Backbone:
    """The backbone that a LoRA reward is an adapter on. Raises InputError where there is none."""
    if adapter.backbone is None:
        raise InputError(f"reward {adapter.name!r}: reward.kind lora needs the backbone")
    return adapter.backbone
