"""The paper's reward model: a LoRA adapter and a score head on the shared backbone.

TRL's RewardTrainer trains it.

    reward = train(backbone, "proxy", pool, preferences, params.reward, seed)
    reward.score(pool)
    reward.save(folder); load(backbone, "proxy", folder)

The sequence classifier borrows the backbone's layers: no weight is copied, policy and rewards
are adapters side by side.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib.base import processes, progress
from shfcas_lib.base.batches import by_length, pad_right
from shfcas_lib.base.errors import InputError
from shfcas_lib.models.architecture import body
from shfcas_lib.params.schema import Reward, Training
from shfcas_lib.rewards import LEARNT, locate, named, spread
from shfcas_lib.storage import files
from shfcas_lib.storage.labels import margin
from shfcas_lib.training import trainer

if TYPE_CHECKING:
    import torch

    from shfcas_lib.models.backbone import Backbone


@dataclass
class LoraReward:
    """Adapter `name` on the backbone, with its score head.

    `spread` is what scores are divided by; `learnt` the share of the pairs that trained it which it
    ranks as they say, where it was trained here (ties have no place).
    """

    backbone: Backbone
    name: str
    head: torch.nn.Linear
    spread: float = 1.0
    learnt: float | None = None

    def score(self, pool: pd.DataFrame, batch_size: int = 16, quiet: bool = False) -> np.ndarray:
        """Rewards of completions, (rows,).

        They are the head on the last content token's final hidden state, in float32. pool:
        columns prompt, and tokens (ids) or completion (text). The score of a completion depends
        neither on its batch nor on padding. quiet: show no bar.
        """
        import torch

        sequences = [row.ids for row in self.backbone.writer.rows(pool)]
        batches = by_length(sequences, batch_size)
        scores = np.zeros(len(sequences))
        model = classifier(self.backbone, self.head)
        base = getattr(model, body(model))
        with self.backbone.using(self.name), torch.inference_mode():
            for rows in progress.over(batches, f"scoring with {self.name}", "batch", quiet=quiet):
                last = self._last_states(base, [sequences[k] for k in rows])
                scores[rows] = self.head(last.float())[:, 0].cpu().double().numpy()
        return scores / self.spread

    def _last_states(self, base: Any, sequences: list[list[int]]) -> torch.Tensor:
        """Final hidden state of each sequence's last content token, (sequences, hidden).

        It is read where TRL trained: transformers' classifiers look at the last token that is
        not the pad token. Where the pad token is the end token, that is the last token of the
        text.
        """
        import torch

        pad, device = self.backbone.tokenizer.pad_token_id, self.backbone.device
        tokens, mask = pad_right(sequences, pad)
        out = base(input_ids=tokens.to(device), attention_mask=mask.to(device))
        hidden = out.last_hidden_state
        content = (mask * (tokens != pad)).to(hidden.device)
        place = torch.arange(tokens.shape[1], device=hidden.device)
        return hidden[torch.arange(len(sequences)), (content * place).argmax(1)]

    def save(self, folder: Path) -> None:
        """Write adapter, head and spread into `folder` as safetensors and JSON.

        The file reward.json is written last and marks it whole.
        """
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_adapter(self.name, folder / "adapter")
        with files.atomic(folder / "head.safetensors") as target:
            save_file({"weight": self.head.weight.data.cpu()}, target)
        facts = {"name": self.name, "spread": self.spread, "learnt": self.learnt}
        files.write_json(folder / "reward.json", facts)


def load(backbone: Backbone, name: str, folder: Path) -> LoraReward:
    """Put a saved reward back on the backbone as adapter `name`.

    Raises InputError for a folder that is not whole.
    """
    from safetensors.torch import load_file

    marker = folder / "reward.json"
    if not marker.exists():
        raise InputError(f"{folder} holds no finished reward (no reward.json)")
    facts = json.loads(marker.read_text())
    backbone.load_adapter(name, folder / "adapter")
    head = _new_head(backbone)
    head.weight.data.copy_(load_file(folder / "head.safetensors")["weight"])
    return LoraReward(backbone, name, head, facts["spread"], facts["learnt"])


def train(
    backbone: Backbone,
    name: str,
    pool: pd.DataFrame,
    preferences: pd.DataFrame,
    settings: Reward,
    seed: int,
    how: Training = trainer.PLAIN,
    checkpoints: Path | None = None,
    offset: np.ndarray | None = None,
) -> LoraReward:
    """Train adapter `name` and a fresh head on preferences between the pool's completions.

    preferences:       prompt_id, i, j, label, optional weight, grade, and lead: what i has over j
                       for another reason than this reward, in log odds (missing: none)
    how, checkpoints:  see module trainer
    offset:            (pool rows,), a reward that is given and to which this one is a
                       correction: it starts from zero and stays at its own scale (spread 1)

    TRL's loss knows neither weights nor ties: a pair of weight w is repeated round(w) times,
    ties are left out. It knows margins: a grade becomes one. Raises InputError where nothing is
    left to train on.
    """
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    repeated = _repeated(preferences)
    columns = _encoded(backbone, pool, repeated)
    if not columns["chosen_ids"]:
        raise InputError("no preferences to train a reward on")
    backbone.add_adapter(name, settings.lora, seed=seed)
    head = _seeded_head(backbone, seed, zero=offset is not None)
    backbone.use(name)

    if offset is not None or {"grade", "lead"} & set(repeated):
        columns["margin"] = list(_margins(pool, repeated, offset))
    trainer.run_trainer(
        RewardTrainer,
        RewardConfig,
        backbone,
        _options(backbone, settings, how, seed, len(columns["chosen_ids"])),
        checkpoints,
        model=classifier(backbone, head),
        train_dataset=Dataset.from_dict(columns),
    )

    # a unit for scores that no prompt outside the training chooses
    reward = LoraReward(backbone, name, head)
    if offset is None:
        used = pool.merge(named(preferences), on=["prompt_id", "index"])
        scores = reward.score(used)
        reward.spread = spread(scores, used["prompt_id"].to_numpy())
        reward.learnt = share_learnt(used, scores, preferences)
        warning = unlearnt(reward)
        if warning and processes.is_main():
            print(warning)
    return reward


def share_learnt(pool: pd.DataFrame, scores: np.ndarray, preferences: pd.DataFrame) -> float:
    """The share of decided preferences that scores of a pool, (rows,), rank as they say, equal ones
    counting one half. What a lead explains for another reason (column lead) is taken into
    account."""
    decided = preferences[preferences["label"] != 0.5]
    first, second = (locate(pool, decided, side) for side in ("i", "j"))
    apart = scores[first] - scores[second]
    if "lead" in decided:
        apart = apart + decided["lead"].fillna(0).to_numpy()
    right = np.sign(apart) * np.sign(decided["label"].to_numpy() - 0.5)
    return float((right + 1).mean() / 2)


def unlearnt(reward: LoraReward) -> str | None:
    """One sentence where a reward has not learnt its own pairs; None where it has."""
    if reward.learnt is None or reward.learnt >= LEARNT:
        return None
    return (
        f"reward {reward.name} ranks {reward.learnt:.0%} of the pairs that trained it as they say:"
        " it has not learnt them; raise reward.epochs or reward.learning_rate"
    )


def _repeated(preferences: pd.DataFrame) -> pd.DataFrame:
    """Every preference as many times as its weight, rounded, says."""
    preferences = preferences.reset_index(drop=True)
    if "weight" not in preferences:
        return preferences
    times = preferences["weight"].round().astype(int)
    return preferences.loc[preferences.index.repeat(times)]


def _encoded(
    backbone: Backbone, pool: pd.DataFrame, preferences: pd.DataFrame
) -> dict[str, list[Any]]:
    """Token ids of the two answers of every pair that is no tie, each with its prompt."""
    decided = preferences[preferences["label"] != 0.5]
    sides = {side: locate(pool, decided, side) for side in ("i", "j")}
    used = np.unique(np.concatenate(list(sides.values())))
    written = dict(zip(used, backbone.writer.rows(pool.iloc[used]), strict=True))

    columns: dict[str, list[Any]] = {"chosen_ids": [], "rejected_ids": []}
    for i, j, label in zip(sides["i"], sides["j"], decided["label"], strict=True):
        chosen, rejected = (i, j) if label > 0.5 else (j, i)
        columns["chosen_ids"].append(written[chosen].ids)
        columns["rejected_ids"].append(written[rejected].ids)
    return columns


def learning_rate(settings: Reward, pairs: int) -> float:
    """That of the parameters, or one with which so many pairs are learnt: few steps need a large
    one."""
    if settings.learning_rate is not None:
        return settings.learning_rate
    steps = -(-pairs // settings.batch_size) * settings.epochs
    return min(1.0e-3, max(1.0e-4, 0.1 / steps))


def _options(
    backbone: Backbone, settings: Reward, how: Training, seed: int, pairs: int
) -> dict[str, Any]:
    return trainer.arguments(how, backbone, settings.batch_size, None, seed) | {
        "num_train_epochs": settings.epochs,
        "learning_rate": learning_rate(settings, pairs),
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "logging_steps": 10,
        "disable_dropout": False,
    }


def _margins(
    pool: pd.DataFrame, preferences: pd.DataFrame, offset: np.ndarray | None
) -> np.ndarray:
    """The lead that the chosen answer is to have, for every pair but ties: what its grade asks
    for, less what the offset and the pair's own lead give it.

    TRL's loss is that of sigmoid(chosen - rejected - margin).
    """
    decided = preferences[preferences["label"] != 0.5]
    lead = decided["lead"].fillna(0).to_numpy() if "lead" in decided else np.zeros(len(decided))
    if offset is not None:
        lead = lead + offset[locate(pool, decided, "i")] - offset[locate(pool, decided, "j")]
    return margin(decided) - lead * np.where(decided["label"] > 0.5, 1, -1)


def _seeded_head(backbone: Backbone, seed: int, zero: bool) -> torch.nn.Linear:
    """The head that a training starts from; with `zero` it gives every completion 0."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _new_head(backbone)
    if zero:
        torch.nn.init.zeros_(head.weight)
    return head


def classifier(backbone: Backbone, head: torch.nn.Linear) -> Any:
    """A sequence classifier whose layers are the backbone's own and whose score head is `head`."""
    import copy

    import torch
    from transformers import (
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        AutoModelForSequenceClassification,
    )

    config = copy.deepcopy(backbone.causal.config)
    config.num_labels, config.pad_token_id = 1, backbone.tokenizer.pad_token_id
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
            model = AutoModelForSequenceClassification.from_config(config)
        else:
            model = _classifier_class(backbone)(config)
    setattr(model, body(model), getattr(backbone.causal, body(backbone.causal)))
    model.score = head
    return model


def _classifier_class(backbone: Backbone) -> Any:
    """A sequence classifier for a family that transformers has none for, made as it makes them."""
    from transformers import PreTrainedModel
    from transformers.modeling_layers import GenericForSequenceClassification

    ancestors = type(backbone.causal).__mro__
    family = next(kind for kind in ancestors if PreTrainedModel in kind.__bases__)
    # transformers reads the module's source to know what the family can do
    of_the_family = {"__module__": family.__module__}
    return type("Classifier", (GenericForSequenceClassification, family), of_the_family)


def _new_head(backbone: Backbone) -> torch.nn.Linear:
    import torch

    # what the output layer reads: some models narrow their hidden states before it
    width = backbone.causal.get_output_embeddings().weight.shape[1]
    head = torch.nn.Linear(width, 1, bias=False, dtype=torch.float32)
    torch.nn.init.normal_(head.weight, std=0.02)
    return head.to(backbone.device)
