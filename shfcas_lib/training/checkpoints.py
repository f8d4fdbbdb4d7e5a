"""Checkpoints that only hold data: weights that are trained, optimiser, schedule and random states.

transformers' own checkpoints keep optimiser, scheduler and random states in files made for the
load function of torch. Ours hold the same in safetensors and JSON, and of the weights only
those that are trained.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shfcas_lib.base import processes
from shfcas_lib.storage import files


class Resumable:
    """Checkpoints of a Trainer in safetensors and JSON.

    Mixed in before the trainer's class; each replaces the method of its name.
    """

    # attributes of the trainer
    args: Any
    state: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any
    accelerator: Any
    train_dataset: Any

    def _layout(self) -> dict[str, int]:
        """What the order of batches depends on.

        No training can go on from a checkpoint of another layout.
        """
        return {
            "processes": processes.count(),
            "micro_batch": self.args.per_device_train_batch_size,
            "steps": self.args.gradient_accumulation_steps,
            "examples": len(self.train_dataset),
        }

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir)
        target = folder / f"checkpoint-{self.state.global_step}"
        with files.writing(target):
            self._write_checkpoint(folder, target, folder / f".{target.name}")

    def _write_checkpoint(self, folder: Path, target: Path, fresh: Path) -> None:
        """Every process writes its random state, the main one all else; then it is renamed."""
        if processes.is_main():
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir(parents=True)
        processes.wait()
        files.write_json(fresh / f"random_{processes.rank()}.json", _random_state())
        if processes.is_main():
            self._write_states(fresh)
        processes.wait()
        if processes.is_main():
            fresh.rename(target)
            for other in folder.glob("checkpoint-*"):
                if other != target:
                    shutil.rmtree(other)
        processes.wait()

    def _write_states(self, fresh: Path) -> None:
        from safetensors.torch import save_file

        weights = trained_weights(self.model)
        copies = {name: weight.detach().contiguous().clone() for name, weight in weights.items()}
        save_file(copies, fresh / "weights.safetensors")
        tensors, facts = _split(self.optimizer.state_dict())
        save_file(tensors, fresh / "optimiser.safetensors")
        files.write_json(fresh / "optimiser.json", facts)
        files.write_json(fresh / "schedule.json", self.lr_scheduler.state_dict())
        files.write_json(fresh / "layout.json", self._layout())
        if self.accelerator.scaler is not None:
            files.write_json(fresh / "scaler.json", self.accelerator.scaler.state_dict())
        self.state.save_to_json(str(fresh / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        import torch
        from safetensors.torch import load_file

        weights = load_file(Path(resume_from_checkpoint) / "weights.safetensors")
        with torch.no_grad():
            for name, weight in trained_weights(self.model).items():
                weight.copy_(weights[name])

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        from safetensors.torch import load_file

        if checkpoint is None:
            return
        folder = Path(checkpoint)
        tensors = load_file(folder / "optimiser.safetensors")
        facts = json.loads((folder / "optimiser.json").read_text())
        self.optimizer.load_state_dict(_joined(tensors, facts))
        self.lr_scheduler.load_state_dict(json.loads((folder / "schedule.json").read_text()))

    def _load_scaler(self, checkpoint: str | None) -> None:
        """The loss is scaled in float16 alone."""
        if checkpoint is not None and self.accelerator.scaler is not None:
            state = json.loads((Path(checkpoint) / "scaler.json").read_text())
            self.accelerator.scaler.load_state_dict(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            path = Path(checkpoint) / f"random_{processes.rank()}.json"
            _set_random_state(json.loads(path.read_text()))


def latest(folder: Path, layout: dict[str, int]) -> Path | None:
    """The newest checkpoint that training can go on from; None where there is none.

    What a kill left half-written has another name.
    """
    whole = list(folder.glob("checkpoint-*")) if folder.is_dir() else []
    if not whole:
        return None
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]))
    if json.loads((newest / "layout.json").read_text()) == layout:
        return newest
    print(
        f"{newest} was made with other batches or another number of processes: training"
        " starts anew",
        file=sys.stderr,
    )
    return None


def trained_weights(model: Any) -> dict[str, Any]:
    """The weights of a model that training changes, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _split(state: dict) -> tuple[dict, dict]:
    """An optimiser's state as (tensors by name, everything else as JSON).

    A name is the way to the value: number of the weight, then keys; bitsandbytes keeps what it
    quantised in a mapping one level further down.
    """
    import torch

    tensors: dict[str, torch.Tensor] = {}
    numbers: dict[str, Any] = {}

    def walk(way: str, value: Any) -> None:
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
    """The state that `_split` took apart."""
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
    numpy_state: Any = np.random.get_state()  # a tuple: its dict form must be asked for
    _, keys, *rest = numpy_state
    state = {
        "python": [version, list(words), gauss],
        "numpy": [keys.tolist(), *rest],
        "torch": torch.get_rng_state().tolist(),
        "cuda": [],
    }
    if torch.cuda.is_available():
        state["cuda"] = [one.tolist() for one in torch.cuda.get_rng_state_all()]
    return state


def _set_random_state(state: dict) -> None:
    import torch

    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        states = [torch.tensor(one, dtype=torch.uint8) for one in state["cuda"]]
        torch.cuda.set_rng_state_all(states)
