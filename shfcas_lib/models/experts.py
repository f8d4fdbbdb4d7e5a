"""Mixtures of experts, whose weights lie fused in tensors of three axes, outside linear layers.

    experts = find(causal)              # names, share, and the linear layers beside them
    quantise(causal, experts)           # in place, to NF4

Neither transformers' quantisation nor PEFT's "all linear layers" reaches such tensors. bitsandbytes
0.50 can hold them in NF4, PEFT 0.21 can adapt them where they are not quantised and LoRA has no
dropout; both at once it cannot (a second adapter does not find them, and what one adapter adds is
not taken off again). int8 there is none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Experts:
    """The fused experts of a model; of a dense one, none.

    names: full names of the tensors; linear: those of its linear layers, the output layer apart;
    share: of the model's numbers; quantised: held in NF4.
    """

    names: tuple[str, ...] = ()
    linear: tuple[str, ...] = ()
    share: float = 0.0
    quantised: bool = False

    def targets(self, dropout: float) -> dict[str, Any]:
        """What LoRA is to adapt, as PEFT's LoraConfig takes it."""
        if not self.names:
            return {"target_modules": "all-linear"}
        # by name: PEFT's own list of some families' experts knows neither dropout nor NF4
        parameters = list(self.names) if self.adapted(dropout) else None
        return {"target_modules": list(self.linear), "target_parameters": parameters}

    def adapted(self, dropout: float) -> bool:
        """Does LoRA reach the experts?"""
        return bool(self.names) and not self.quantised and not dropout


def find(model: PreTrainedModel) -> Experts:
    """The fused experts of a model that has no adapters yet."""
    import torch
    from transformers.pytorch_utils import Conv1D

    names, numbers = [], 0
    for name, weight in model.named_parameters():
        if weight.ndim >= 3 and not _convolves(model, name):
            names.append(name)
            numbers += weight.numel()
    if not names:
        return Experts()
    head, linear = model.get_output_embeddings(), []
    for name, module in model.named_modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head:
            linear.append(name)
    share = numbers / sum(_numbers(weight) for weight in model.parameters())
    return Experts(tuple(names), tuple(linear), share)


def _numbers(weight: Any) -> int:
    """How many numbers a weight stands for; NF4 packs two into one byte."""
    state = getattr(weight, "quant_state", None)
    return math.prod(state.shape) if state is not None else weight.numel()


def _convolves(model: PreTrainedModel, name: str) -> bool:
    """Does a weight belong to a convolution, whose weights have three axes too?"""
    import torch

    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, torch.nn.modules.conv._ConvNd)


def quantise(model: PreTrainedModel, experts: Experts) -> Experts:
    """Hold the experts in NF4 with double quantisation, in place, one tensor after the other."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for name in experts.names:
        module, _, parameter = name.rpartition(".")
        replace_parameter_4bit(
            model.get_submodule(module), parameter, compress_statistics=True, quant_type="nf4"
        )
    return replace(experts, quantised=True)


def unreached(experts: Experts, quantisation: str, dropouts: dict[str, float]) -> str | None:
    """One line about what quantisation or LoRA does not reach; None where there is nothing.

    dropouts: lora.dropout of every training of the run, by the key that names it.
    """
    if not experts.names:
        return None
    told = []
    if quantisation == "int8":
        told.append("model.quantisation int8 leaves them in the compute type (nf4 reaches them)")
    for key, dropout in dropouts.items():
        if quantisation == "nf4":
            told.append(f"{key} does not adapt them, which PEFT cannot on NF4")
        elif dropout:
            told.append(f"{key} adapts them only with {key}.dropout 0 (now {dropout})")
    if not told:
        return None
    first = f"{experts.names[0]} and {len(experts.names) - 1} more"
    return f"the experts ({first}) are {experts.share:.0%} of the weights: {'; '.join(told)}"
