"""How TRL trains here: one set of arguments, and a backbone left as it was found.

trainer.fit(DPOTrainer, config, backbone, settings, checkpoints=folder / "checkpoints", model=...,
train_dataset=...)"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Training
from shfcas_lib.storage import files
from shfcas_lib.training.checkpoints import Resumable, latest, trained_weights

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

PLAIN = Training()


def check_optimiser(training: Training, device: str) -> None:
    """Raise InputError where the optimiser needs what this machine lacks. device: cpu or cuda."""
    import importlib.util

    if training.optimiser == "adamw_torch":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"training.optimiser: found {training.optimiser!r}, which needs the package"
            " bitsandbytes: install it, or use 'adamw_torch'"
        )
    if training.optimiser.startswith("paged") and device != "cuda":
        raise InputError(
            f"training.optimiser: found {training.optimiser!r}, which pages its state between GPU"
            f" and memory, but the device is {device}: use 'adamw_8bit' or 'adamw_torch'"
        )


def arguments(
    training: Training, backbone: Backbone, batch_size: int, most: int | None, seed: int
) -> dict[str, Any]:
    """What every TRL configuration here is given: precision, optimiser, batches, checkpoints.

    batch_size: examples per step, over all processes; it decides what comes out. most: examples
    at once where training.micro_batch does not say (None: all). Raises InputError where the batch
    cannot be shared out evenly."""
    import torch

    check_optimiser(training, backbone.device.type)
    mine, rest = divmod(batch_size, processes.count())
    if rest or not mine:
        raise InputError(
            f"a batch_size of {batch_size} cannot be shared out evenly over {processes.count()}"
            " processes"
        )
    limit = training.micro_batch or most or mine
    micro = next(size for size in range(min(limit, mine), 0, -1) if mine % size == 0)
    compute = backbone.causal.dtype
    return {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": mine // micro,
        "seed": seed,
        **(
            {} if training.optimiser == "adamw_torch" else {"optim": training.optimiser}
        ),  # torch's, in the form that transformers prefers
        "bf16": compute == torch.bfloat16,
        "fp16": compute == torch.float16,
        "use_cpu": backbone.device.type == "cpu",
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": (
            {"use_reentrant": False} if training.gradient_checkpointing else None
        ),
        "save_strategy": "steps" if training.checkpoint_every else "no",
        "save_steps": training.checkpoint_every or 500,
        "report_to": "none",
        "ddp_find_unused_parameters": False,
        "disable_tqdm": bool(os.environ.get("TQDM_DISABLE")) or not processes.is_main(),
    }


def run_trainer(
    trainer: type,
    config: type,
    backbone: Backbone,
    settings: dict[str, Any],
    checkpoints: Path | None,
    **given,
) -> None:
    """Train with a TRL trainer class and its configuration class. The backbone keeps its own
    forward method, hooks and flags.

    settings: for the configuration. given: for the trainer, model and data above all.
    checkpoints: a folder to keep checkpoints in and to go on from; the caller has it forgotten
    when the result is on disk, and again when it finds the result there: a kill may have come
    between. None: none are kept."""
    with tempfile.TemporaryDirectory() as scratch, as_found(backbone), warnings.catch_warnings():
        # TRL and PEFT still ask for it by its old name
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        keep = checkpoints is not None and settings["save_strategy"] != "no"
        args = config(
            output_dir=str(checkpoints if keep else scratch),
            **settings | ({} if keep else {"save_strategy": "no"}),
        )
        resumable = type(trainer.__name__, (Resumable, trainer), {})
        work = resumable(args=args, processing_class=backbone.tokenizer, **given)
        # TRL makes adapters on a quantised backbone bfloat16, whose gradients cannot be unscaled
        # on a GPU
        if args.fp16:
            for weight in trained_weights(work.model).values():
                weight.data = weight.data.float()
        last = latest(checkpoints, work._layout()) if keep else None
        if (
            keep and last is None
        ):  # what cannot be gone on from would stand in the way of the new ones
            forget(checkpoints)
            processes.wait()
        if last:
            print(f"training goes on from step {last.name.rpartition('-')[2]}", file=sys.stderr)
        work.train(resume_from_checkpoint=str(last) if last else None)


def forget(checkpoints: Path) -> None:
    """Remove checkpoints, all at once: after a kill in the middle there is none that lacks a
    file. Of several processes the main one does."""
    if processes.is_main() and checkpoints.exists():
        with (
            contextlib.suppress(OSError),
            files.scratch(checkpoints.parent, checkpoints.name) as scratch,
        ):
            checkpoints.rename(scratch / checkpoints.name)


@contextlib.contextmanager
def as_found(backbone: Backbone) -> Iterator[None]:
    """Undo what trainers leave on a model: forward methods of TRL's and accelerate's, gradient
    checkpointing, hooks on the embedding, the cache switched off, training mode, TRL's frozen
    copy of the start. Afterwards no adapter is in use."""
    causal, embedding = backbone.causal, backbone.causal.get_input_embeddings()
    use_cache, hooks = causal.config.use_cache, set(embedding._forward_hooks)
    forwards = [(model, model.__dict__.get("forward")) for model in (causal, backbone.peft)]
    try:
        yield
    finally:
        for model, forward in forwards:
            model.__dict__.pop("forward", None)
            if forward is not None:
                model.forward = forward
        causal.config.use_cache = use_cache
        if causal.is_activation_checkpointing:
            causal.activation_checkpointing_disable()
        causal.disable_input_require_grads()
        for hook in (
            set(embedding._forward_hooks) - hooks
        ):  # a second trainer's, or those of a classifier that borrows the embedding
            del embedding._forward_hooks[hook]
        backbone.drop_adapter("ref")
        backbone.use(None)
