"""The reward update: biased preferences and human labels go in, a refined reward comes out.

    reward = update(params.reward, Data(pool, observed, labels), seed, proxy)
    reward = updated(stage / "round_1", params.reward, data, seed, proxy)     # kept, read back

Three refinements (`reward.refinement`):

trust          labels decide how far the biased preferences are believed (module `trust`)
merge          the paper's: both in one training set, a label weighing `reward.feedback_weight`;
               where feedback speaks about a pair that the biased data also holds, feedback wins
labels_alone   the biased preferences are forgotten

A published proxy was trained on none of this run's preferences: there the labels alone train a
correction c on top of it. With r the proxy's reward in units of its spread,

    P(i beats j) = sigmoid(o (r_i - r_j) + c_i - c_j),      refined reward o r + c,

so that the refined reward is the proxy where labels say nothing. Under `merge` o is 1; under
`trust` the labels say how far the proxy is believed (`trust.correct`).

A LoRA reward has no closed posterior. There `trust` asks the probe on the same features for the
annotators' taste v, and the adapter w learns what is left of the biased pairs,

    biased pair   P(i beats j) = sigmoid(w_i - w_j + v_i - v_j)
    human label   P(i beats j) = sigmoid(w_i - w_j), `reward.feedback_weight` times

On a published proxy o is E(kappa rho), the lead that the labels give the proxy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import rewards, trust
from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Reward, Training
from shfcas_lib.rewards import Corrected, Probe, Published, RewardModel
from shfcas_lib.storage.labels import margin
from shfcas_lib.training import trainer
from shfcas_lib.trust import Belief, Trusted

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


@dataclass(frozen=True)
class Data:
    """What a reward update learns from.

    pool    a pool table that holds every completion named
    biased  observed biased preferences: prompt_id, i, j, label
    labels  human labels, the same columns; a skipped comparison (label NaN) says nothing
    belief  what the biased preferences say, where it is known already
    errs    how often people err, from `trust.doubt`; None: not known
    """

    pool: pd.DataFrame
    biased: pd.DataFrame
    labels: pd.DataFrame
    belief: Belief | None = None
    errs: np.ndarray | None = None

    @property
    def said(self) -> pd.DataFrame:
        """The labels that say something."""
        return self.labels.dropna(subset=["label"])


def grade_weight(labels: pd.DataFrame, much: float = 2.0) -> np.ndarray:
    """(rows,): what the grade of a label multiplies its weight by.

    labels: grade (1 better, 2 much better, in between for several people, missing for a tie and
    an ungraded label), or no such column. 1 for better and where there is no grade, `much` for
    much better, in proportion between them.
    """
    return 1 + (much - 1) * margin(labels)


def weighed(labels: pd.DataFrame, settings: Reward) -> pd.DataFrame:
    """Labels with their weight by grade, as `trust` reads them."""
    return labels.assign(weight=grade_weight(labels, settings.grade_weight))


def merge(
    biased: pd.DataFrame, labels: pd.DataFrame, weight: float, much: float = 1.0
) -> pd.DataFrame:
    """One training set from observed biased preferences (prompt_id, i, j, label) and human labels
    (the same columns, and grade where they are graded).

    Returns prompt_id, i, j, label, weight, and grade where labels have it: the weight is 1 for a
    biased pair, `weight` for a human label, `much` times that where it says much better; sorted
    by id. A column lead of the biased preferences stays, missing for the labels.
    """
    key = ["prompt_id", "i", "j"]
    led = ["lead"] if "lead" in biased else []
    given = biased[[*key, "label", *led]].assign(weight=1.0)
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

    settings: the block `reward` of a run's parameters. pool: a pool table that holds every
    completion named. seed: an integer; the same one trains the same reward. preferences:
    prompt_id, i, j, label in [0, 1], optional weight and, for lora, grade and lead
    (`training.reward`). base: the run's proxy; where it is a published model, what is trained
    is a correction on top of it. checkpoints: a folder that a killed training goes on from.
    Raises InputError for no preferences or a completion that is missing.
    """
    if not isinstance(base, Published):
        return _train(settings, pool, preferences, seed, adapter, checkpoints, None)

    offset = base.score(pool)
    correction = _train(settings, pool, preferences, seed, adapter, checkpoints, offset)
    return _unit(Corrected(base, correction), pool, preferences)


def _unit(reward: Corrected, pool: pd.DataFrame, preferences: pd.DataFrame) -> Corrected:
    """The reward with unit spread on the completions that the preferences name."""
    used = pool.merge(rewards.named(preferences), on=["prompt_id", "index"])
    return replace(reward, spread=rewards.spread(reward.score(used), used["prompt_id"].to_numpy()))


def update(
    settings: Reward,
    data: Data,
    seed: int,
    base: RewardModel | None = None,
    adapter: Adapter = Adapter(),
    checkpoints: Path | None = None,
) -> RewardModel:
    """The reward after feedback, by the refinement that the parameters ask for.

    settings: the block `reward` of a run's parameters. data: pool, biased preferences and the
    labels that people gave. seed: an integer; the same one trains the same reward.

    `trust` with too few labels to tell (`trust.enough`) is `merge`. A published proxy stays as it
    is while labels teach nothing. base, adapter, checkpoints: as for `fit`. Raises InputError for
    nothing to learn from or a completion that is missing.
    """

    def learn(preferences: pd.DataFrame, base: RewardModel | None = base) -> RewardModel:
        return fit(settings, data.pool, preferences, seed, base, adapter, checkpoints)

    def merged(biased: pd.DataFrame) -> pd.DataFrame:
        return merge(biased, data.said, settings.feedback_weight, settings.grade_weight)

    labels = weighed(data.said, settings)
    if isinstance(base, Published) and not _teach(settings, labels):
        return base
    if settings.refinement == "labels_alone":
        return learn(merged(data.biased.head(0)))
    if settings.refinement == "merge" or not trust.enough(labels):
        return learn(merged(data.biased))
    if isinstance(base, Published):
        return _believed(settings, data, base, lambda given: learn(merged(data.biased), given))

    belief = data.belief or trust.believe(data.pool, data.biased, settings.l2)
    trusted = trust.fit(belief, data.pool, labels, data.errs)
    if settings.kind == "probe":
        return trusted
    return replace(trusted, quality=learn(merged(_tasted(data, trusted.taste))))


def _tasted(data: Data, taste: Probe) -> pd.DataFrame:
    """The biased pairs, with the lead that the annotators' taste alone gives i over j."""
    score = taste.score(data.pool)
    first, second = (score[rewards.locate(data.pool, data.biased, side)] for side in ("i", "j"))
    return data.biased.assign(lead=first - second)


def _teach(settings: Reward, labels: pd.DataFrame) -> bool:
    """Is there anything in labels to train a correction on? TRL knows no ties."""
    return bool(len(labels) if settings.kind == "probe" else labels["label"].ne(0.5).any())


def _believed(
    settings: Reward, data: Data, base: Published, learn: Callable[[Published], RewardModel]
) -> Trusted:
    """A published proxy, believed as far as the labels say, and what they teach on top of it.

    learn: trains the correction of the proxy that it is given."""
    labels = weighed(data.said, settings)
    share, probe, report = trust.correct(
        data.pool, labels, base.score(data.pool), settings.l2, data.errs
    )
    if settings.kind == "lora":
        return Trusted(learn(replace(base, spread=base.spread / report.lead)), probe, report)
    reward = Corrected(replace(base, spread=base.spread / share), probe)
    return Trusted(_unit(reward, data.pool, labels), probe, report)


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

    def make(checkpoints: Path | None) -> RewardModel:
        return fit(settings, pool, preferences, seed, base, adapter, checkpoints)

    return _kept(stage, settings, adapter, make)


def updated(
    stage: Stage | Memory,
    settings: Reward,
    data: Data,
    seed: int,
    base: RewardModel | None = None,
    adapter: Adapter = Adapter(),
) -> RewardModel:
    """`update`, kept in the same way."""

    def make(checkpoints: Path | None) -> RewardModel:
        return update(settings, data, seed, base, adapter, checkpoints)

    return _kept(stage, settings, adapter, make)


def _kept(
    stage: Stage | Memory,
    settings: Reward,
    adapter: Adapter,
    make: Callable[[Path | None], RewardModel],
) -> RewardModel:
    checkpoints = stage.folder / "checkpoints" if stage.folder else None
    reward = stage.reward(lambda: make(checkpoints), lambda folder: read(settings, folder, adapter))
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
    or the scores of a published model, or of the given completions, over their spread on `pool`."""
    if settings.fixed:
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
    if _stands(folder / Trusted.MARKER):
        return Trusted.load(folder, lambda inner: finished(settings, inner, adapter))
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
