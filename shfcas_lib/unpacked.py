"""4-bit layers on a CPU: unpacked once for many forward passes, instead of once for each.

    with unpacked(backbone.causal):
        ...                                  # every pass gives the same numbers, bit for bit

bitsandbytes' float32 path on a CPU unpacks a layer's weights and multiplies by them. A decode loop does so at every token: a fifth of its time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MOST_BYTES = 2 << 30  # a bigger model stays packed: fitting into memory is what its 4 bits are for


@contextlib.contextmanager
def unpacked(model: torch.nn.Module, most_bytes: int = MOST_BYTES) -> Iterator[None]:
    """Inside the block, the model's 4-bit layers on a CPU multiply by weights that were unpacked at its start.

    Nothing happens on a GPU, without such layers, where they would need more than `most_bytes`, or inside another such block.
    """
    layers = [layer for layer in model.modules() if _may_unpack(layer)]
    if 4 * sum(layer.out_features * layer.in_features for layer in layers) > most_bytes:
        layers = []
    try:
        for layer in layers:
            layer.forward = partial(_linear, _weight(layer), layer)
        yield
    finally:
        for layer in layers:
            del layer.forward


def _may_unpack(layer: torch.nn.Module) -> bool:
    state = getattr(getattr(layer, "weight", None), "quant_state", None)
    return (state is not None and layer.weight.device.type == "cpu" and "forward" not in vars(layer)
            and str(layer.compute_dtype) == "torch.float32" and not layer.support_avx512bf16_for_cpu)


def _weight(layer: torch.nn.Module) -> torch.Tensor:
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.data, layer.weight.quant_state)


def _linear(weight: torch.Tensor, layer: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.linear(hidden, weight, layer.bias)
