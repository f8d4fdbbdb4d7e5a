"""Trained policies on the evaluation prompts: adapters go in, what their own answers are worth
comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import refine
from shfcas_lib.evaluation import BY, sampled_policy
from shfcas_lib.gold import gold_table
from shfcas_lib.gold import values as gold_values
from shfcas_lib.models import published
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Params
from shfcas_lib.pool import sample_adapted
from shfcas_lib.rewards import spread
from shfcas_lib.storage import runs

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


def trained_policies(
    params: Params,
    prompts: pd.DataFrame,
    backbone: Backbone,
    adapters: dict[str, Path],
    base: pd.DataFrame,
    base_gold: np.ndarray | None,
    stage: runs.Stage,
    rewards: dict[str, refine.RewardModel] | None = None,
) -> pd.DataFrame:
    """Sample the evaluation prompts from trained policies, `evaluation.answers` each: the table
    of `trained` for each policy, below the base policy's own rows. Completion k of a prompt draws
    from the same generator under every policy, the base policy's too unless vLLM wrote those:
    what they share does not blur the comparison.

    adapters: policy name to the folder that loop.train_policy wrote. base, base_gold: evaluation
    pool of the base policy. Without gold the `rewards` judge: kl, and `BY` for each."""
    held_out = prompts[prompts["split"] == "evaluate"]
    sampling = params.sampling.model_copy(
        update={"n": params.evaluation.answers or params.sampling.n}
    )
    if base_gold is None:
        before = {name: reward.score(base) for name, reward in (rewards or {}).items()}
        parts = [_gains_by(base, base, rewards or {}, before).assign(policy="base", kl=0.0)]
    else:
        even = (
            pd.DataFrame({"prompt_id": base["prompt_id"], "gold": base_gold})
            .groupby("prompt_id")
            .mean()
            .reset_index()
        )
        parts = [even.assign(policy="base", kl=0.0, win=0.5)]
    for name, folder in adapters.items():
        backbone.load_adapter(POLICY, folder / "adapter")
        sampled = stage.table(
            f"pool_{name}",
            lambda: sample_adapted(
                backbone, POLICY, held_out, sampling, params.seed, f"policy {name}"
            ),
        )
        if base_gold is None:
            parts.append(
                _gains_by(published.scored(sampled, params), base, rewards or {}, before).assign(
                    policy=name
                )
            )
        else:
            gold = gold_values(
                stage.table(f"gold_{name}", lambda: gold_table(sampled, prompts, params))
            )
            parts.append(sampled_policy(name, sampled, gold, base, base_gold))
    return pd.concat(parts, ignore_index=True)


def _gains_by(
    sampled: pd.DataFrame,
    base: pd.DataFrame,
    rewards: dict[str, refine.RewardModel],
    before: dict[str, np.ndarray],
) -> pd.DataFrame:
    """What every reward believes a policy gained: prompt_id, kl, and `BY`, from the mean of the
    base policy's completions of the prompt. before: the rewards of those."""
    table = sampled[["prompt_id"]].assign(
        kl=sampled["logp"] - sampled["logp_reference"] if "logp_reference" in sampled else 0.0
    )
    for name, reward in rewards.items():
        ids = base["prompt_id"].to_numpy()
        mean = pd.Series(before[name]).groupby(ids).mean()
        table[BY + name] = (
            reward.score(sampled) - sampled["prompt_id"].map(mean).to_numpy()
        ) / spread(before[name], ids)
    return table.groupby("prompt_id").mean().reset_index()
