"""The reward update: biased preferences and human labels go in, a refined reward comes out.

Where feedback speaks about a pair that the biased data also holds, feedback wins. A published proxy was trained on none of this run's
preferences: there the labels alone train a correction on top of it (`published`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from shfcas_lib import processes, published, rewards, runs, training
from shfcas_lib.params import InputError, Reward, Training

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


def proxy(settings: Reward, pool: pd.DataFrame, preferences: pd.DataFrame, seed: int, folder: Path | None = None,
          backbone: Backbone | None = None, *, how: Training = training.PLAIN) -> RewardModel:
    """The proxy that a run starts from: trained on the biased preferences, or a published model's scores over their spread on `pool`."""
    if not settings.published or _stands(folder, "published.json"):
        return fit(settings, pool, preferences, seed, "proxy", folder, backbone, how=how)
    reward = published.Published(rewards.spread(published.Published().score(pool), pool["prompt_id"].to_numpy()))
    if folder and processes.is_main():
        reward.save(folder)
    processes.wait()
    return reward


def fit(settings: Reward, pool: pd.DataFrame | None, preferences: pd.DataFrame | None, seed: int, name: str = "reward", folder: Path | None = None,
        backbone: Backbone | None = None, *, base: RewardModel | None = None, how: Training = training.PLAIN) -> RewardModel:
    """Train the kind of reward that the parameters ask for, or read it back from `folder` if it stands there whole.

    `lora` needs the backbone, on which it becomes the adapter `name`; `probe` needs only the pool. With pool None the reward
    is only read; raises InputError where there is none. base: the run's proxy; where it is a published model, what is trained is a
    correction on top of it. how: see module training; checkpoints lie in `folder` until the reward is there.
    """
    found = _found(settings, name, folder, backbone)
    if found is not None:
        training.forget(folder / "checkpoints")
        return found
    if pool is None:
        raise InputError(f"{folder} holds no finished reward: run the earlier notebooks with the same parameters first")
    offset = base.score(pool) if isinstance(base, published.Published) else None
    trained = reward = _train(settings, pool, preferences, seed, name, backbone, offset, how, folder)
    if offset is not None:
        used = pool.merge(rewards.named(preferences), on=["prompt_id", "index"])
        reward = published.Corrected(base, trained)
        reward = replace(reward, spread=rewards.spread(reward.score(used), used["prompt_id"].to_numpy()))
    if folder and processes.is_main():
        _save(trained, folder if offset is None else folder / "correction")
        if offset is not None:
            runs.write_json(folder / "correction.json", {"base": base.spread, "spread": reward.spread})
        training.forget(folder / "checkpoints")
    processes.wait()
    return reward


def _found(settings: Reward, name: str, folder: Path | None, backbone: Backbone | None) -> RewardModel | None:
    """The finished reward in a folder, of whatever kind; None where there is none."""
    if _stands(folder, "published.json"):
        return published.load_base(folder)
    if _stands(folder, "correction.json"):
        facts = runs.read_json(folder / "correction.json")
        return published.Corrected(published.Published(facts["base"]), _read(settings, name, folder / "correction", backbone), facts["spread"])
    if _stands(folder, "reward.safetensors" if settings.kind == "probe" else "reward.json"):
        return _read(settings, name, folder, backbone)
    return None


def _stands(folder: Path | None, marker: str) -> bool:
    """Is there a finished reward of the kind that this file marks?"""
    return folder is not None and processes.agreed((folder / marker).exists())


def _train(settings: Reward, pool: pd.DataFrame, preferences: pd.DataFrame, seed: int, name: str, backbone: Backbone | None,
           offset: np.ndarray | None, how: Training, folder: Path | None) -> RewardModel:
    if settings.kind == "probe":
        return rewards.fit_probe(pool, preferences, settings.l2, offset)
    from shfcas_lib import lora_reward

    return lora_reward.train(backbone, name, pool, preferences, settings, seed, how, folder / "checkpoints" if folder else None, offset)


def _save(reward: RewardModel, folder: Path) -> None:
    reward.save(folder / "reward.safetensors" if isinstance(reward, rewards.Probe) else folder)


def _read(settings: Reward, name: str, folder: Path, backbone: Backbone | None) -> RewardModel:
    if settings.kind == "probe":
        return rewards.Probe.load(folder / "reward.safetensors")
    from shfcas_lib import lora_reward

    return lora_reward.load(backbone, name, folder)


def agreement_so_far(settings: Reward, pool: pd.DataFrame, biased: pd.DataFrame, labels: pd.DataFrame, before: RewardModel, folds: int = 5) -> dict | None:
    """What have the labels changed? How often `before` and the refined reward rank a labelled pair as the label does.

    The refined reward is cross-validated: a pair is judged by a reward that saw the other folds' labels alone, folds being whole prompts. Returns
    labels (how many decided ones), before, after and error (standard error of `after`); None below ten decided labels, two
    prompts, or for a reward that is no probe. About two seconds on one core for the quickstart.
    """
    named = pd.MultiIndex.from_frame(pool[["prompt_id", "index"]])
    held = [pd.MultiIndex.from_frame(labels[["prompt_id", side]]).isin(named) for side in ("i", "j")]
    labels = labels[held[0] & held[1] & labels["label"].notna()].reset_index(drop=True)
    decided = labels["label"] != 0.5
    prompts = np.sort(labels["prompt_id"].unique())
    if settings.kind != "probe" or decided.sum() < 10 or len(prompts) < 2:
        return None
    fold = labels["prompt_id"].map({prompt: k % min(folds, len(prompts)) for k, prompt in enumerate(prompts)})
    asked = pool[pool["prompt_id"].isin(prompts)]
    right = pd.Series(np.nan, index=labels.index)
    for k in sorted(fold.unique()):
        probe = fit(settings, pool, merge(biased, labels[fold != k], settings.feedback_weight), seed=0, base=before)
        right[fold == k] = _agrees(probe, asked, labels[fold == k])
    after = right[decided].mean()
    return {"labels": int(decided.sum()), "before": float(_agrees(before, asked, labels[decided]).mean()), "after": float(after),
            "error": float(np.sqrt(after * (1 - after) / decided.sum()))}


def _agrees(reward: RewardModel, pool: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray:
    score = pd.Series(reward.score(pool), index=pd.MultiIndex.from_frame(pool[["prompt_id", "index"]]))
    first, second = (score.reindex(pd.MultiIndex.from_frame(labels[["prompt_id", side]])).to_numpy() for side in ("i", "j"))
    return (np.sign(first - second) == np.sign(labels["label"].to_numpy() - 0.5)).astype(float)
