"""Refined policies by training: a reward and a pool give examples, TRL trains on them.

    table = examples(pool, reward.score(pool), params.policy, generator)
    train(backbone, table, params.policy, seed, online=Online(reward, params.sampling))

    dpo     best against worst completion of a prompt, sigmoid loss (Rafailov et al. 2023)
    rso     two completions drawn from the tilted policy, hinge loss (Liu et al. 2023)
    kto     single completions, desirable above the mean reward of their prompt and undesirable
            below (Ethayarajh et al. 2024)
    rloo    the policy writes completions as it learns, the reward scores them, and those of one
            prompt are compared with each other (Ahmadian et al. 2024)
    grpo    the same in another form (Shao et al. 2024)

Drawing from the tilted policy is what rejection sampling with acceptance exp((r - r_max) / beta)
gives on a finite sample. All are anchored to the base policy: the adapter starts from zero, and
TRL's reference is that start.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd

from shfcas_lib import rewards, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params.schema import Policy, Sampling, Training
from shfcas_lib.policies import tilt
from shfcas_lib.pool import reference_features
from shfcas_lib.training.trainer import PLAIN, arguments, run_trainer
from shfcas_lib.training.watch import Watch

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.rewards import RewardModel
    from shfcas_lib.training.reward import LoraReward

ONLINE = ("rloo", "grpo")
Answers = tuple[pd.Series, pd.Series]  # two rows of a pool, the better one first
_NOTHING = "the reward tells no two completions apart: there is nothing to train a policy on"


@dataclass(frozen=True)
class Online:
    """The reward of a policy that writes as it learns, and how it samples."""

    reward: RewardModel
    sampling: Sampling


def examples(
    pool: pd.DataFrame, reward: np.ndarray | None, policy: Policy, generator: np.random.Generator
) -> pd.DataFrame:
    """What the policy's kind learns from: `pairs`, `ratings`, or `prompts` for the online kinds.

    reward: (rows,), of the pool's completions; the online kinds need none, it may be None.
    """
    if policy.kind in ONLINE:
        return prompts(pool, policy, generator)
    assert reward is not None, "pairs and ratings are made with a reward"
    if policy.kind == "kto":
        return ratings(pool, reward, policy, generator)
    return pairs(pool, reward, policy, generator)


def prompts(pool: pd.DataFrame, policy: Policy, generator: np.random.Generator) -> pd.DataFrame:
    """At most `policy.prompts` of the pool's prompts, once for every pass.

    Each pass has an order of its own. Columns prompt and request, the same text: TRL hands the
    second to the reward as it is. (TRL's own order of a pass depends on how many passes this
    process has begun, so that a resumed training would see another.)
    """
    each = pool[["prompt_id", "prompt"]].drop_duplicates().sort_values("prompt_id")
    texts = each["prompt"].to_numpy()
    texts = texts[generator.permutation(len(texts))[: policy.prompts]]
    order = np.concatenate([generator.permutation(len(texts)) for _ in range(policy.epochs)])
    return pd.DataFrame({"prompt": texts[order], "request": texts[order]})


def pairs(
    pool: pd.DataFrame, reward: np.ndarray, policy: Policy, generator: np.random.Generator
) -> pd.DataFrame:
    """At most `policy.pairs` preference pairs that the reward makes.

    Columns prompt, chosen, rejected, and chosen_tokens, rejected_tokens where the pool has tokens.
    reward: (rows,).

    Prompts take turns in random order, so that a small number of pairs still touches many
    prompts. The order, and what is drawn for a prompt, do not depend on the reward; a prompt on
    which the reward tells no pair apart is passed over.
    """
    weights = tilt(pool["prompt_id"].to_numpy(), reward, policy.beta)
    table = pool.assign(reward=reward, weight=weights)
    parts = [part.reset_index(drop=True) for _, part in table.groupby("prompt_id")]
    turns = int(np.ceil(policy.pairs / max(1, len(parts))))
    orders = [generator.permutation(len(parts)) for _ in range(turns)]

    # every prompt gets its draw, also where it is not used: no draw depends on the reward
    rows: list[dict[str, Any]] = []
    for turn, order in enumerate(orders):
        seeds = generator.integers(2**63, size=len(order))
        for k, seed in zip(order, seeds, strict=True):
            if policy.kind == "dpo":
                pair = _best_and_worst(parts[k], turn)
            else:
                pair = _two_draws(parts[k], np.random.default_rng(seed))
            if pair and len(rows) < policy.pairs:
                rows.append(_pair(*pair))
    if not rows:
        raise InputError(_NOTHING)
    return pd.DataFrame(rows)


def ratings(
    pool: pd.DataFrame, reward: np.ndarray, policy: Policy, generator: np.random.Generator
) -> pd.DataFrame:
    """At most 2 x `policy.pairs` single completions.

    Columns prompt, completion, label (True: desirable), and tokens where the pool has them.
    reward: (rows,).

    Desirable is what the reward places above the mean of its prompt's completions, undesirable
    what it places below; what lies on the mean is left out. Prompts take turns in random order,
    each giving what lies furthest from its mean first; then the rows are shuffled, because TRL
    reads them in order and estimates the KL from completions of neighbouring rows.
    """
    table = pool.assign(reward=reward).drop_duplicates(["prompt_id", "completion"])
    table["above"] = table["reward"] - table.groupby("prompt_id")["reward"].transform("mean")
    table["distance"] = table["above"].abs()
    table = table[table["distance"] > 1e-9]
    if table.empty:
        raise InputError(_NOTHING)

    # prompts take turns, each with what lies furthest from its mean first
    by_distance = table.sort_values(["distance", "index"], ascending=[False, True])
    turn = by_distance.groupby("prompt_id").cumcount()
    names = np.sort(table["prompt_id"].unique())
    places = dict(zip(names, generator.permutation(len(names)), strict=True))
    place = table["prompt_id"].map(places)
    table = table.assign(turn=turn, place=place, label=table["above"] > 0)
    table = table.sort_values(["turn", "place"]).head(2 * policy.pairs)

    shuffled = table.iloc[generator.permutation(len(table))]
    columns = ["prompt", "completion", "label", *({"tokens"} & set(shuffled))]
    return shuffled[columns].reset_index(drop=True)


def train(
    backbone: Backbone,
    table: pd.DataFrame,
    policy: Policy,
    seed: int,
    how: Training = PLAIN,
    checkpoints: Path | None = None,
    online: Online | None = None,
    watch: Watch | None = None,
) -> None:
    """Replace the policy adapter by one trained on what `examples` made.

    how, checkpoints, watch: see module trainer. online: for rloo and grpo. Dropout is off in all
    of them, as TRL has it for DPO.
    """
    from datasets import Dataset

    backbone.add_adapter(POLICY, policy.lora, seed=seed)
    recipe = _recipe(backbone, table, policy, online)
    # four examples at once where training.micro_batch does not say
    options = arguments(how, backbone, policy.batch_size, 4, seed) | {
        "num_train_epochs": policy.epochs,
        "learning_rate": policy.learning_rate,
        "logging_steps": 5,
        "disable_dropout": True,
        **recipe.settings,
    }
    if policy.kind == "kto":
        table = _whole_batches(table, policy, options["per_device_train_batch_size"])

    # TRL's reference is the adapter as it starts: it changes nothing yet
    run_trainer(
        recipe.trainer,
        recipe.config,
        backbone,
        options,
        checkpoints,
        watch,
        model=backbone.peft,
        train_dataset=Dataset.from_list(encoded(backbone, table)),
        **recipe.given,
    )


def _whole_batches(table: pd.DataFrame, policy: Policy, at_once: int) -> pd.DataFrame:
    """The ratings without those that would be alone in their batch.

    Such a completion would be its own estimate of the KL. Raises InputError where none is left.
    """
    if at_once == 1 or len(table) < at_once:
        raise InputError(
            f"policy.kind kto: {len(table)} ratings, of a batch of {policy.batch_size}"
            f" {at_once} at once, leave a completion alone, expected 2 or more: change"
            " policy.batch_size, policy.pairs or training.micro_batch"
        )
    return table.head(len(table) // at_once * at_once)


class _Recipe(NamedTuple):
    """How TRL trains a kind of policy.

    settings: what is special in the configuration. given: what else the trainer is given.
    """

    trainer: type
    config: type
    settings: dict[str, Any]
    given: dict[str, Any]


def _recipe(
    backbone: Backbone, table: pd.DataFrame, policy: Policy, online: Online | None
) -> _Recipe:
    import trl

    if policy.kind in ONLINE:
        assert online is not None, "a policy that writes as it learns needs a reward"
        return _online_recipe(backbone, table, policy, online)

    settings: dict[str, Any] = {"beta": policy.dpo_beta, "max_length": None}
    if policy.kind == "kto":
        # both sides weigh the same, however many there are of each
        good, bad = int(table["label"].sum()), int((~table["label"]).sum())
        settings["desirable_weight"] = max(1.0, bad / max(1, good))
        settings["undesirable_weight"] = max(1.0, good / max(1, bad))
        return _Recipe(trl.KTOTrainer, trl.KTOConfig, settings, {})
    settings["loss_type"] = ["sigmoid" if policy.kind == "dpo" else "hinge"]
    return _Recipe(trl.DPOTrainer, trl.DPOConfig, settings, {})


def _online_recipe(
    backbone: Backbone, table: pd.DataFrame, policy: Policy, online: Online
) -> _Recipe:
    import trl

    groups = policy.batch_size // policy.generations
    if len(table) < groups:
        raise InputError(
            f"policy: a step of {policy.kind} takes {groups} prompts (batch_size /"
            f" generations), but there are {len(table)}"
        )
    # `prompts` has written the passes out, each in its order
    settings: dict[str, Any] = {
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
        return _Recipe(trl.RLOOTrainer, trl.RLOOConfig, settings | {"beta": policy.beta}, given)
    settings |= {"beta": policy.dpo_beta, "loss_type": "grpo"}
    return _Recipe(trl.GRPOTrainer, trl.GRPOConfig, settings, given)


def reward_function(backbone: Backbone, reward: RewardModel) -> Callable[..., list[float]]:
    """The reward as TRL calls it on fresh completions, in the middle of a training step.

    A probe reads the backbone's own hidden states, so the adapters go off for its pass; a LoRA
    reward puts its own adapter on. Afterwards the policy's adapter is in use again and the
    model in the mode it was in, else the rest of the step would train another one.
    """

    plain = trust.inner(reward)

    def refined_reward(
        completion_ids: list[list[int]], request: list[str], **_: Any
    ) -> list[float]:
        table = pd.DataFrame(
            {
                "prompt_id": "",
                "index": range(len(completion_ids)),
                "prompt": request,
                "completion": list(map(backbone.text, completion_ids)),
                "tokens": completion_ids,
            }
        )
        # whatever happens in the pass, TRL goes on in the middle of its step
        mode = backbone.causal.training
        try:
            if isinstance(plain, rewards.Probe):
                return plain.score(reference_features(backbone, table)).tolist()
            return cast("LoraReward", plain).score(table, quiet=True).tolist()
        finally:
            backbone.use(POLICY)
            backbone.peft.train(mode)

    return refined_reward


def encoded(backbone: Backbone, table: pd.DataFrame) -> list[dict[str, Any]]:
    """The examples as token ids, in TRL's terms.

    Prompts of the online kinds stay text: TRL asks for their ids when it samples (`Encoded`).
    """
    writer = backbone.writer
    if "chosen" in table:
        chosen, rejected = (writer.rows(_side(table, name)) for name in ("chosen", "rejected"))
        return [
            {"prompt_ids": one.prompt, "chosen_ids": one.completion, "rejected_ids": two.completion}
            for one, two in zip(chosen, rejected, strict=True)
        ]
    if "completion" in table:
        rows = zip(writer.rows(table), table["label"], strict=True)
        return [
            {"prompt_ids": row.prompt, "completion_ids": row.completion, "label": bool(label)}
            for row, label in rows
        ]
    return table.to_dict("records")


def _side(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """One side of a table of pairs, as a table of completions."""
    names = {name: "completion", f"{name}_tokens": "tokens"}
    there = [column for column in ("prompt", *names) if column in table]
    return table[there].rename(columns=names)


def _best_and_worst(part: pd.DataFrame, turn: int) -> Answers | None:
    ordered = part.sort_values(["reward", "index"], ascending=[False, True])
    if turn >= len(ordered) // 2:
        return None
    return _ordered(ordered.iloc[turn], ordered.iloc[-1 - turn])


def _two_draws(part: pd.DataFrame, generator: np.random.Generator) -> Answers | None:
    if (part["weight"] > 0).sum() < 2:
        return None
    probability = part["weight"] / part["weight"].sum()
    first, second = generator.choice(len(part), 2, replace=False, p=probability)
    return _ordered(part.iloc[first], part.iloc[second])


def _ordered(one: pd.Series, other: pd.Series) -> Answers | None:
    if one["reward"] == other["reward"] or one["completion"] == other["completion"]:
        return None
    return (one, other) if one["reward"] > other["reward"] else (other, one)


def _pair(chosen: pd.Series, rejected: pd.Series) -> dict[str, Any]:
    """A row of `pairs`."""
    row = {"prompt": chosen["prompt"]}
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        row[name] = answer["completion"]
        if "tokens" in answer:
            row[f"{name}_tokens"] = tuple(answer["tokens"])
    return row
