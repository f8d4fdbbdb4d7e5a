"""The paper's reward model: a LoRA adapter and a score head on the shared backbone, trained with
TRL's RewardTrainer.

    reward = train(backbone, "proxy", pool, preferences, params.reward, seed)
    reward.score(pool)
    reward.save(folder); load(backbone, "proxy", folder)

The sequence classifier borrows the backbone's layers: no weight is copied, policy and rewards are
adapters side by side."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.data.preferences import to_trl
from shfcas_lib.params.schema import Reward, Training
from shfcas_lib.rewards import locate, named, spread
from shfcas_lib.storage import files
from shfcas_lib.training import trainer

if TYPE_CHECKING:
    import torch

    from shfcas_lib.models.backbone import Backbone


@dataclass
class LoraReward:
    """Adapter `name` on the backbone, with its score head; `spread` is what scores are divided
    by."""

    backbone: Backbone
    name: str
    head: torch.nn.Linear
    spread: float = 1.0

    def score(self, pool: pd.DataFrame, batch_size: int = 16, quiet: bool = False) -> np.ndarray:
        """Rewards of completions, (rows,): the head on the last content token's final hidden
        state, in float32.

        pool: columns prompt and completion. The score of a completion depends neither on its
        batch nor on padding. quiet: show no bar."""
        import torch
        from tqdm import tqdm

        sequences = [_ids(self.backbone, row.prompt, row.completion) for row in pool.itertuples()]
        order = sorted(range(len(sequences)), key=lambda k: (len(sequences[k]), k))
        scores = np.zeros(len(sequences))
        model = classifier(self.backbone, self.head)
        with self.backbone.using(self.name), torch.inference_mode():
            for start in tqdm(
                range(0, len(order), batch_size),
                desc=f"scoring with {self.name}",
                unit="batch",
                mininterval=1,
                disable=quiet or None,
            ):
                rows = order[start : start + batch_size]
                width = max(len(sequences[k]) for k in rows)
                tokens = torch.full((len(rows), width), self.backbone.tokenizer.pad_token_id)
                mask = torch.zeros_like(tokens)
                for line, k in enumerate(rows):
                    tokens[line, : len(sequences[k])] = torch.tensor(sequences[k])
                    mask[line, : len(sequences[k])] = 1
                # Read where TRL trained: transformers' classifiers look at the last token that is
                # not the pad token. Where the pad token is the end token, that is the last token
                # of the text.
                base = getattr(model, model.base_model_prefix)
                hidden = base(
                    input_ids=tokens.to(self.backbone.device),
                    attention_mask=mask.to(self.backbone.device),
                ).last_hidden_state
                content = (mask * (tokens != self.backbone.tokenizer.pad_token_id)).to(
                    hidden.device
                )
                last = hidden[
                    torch.arange(len(rows)),
                    (content * torch.arange(width, device=hidden.device)).argmax(1),
                ]
                scores[rows] = self.head(last.float())[:, 0].double().cpu().numpy()
        return scores / self.spread

    def save(self, folder: Path) -> None:
        """Write adapter, head and spread into `folder` as safetensors and JSON; reward.json is
        written last and marks it whole."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.save_adapter(self.name, folder / "adapter")
        with files.atomic(folder / "head.safetensors") as target:
            save_file({"weight": self.head.weight.data.cpu()}, target)
        files.write_json(folder / "reward.json", {"name": self.name, "spread": self.spread})


def load(backbone: Backbone, name: str, folder: Path) -> LoraReward:
    """Put a saved reward back on the backbone as adapter `name`. Raises InputError for a folder
    that is not whole."""
    from safetensors.torch import load_file

    marker = folder / "reward.json"
    if not marker.exists():
        raise InputError(f"{folder} holds no finished reward (no reward.json)")
    facts = json.loads(marker.read_text())
    backbone.load_adapter(name, folder / "adapter")
    head = _new_head(backbone)
    head.weight.data.copy_(load_file(folder / "head.safetensors")["weight"])
    return LoraReward(backbone, name, head, facts["spread"])


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
    """Train adapter `name` and a fresh head on preferences (prompt_id, i, j, label, optional
    weight) between the pool's completions.

    TRL's loss knows neither weights nor ties: a pair of weight w is repeated round(w) times, ties
    are left out. how, checkpoints: see module training. offset: (pool rows,), a reward that is
    given and to which this one is a correction: it starts from zero and stays at its own scale
    (spread 1)."""
    import torch
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    preferences = preferences.reset_index(drop=True)
    repeat = preferences["weight"].round().astype(int) if "weight" in preferences else 1
    repeated = preferences.loc[preferences.index.repeat(repeat)]
    pairs = to_trl(repeated, pool)
    if not len(pairs):
        raise InputError("no preferences to train a reward on")
    backbone.add_adapter(name, settings.lora, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _new_head(backbone)
    backbone.use(name)
    columns = {
        column + "_ids": [
            _ids(backbone, prompt, text) for prompt, text in zip(pairs["prompt"], pairs[column])
        ]
        for column in ("chosen", "rejected")
    }
    if offset is not None:
        torch.nn.init.zeros_(head.weight)
        decided = repeated[repeated["label"] != 0.5]  # the rows of `pairs`
        lead = offset[locate(pool, decided, "i")] - offset[locate(pool, decided, "j")]
        # TRL's loss: sigmoid(chosen - rejected - margin)
        columns["margin"] = list(-lead * np.where(decided["label"] > 0.5, 1, -1))
    options = trainer.arguments(how, backbone, settings.batch_size, None, seed) | {
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "logging_steps": 10,
        "disable_dropout": False,
    }
    trainer.run_trainer(
        RewardTrainer,
        RewardConfig,
        backbone,
        options,
        checkpoints,
        model=classifier(backbone, head),
        train_dataset=Dataset.from_dict(columns),
    )
    reward = LoraReward(backbone, name, head)
    if offset is not None:
        return reward
    used = pool.merge(named(preferences), on=["prompt_id", "index"])
    reward.spread = spread(reward.score(used), used["prompt_id"].to_numpy())
    return reward


def classifier(backbone: Backbone, head: torch.nn.Linear):
    """A sequence classifier whose layers are the backbone's own and whose score head is `head`."""
    import copy

    import torch
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(backbone.causal.config)
    config.num_labels, config.pad_token_id = 1, backbone.tokenizer.pad_token_id
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    setattr(
        model, model.base_model_prefix, getattr(backbone.causal, backbone.causal.base_model_prefix)
    )
    model.score = head
    return model


def _new_head(backbone: Backbone) -> torch.nn.Linear:
    import torch

    head = torch.nn.Linear(backbone.causal.config.hidden_size, 1, bias=False, dtype=torch.float32)
    torch.nn.init.normal_(head.weight, std=0.02)
    return head.to(backbone.device)


def _ids(backbone: Backbone, prompt: str, completion: str) -> list[int]:
    return backbone.prompt_ids(prompt) + backbone.completion_ids(completion)
