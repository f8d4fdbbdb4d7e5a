"""How TRL trains here: one set of arguments, and a backbone left as it was found.

    run_trainer(DPOTrainer, DPOConfig, backbone, settings, folder / "checkpoints", model=...)

Everything here that trains an adapter goes through it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas_lib.base import processes, progress
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Training
from shfcas_lib.storage import files
from shfcas_lib.training.checkpoints import Resumable, latest, trained_weights
from shfcas_lib.training.encoded import Encoded
from shfcas_lib.training.watch import Watch

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


def check_report(training: Training) -> None:
    """Raise InputError where trainings are to be logged by a package that is not installed."""
    import importlib.util

    name = training.report_to
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(
            f"training.report_to: found {name!r}, which needs the package {name}: install it, or"
            " use 'none'"
        )


def arguments(
    training: Training, backbone: Backbone, batch_size: int, most: int | None, seed: int
) -> dict[str, Any]:
    """What every TRL configuration here is given: precision, optimiser, batches, checkpoints.

    batch_size:  examples per step, over all processes; it decides what comes out
    most:        examples at once where training.micro_batch does not say (None: all)

    Raises InputError where the batch cannot be shared out evenly.
    """
    import torch

    check_optimiser(training, backbone.device.type)
    mine = _share(batch_size)
    micro = _at_once(mine, training.micro_batch or most or mine)
    compute = backbone.causal.dtype
    options: dict[str, Any] = {
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": mine // micro,
        "seed": seed,
        "bf16": compute == torch.bfloat16,
        "fp16": compute == torch.float16,
        "use_cpu": backbone.device.type == "cpu",
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": None,
        "save_strategy": "steps" if training.checkpoint_every else "no",
        "save_steps": training.checkpoint_every or 500,
        "report_to": training.report_to,
        "project": "shfcas",
        "ddp_find_unused_parameters": False,
        "disable_tqdm": True,  # the bar is ours, see `_progress`
    }
    if training.gradient_checkpointing:
        options["gradient_checkpointing_kwargs"] = {"use_reentrant": False}
    # torch's AdamW stays unnamed: transformers then takes the form of it that it prefers
    if training.optimiser != "adamw_torch":
        options["optim"] = training.optimiser
    return options


def _share(batch_size: int) -> int:
    """This process's examples of a step. Raises InputError where the shares are not equal."""
    mine, rest = divmod(batch_size, processes.count())
    if rest or not mine:
        raise InputError(
            f"a batch_size of {batch_size} cannot be shared out evenly over {processes.count()}"
            " processes"
        )
    return mine


def _at_once(examples: int, limit: int) -> int:
    """The largest number up to the limit that divides a step's examples evenly."""
    sizes = range(min(limit, examples), 0, -1)
    return next(size for size in sizes if examples % size == 0)


def run_trainer(
    trainer: type,
    config: type,
    backbone: Backbone,
    settings: dict[str, Any],
    checkpoints: Path | None,
    watch: Watch | None = None,
    **given: Any,
) -> None:
    """Train with a TRL trainer class and its configuration class.

    settings:     for the configuration
    checkpoints:  a folder to keep checkpoints in and to go on from; None: none are kept. Its
                  place among the runs names the training in a log
    watch:        looks at a policy, and adds to the log
    given:        for the trainer, model and data above all

    The backbone keeps its own forward method, hooks and flags. The caller has the checkpoints
    forgotten when the result is on disk, and again when it finds the result there: a kill may
    have come between.
    """
    from transformers import PrinterCallback

    folder = None if settings["save_strategy"] == "no" else checkpoints
    with tempfile.TemporaryDirectory() as scratch, as_found(backbone), warnings.catch_warnings():
        # TRL and PEFT still ask for it by its old name
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)
        if folder is None:
            settings = settings | {"save_strategy": "no"}
        if "router_aux_loss_coef" in getattr(config, "__dataclass_fields__", {}):
            # routers are frozen: a loss that balances them would only blur the method's own
            settings = settings | {"router_aux_loss_coef": 0.0}
        args = config(output_dir=str(folder or scratch), **_named(checkpoints), **settings)
        ours: Any = type(trainer.__name__, (Resumable, Encoded, trainer), {"backbone": backbone})
        with _logging_beside(checkpoints):
            work = ours(args=args, processing_class=backbone.tokenizer, **given)
        if watch is not None:
            # before the reporters, which are given the same log
            work.callback_handler.callbacks.insert(0, _watching(watch))

        work.remove_callback(PrinterCallback)
        work.add_callback(_progress())

        if args.fp16:
            _widen(work.model)
        last = latest(folder, work._layout()) if folder else None
        if last:
            print(f"training goes on from step {last.name.rpartition('-')[2]}", file=sys.stderr)
        elif folder:
            # what cannot be gone on from would stand in the way of the new ones
            forget(folder)
            processes.wait()
        work.train(resume_from_checkpoint=str(last) if last else None)


def _named(checkpoints: Path | None) -> dict[str, str]:
    """What a log calls a training: run, stage and what is trained."""
    if checkpoints is None:
        return {}
    return {"run_name": "/".join(checkpoints.absolute().parent.parts[-3:])}


@contextlib.contextmanager
def _logging_beside(checkpoints: Path | None) -> Iterator[None]:
    """TensorBoard's files go beside the checkpoints: the folder that transformers would take is
    gone after the training. The user's own TENSORBOARD_LOGGING_DIR wins."""
    key = "TENSORBOARD_LOGGING_DIR"
    if checkpoints is None or key in os.environ:
        yield
        return
    os.environ[key] = str(checkpoints.absolute().parent / "logs")
    try:
        yield
    finally:
        del os.environ[key]


def _progress() -> Any:
    """The bar of a training, as a callback of transformers' trainers: theirs draws in the cell of a
    notebook alone, where a terminal that runs it sees nothing."""
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar = progress.bar(state.max_steps, "training", "step")
            self.bar.update(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.update(state.global_step - self.bar.n)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.bar.close()

    return Progress()


def _watching(watch: Watch) -> Any:
    """The watch as a callback of transformers' trainers."""
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            watch.into({}, state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
            last = "train_runtime" in given["logs"]  # the summary at the end
            watch.into(given["logs"], state.global_step, last)

    return Watching()


def _widen(model: Any) -> None:
    """Give what is trained float32 weights, in place.

    TRL makes adapters on a quantised backbone bfloat16, whose gradients cannot be unscaled on a
    GPU.
    """
    for weight in trained_weights(model).values():
        weight.data = weight.data.float()


def forget(checkpoints: Path) -> None:
    """Remove checkpoints, all at once; of several processes the main one does.

    After a kill in the middle there is none that lacks a file.
    """
    if not processes.is_main() or not checkpoints.exists():
        return
    parent, name = checkpoints.parent, checkpoints.name
    with contextlib.suppress(OSError), files.scratch(parent, name) as scratch:
        checkpoints.rename(scratch / name)


@contextlib.contextmanager
def as_found(backbone: Backbone) -> Iterator[None]:
    """Undo what trainers leave on a model.

    That is forward methods of TRL's and accelerate's, gradient checkpointing, hooks on the
    embedding, the cache switched off, training mode, TRL's frozen copy of the start. Afterwards
    no adapter is in use.
    """
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
        # a second trainer's, or those of a classifier that borrows the embedding
        for hook in set(embedding._forward_hooks) - hooks:
            del embedding._forward_hooks[hook]
        backbone.drop_adapter("ref")
        backbone.use(None)
