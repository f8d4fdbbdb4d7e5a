"""SHF-CAS rounds: pool, conflict, selection, feedback, refined reward, refined policy; each step
is on disk before the next.

    outcome = run("shf_cas", setting, annotator, stage / "shf_cas")
    outcome.reward, outcome.labels, outcome.rounds

One call is one strategy with the whole budget. A killed run that is started again reads the steps
that are done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import refine
from shfcas_lib.base import processes
from shfcas_lib.base.randomness import derive, rng
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.feedback import Annotator, ask
from shfcas_lib.models import published
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Params
from shfcas_lib.policies import log_ratio, tilt
from shfcas_lib.pool import sample_adapted, with_facts
from shfcas_lib.rewards import Probe
from shfcas_lib.selection import select
from shfcas_lib.storage import files, runs
from shfcas_lib.storage.labels import LabelStore
from shfcas_lib.strategies import Fitted
from shfcas_lib.training import policy as policy_training
from shfcas_lib.training import trainer

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


@dataclass(frozen=True)
class Setting:
    """What every strategy starts from: pools of the training and the feedback prompts, the biased
    preferences that the proxy saw, the proxy, and the prompts table."""

    params: Params
    seed: int
    prompts: pd.DataFrame
    train: pd.DataFrame
    feedback: pd.DataFrame
    observed: pd.DataFrame
    proxy: refine.RewardModel
    backbone: Backbone | None = None

    @property
    def askable(self) -> pd.DataFrame:
        """The completions a human may be asked about: of the feedback prompts, and of the proxy's
        own where the parameters say so."""
        if self.params.selection.prompts == "feedback":
            return self.feedback
        return pd.concat([self.train, self.feedback]).sort_values(
            ["prompt_id", "index"], ignore_index=True
        )


@dataclass(frozen=True)
class Outcome:
    """What a strategy made of its budget: the refined reward, all labels, and one row per round
    (round, labels, kendall and mean_abs_pacs of the pool it chose from, share of labels that
    contradict the reward of that round, share of ties), the pool of all completions that took
    part, and the seconds that selection took (0 where it was read back)."""

    reward: refine.RewardModel
    labels: pd.DataFrame
    rounds: pd.DataFrame
    pool: pd.DataFrame
    seconds: float


def run_rounds(
    strategy: str, setting: Setting, annotator: Annotator, folder: runs.Stage | runs.Memory
) -> Outcome:
    """Spend the budget in rounds. Every round starts from the refined reward and the refined
    policy of the one before."""
    params = setting.params
    reward, current = setting.proxy, setting.askable
    known = pd.concat([setting.train, setting.feedback], ignore_index=True)
    merged = setting.observed.assign(weight=1.0)
    labels, history, seconds = [], [], []
    with _store(folder) as store:
        for number, budget in enumerate(
            _shares(params.selection.budget, params.selection.rounds), 1
        ):
            here = folder / f"round_{number}"
            conflict = here.table(
                "conflict",
                lambda: conflict_table(current, reward.score(current), _logp(current, params)),
            )
            fitted = (
                Fitted(reward, known, merged, params.reward.l2, current)
                if isinstance(reward, Probe)
                else None
            )
            asked = pd.concat(labels) if labels else None
            generator = rng(setting.seed, f"selection/{strategy}/{number}")

            def choose() -> pd.DataFrame:
                start = time.perf_counter()
                table = select(
                    strategy, conflict, budget, generator, params.selection, asked, fitted
                )
                seconds.append(time.perf_counter() - start)
                return table

            chosen = here.table("comparisons", choose)
            labels.append(
                here.table(
                    "labels",
                    lambda: ask(chosen, with_facts(current, setting.prompts), annotator, store),
                )
            )
            history.append(_summary(number, conflict, labels[-1]))
            merged = refine.merge(
                setting.observed,
                pd.concat(labels).dropna(subset=["label"]),
                params.reward.feedback_weight,
            )
            reward = refine.fit(
                params.reward,
                known,
                merged,
                derive(setting.seed, f"reward/{strategy}/{number}"),
                name=f"refined_{strategy}",
                folder=_path(here),
                backbone=setting.backbone,
                base=setting.proxy,
                how=params.training,
            )
            if number < params.selection.rounds:
                current = _next_pool(setting, reward, known, current, number, here)
                known = pd.concat([known, current]).drop_duplicates(
                    ["prompt_id", "index"], ignore_index=True
                )
    return Outcome(
        reward, pd.concat(labels, ignore_index=True), pd.DataFrame(history), known, sum(seconds)
    )


def train_policy(
    setting: Setting, reward: refine.RewardModel, pool: pd.DataFrame, folder: Path
) -> None:
    """Leave the policy adapter trained against `reward` on the backbone, read back from `folder`
    if it was trained before.

    pool: completions of training and feedback prompts; evaluation prompts never take part. Every
    policy of a run starts from the same adapter and takes its prompts in the same order, as far
    as the rewards tell their completions apart."""
    if processes.agreed((folder / "done.json").exists()):
        trainer.forget(folder / "checkpoints")
        setting.backbone.load_adapter(POLICY, folder / "adapter")
        return
    params = setting.params
    policy, checkpoints = params.policy, folder / "checkpoints"
    scores = None if policy.kind in policy_training.ONLINE else reward.score(pool)
    table = policy_training.examples(pool, scores, policy, rng(setting.seed, "policy"))
    policy_training.train(
        setting.backbone,
        table,
        policy,
        derive(setting.seed, "policy"),
        params.training,
        checkpoints,
        policy_training.Online(reward, params.sampling),
    )
    if processes.is_main():
        setting.backbone.save_adapter(POLICY, folder / "adapter")
        files.write_json(
            folder / "done.json",
            {
                "pairs" if policy.kind in ("dpo", "rso") else "examples": len(table),
                "kind": policy.kind,
            },
        )
        trainer.forget(checkpoints)
    processes.wait()


def _next_pool(
    setting: Setting, reward, known: pd.DataFrame, current: pd.DataFrame, number: int, here
) -> pd.DataFrame:
    """The feedback pool under the refined policy.

    A tilted policy lives on the sampled completions: they stay, and their logp becomes that of
    the tilted policy, l + log(N w). A trained policy is sampled anew; its completions get indices
    of their own."""
    params = setting.params
    if params.policy.kind == "tilt":
        base = setting.askable
        ids = base["prompt_id"].to_numpy()
        return base.assign(
            logp=base["logp"] + log_ratio(ids, tilt(ids, reward.score(base), params.policy.beta))
        )

    def resample() -> pd.DataFrame:
        train_policy(setting, reward, known, _path(here) / "policy")
        asked = setting.prompts[
            setting.prompts["split"].isin(params.selection.prompts.split("_and_"))
        ]
        fresh = sample_adapted(
            setting.backbone,
            POLICY,
            asked,
            params.sampling,
            derive(setting.seed, f"pool/{number}"),
            f"round {number + 1} pool",
        )
        fresh = published.scored(fresh, params)
        # no index stands for two texts
        return fresh.assign(index=fresh["index"] + 1 + int(known["index"].max()))

    return here.table("next_pool", resample)


def _logp(pool: pd.DataFrame, params: Params) -> pd.Series:
    """The log-probability that conflict compares the reward with: of the whole completion, or per
    token."""
    return (
        pool["logp"] / pool["n_tokens"].clip(lower=1)
        if params.selection.logp == "mean"
        else pool["logp"]
    )


def _summary(number: int, conflict: pd.DataFrame, labels: pd.DataFrame) -> dict:
    labels = labels.dropna(subset=["label"])  # a skipped comparison gives none
    prompts = by_prompt(conflict)
    reward = conflict.set_index(["prompt_id", "index"])["reward"]
    margin = (
        reward.reindex(pd.MultiIndex.from_frame(labels[["prompt_id", "i"]])).to_numpy()
        - reward.reindex(pd.MultiIndex.from_frame(labels[["prompt_id", "j"]])).to_numpy()
    )
    decided = labels["label"].to_numpy() != 0.5
    wrong = decided & (np.sign(margin) != np.sign(labels["label"].to_numpy() - 0.5))
    return {
        "round": number,
        "labels": len(labels),
        "kendall": prompts["kendall"].mean(),
        "mean_abs_pacs": prompts["mean_abs_pacs"].mean(),
        "contradicted": wrong.sum() / max(1, decided.sum()),
        "ties": 1 - decided.mean() if len(labels) else 0.0,
    }


def _shares(budget: int | None, rounds: int) -> list[int | None]:
    """The budget spread over rounds, earlier rounds getting what is left over."""
    if budget is None:
        return [None] * rounds
    return [budget // rounds + (k < budget % rounds) for k in range(rounds)]


def _store(folder) -> LabelStore:
    path = _path(folder) if processes.is_main() else None
    return LabelStore(path / "labels.sqlite" if path else Path(":memory:"))


def _path(folder) -> Path | None:
    return getattr(folder, "folder", None)
