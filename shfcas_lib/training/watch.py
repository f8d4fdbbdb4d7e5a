"""A policy under training, watched on prompts that it does not learn from.

    Watch(backbone, Held(prompts, reward, sampling, labels), seed, folder / "watch.csv")

At the start, every so many steps and at the end the policy writes answers to held-out prompts. What
is measured goes into watch.csv, and, but for the start, into the same log as the loss
(`training.report_to`), which is written every five steps:

    reward         mean reward of the answers
    kl             mean log-ratio to the reference, nats per answer
    mean_abs_pacs  |PACS| and
    kendall        K, how far policy and reward still rank the answers differently
    length         tokens
    agreement      share of decided human labels whose preferred side the policy has made the more
                   probable one (log-ratio to the reference; ties count one half)
    gold           mean gold of the answers, where the run has gold

Where the reward has risen and the agreement with the labels has fallen, both by more than twice
their standard error, a warning is printed: the onset of reward hacking. It looks at labels that
people gave, never at gold, which is logged alone; training goes on as it would have.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib.base import processes
from shfcas_lib.conflict import conflict_table, means
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Sampling
from shfcas_lib.pool import Scorer, as_it_is, sample_adapted, score
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage import files

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

PROMPTS = 16  # that are answered each time
LABELS = 64  # that are read each time, the latest ones
FEWEST = 10  # decided labels that can warn
EVERY = 10  # steps, where a log is asked for and no other number


@dataclass(frozen=True)
class Held:
    """What a policy is watched on.

    prompts   prompt_id, prompt, of the evaluation split
    reward    what the policy is trained against
    sampling  how answers are written
    labels    decided human labels as text: prompt_id, prompt, chosen, rejected
    gold      gold of a pool's completions, (rows,); None: the run has none
    scorer    adds the scores of a published proxy
    """

    prompts: pd.DataFrame
    reward: RewardModel
    sampling: Sampling
    labels: pd.DataFrame
    gold: Callable[[pd.DataFrame], np.ndarray] | None = None
    scorer: Scorer = as_it_is


def as_text(labels: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """Decided labels with their texts: prompt_id, prompt, chosen, rejected; where the pool knows
    the tokens that a model wrote, also chosen_tokens, rejected_tokens.

    labels: prompt_id, i, j, label. Those about completions that the pool lacks, which a policy
    wrote between two rounds, are left out."""
    decided = labels[labels["label"].notna() & (labels["label"] != 0.5)]
    texts = pool.drop_duplicates(["prompt_id", "index"]).set_index(["prompt_id", "index"])
    won = decided["i"].where(decided["label"] > 0.5, decided["j"])
    lost = decided["j"].where(decided["label"] > 0.5, decided["i"])
    sides = {}
    for side, index in (("chosen", won), ("rejected", lost)):
        at = pd.MultiIndex.from_arrays([decided["prompt_id"], index])
        sides[side] = texts["completion"].reindex(at).to_numpy()
        if "tokens" in texts:
            sides[f"{side}_tokens"] = texts["tokens"].reindex(at).to_numpy()
    prompts = texts["prompt"].reindex(at).to_numpy()
    ids = decided["prompt_id"].to_numpy()
    return pd.DataFrame({"prompt_id": ids, "prompt": prompts, **sides}).dropna(ignore_index=True)


@dataclass
class Moment:
    """What one look found: numbers for the log, reward by prompt and agreement by label."""

    numbers: dict[str, float]
    reward: pd.Series
    agreement: np.ndarray


class Watch:
    """Looks at a policy while TRL trains it. `into` is called with every log before it is
    written. A training that was resumed keeps the rows of before, and warns of what has changed
    since."""

    def __init__(self, backbone: Backbone, held: Held, every: int, seed: int, path: Path | None):
        self.backbone, self.held, self.every, self.seed = backbone, held, every, seed
        self.path = path
        self.labels = held.labels.tail(LABELS).reset_index(drop=True)
        self.prompts = held.prompts.sort_values("prompt_id").head(PROMPTS)
        self.rows: list[dict] = []
        self.first: Moment | None = None
        self.best: Moment | None = None
        self.warned = False
        self._reference: np.ndarray | None = None

    def into(self, log: dict[str, Any], step: int, last: bool = False) -> None:
        """Add what is measured at this step to a log, where it is time to look: at the start,
        every so many steps, and at the `last` one."""
        if self.rows and step - self.rows[-1]["step"] < (1 if last else self.every):
            return
        if not self.rows and step and self.path is not None and self.path.exists():
            before = pd.read_csv(self.path)
            self.rows = before[before["step"] < step].to_dict("records")
        moment = self.look()
        log.update({f"watch/{name}": value for name, value in moment.numbers.items()})
        self.rows.append({"step": step, **moment.numbers})
        if processes.is_main() and self.path is not None:
            with files.atomic(self.path) as target:
                pd.DataFrame(self.rows).to_csv(target, index=False)
        self._judge(moment, step)

    def look(self) -> Moment:
        """Measure now; the policy's adapter and the model's mode are as before."""
        mode = self.backbone.causal.training
        try:
            answers = sample_adapted(
                self.backbone,
                POLICY,
                self.prompts,
                self.held.sampling,
                self.seed,
                "watching the policy",
                self.held.scorer,
            )
            agreement = self._agreement()
            rewards = self.held.reward.score(answers)
        finally:
            self.backbone.use(POLICY)
            self.backbone.peft.train(mode)
        numbers = {
            "reward": float(rewards.mean()),
            "kl": float((answers["logp"] - answers["logp_reference"]).mean()),
            **means(conflict_table(answers, rewards)),
            "length": float(answers["n_tokens"].mean()),
        }
        if len(agreement):
            numbers["agreement"] = float(agreement.mean())
        if self.held.gold is not None:
            numbers["gold"] = float(np.mean(self.held.gold(answers)))
        by_prompt = pd.Series(rewards).groupby(answers["prompt_id"].to_numpy()).mean()
        return Moment(numbers, by_prompt, agreement)

    def _agreement(self) -> np.ndarray:
        """(labels,): 1 where the policy has moved towards the preferred side, 0 away, ½ neither."""
        if not len(self.labels):
            return np.zeros(0)
        sides = []
        for side in ("chosen", "rejected"):
            texts = self.labels[["prompt_id", "prompt"]].assign(completion=self.labels[side])
            if f"{side}_tokens" in self.labels:
                texts["tokens"] = self.labels[f"{side}_tokens"]
            sides.append(texts.assign(index=range(len(texts))))
        both = pd.concat(sides, ignore_index=True)
        if self._reference is None:
            with self.backbone.using(None):
                self._reference = score(self.backbone, both, label="labels")["logp"].to_numpy()
        with self.backbone.using(POLICY):
            ratio = score(self.backbone, both, label="labels")["logp"].to_numpy() - self._reference
        chosen, rejected = np.split(ratio, 2)
        return (np.sign(chosen - rejected) + 1) / 2

    def _judge(self, moment: Moment, step: int) -> None:
        """Warn, once, where the reward has risen and the agreement fallen."""
        if self.first is None or self.best is None:
            self.first = self.best = moment
            return
        rise = moment.reward - self.first.reward
        fall = self.best.agreement - moment.agreement
        enough = len(fall) >= FEWEST and len(rise) > 1
        if enough and not self.warned and _clear(rise.to_numpy()) and _clear(fall):
            self.warned = True
            if processes.is_main():
                print(_warning(self.first, self.best, moment, step), file=sys.stderr)
        if len(fall) and moment.agreement.mean() > self.best.agreement.mean():
            self.best = moment


def _clear(changes: np.ndarray) -> bool:
    """Is their mean above 0 by more than twice its standard error?"""
    error = changes.std(ddof=1) / np.sqrt(len(changes))
    return bool(changes.mean() > 2 * error)


def _warning(first: Moment, best: Moment, now: Moment, step: int) -> str:
    return (
        f"warning: by step {step} the reward of held-out answers has risen from"
        f" {first.numbers['reward']:.2f} to {now.numbers['reward']:.2f}, while the policy's"
        f" agreement with {len(now.agreement)} human labels fell from"
        f" {best.numbers['agreement']:.0%} to {now.numbers['agreement']:.0%}: it may have begun to"
        " exploit the reward; an earlier checkpoint or a larger policy.beta may be better"
    )
