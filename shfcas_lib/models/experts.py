"""Mixtures of experts, whose weights lie fused in tensors of three axes, outside linear layers.

    experts = find(causal)              # names, share, and the linear layers beside them
    quantise(causal, experts)           # in place, to NF4

Neither transformers' quantisation nor PEFT's "all linear layers" reaches such tensors. bitsandbytes
0.50 can hold them in NF4, PEFT 0.21 can adapt them where they are not quantised and LoRA has no
dropout; both at once it cannot (a second adapter does not find them, and what one adapter adds is
not taken off again). int8 there is none.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from shfcas_lib.params.schema import Params

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
    names = find_names(model)
    if not names:
        return Experts()
    head, linear = model.get_output_embeddings(), []
    for name, module in model.named_modules():
        if is_linear(module) and module is not head:
            linear.append(name)
    inside = sum(model.get_parameter(name).numel() for name in names)
    share = inside / sum(_numbers(weight) for weight in model.parameters())
    return Experts(tuple(names), tuple(linear), share)


def is_linear(module: Any) -> bool:
    """Is it a linear layer, or GPT-2's form of one? A family's own router, which is one and gives
    back more, is not meant."""
    import torch
    from transformers.pytorch_utils import Conv1D

    own = type(module).__module__.startswith("transformers.models.")
    return isinstance(module, (torch.nn.Linear, Conv1D)) and not own


def find_names(module: Any) -> list[str]:
    """Names of the fused experts in a module: weights of three axes, convolutions apart."""
    names = []
    for name, weight in module.named_parameters():
        if weight.ndim >= 3 and not _convolves(module, name):
            names.append(name)
    return names


def _numbers(weight: Any) -> int:
    """How many numbers a weight stands for; NF4 packs two into one byte."""
    state = getattr(weight, "quant_state", None)
    return math.prod(state.shape) if state is not None else weight.numel()


def _convolves(model: Any, name: str) -> bool:
    """Does a weight belong to a convolution, whose weights have three axes too?"""
    import torch

    owner = model.get_submodule(name.rpartition(".")[0])
    return isinstance(owner, torch.nn.modules.conv._ConvNd)


@contextlib.contextmanager
def by_name(model: PreTrainedModel, experts: Experts) -> Iterator[None]:
    """Inside, PEFT adapts the layers that it is told, and no others.

    Of the families of mixtures that it knows by their type it would take names such as gate_proj,
    wherever they stand, for the experts of old, and leave dense layers and shared experts out.
    """
    if not experts.names:
        yield
        return
    config: Any = model.config
    kind = config.model_type
    config.model_type = "by name"
    try:
        yield
    finally:
        config.model_type = kind


def quantise(model: PreTrainedModel, experts: Experts) -> Experts:
    """Hold the experts in NF4 with double quantisation, in place, one tensor after the other."""
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for name in experts.names:
        module, _, parameter = name.rpartition(".")
        replace_parameter_4bit(
            model.get_submodule(module), parameter, compress_statistics=True, quant_type="nf4"
        )
    return replace(experts, quantised=True)


def trained_adapters(params: Params) -> dict[str, float]:
    """lora.dropout of every adapter that a run trains, by the key that describes it."""
    trained = {
        "reward.lora": (params.reward.kind == "lora", params.reward.lora),
        "policy.lora": (params.policy.kind != "tilt", params.policy.lora),
        "sft.lora": (params.sft.answers != "none", params.sft.lora),
    }
    return {key: lora.dropout for key, (wanted, lora) in trained.items() if wanted}


def unreached(experts: Experts, quantisation: str, dropouts: dict[str, float]) -> str | None:
    """One line about what quantisation or LoRA does not reach; None where there is nothing.

    quantisation: model.quantisation; dropouts: of `trained_adapters`.
    """
    if not experts.names:
        return None
    told = []
    if quantisation in ("nf4", "int8") and not experts.quantised:
        told.append(f"model.quantisation {quantisation} leaves them in the compute type")
    for key, dropout in dropouts.items():
        if experts.quantised:
            told.append(f"{key} does not adapt them, which PEFT cannot do on NF4")
        elif dropout:
            told.append(f"{key} adapts them only with dropout 0 (now {dropout})")
    if not told:
        return None
    first = f"{experts.names[0]} and {len(experts.names) - 1} more"
    return f"the experts ({first}) are {experts.share:.0%} of the weights: {'; '.join(told)}"
