"""Trained policies on the evaluation prompts: adapters go in, what their own answers are worth
comes out.

Completion k of a prompt draws from the same generator under every policy, the base policy's too
unless vLLM wrote those: what they share does not blur the comparison.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.analysis.without_gold import sampled_claims
from shfcas_lib.evaluation import sampled_policy
from shfcas_lib.gold import gold_table
from shfcas_lib.models import published
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Params
from shfcas_lib.pool import sample_adapted
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage import runs

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


def sampled_policies(
    params: Params,
    prompts: pd.DataFrame,
    backbone: Backbone,
    adapters: dict[str, Path],
    stage: runs.Stage,
) -> dict[str, pd.DataFrame]:
    """Completions of the evaluation prompts by each trained policy, `evaluation.answers` each, as
    pool tables by the policy's name. adapters: policy name to the folder that loop.train_policy
    wrote."""
    held_out = prompts[prompts["split"] == "evaluate"]
    answers = params.evaluation.answers or params.sampling.n
    sampling = params.sampling.model_copy(update={"n": answers})

    def sampled(label: str) -> pd.DataFrame:
        return sample_adapted(backbone, POLICY, held_out, sampling, params.seed, label)

    pools = {}
    for name, folder in adapters.items():
        backbone.load_adapter(POLICY, folder / "adapter")
        pools[name] = stage.table(f"pool_{name}", partial(sampled, f"policy {name}"))
    return pools


def trained_policies(
    params: Params,
    prompts: pd.DataFrame,
    pools: dict[str, pd.DataFrame],
    base: pd.DataFrame,
    base_gold: np.ndarray,
    stage: runs.Stage,
) -> pd.DataFrame:
    """The table of `evaluation.sampled_policy` for each policy, below the base policy's own rows.

    pools: from `sampled_policies`. base, base_gold: evaluation pool of the base policy and its
    (rows,) gold. stage: keeps the gold of what was sampled.
    """
    means = pd.DataFrame({"prompt_id": base["prompt_id"], "gold": base_gold})
    means = means.groupby("prompt_id").mean().reset_index()
    parts = [means.assign(policy="base", kl=0.0, win=0.5)]
    for name, sampled in pools.items():
        gold = stage.table(f"gold_{name}", partial(gold_table, sampled, prompts, params))
        parts.append(sampled_policy(name, sampled, gold["gold"].to_numpy(), base, base_gold))
    return pd.concat(parts, ignore_index=True)


def trained_claims(
    params: Params,
    pools: dict[str, pd.DataFrame],
    base: pd.DataFrame,
    rewards: dict[str, RewardModel],
) -> pd.DataFrame:
    """The same where there is no gold: what every reward believes each policy gained."""
    before = {name: reward.score(base) for name, reward in rewards.items()}
    parts = [sampled_claims("base", base, base, rewards, before)]
    for name, sampled in pools.items():
        scored = published.scored(sampled, params)
        parts.append(sampled_claims(name, scored, base, rewards, before))
    return pd.concat(parts, ignore_index=True)
