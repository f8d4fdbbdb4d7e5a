"""Refined policies by training: a reward and a pool give preference pairs, TRL trains the policy adapter on them.

    train(backbone, pairs(pool, reward, params.policy, generator), params.policy, seed)

`dpo`: best against worst completion of a prompt, sigmoid loss (Rafailov et al. 2023). `rso`: two completions drawn from the
tilted policy, which is what rejection sampling with acceptance exp((r - r_max) / beta) gives on a finite sample, hinge loss
(Liu et al. 2023). Both are anchored to the base policy: the adapter starts from zero, and TRL's reference is that start.
"""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.models import POLICY
from shfcas_lib.params import InputError, Policy
from shfcas_lib.policies import tilt

if TYPE_CHECKING:
    from shfcas_lib.models import Backbone


def pairs(pool: pd.DataFrame, reward: np.ndarray, policy: Policy, generator: np.random.Generator) -> pd.DataFrame:
    """At most `policy.pairs` preference pairs that the reward makes: columns prompt, chosen, rejected. reward: (rows,).

    Prompts take turns in random order, so that a small number of pairs still touches many prompts.
    """
    weights = tilt(pool["prompt_id"].to_numpy(), reward, policy.beta)
    table = pool.assign(reward=reward, weight=weights)
    prompts = [part.reset_index(drop=True) for _, part in table.groupby("prompt_id")]
    rows = []
    for turn in range(int(np.ceil(policy.pairs / max(1, len(prompts))))):
        for k in generator.permutation(len(prompts)):
            pair = _best_and_worst(prompts[k], turn) if policy.kind == "dpo" else _two_draws(prompts[k], generator)
            if pair and len(rows) < policy.pairs:
                rows.append((prompts[k].at[0, "prompt"], *pair))
    if not rows:
        raise InputError("the reward tells no two completions apart: there is nothing to train a policy on")
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])


def train(backbone: Backbone, preference_pairs: pd.DataFrame, policy: Policy, seed: int) -> None:
    """Replace the policy adapter by one trained on the pairs with TRL's DPOTrainer."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    backbone.add_adapter(POLICY, policy.lora, seed=seed)
    rows = [_conversation(backbone, *row) for row in preference_pairs.itertuples(index=False)]
    micro = next(size for size in (4, 2, 1) if policy.batch_size % size == 0)
    with tempfile.TemporaryDirectory() as scratch:
        config = DPOConfig(
            output_dir=scratch, per_device_train_batch_size=micro, gradient_accumulation_steps=policy.batch_size // micro,
            num_train_epochs=policy.epochs, learning_rate=policy.learning_rate, beta=policy.dpo_beta,
            loss_type=["sigmoid" if policy.kind == "dpo" else "hinge"], max_length=None, logging_steps=5, save_strategy="no",
            report_to="none", seed=seed, bf16=backbone.device.type == "cuda", use_cpu=backbone.device.type == "cpu",
            gradient_checkpointing=False)
        DPOTrainer(model=backbone.peft, args=config, train_dataset=Dataset.from_list(rows), processing_class=backbone.tokenizer).train()
    backbone.drop_adapter("ref")  # TRL's frozen copy of the start
    backbone.use(None)


def _conversation(backbone: Backbone, prompt: str, chosen: str, rejected: str) -> dict:
    if backbone.tokenizer.chat_template is None:
        return {"prompt": backbone.prompt_text(prompt), "chosen": chosen, "rejected": rejected}
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": backbone.messages(prompt), **answers}


def _best_and_worst(part: pd.DataFrame, turn: int) -> tuple[str, str] | None:
    ordered = part.sort_values(["reward", "index"], ascending=[False, True])
    if turn >= len(ordered) // 2:
        return None
    return _ordered(ordered.iloc[turn], ordered.iloc[-1 - turn])


def _two_draws(part: pd.DataFrame, generator: np.random.Generator) -> tuple[str, str] | None:
    if (part["weight"] > 0).sum() < 2:
        return None
    first, second = generator.choice(len(part), 2, replace=False, p=part["weight"] / part["weight"].sum())
    return _ordered(part.iloc[first], part.iloc[second])


def _ordered(one: pd.Series, other: pd.Series) -> tuple[str, str] | None:
    if one["reward"] == other["reward"] or one["completion"] == other["completion"]:
        return None
    better, worse = (one, other) if one["reward"] > other["reward"] else (other, one)
    return better["completion"], worse["completion"]
