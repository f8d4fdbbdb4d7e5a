"""Step 0, as in the paper: supervised fine-tuning of the model on chosen answers.

    base = sft.base(run_folder, prompts)     # notebook 01, which trains it
    base = sft.base(run_folder)              # the others
    backbone = models.load_backbone(base)

What comes out is the base policy and the reference.

Everywhere in this library the reference is the backbone with its adapters off, so the
fine-tuned weights must be the backbone's own. The adapter is trained on the backbone as the run
quantises it (QLoRA, Dettmers et al. 2023) and merged into an unquantised copy, which is written
once into the run folder and then loaded, quantised, like any other model. Merging into 4-bit
weights instead would round the small update away.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import derive
from shfcas_lib.data.preferences import own_pairs
from shfcas_lib.models import loading
from shfcas_lib.models.backbone import POLICY, Backbone
from shfcas_lib.params.schema import Model, Params, Sft, Training
from shfcas_lib.storage import files, runs
from shfcas_lib.training import trainer


def base(run: runs.Run, prompts: pd.DataFrame | None = None) -> Model:
    """The model that plays policy and reference in this run.

    It is the one of the parameters, or its fine-tuned copy.

    prompts: the run's prompts, where the copy may be made now; without them raises InputError
    if it is not there yet.
    """
    params, folder = run.params, run.folder / "01_proxy" / "base"
    if params.sft.answers == "none":
        return params.model
    if not processes.agreed((folder / "config.json").exists()):
        if prompts is None:
            raise InputError(f"{folder} is missing: run notebook 01 with the same parameters first")
        _train(params, prompts, folder)
        # the backbone that was trained must not stand beside the copy that it is merged into
        loading.free_memory()
        if processes.is_main():
            _merge(params.model, folder)
        loading.free_memory()  # nor that copy beside the backbone that the caller loads
        processes.wait()
    return params.model.model_copy(update={"source": str(folder.resolve()), "revision": None})


def imitated(params: Params, prompts: pd.DataFrame) -> pd.DataFrame:
    """What is imitated: the chosen answers to training prompts, each once, ties left out.

    Columns prompt, completion.
    """
    pairs = own_pairs(params)
    training = prompts.loc[prompts["split"] == "train", "prompt_id"]
    mine = pairs[pairs["prompt_id"].isin(training) & (pairs["label"] != 0.5)]
    if mine.empty:
        raise InputError(
            "sft.answers chosen: no preference of a training prompt has a chosen answer"
        )
    answers = mine[["prompt", "chosen"]].drop_duplicates()
    return answers.rename(columns={"chosen": "completion"}).reset_index(drop=True)


def train(
    backbone: Backbone,
    table: pd.DataFrame,
    sft: Sft,
    seed: int,
    how: Training = trainer.PLAIN,
    checkpoints: Path | None = None,
) -> None:
    """Replace the policy adapter by one that imitates completions.

    table: columns prompt, completion. how, checkpoints: see module trainer.
    """
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    backbone.add_adapter(POLICY, sft.lora, seed=seed)
    # the loss is that of the answers alone: prompts are not imitated
    written = backbone.writer.rows(table[_readable(backbone, table)])
    rows = [{"input_ids": row.ids, "completion_mask": row.mask} for row in written]
    options = trainer.arguments(how, backbone, sft.batch_size, 4, seed) | {
        "num_train_epochs": sft.epochs,
        "learning_rate": sft.learning_rate,
        "lr_scheduler_type": "cosine",
        "max_length": None,
        "logging_steps": 10,
        "completion_only_loss": True,
    }
    trainer.run_trainer(
        SFTTrainer,
        SFTConfig,
        backbone,
        options,
        checkpoints,
        model=backbone.peft,
        train_dataset=Dataset.from_list(rows),
    )


def _readable(backbone: Backbone, table: pd.DataFrame) -> list[bool]:
    """Of every answer: can the backbone read it? Those that it cannot were counted as bad rows.

    Raises InputError where there is none.
    """
    answers = zip(table["prompt"], table["completion"], strict=True)
    refusals = [backbone.answer_refusal(*answer) for answer in answers]
    if all(refusals):
        told = refusals[0].told if refusals and refusals[0] else "is missing"
        raise InputError(f"sft.answers: there is no answer to imitate; the first {told}")
    return [refusal is None for refusal in refusals]


def merge_adapter(backbone: Backbone, folder: Path) -> None:
    """Add the policy adapter to the weights of an unquantised backbone.

    The model is written into `folder`; config.json comes last and marks it whole.
    """
    merged = backbone.peft.merge_and_unload()
    with files.writing(folder), files.scratch(folder, "merged") as scratch:
        merged.save_pretrained(scratch, safe_serialization=True)
        backbone.tokenizer.save_pretrained(scratch)
        for file in sorted(scratch.iterdir(), key=lambda path: path.name == "config.json"):
            file.replace(folder / file.name)


def _train(params: Params, prompts: pd.DataFrame, folder: Path) -> None:
    """Train the adapter and write it into `folder`/adapter, unless it stands there."""
    if processes.agreed((folder / "adapter" / "adapter_model.safetensors").exists()):
        trainer.forget(folder / "checkpoints")
        return
    backbone = loading.load_backbone(params.model)
    train(
        backbone,
        imitated(params, prompts),
        params.sft,
        derive(params.seed, "sft"),
        params.training,
        folder / "checkpoints",
    )
    if processes.is_main():
        backbone.save_adapter(POLICY, folder / "adapter")
        trainer.forget(folder / "checkpoints")
    processes.wait()


def _merge(model: Model, folder: Path) -> None:
    """Merge `folder`/adapter into an unquantised copy of the model, in `folder`."""
    backbone = loading.load_backbone(model.model_copy(update={"quantisation": "none"}))
    backbone.load_adapter(POLICY, folder / "adapter")
    merge_adapter(backbone, folder)
