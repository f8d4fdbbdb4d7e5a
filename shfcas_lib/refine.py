"""The reward update: biased preferences and human labels go in, a refined reward comes out.

Where feedback speaks about a pair that the biased data also holds, feedback wins. A published
proxy was trained on none of this run's preferences: there the labels alone train a correction on
top of it (`published`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from shfcas_lib import rewards
from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Params, Reward, Training
from shfcas_lib.storage import files
from shfcas_lib.training import trainer

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


class RewardModel(Protocol):
    """Anything that scores the completions of a pool table."""

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """(rows,) float64, higher is better, of unit within-prompt spread on the completions it
        was fitted on."""


def merge(biased: pd.DataFrame, labels: pd.DataFrame, weight: float) -> pd.DataFrame:
    """One training set from observed biased preferences (prompt_id, i, j, label) and human labels
    (the same columns).

    Returns prompt_id, i, j, label, weight: 1 for a biased pair, `weight` for a human label;
    sorted by id."""
    key = ["prompt_id", "i", "j"]
    both = pd.concat(
        [
            biased[[*key, "label"]].assign(weight=1.0),
            labels[[*key, "label"]].assign(weight=float(weight)),
        ]
    )
    return both.drop_duplicates(key, keep="last").sort_values(key, ignore_index=True)


def proxy(
    settings: Reward,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    seed: int,
    folder: Path | None = None,
    backbone: Backbone | None = None,
    *,
    how: Training = trainer.PLAIN,
) -> RewardModel:
    """The proxy that a run starts from: trained on the biased preferences, or a published model's
    scores over their spread on `pool`."""
    if not settings.published or _stands(folder, "published.json"):
        return fit(settings, pool, preferences, seed, "proxy", folder, backbone, how=how)
    reward = rewards.Published(
        rewards.spread(rewards.Published().score(pool), pool["prompt_id"].to_numpy())
    )
    if folder and processes.is_main():
        reward.save(folder)
    processes.wait()
    return reward


def ceiling(
    params: Params,
    pool: pd.DataFrame,
    clean: pd.DataFrame,
    folder: Path,
    backbone: Backbone | None,
    base: RewardModel,
) -> dict[str, RewardModel]:
    """The reward of clean preferences under the name `clean`; nothing where there is no gold to
    say which preferences are clean."""
    if not params.gold.known:
        return {}
    return {
        "clean": fit(
            params.reward,
            pool,
            clean,
            params.seed,
            "clean",
            folder,
            backbone,
            base=base,
            how=params.training,
        )
    }


def fit(
    settings: Reward,
    pool: pd.DataFrame | None,
    preferences: pd.DataFrame | None,
    seed: int,
    name: str = "reward",
    folder: Path | None = None,
    backbone: Backbone | None = None,
    *,
    base: RewardModel | None = None,
    how: Training = trainer.PLAIN,
) -> RewardModel:
    """Train the kind of reward that the parameters ask for, or read it back from `folder` if it
    stands there whole.

    `lora` needs the backbone, on which it becomes the adapter `name`; `probe` needs only the
    pool. With pool None the reward is only read; raises InputError where there is none. base: the
    run's proxy; where it is a published model, what is trained is a correction on top of it. how:
    see module training; checkpoints lie in `folder` until the reward is there."""
    found = _found(settings, name, folder, backbone)
    if found is not None:
        trainer.forget(folder / "checkpoints")
        return found
    if pool is None:
        raise InputError(
            f"{folder} holds no finished reward: run the earlier notebooks with the same parameters"
            " first"
        )
    offset = base.score(pool) if isinstance(base, rewards.Published) else None
    trained = reward = _train(
        settings, pool, preferences, seed, name, backbone, offset, how, folder
    )
    if offset is not None:
        used = pool.merge(rewards.named(preferences), on=["prompt_id", "index"])
        reward = rewards.Corrected(base, trained)
        reward = replace(
            reward, spread=rewards.spread(reward.score(used), used["prompt_id"].to_numpy())
        )
    if folder and processes.is_main():
        _save(trained, folder if offset is None else folder / "correction")
        if offset is not None:
            files.write_json(
                folder / "correction.json", {"base": base.spread, "spread": reward.spread}
            )
        trainer.forget(folder / "checkpoints")
    processes.wait()
    return reward


def _found(
    settings: Reward, name: str, folder: Path | None, backbone: Backbone | None
) -> RewardModel | None:
    """The finished reward in a folder, of whatever kind; None where there is none."""
    if _stands(folder, "published.json"):
        return rewards.load_published(folder)
    if _stands(folder, "correction.json"):
        facts = files.read_json(folder / "correction.json")
        return rewards.Corrected(
            rewards.Published(facts["base"]),
            _read(settings, name, folder / "correction", backbone),
            facts["spread"],
        )
    if _stands(folder, "reward.safetensors" if settings.kind == "probe" else "reward.json"):
        return _read(settings, name, folder, backbone)
    return None


def _stands(folder: Path | None, marker: str) -> bool:
    """Is there a finished reward of the kind that this file marks?"""
    return folder is not None and processes.agreed((folder / marker).exists())


def _train(
    settings: Reward,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    seed: int,
    name: str,
    backbone: Backbone | None,
    offset: np.ndarray | None,
    how: Training,
    folder: Path | None,
) -> RewardModel:
    if settings.kind == "probe":
        return rewards.fit_probe(pool, preferences, settings.l2, offset)
    from shfcas_lib.training import reward as lora_reward

    return lora_reward.train(
        backbone,
        name,
        pool,
        preferences,
        settings,
        seed,
        how,
        folder / "checkpoints" if folder else None,
        offset,
    )


def _save(reward: RewardModel, folder: Path) -> None:
    reward.save(folder / "reward.safetensors" if isinstance(reward, rewards.Probe) else folder)


def _read(settings: Reward, name: str, folder: Path, backbone: Backbone | None) -> RewardModel:
    if settings.kind == "probe":
        return rewards.Probe.load(folder / "reward.safetensors")
    from shfcas_lib.training import reward as lora_reward

    return lora_reward.load(backbone, name, folder)
