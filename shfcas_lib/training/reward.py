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

from shfcas_lib.base.batches import by_length, pad_right
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Reward, Training
from shfcas_lib.rewards import locate, named, spread
from shfcas_lib.storage import files
from shfcas_lib.storage.labels import margin
from shfcas_lib.training import trainer

if TYPE_CHECKING:
    import torch

    from shfcas_lib.models.backbone import Backbone


@dataclass
class LoraReward:
    """Adapter `name` on the backbone, with its score head.

    `spread` is what scores are divided by.
    """

    backbone: Backbone
    name: str
    head: torch.nn.Linear
    spread: float = 1.0

    def score(self, pool: pd.DataFrame, batch_size: int = 16, quiet: bool = False) -> np.ndarray:
        """Rewards of completions, (rows,).

        They are the head on the last content token's final hidden state, in float32. pool:
        columns prompt, and tokens (ids) or completion (text). The score of a completion depends
        neither on its batch nor on padding. quiet: show no bar.
        """
        import torch
        from tqdm import tqdm

        sequences = [row.ids for row in self.backbone.writer.rows(pool)]
        batches = by_length(sequences, batch_size)
        bar = {"desc": f"scoring with {self.name}", "unit": "batch", "mininterval": 1}
        scores = np.zeros(len(sequences))
        model = classifier(self.backbone, self.head)
        base = getattr(model, model.base_model_prefix)
        with self.backbone.using(self.name), torch.inference_mode():
            for rows in tqdm(batches, disable=quiet or None, **bar):
                last = self._last_states(base, [sequences[k] for k in rows])
                scores[rows] = self.head(last.float())[:, 0].double().cpu().numpy()
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
        files.write_json(folder / "reward.json", {"name": self.name, "spread": self.spread})


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
        _options(backbone, settings, how, seed),
        checkpoints,
        model=classifier(backbone, head),
        train_dataset=Dataset.from_dict(columns),
    )

    # a unit for scores that no prompt outside the training chooses
    reward = LoraReward(backbone, name, head)
    if offset is None:
        used = pool.merge(named(preferences), on=["prompt_id", "index"])
        reward.spread = spread(reward.score(used), used["prompt_id"].to_numpy())
    return reward


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


def _options(backbone: Backbone, settings: Reward, how: Training, seed: int) -> dict[str, Any]:
    return trainer.arguments(how, backbone, settings.batch_size, None, seed) | {
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
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
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(backbone.causal.config)
    config.num_labels, config.pad_token_id = 1, backbone.tokenizer.pad_token_id
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config)
    layers = getattr(backbone.causal, backbone.causal.base_model_prefix)
    setattr(model, model.base_model_prefix, layers)
    model.score = head
    return model


def _new_head(backbone: Backbone) -> torch.nn.Linear:
    import torch

    head = torch.nn.Linear(backbone.causal.config.hidden_size, 1, bias=False, dtype=torch.float32)
    torch.nn.init.normal_(head.weight, std=0.02)
    return head.to(backbone.device)
