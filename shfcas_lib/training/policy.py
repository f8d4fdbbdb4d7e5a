"""Refined policies by training: a reward and a pool give examples, TRL trains the policy adapter
on them.

    table = examples(pool, reward.score(pool), params.policy, generator)
    train(backbone, table, params.policy, seed, online=Online(reward, params.sampling))

`dpo`: best against worst completion of a prompt, sigmoid loss (Rafailov et al. 2023). `rso`: two
completions drawn from the tilted policy, which is what rejection sampling with acceptance exp((r
- r_max) / beta) gives on a finite sample, hinge loss (Liu et al. 2023). `kto`: single
completions, desirable above the mean reward of their prompt and undesirable below (Ethayarajh et
al. 2024). `rloo` (Ahmadian et al. 2024) and `grpo` (Shao et al. 2024): the policy writes
completions as it learns, the reward scores them, and those of one prompt are compared with each
other. All are anchored to the base policy: the adapter starts from zero, and TRL's reference is
that start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib import rewards
from shfcas_lib.base.errors import InputError
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Policy, Sampling, Training
from shfcas_lib.policies import tilt
from shfcas_lib.pool import reference_features
from shfcas_lib.training.trainer import PLAIN, arguments, run_trainer

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.refine import RewardModel

ONLINE = ("rloo", "grpo")


@dataclass(frozen=True)
class Online:
    """What a policy that writes as it learns is trained with: the reward of its completions, and
    how it samples them."""

    reward: RewardModel
    sampling: Sampling


def examples(
    pool: pd.DataFrame, reward: np.ndarray | None, policy: Policy, generator: np.random.Generator
) -> pd.DataFrame:
    """What the policy's kind learns from: `pairs`, `ratings`, or, for the online kinds,
    `prompts`, which need no reward: it may be None."""
    if policy.kind == "kto":
        return ratings(pool, reward, policy, generator)
    if policy.kind in ONLINE:
        return prompts(pool, policy, generator)
    return pairs(pool, reward, policy, generator)


def prompts(pool: pd.DataFrame, policy: Policy, generator: np.random.Generator) -> pd.DataFrame:
    """At most `policy.prompts` of the pool's prompts, once for every pass, each pass in an order
    of its own. Columns prompt and request, the same text: TRL hands the second to the reward as
    it is. (TRL's own order of a pass depends on how many passes this process has begun, so that a
    resumed training would see another.)"""
    texts = (
        pool[["prompt_id", "prompt"]]
        .drop_duplicates()
        .sort_values("prompt_id")["prompt"]
        .to_numpy()
    )
    texts = texts[generator.permutation(len(texts))[: policy.prompts]]
    order = np.concatenate([generator.permutation(len(texts)) for _ in range(policy.epochs)])
    return pd.DataFrame({"prompt": texts[order], "request": texts[order]})


def pairs(
    pool: pd.DataFrame, reward: np.ndarray, policy: Policy, generator: np.random.Generator
) -> pd.DataFrame:
    """At most `policy.pairs` preference pairs that the reward makes: columns prompt, chosen,
    rejected. reward: (rows,).

    Prompts take turns in random order, so that a small number of pairs still touches many
    prompts. The order, and what is drawn for a prompt, do not depend on the reward; a prompt on
    which the reward tells no pair apart is passed over."""
    weights = tilt(pool["prompt_id"].to_numpy(), reward, policy.beta)
    table = pool.assign(reward=reward, weight=weights)
    prompts = [part.reset_index(drop=True) for _, part in table.groupby("prompt_id")]
    rows = []
    orders = [
        generator.permutation(len(prompts))
        for _ in range(int(np.ceil(policy.pairs / max(1, len(prompts)))))
    ]
    for turn, order in enumerate(orders):
        for k, seed in zip(order, generator.integers(2**63, size=len(order))):
            pair = (
                _best_and_worst(prompts[k], turn)
                if policy.kind == "dpo"
                else _two_draws(prompts[k], np.random.default_rng(seed))
            )
            if pair and len(rows) < policy.pairs:
                rows.append((prompts[k].at[0, "prompt"], *pair))
    if not rows:
        raise InputError(
            "the reward tells no two completions apart: there is nothing to train a policy on"
        )
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])


def ratings(
    pool: pd.DataFrame, reward: np.ndarray, policy: Policy, generator: np.random.Generator
) -> pd.DataFrame:
    """At most 2 x `policy.pairs` single completions: columns prompt, completion, label (True:
    desirable). reward: (rows,).

    Desirable is what the reward places above the mean of its prompt's completions, undesirable
    what it places below; what lies on the mean is left out. Prompts take turns in random order,
    each giving what lies furthest from its mean first; then the rows are shuffled, because TRL
    reads them in order and estimates the KL from completions of neighbouring rows."""
    table = pool.assign(reward=reward).drop_duplicates(["prompt_id", "completion"])
    table["above"] = table["reward"] - table.groupby("prompt_id")["reward"].transform("mean")
    table["distance"] = table["above"].abs()
    table = table[table["distance"] > 1e-9]
    if table.empty:
        raise InputError(
            "the reward tells no two completions apart: there is nothing to train a policy on"
        )
    turn = (
        table.sort_values(["distance", "index"], ascending=[False, True])
        .groupby("prompt_id")
        .cumcount()
    )
    names = np.sort(table["prompt_id"].unique())
    place = table["prompt_id"].map(dict(zip(names, generator.permutation(len(names)))))
    table = (
        table.assign(turn=turn, place=place, label=table["above"] > 0)
        .sort_values(["turn", "place"])
        .head(2 * policy.pairs)
    )
    return table.iloc[generator.permutation(len(table))][
        ["prompt", "completion", "label"]
    ].reset_index(drop=True)


def train(
    backbone: Backbone,
    table: pd.DataFrame,
    policy: Policy,
    seed: int,
    how: Training = PLAIN,
    checkpoints: Path | None = None,
    online: Online | None = None,
) -> None:
    """Replace the policy adapter by one trained on what `examples` made. how, checkpoints: see
    module training.

    online: for rloo and grpo. Dropout is off in all of them, as TRL has it for DPO.
    """
    from datasets import Dataset

    backbone.add_adapter(POLICY, policy.lora, seed=seed)
    trainer, config, own, given = _recipe(backbone, table, policy, online)
    options = (
        arguments(how, backbone, policy.batch_size, 4, seed)
        | {
            "num_train_epochs": policy.epochs,
            "learning_rate": policy.learning_rate,
            "logging_steps": 5,
            "disable_dropout": True,
        }
        | own
    )
    if (
        policy.kind == "kto"
    ):  # a completion that is alone in its batch would be its own estimate of the KL
        at_once = options["per_device_train_batch_size"]
        if at_once == 1 or len(table) < at_once:
            raise InputError(
                f"policy.kind kto: {len(table)} ratings, of a batch of {policy.batch_size}"
                f" {at_once} at once, leave a completion alone, expected 2 or more: change"
                " policy.batch_size, policy.pairs or training.micro_batch"
            )
        table = table.head(len(table) // at_once * at_once)
    dataset = Dataset.from_list([_row(backbone, row) for row in table.to_dict("records")])
    run_trainer(
        trainer,
        config,
        backbone,
        options,
        checkpoints,
        model=backbone.peft,
        train_dataset=dataset,
        **given,
    )


def _recipe(
    backbone: Backbone, table: pd.DataFrame, policy: Policy, online: Online | None
) -> tuple[type, type, dict[str, Any], dict[str, Any]]:
    """Trainer, its configuration class, what is special in its configuration, and what else the
    trainer is given."""
    import trl

    if policy.kind in ONLINE:
        groups = policy.batch_size // policy.generations
        if len(table) < groups:
            raise InputError(
                f"policy: a step of {policy.kind} takes {groups} prompts (batch_size /"
                f" generations), but there are {len(table)}"
            )
        own = {
            "num_train_epochs": 1,
            "shuffle_dataset": False,
            "num_generations": policy.generations,
            "max_completion_length": online.sampling.max_new_tokens,
            "temperature": online.sampling.temperature,
            "top_k": online.sampling.top_k,
            "top_p": online.sampling.top_p,
        }
        given = {"reward_funcs": reward_function(backbone, online.reward)}
        if policy.kind == "rloo":
            return trl.RLOOTrainer, trl.RLOOConfig, own | {"beta": policy.beta}, given
        return (
            trl.GRPOTrainer,
            trl.GRPOConfig,
            own | {"beta": policy.dpo_beta, "loss_type": "grpo"},
            given,
        )
    if policy.kind == "kto":
        good, bad = int(table["label"].sum()), int((~table["label"]).sum())
        weights = {
            "desirable_weight": max(1.0, bad / max(1, good)),
            "undesirable_weight": max(1.0, good / max(1, bad)),
        }
        return (
            trl.KTOTrainer,
            trl.KTOConfig,
            {"beta": policy.dpo_beta, "max_length": None, **weights},
            {},
        )
    loss = "sigmoid" if policy.kind == "dpo" else "hinge"
    return (
        trl.DPOTrainer,
        trl.DPOConfig,
        {"beta": policy.dpo_beta, "max_length": None, "loss_type": [loss]},
        {},
    )


def reward_function(backbone: Backbone, reward: RewardModel) -> Callable[..., list[float]]:
    """The reward as TRL calls it on fresh completions, in the middle of a training step.

    A probe reads the backbone's own hidden states, so the adapters go off for its pass; a LoRA
    reward puts its own adapter on. Afterwards the policy's adapter is in use again and the model
    in the mode it was in, else the rest of the step would train another one."""

    def refined_reward(prompts, completions, completion_ids, request, **_) -> list[float]:
        texts = [text if isinstance(text, str) else text[0]["content"] for text in completions]
        table = pd.DataFrame(
            {
                "prompt_id": "",
                "index": range(len(texts)),
                "prompt": request,
                "completion": [text.strip() for text in texts],
                "tokens": completion_ids,
            }
        )
        mode = backbone.causal.training
        try:
            if isinstance(reward, rewards.Probe):
                return reward.score(reference_features(backbone, table)).tolist()
            return reward.score(table, quiet=True).tolist()
        finally:
            backbone.use(POLICY)
            backbone.peft.train(mode)

    return refined_reward


def _row(backbone: Backbone, row: dict) -> dict:
    """One example in TRL's terms: messages where the model has a chat template, else text. TRL
    tokenises it whole, so marks are broken."""
    row = row | {
        name: backbone.guard.broken(row[name])
        for name in ("chosen", "rejected", "completion")
        if name in row
    }
    if backbone.tokenizer.chat_template is None:
        return row | {"prompt": backbone.prompt_text(row["prompt"])}
    answers = {
        name: [{"role": "assistant", "content": row[name]}]
        for name in ("chosen", "rejected", "completion")
        if name in row
    }
    return row | answers | {"prompt": backbone.messages(row["prompt"])}


def _best_and_worst(part: pd.DataFrame, turn: int) -> tuple[str, str] | None:
    ordered = part.sort_values(["reward", "index"], ascending=[False, True])
    if turn >= len(ordered) // 2:
        return None
    return _ordered(ordered.iloc[turn], ordered.iloc[-1 - turn])


def _two_draws(part: pd.DataFrame, generator: np.random.Generator) -> tuple[str, str] | None:
    if (part["weight"] > 0).sum() < 2:
        return None
    first, second = generator.choice(
        len(part), 2, replace=False, p=part["weight"] / part["weight"].sum()
    )
    return _ordered(part.iloc[first], part.iloc[second])


def _ordered(one: pd.Series, other: pd.Series) -> tuple[str, str] | None:
    if one["reward"] == other["reward"] or one["completion"] == other["completion"]:
        return None
    better, worse = (one, other) if one["reward"] > other["reward"] else (other, one)
    return better["completion"], worse["completion"]
