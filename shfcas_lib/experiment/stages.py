"""A run, written once: what the notebooks call, step by step, and `shfcas stage` all at once.

    prompts = stages.prompts(run)
    backbone = stages.base_policy(run, prompts)
    train, evaluate = stages.first_pools(run, backbone)

    python -m shfcas_lib stage pools proxy params/mine.yaml
    accelerate launch --multi_gpu --num_processes 4 -m shfcas_lib stage pools proxy params/mine.yaml

Each step reads what earlier ones left in the run folder, and leaves its own tables and rewards
there: what is done is read back. Pools are the same whatever the number of processes; training
sees the same batches in the same order (docs/training.md says where it may differ).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from shfcas_lib import bias, gold, loop, refine
from shfcas_lib.analysis import belief, stopping
from shfcas_lib.annotators.people import load_annotator
from shfcas_lib.base import processes, progress
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import printable
from shfcas_lib.conflict import cannot_rank, conflict_table, log_probabilities
from shfcas_lib.data.notes import notes
from shfcas_lib.data.prompts import dropped
from shfcas_lib.experiment import checks, proxy_data
from shfcas_lib.feedback import Annotator
from shfcas_lib.models import loading, published, vllm_engine
from shfcas_lib.params.schema import Params
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage.runs import Run, open_run
from shfcas_lib.training import sft

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

PROXY, CONFLICT, FEEDBACK = "01_proxy", "02_conflict", "03_feedback"


# --- notebook 01: a proxy with a known flaw


def prompts(run: Run) -> pd.DataFrame:
    """The prompts of a run with their split; whatever can be wrong with the run is met before
    anything is written. What should be known of data of the user's own is printed. Raises
    InputError."""
    with processes.main_first():  # what has to be fetched is fetched once
        screen = checks.PromptCheck(run.params)
        table = checks.check(run.params, screen)
    stage = run.stage(PROXY)  # refuses a folder of other parameters
    stage.table("dropped", lambda: dropped(run.params, screen))
    if processes.is_main():
        for note in notes(run.params, table):
            print(printable(note))
    return stage.table("prompts", lambda: table)


def base_policy(run: Run, prompts: pd.DataFrame) -> Backbone:
    """The language model of a run, which plays policy and reference; fine-tuned first where `sft`
    asks for it. Every other model that the run names is tried out, too."""
    run.record(**vllm_engine.engine_facts(run.params.sampling))  # where vLLM samples: is it there?
    published.try_out(run.params)
    return policy(run, prompts)


def policy(run: Run, prompts: pd.DataFrame | None = None) -> Backbone:
    """The same for a later notebook. prompts: where the fine-tuned copy may be made now."""
    model = sft.base(run, prompts)
    with processes.main_first():
        return loading.load_backbone(model)


def policy_if_needed(run: Run) -> Backbone | None:
    """`policy`; None where all that is left is closed forms, which need no language model."""
    closed = (run.params.reward.kind, run.params.policy.kind) == ("probe", "tilt")
    return None if closed else policy(run)


def first_pools(run: Run, backbone: Backbone) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Completions of the training prompts, or the user's own pairs, and of the evaluation prompts:
    two pool tables. Where vLLM wrote them, one printed line says how far it is from the backbone.
    """
    params, stage = run.params, run.stage(PROXY)
    table = run.require(PROXY, "prompts")
    with stage.timed("sample training and evaluation prompts"):
        train = stage.table("pool_train", lambda: proxy_data.training_pool(backbone, table, params))
        evaluate = stage.table(
            "pool_evaluate", lambda: _sampled(run, backbone, "evaluate", "evaluation prompts")
        )
    gap = vllm_engine.logp_gap(evaluate)
    if gap and processes.is_main():
        print(gap)
    return train, evaluate


def preferences(run: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Clean preferences, and the same with the run's bias injected, row by row."""
    params, stage = run.params, run.stage(PROXY)
    table, train = run.require(PROXY, "prompts"), run.require(PROXY, "pool_train")
    clean = stage.table(
        "preferences_clean", lambda: proxy_data.clean_preferences(train, table, params, stage)
    )
    biased = stage.table(
        "preferences_biased",
        lambda: proxy_data.spoilt_preferences(clean, train, table, params, params.seed),
    )
    return clean, biased


def proxy_and_ceiling(run: Run, backbone: Backbone) -> dict[str, RewardModel]:
    """The `proxy`, and as `clean` the reward of the labels of the same pairs before bias, where
    there is such a ceiling (`Params.ceiling`)."""
    params, stage = run.params, run.stage(PROXY)
    clean, biased = preferences(run)
    train = run.require(PROXY, "pool_train")
    with stage.timed("train the proxy"):
        proxy = refine.proxy(
            stage / "proxy",
            params.reward,
            train,
            bias.observed(biased),
            params.seed,
            _adapter(params, "proxy", backbone),
        )
        if not params.ceiling:
            return {"proxy": proxy}
        ceiling = refine.kept(
            stage / "clean",
            params.reward,
            train,
            clean,
            params.seed,
            proxy,
            _adapter(params, "clean", backbone),
        )
    return {"proxy": proxy, "clean": ceiling}


# --- notebook 02: where proxy and policy disagree


def feedback_pool(run: Run, backbone: Backbone) -> pd.DataFrame:
    """Completions of the feedback prompts, those about which a human may be asked."""
    stage = run.stage(CONFLICT)
    with stage.timed("sample feedback prompts"):
        return stage.table(
            "pool_feedback", lambda: _sampled(run, backbone, "feedback", "feedback prompts")
        )


def proxy(run: Run, backbone: Backbone | None = None) -> RewardModel:
    """The proxy that notebook 01 left. Raises InputError where there is none."""
    return finished_reward(run, run.folder / PROXY / "proxy", "proxy", backbone)


def conflict(run: Run, proxy: RewardModel) -> pd.DataFrame:
    """The conflict table of the feedback pool under the proxy; where it ranks nothing, one printed
    line says so."""
    completions = run.require(CONFLICT, "pool_feedback")
    logp = log_probabilities(completions, run.params.selection.logp)
    table = run.stage(CONFLICT).table(
        "conflict", lambda: conflict_table(completions, proxy.score(completions), logp)
    )
    _warn_of_pairs(table)
    return table


def _warn_of_pairs(conflict: pd.DataFrame) -> None:
    warning = cannot_rank(conflict)
    if warning and processes.is_main():
        print(warning)


# --- notebook 03: spend the labels where it matters


def setting(run: Run, backbone: Backbone | None = None) -> loop.Setting:
    """What every strategy of a run starts from. The language model is loaded where it is needed:
    the closed forms do without."""
    params = run.params
    backbone = backbone or policy_if_needed(run)
    return loop.Setting(
        params,
        params.seed,
        run.require(PROXY, "prompts"),
        run.require(PROXY, "pool_train"),
        run.require(CONFLICT, "pool_feedback"),
        bias.observed(run.require(PROXY, "preferences_biased")),
        proxy(run, backbone),
        backbone,
    )


def annotator(run: Run) -> Annotator:
    """Who answers. Gold is loaded where there is one: it may be the simulated human."""
    params = run.params
    known = gold.load_gold(params) if params.gold.known else None
    return load_annotator(params.feedback, known, params.seed, run.stage(FEEDBACK).folder)


def rounds(run: Run, setting: loop.Setting, annotator: Annotator) -> dict[str, loop.Outcome]:
    """All rounds of every strategy. Raises Unanswered while people have not answered."""
    stage = run.stage(FEEDBACK)
    outcomes: dict[str, loop.Outcome] = {}
    _warn_of_pairs(setting.askable)
    with stage.timed("rounds"):
        for name in progress.over(run.params.selection.strategies, "rounds", "strategy"):
            outcomes[name] = loop.run_rounds(name, setting, annotator, stage / name)
    return outcomes


def rounds_table(run: Run, outcomes: dict[str, loop.Outcome]) -> pd.DataFrame:
    """`Outcome.rounds` of every strategy, with the column strategy; kept."""
    parts = [outcome.rounds.assign(strategy=name) for name, outcome in outcomes.items()]
    return run.stage(FEEDBACK).table("rounds", lambda: pd.concat(parts, ignore_index=True))


def trust_report(run: Run, outcomes: dict[str, loop.Outcome]) -> pd.DataFrame | None:
    """Whom the labels of every strategy trust, a printed line each, and the table behind the
    figure (`belief.report`); None where no reward learnt it."""
    params = run.params
    if params.reward.refinement != "trust":
        print(f"whom to trust: not asked, reward.refinement is {params.reward.refinement}")
        return None
    rewards = {name: outcome.reward for name, outcome in outcomes.items()}
    for name, words in belief.sentences(rewards).items():
        print(f"{name}: {words}")
    pool = run.require(CONFLICT, "pool_feedback")
    resamples = params.evaluation.bootstrap
    return run.stage(FEEDBACK).table_or_none(
        "trust", lambda: belief.report(rewards, pool, params.seed, resamples)
    )


def trust_facts(outcomes: dict[str, loop.Outcome]) -> dict[str, dict]:
    """The same as numbers, for metrics.json (`belief.facts`)."""
    return belief.facts({name: outcome.reward for name, outcome in outcomes.items()})


def judge_report(run: Run, annotator: Any, outcomes: dict[str, loop.Outcome]) -> dict:
    """What a judge took, printed, and by strategy how far it agrees with the person who shared the
    comparisons with it; empty where nobody did."""
    kind = run.params.feedback.kind
    if kind in ("judge", "mixed"):
        print("the judge took", getattr(annotator, "judge", annotator).spent())
    if kind != "mixed":
        return {}
    agreement = {}
    for name, outcome in outcomes.items():
        agreement[name] = annotator.agreement(outcome.labels, outcome.pool)
    print("judge and person:", agreement)
    return agreement


def how_wrong(
    run: Run, setting: loop.Setting, outcomes: dict[str, loop.Outcome]
) -> dict[str, dict]:
    """By strategy, what its labels say about the proxy on the whole pool (`stopping.report`),
    printed as a sentence; those whose labels cannot say it are left out."""
    found = {}
    for name, outcome in outcomes.items():
        folder = run.stage(FEEDBACK).folder / name
        table = stopping.asked(folder, outcome.labels)
        numbers = stopping.report(setting, name, folder, table)
        if numbers and "needs" not in numbers:
            found[name] = numbers
            print(f"{name}: {stopping.suggestion(numbers)}")
    return found


def policies(run: Run, setting: loop.Setting, rewards: dict[str, RewardModel]) -> None:
    """Train a policy against each reward, one after the other; nothing for the closed form."""
    stage = run.stage(FEEDBACK)
    if run.params.policy.kind == "tilt":
        return
    for name, reward in rewards.items():
        with stage.timed(f"train the policy against {name}"):
            folder, said = stage.folder / f"policy_{name}", _labels(run, name)
            loop.train_policy(setting, reward, setting.known, folder, said)


def _labels(run: Run, name: str) -> pd.DataFrame:
    """The labels of a strategy; of all of them for a reward that is none's, such as the proxy."""
    strategies = run.params.selection.strategies
    parts = []
    for strategy in [name] if name in strategies else strategies:
        for number in range(1, run.params.selection.rounds + 1):
            parts.append(run.require(FEEDBACK, f"{strategy}/round_{number}/labels"))
    return pd.concat(parts).drop_duplicates(["prompt_id", "i", "j"], ignore_index=True)


def refined_rewards(run: Run, backbone: Backbone | None = None) -> dict[str, RewardModel]:
    """The rewards that notebook 03 left, one for each strategy, in the order of the parameters."""
    last = f"round_{run.params.selection.rounds}"
    rewards: dict[str, RewardModel] = {}
    for name in run.params.selection.strategies:
        folder = run.folder / FEEDBACK / name / last
        rewards[name] = finished_reward(run, folder, f"refined_{name}", backbone)
    return rewards


# --- the heavy stages as a command


def run_stages(names: list[str], params: Params) -> None:
    """Run stages by name, one after the other, in one process or in several. Raises InputError
    for a stage whose predecessor is missing."""
    processes.start(loading.pick_device(params.model.device))
    try:
        run = open_run(params)
        if "pools" in names:
            backbone = base_policy(run, prompts(run))
        else:
            with processes.main_first():
                checks.check(params)
            backbone = policy(run)
        for name in names:
            STAGES[name](run, backbone)
        run.record(processes=processes.count())
    finally:
        processes.stop()


def _pools_stage(run: Run, backbone: Backbone) -> None:
    first_pools(run, backbone)
    feedback_pool(run, backbone)


def _rounds_stage(run: Run, backbone: Backbone) -> None:
    kind = run.params.feedback.kind
    if processes.count() > 1 and kind not in ("gold", "replay"):
        raise InputError(
            f"stage rounds: feedback.kind {kind} asks one by one and needs one"
            " process: run it without a launcher, or notebook 03"
        )
    rounds(run, setting(run, backbone), annotator(run))


def _policies_stage(run: Run, backbone: Backbone) -> None:
    if run.params.policy.kind == "tilt":
        raise InputError(
            "stage policies: policy.kind tilt is a closed form, there is nothing to train"
        )
    start = setting(run, backbone)
    policies(run, start, {"proxy": start.proxy, **refined_rewards(run, backbone)})


STAGES = {
    "pools": _pools_stage,
    "proxy": proxy_and_ceiling,
    "rounds": _rounds_stage,
    "policies": _policies_stage,
}


def _sampled(run: Run, backbone: Backbone, split: str, label: str) -> pd.DataFrame:
    """Completions of the prompts of one split."""
    params, table = run.params, run.require(PROXY, "prompts")
    mine = table[table["split"] == split]
    return proxy_data.first_pool(backbone, mine, params, label)


def _adapter(params: Params, name: str, backbone: Backbone | None) -> refine.Adapter:
    return refine.Adapter(name, backbone, params.training)


def finished_reward(run: Run, folder: Path, name: str, backbone: Backbone | None) -> RewardModel:
    """The reward that an earlier notebook kept in `folder`. Raises InputError if there is none."""
    return refine.finished(run.params.reward, folder, _adapter(run.params, name, backbone))
