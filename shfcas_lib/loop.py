"""SHF-CAS, the algorithm: rounds of conflict, selection, feedback, refined reward, refined policy.

    outcome = run_rounds("shf_cas", setting, annotator, stage / "shf_cas")
    outcome.reward, outcome.labels, outcome.rounds

One call is one strategy with the whole budget. Each step is on disk before the next one starts,
and a killed run that is started again reads the steps that are done.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import refine, trust
from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import derive, rng
from shfcas_lib.conflict import conflict_table, log_probabilities, means
from shfcas_lib.feedback import Annotator, answered_twice, ask
from shfcas_lib.gold import gold_scores
from shfcas_lib.models import published
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Params, Selection
from shfcas_lib.policies import log_ratio, tilt
from shfcas_lib.pool import sample_adapted, with_facts
from shfcas_lib.rewards import Probe, RewardModel
from shfcas_lib.selection import select
from shfcas_lib.storage import files, sqlite
from shfcas_lib.storage.labels import LabelStore
from shfcas_lib.strategies import SIGHTED, Fitted
from shfcas_lib.training import policy as policy_training
from shfcas_lib.training import trainer
from shfcas_lib.training import watch as watching
from shfcas_lib.trust import Belief, Trusted

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.storage.runs import Memory, Stage


@dataclass(frozen=True)
class Setting:
    """What every strategy starts from.

    params     of the run; seed decides every draw
    prompts    the prompts table
    train      pool of the training prompts
    feedback   pool of the feedback prompts
    observed   the biased preferences that the proxy saw
    proxy      the reward that was trained on them, or a published one
    backbone   the language model; None where closed forms are enough
    """

    params: Params
    seed: int
    prompts: pd.DataFrame
    train: pd.DataFrame
    feedback: pd.DataFrame
    observed: pd.DataFrame
    proxy: RewardModel
    backbone: Backbone | None = None

    @property
    def needed_backbone(self) -> Backbone:
        """The language model. Raises InputError where the setting has none."""
        if self.backbone is None:
            raise InputError("a policy is to be trained or sampled, but no backbone is loaded")
        return self.backbone

    @cached_property
    def belief(self) -> Belief | None:
        """What the biased preferences say, before any label; None where they trained no probe."""
        settings = self.params.reward
        if settings.fixed or not len(self.observed):
            return None
        if settings.kind == "lora" and settings.refinement != "trust":
            return None
        return trust.believe(self.train, self.observed, settings.l2)

    @property
    def known(self) -> pd.DataFrame:
        """The completions of training and feedback prompts."""
        return pd.concat([self.train, self.feedback], ignore_index=True)

    @property
    def askable(self) -> pd.DataFrame:
        """The completions a human may be asked about: of the feedback prompts, and of the proxy's
        own where the parameters say so."""
        if self.params.selection.prompts == "feedback":
            return self.feedback
        return self.known.sort_values(["prompt_id", "index"], ignore_index=True)


@dataclass(frozen=True)
class State:
    """Where a strategy stands between two rounds.

    reward    the proxy, or the reward refined in the last round
    pool      the completions that may be asked about, with the current policy's logp
    known     every completion that took part
    labels    the labels of each round
    rewards   the rewards after each round
    history   facts about each round
    seconds   that selection took (0 where it was read back)
    """

    reward: RewardModel
    pool: pd.DataFrame
    known: pd.DataFrame
    labels: list[pd.DataFrame] = field(default_factory=list)
    rewards: list[RewardModel] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """What a strategy made of its budget.

    rewards   the refined reward of each round; LoRA rewards of a strategy share one adapter, so
              that of these the last alone scores as it was trained
    labels    all labels
    rounds    one row a round: round, labels, kendall and mean_abs_pacs of the pool it chose from
              (means over prompts that are not degenerate), contradicted (share of decided labels
              against the reward of that round), ties
    pool      all completions that took part
    seconds   that selection took (0 where it was read back)
    """

    rewards: list[RewardModel]
    labels: pd.DataFrame
    rounds: pd.DataFrame
    pool: pd.DataFrame
    seconds: float

    @property
    def reward(self) -> RewardModel:
        """The reward after the last round."""
        return self.rewards[-1]


def run_rounds(
    strategy: str, setting: Setting, annotator: Annotator, stage: Stage | Memory
) -> Outcome:
    """Spend the budget in rounds. Every round starts from the refined reward and the refined
    policy of the one before.

    strategy: one of STRATEGIES. stage: where each step is kept; a step that is there is read.
    Raises Unanswered while people have not answered all questions of a round.
    """
    selection = setting.params.selection
    state = State(setting.proxy, setting.askable, setting.known)
    with _open_store(stage) as store:
        for number, budget in enumerate(_shares(selection.budget, selection), 1):
            here = stage / f"round_{number}"
            state = one_round(strategy, setting, state, number, budget, annotator, store, here)
    labels = pd.concat(state.labels, ignore_index=True)
    rounds = pd.DataFrame(state.history)
    return Outcome(state.rewards, labels, rounds, state.known, state.seconds)


def one_round(
    strategy: str,
    setting: Setting,
    state: State,
    number: int,
    budget: int | None,
    annotator: Annotator,
    store: LabelStore,
    here: Stage | Memory,
) -> State:
    """One round of SHF-CAS (arXiv:2512.09212). budget: comparisons of this round, None: as many
    as the strategy finds. Raises Unanswered while people have not answered all of them."""
    # conflict: PACS and K of the proxy, or of the reward refined so far, with the policy
    conflict = here.table("conflict", lambda: _conflict(setting.params, state))

    # selection: the comparisons that the strategy wants to be asked
    comparisons, seconds = _choose(strategy, setting, state, number, budget, conflict, here)

    # feedback: every answer is on disk before it counts
    texts = with_facts(state.pool, setting.prompts)

    def answered() -> pd.DataFrame:
        if getattr(annotator, "by_people", False):
            _adopt(store, comparisons, setting.askable)
        return ask(comparisons, texts, annotator, store)

    answers = here.table("labels", answered)
    labels = [*state.labels, answers]

    # refined reward: the labels so far say how far to trust the biased preferences. The main
    # process alone has the answers of an earlier start
    errs = trust.doubt(*processes.same(answered_twice(store)))
    reward = refine.updated(
        here,
        setting.params.reward,
        refine.Data(state.known, setting.observed, pd.concat(labels), setting.belief, errs),
        derive(setting.seed, f"reward/{strategy}/{number}"),
        setting.proxy,
        refine.Adapter(f"refined_{strategy}", setting.backbone, setting.params.training),
    )

    # refined policy: what the next round asks about
    pool, known = state.pool, state.known
    if number < setting.params.selection.rounds:
        pool = _next_pool(setting, reward, known, pd.concat(labels), number, here)
        known = pd.concat([known, pool])
        known = known.drop_duplicates(["prompt_id", "index"], ignore_index=True)
    history = [*state.history, _summary(number, conflict, answers)]
    rewards = [*state.rewards, reward]
    return State(reward, pool, known, labels, rewards, history, state.seconds + seconds)


def _conflict(params: Params, state: State) -> pd.DataFrame:
    """The conflict table of the current reward and policy: log-probabilities of whole completions,
    or per token."""
    logp = log_probabilities(state.pool, params.selection.logp)
    return conflict_table(state.pool, state.reward.score(state.pool), logp)


def _choose(
    strategy: str,
    setting: Setting,
    state: State,
    number: int,
    budget: int | None,
    conflict: pd.DataFrame,
    here: Stage | Memory,
) -> tuple[pd.DataFrame, float]:
    """The round's comparisons, and the seconds that choosing them took; 0 where they were read."""
    params = setting.params
    before = pd.concat(state.labels) if state.labels else None
    generator = rng(setting.seed, f"selection/{strategy}/{number}")
    seconds = [0.0]

    def choose() -> pd.DataFrame:
        start = time.perf_counter()
        fitted = _fitted(setting, state, before) if strategy in SIGHTED else None
        table = select(strategy, conflict, budget, generator, params.selection, before, fitted)
        seconds[0] = time.perf_counter() - start
        return table

    return here.table("comparisons", choose), seconds[0]


def _fitted(setting: Setting, state: State, before: pd.DataFrame | None) -> Fitted | None:
    """What the strategies that weigh a probe's uncertainty read; None where the reward is none."""
    probe, belief = trust.inner(state.reward), setting.belief
    if not isinstance(probe, Probe) or belief is None:
        return None
    settings, labels = setting.params.reward, setting.observed.head(0)
    if before is not None:
        # a skipped comparison has no label
        labels = refine.weighed(before.dropna(subset=["label"]), settings)
    training = refine.merge(
        setting.observed, labels, settings.feedback_weight, settings.grade_weight
    )
    report = state.reward.report if isinstance(state.reward, Trusted) else None
    if report is None and trust.enough(labels):
        report = trust.fit(belief, state.known, labels).report
    return Fitted(
        probe,
        state.known,
        training,
        settings.l2,
        state.pool,
        labels,
        belief,
        report,
        setting.params.policy.beta,
    )


def _next_pool(
    setting: Setting,
    reward: RewardModel,
    known: pd.DataFrame,
    labels: pd.DataFrame,
    number: int,
    here: Stage | Memory,
) -> pd.DataFrame:
    """The askable completions under the refined policy.

    A tilted policy lives on the sampled completions: they stay, and their logp becomes that of
    the tilted policy, l + log(N w). A trained policy is sampled anew; its completions get indices
    of their own.
    """
    if setting.params.policy.kind == "tilt":
        base = setting.askable
        ids = base["prompt_id"].to_numpy()
        weights = tilt(ids, reward.score(base), setting.params.policy.beta)
        return base.assign(logp=base["logp"] + log_ratio(ids, weights))
    return here.table("next_pool", lambda: _resampled(setting, reward, known, labels, number, here))


def _resampled(
    setting: Setting,
    reward: RewardModel,
    known: pd.DataFrame,
    labels: pd.DataFrame,
    number: int,
    here: Stage | Memory,
) -> pd.DataFrame:
    """Completions of the askable prompts by a policy that is trained against `reward`."""
    params, backbone = setting.params, setting.needed_backbone
    train_policy(setting, reward, known, _folder(here) / "policy", labels)
    splits = params.selection.prompts.split("_and_")
    fresh = sample_adapted(
        backbone,
        POLICY,
        setting.prompts[setting.prompts["split"].isin(splits)],
        params.sampling,
        derive(setting.seed, f"pool/{number}"),
        f"round {number + 1} pool",
        published.scorer(params),
    )
    # no index stands for two texts
    return fresh.assign(index=fresh["index"] + 1 + int(known["index"].max()))


def train_policy(
    setting: Setting,
    reward: RewardModel,
    pool: pd.DataFrame,
    folder: Path,
    labels: pd.DataFrame | None = None,
) -> None:
    """Leave the policy adapter trained against `reward` on the backbone, read back from `folder`
    if it was trained before.

    pool: completions of training and feedback prompts; evaluation prompts never take part. labels:
    human ones about completions of the pool, to watch the policy by (`training.watch`). Every
    policy of a run starts from the same adapter and takes its prompts in the same order, as far
    as the rewards tell their completions apart.
    """
    backbone, checkpoints = setting.needed_backbone, folder / "checkpoints"
    if processes.agreed((folder / "done.json").exists()):
        trainer.forget(checkpoints)
        backbone.load_adapter(POLICY, folder / "adapter")
        return

    params, policy = setting.params, setting.params.policy
    scores = None if policy.kind in policy_training.ONLINE else reward.score(pool)
    table = policy_training.examples(pool, scores, policy, rng(setting.seed, "policy"))
    policy_training.train(
        backbone,
        table,
        policy,
        derive(setting.seed, "policy"),
        params.training,
        checkpoints,
        policy_training.Online(reward, params.sampling),
        _watch(setting, reward, pool, folder, labels),
    )
    if processes.is_main():
        backbone.save_adapter(POLICY, folder / "adapter")
        unit = "pairs" if policy.kind in ("dpo", "rso") else "examples"
        files.write_json(folder / "done.json", {unit: len(table), "kind": policy.kind})
        trainer.forget(checkpoints)
    processes.wait()


def _watch(
    setting: Setting,
    reward: RewardModel,
    pool: pd.DataFrame,
    folder: Path,
    labels: pd.DataFrame | None,
) -> watching.Watch | None:
    """What looks at a policy while it is trained; None where the parameters ask for none."""
    params, how = setting.params, setting.params.training
    every = how.watch_every or (watching.EVERY if how.report_to != "none" else None)
    if every is None:
        return None
    held_out = setting.prompts[setting.prompts["split"] == "evaluate"]
    gold = None
    if params.gold.known:
        gold = partial(gold_scores, prompts=setting.prompts, params=params)
    said = pool.head(0).assign(i=0, j=0, label=np.nan) if labels is None else labels
    held = watching.Held(
        held_out[["prompt_id", "prompt"]],
        reward,
        params.sampling,
        watching.as_text(said, pool),
        gold,
        published.scorer(params),
    )
    seed = derive(setting.seed, "watch")
    return watching.Watch(setting.needed_backbone, held, every, seed, folder / "watch.csv")


def _summary(number: int, conflict: pd.DataFrame, labels: pd.DataFrame) -> dict:
    """What a round found: one row of `Outcome.rounds`."""
    labels = labels.dropna(subset=["label"])  # a skipped comparison gives none
    reward = conflict.set_index(["prompt_id", "index"])["reward"]
    first, second = (
        reward.reindex(pd.MultiIndex.from_frame(labels[["prompt_id", side]])).to_numpy()
        for side in ("i", "j")
    )
    label = labels["label"].to_numpy()
    decided = label != 0.5
    wrong = decided & (np.sign(first - second) != np.sign(label - 0.5))
    return {
        "round": number,
        "labels": len(labels),
        **means(conflict),
        "contradicted": wrong.sum() / max(1, decided.sum()),
        "ties": 1 - decided.mean() if len(labels) else 0.0,
    }


def _shares(budget: int | None, settings: Selection) -> list[int | None]:
    """The budget spread over rounds: evenly, earlier rounds getting what is left over, or each
    round from the second on as large as all before it."""
    rounds = settings.rounds
    if budget is None:
        return [None] * rounds
    if settings.round_sizes == "even":
        return [budget // rounds + (k < budget % rounds) for k in range(rounds)]
    ends = [-(-budget // 2 ** (rounds - number)) for number in range(1, rounds + 1)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def _open_store(stage: Stage | Memory) -> LabelStore:
    """The strategy's label store; in memory where nothing is written, as by a process beside the
    main one."""
    if stage.folder is None or not processes.is_main():
        return LabelStore(Path(sqlite.MEMORY))
    return LabelStore(stage.folder / "labels.sqlite")


def _adopt(store: LabelStore, comparisons: pd.DataFrame, shared: pd.DataFrame) -> None:
    """Take over what people answered about these comparisons for other strategies of the run.

    shared: the completions that all strategies have in common. Those that a trained policy wrote
    later have the same indices in every strategy, and other texts.
    """
    folder = store.path.parent.parent
    common = pd.MultiIndex.from_frame(shared[["prompt_id", "index"]])
    for side in ("i", "j"):
        keys = pd.MultiIndex.from_frame(comparisons[["prompt_id", side]])
        comparisons = comparisons[keys.isin(common)]
    if str(store.path) == ":memory:" or not len(comparisons):
        return
    for path in sorted(folder.glob("*/labels.sqlite")):
        if path != store.path:
            with LabelStore(path) as other:
                store.adopt(other, comparisons)


def _folder(stage: Stage | Memory) -> Path:
    """The stage's folder. Raises InputError where nothing is written: policies need one."""
    if stage.folder is None:
        raise InputError("policies are trained in a folder, and this experiment writes nothing")
    return stage.folder
