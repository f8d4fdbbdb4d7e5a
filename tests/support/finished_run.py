"""A run of the tiny model that went through its stages without notebooks: seconds."""

import tiny_notebooks

from shfcas_lib.experiment import judging, stages
from shfcas_lib.params import reading
from shfcas_lib.storage.runs import open_run

LORA = {"kind": "lora", "epochs": 1, "learning_rate": 1e-3, "lora": {"r": 4, "dropout": 0.0}}


def settings(tiny_model, **changes):
    """Parameters of such a run: two rounds of one strategy, a probe unless asked otherwise."""
    values = tiny_notebooks.settings(
        tiny_model,
        prompts={"n": 30},
        selection={"strategies": ["shf_cas"], "budget": 12, "rounds": 2},
        evaluation={"replicates": 0, "bootstrap": 200},
        bias=[{"kind": "noise", "rate": 0.1}],
    )
    return values | changes


def finish(tiny_model, **changes):
    """The run, with its pools, proxy, rounds and policies on disk."""
    run = open_run(reading.validate(settings(tiny_model, **changes), "test"))
    backbone = stages.base_policy(run, stages.prompts(run))
    stages.first_pools(run, backbone)
    stages.proxy_and_ceiling(run, backbone)
    judging.gold(run)
    stages.feedback_pool(run, backbone)
    setting = stages.setting(run, backbone)
    outcomes = stages.rounds(run, setting, stages.annotator(run))
    stages.policies(run, setting, {name: found.reward for name, found in outcomes.items()})
    run.record()
    return run
