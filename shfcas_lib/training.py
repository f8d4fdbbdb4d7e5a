"""How TRL trains here: one set of arguments, checkpoints that only hold data, and a backbone left as it was found.

    output = training.fit(DPOTrainer, config, backbone, training_settings, checkpoints=folder / "checkpoint", model=..., train_dataset=...)

transformers' own checkpoints keep optimiser, scheduler and random states in files made for the load function of torch. Ours hold the
same in safetensors and JSON, and of the weights only those that are trained.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shfcas_lib import processes, runs
from shfcas_lib.params import InputError, Training

if TYPE_CHECKING:
    from shfcas_lib.models import Backbone

PLAIN = Training()


def check(training: Training, device: str) -> None:
    """Raise InputError where the optimiser needs what this machine lacks. device: cpu or cuda."""
    import importlib.util

    if training.optimiser == "adamw_torch":
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"training.optimiser: found {training.optimiser!r}, which needs the package bitsandbytes: install it, or use 'adamw_torch'")
    if training.optimiser.startswith("paged") and device != "cuda":
        raise InputError(f"training.optimiser: found {training.optimiser!r}, which pages its state between GPU and memory, but the device is {device}: "
                         "use 'adamw_8bit' or 'adamw_torch'")


def arguments(training: Training, backbone: Backbone, batch_size: int, most: int | None, seed: int) -> dict[str, Any]:
    """What every TRL configuration here is given: precision, optimiser, batches, checkpoints.

    batch_size: examples per step, over all processes; it decides what comes out. most: examples at once where training.micro_batch does
    not say (None: all). Raises InputError where the batch cannot be shared out evenly.
    """
    import torch

    check(training, backbone.device.type)
    mine, rest = divmod(batch_size, processes.count())
    if rest or not mine:
        raise InputError(f"a batch_size of {batch_size} cannot be shared out evenly over {processes.count()} processes")
    limit = training.micro_batch or most or mine
    micro = next(size for size in range(min(limit, mine), 0, -1) if mine % size == 0)
    compute = backbone.causal.dtype
    return {
        "per_device_train_batch_size": micro, "gradient_accumulation_steps": mine // micro, "seed": seed,
        **({} if training.optimiser == "adamw_torch" else {"optim": training.optimiser}),  # torch's, in the form that transformers prefers
        "bf16": compute == torch.bfloat16, "fp16": compute == torch.float16, "use_cpu": backbone.device.type == "cpu", "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if training.gradient_checkpointing else None,
        "save_strategy": "steps" if training.checkpoint_every else "no", "save_steps": training.checkpoint_every or 500, "report_to": "none",
        "ddp_find_unused_parameters": False, "disable_tqdm": bool(os.environ.get("TQDM_DISABLE")) or not processes.is_main()}


def fit(trainer: type, config: type, backbone: Backbone, settings: dict[str, Any], checkpoints: Path | None, **given) -> None:
    """Train with a TRL trainer class and its configuration class. The backbone keeps its own forward method, hooks and flags.

    settings: for the configuration. given: for the trainer, model and data above all. checkpoints: a folder to keep checkpoints in and to go
    on from; the caller has it forgotten when the result is on disk, and again when it finds the result there: a kill may have come between. None: none are kept.
    """
    with tempfile.TemporaryDirectory() as scratch, as_found(backbone), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing", FutureWarning)  # TRL and PEFT still ask for it by its old name
        keep = checkpoints is not None and settings["save_strategy"] != "no"
        args = config(output_dir=str(checkpoints if keep else scratch), **settings | ({} if keep else {"save_strategy": "no"}))
        resumable = type(trainer.__name__, (Resumable, trainer), {})
        work = resumable(args=args, processing_class=backbone.tokenizer, **given)
        if args.fp16:  # TRL makes adapters on a quantised backbone bfloat16, whose gradients cannot be unscaled on a GPU
            for weight in _trained(work.model).values():
                weight.data = weight.data.float()
        last = _last(checkpoints, work._layout()) if keep else None
        if keep and last is None:  # what cannot be gone on from would stand in the way of the new ones
            forget(checkpoints)
            processes.wait()
        if last:
            print(f"training goes on from step {last.name.rpartition('-')[2]}", file=sys.stderr)
        work.train(resume_from_checkpoint=str(last) if last else None)


def forget(checkpoints: Path) -> None:
    """Remove checkpoints, all at once: after a kill in the middle there is none that lacks a file. Of several processes the main one does."""
    if processes.is_main() and checkpoints.exists():
        with contextlib.suppress(OSError), runs.scratch(checkpoints.parent, checkpoints.name) as scratch:
            checkpoints.rename(scratch / checkpoints.name)


@contextlib.contextmanager
def as_found(backbone: Backbone) -> Iterator[None]:
    """Undo what trainers leave on a model: forward methods of TRL's and accelerate's, gradient checkpointing, hooks on the embedding, the
    cache switched off, training mode, TRL's frozen copy of the start. Afterwards no adapter is in use."""
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
        for hook in set(embedding._forward_hooks) - hooks:  # a second trainer's, or those of a classifier that borrows the embedding
            del embedding._forward_hooks[hook]
        backbone.drop_adapter("ref")
        backbone.use(None)


class Resumable:
    """Checkpoints of a Trainer in safetensors and JSON. Mixed in before the trainer's class; each replaces the method of its name."""

    def _layout(self) -> dict[str, int]:
        """What the order of batches depends on: a checkpoint of another layout cannot be gone on from."""
        return {"processes": processes.count(), "micro_batch": self.args.per_device_train_batch_size, "steps": self.args.gradient_accumulation_steps,
                "examples": len(self.train_dataset)}

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir)
        target = folder / f"checkpoint-{self.state.global_step}"
        with runs.writing(target):
            self._write_checkpoint(folder, target, folder / f".{target.name}")

    def _write_checkpoint(self, folder: Path, target: Path, fresh: Path) -> None:
        from safetensors.torch import save_file

        if processes.is_main():
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        processes.wait()
        runs.write_json(fresh / f"random_{processes.rank()}.json", _random_state())
        if processes.is_main():
            save_file({name: weight.detach().contiguous().clone() for name, weight in _trained(self.model).items()}, fresh / "weights.safetensors")
            tensors, facts = _split(self.optimizer.state_dict())
            save_file(tensors, fresh / "optimiser.safetensors")
            runs.write_json(fresh / "optimiser.json", facts)
            runs.write_json(fresh / "schedule.json", self.lr_scheduler.state_dict())
            runs.write_json(fresh / "layout.json", self._layout())
            if self.accelerator.scaler is not None:
                runs.write_json(fresh / "scaler.json", self.accelerator.scaler.state_dict())
            self.state.save_to_json(str(fresh / "trainer_state.json"))
        processes.wait()
        if processes.is_main():
            fresh.rename(target)
            for other in folder.glob("checkpoint-*"):
                if other != target:
                    shutil.rmtree(other)
        processes.wait()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        import torch
        from safetensors.torch import load_file

        weights = load_file(Path(resume_from_checkpoint) / "weights.safetensors")
        with torch.no_grad():
            for name, weight in _trained(self.model).items():
                weight.copy_(weights[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        from safetensors.torch import load_file

        if checkpoint is None:
            return
        folder = Path(checkpoint)
        self.optimizer.load_state_dict(_joined(load_file(folder / "optimiser.safetensors"), json.loads((folder / "optimiser.json").read_text())))
        self.lr_scheduler.load_state_dict(json.loads((folder / "schedule.json").read_text()))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The loss is scaled in float16 alone."""
        if checkpoint is not None and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(json.loads((Path(checkpoint) / "scaler.json").read_text()))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            _set_random_state(json.loads((Path(checkpoint) / f"random_{processes.rank()}.json").read_text()))


def _last(folder: Path, layout: dict[str, int]) -> Path | None:
    """The newest checkpoint that can be gone on from; what a kill left half-written has another name."""
    whole = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])) if folder.is_dir() else []
    if whole and json.loads((whole[-1] / "layout.json").read_text()) != layout:
        print(f"{whole[-1]} was made with other batches or another number of processes: training starts anew", file=sys.stderr)
        return None
    return whole[-1] if whole else None


def _trained(model) -> dict[str, Any]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _split(state: dict) -> tuple[dict, dict]:
    """An optimiser's state as (tensors by name, everything else as JSON). A name is the way to the value: number of the weight, then keys;
    bitsandbytes keeps what it quantised in a mapping one level further down."""
    import torch

    tensors, numbers = {}, {}

    def walk(way: str, value) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{way}/{key}" if way else str(key), inner)
        elif isinstance(value, torch.Tensor):
            tensors[way] = value.detach().contiguous().clone()
        else:
            numbers[way] = value

    walk("", state["state"])
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def _joined(tensors: dict, facts: dict) -> dict:
    state: dict = {}
    for way, value in {**tensors, **facts["numbers"]}.items():
        index, *between, key = way.split("/")
        inner = state.setdefault(int(index), {})
        for name in between:
            inner = inner.setdefault(name, {})
        inner[key] = value
    return {"state": state, "param_groups": facts["groups"]}


def _random_state() -> dict:
    import torch

    version, words, gauss = random.getstate()
    _, keys, *rest = np.random.get_state()
    cuda = [state.tolist() for state in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {"python": [version, list(words), gauss], "numpy": [keys.tolist(), *rest], "torch": torch.get_rng_state().tolist(), "cuda": cuda}


def _set_random_state(state: dict) -> None:
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]])
