"""The heavy stages of a run as a command: what the notebooks would compute, in one process or in
several.

    python -m shfcas_lib stage pools proxy params/mine.yaml
    accelerate launch --multi_gpu --num_processes 4 -m shfcas_lib stage pools proxy rounds policies params/mine.yaml

Every table and adapter lands where the notebooks look for it, so that they find it done. Pools
are the same whatever the number of processes; training sees the same batches in the same order
(docs/training.md says where it may differ)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from shfcas_lib import bias, gold, loop, pool, refine
from shfcas_lib.annotators.people import load_annotator
from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.data.prompts import dropped
from shfcas_lib.experiment import checks, proxy_data
from shfcas_lib.experiment.checks import PromptCheck
from shfcas_lib.models import loading, published, vllm_engine
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import runs
from shfcas_lib.training import sft

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


def run_stages(names: list[str], params: Params) -> None:
    """Run stages by name, one after the other. Raises InputError for a stage whose predecessor is
    missing."""
    processes.start(loading.pick_device(params.model.device))
    try:
        run = runs.open_run(params)
        with processes.main_first():  # whatever has to be fetched is fetched once
            screen = PromptCheck(params) if "pools" in names else None
            prompts = checks.check(params, screen)
        if "pools" in names:
            # refuses a folder of other parameters before anything is trained into it
            first = run.stage("01_proxy")
            first.table("prompts", lambda: prompts)
            first.table("dropped", lambda: dropped(params, screen))
            run.record(**vllm_engine.engine_facts(params.sampling))
            published.try_out(params)
        model = sft.base(run, prompts if "pools" in names else None)
        with processes.main_first():
            backbone = loading.load_backbone(model)
        for name in names:
            STAGES[name](run, backbone)
        run.record(processes=processes.count())
    finally:
        processes.stop()


def pools(run: runs.Run, backbone: Backbone) -> None:
    """Completions of the base policy, fine-tuned first where `sft` asks for it: of training and
    evaluation prompts (notebook 01) and of feedback prompts (notebook 02)."""
    params, first, second = run.params, run.stage("01_proxy"), run.stage("02_conflict")
    prompts = run.require("01_proxy", "prompts")
    with first.timed("sample training and evaluation prompts"):
        first.table(
            "pool_train",
            lambda: published.scored(proxy_data.training_pool(backbone, prompts, params), params),
        )
        evaluate = first.table(
            "pool_evaluate",
            lambda: _sampled(backbone, prompts, "evaluate", "evaluation prompts", params),
        )
        if processes.is_main() and (told := vllm_engine.logp_gap(evaluate)):
            print(told)
    with second.timed("sample feedback prompts"):
        second.table(
            "pool_feedback",
            lambda: _sampled(backbone, prompts, "feedback", "feedback prompts", params),
        )


def proxy(run: runs.Run, backbone: Backbone) -> None:
    """Preferences, spoilt preferences, and the two rewards trained on them (notebook 01)."""
    params, stage = run.params, run.stage("01_proxy")
    prompts, train = (run.require("01_proxy", name) for name in ("prompts", "pool_train"))
    clean = stage.table(
        "preferences_clean", lambda: proxy_data.clean_preferences(train, prompts, params, stage)
    )
    category = dict(zip(prompts["prompt_id"], prompts["category"]))
    biased = stage.table(
        "preferences_biased",
        lambda: bias.inject(
            proxy_data.seen_by_proxy(clean, params), train, category, params.bias, params.seed
        ),
    )
    with stage.timed("train the proxy"):
        trained = refine.proxy(
            params.reward,
            train,
            bias.observed(biased),
            params.seed,
            stage.folder / "proxy",
            backbone,
            how=params.training,
        )
        refine.ceiling(params, train, clean, stage.folder / "clean", backbone, trained)


def rounds(run: runs.Run, backbone: Backbone) -> None:
    """The rounds of every strategy (notebook 03). Several processes cannot wait for people: who
    answers is gold or a file."""
    params, stage = run.params, run.stage("03_feedback")
    if processes.count() > 1 and params.feedback.kind not in ("gold", "replay"):
        raise InputError(
            f"stage rounds: feedback.kind {params.feedback.kind} asks one by one and needs one"
            " process: run it without a launcher, or notebook 03"
        )
    known = gold.load_gold(params) if params.gold.known else None
    annotator = load_annotator(params.feedback, known, params.seed, stage.folder)
    setting = _setting(run, backbone)
    with stage.timed("rounds"):
        for name in params.selection.strategies:
            loop.run_rounds(name, setting, annotator, stage / name)


def policies(run: runs.Run, backbone: Backbone) -> None:
    """Policies trained against the proxy and against every refined reward (notebook 03)."""
    params, stage = run.params, run.stage("03_feedback")
    if params.policy.kind == "tilt":
        raise InputError(
            "stage policies: policy.kind tilt is a closed form, there is nothing to train"
        )
    setting = _setting(run, backbone)
    rewards = {"proxy": setting.proxy}
    for name in params.selection.strategies:
        last = stage.folder / name / f"round_{params.selection.rounds}"
        rewards[name] = refine.fit(
            params.reward, None, None, params.seed, f"refined_{name}", last, backbone
        )
    known = pd.concat([setting.train, setting.feedback], ignore_index=True)
    for name, reward in rewards.items():
        with stage.timed(f"train the policy against {name}"):
            loop.train_policy(setting, reward, known, stage.folder / f"policy_{name}")


STAGES = {"pools": pools, "proxy": proxy, "rounds": rounds, "policies": policies}


def _setting(run: runs.Run, backbone: Backbone) -> loop.Setting:
    params = run.params
    prompts, train, biased = (
        run.require("01_proxy", name) for name in ("prompts", "pool_train", "preferences_biased")
    )
    asked, observed = run.require("02_conflict", "pool_feedback"), bias.observed(biased)
    reward = refine.fit(
        params.reward, None, None, params.seed, "proxy", run.folder / "01_proxy" / "proxy", backbone
    )
    return loop.Setting(params, params.seed, prompts, train, asked, observed, reward, backbone)


def _sampled(
    backbone: Backbone, prompts: pd.DataFrame, split: str, label: str, params: Params
) -> pd.DataFrame:
    return published.scored(
        pool.sample(
            backbone, prompts[prompts["split"] == split], params.sampling, params.seed, label
        ),
        params,
    )
