"""The backbone as plain weights: no quantisation, an adapter merged in where one is asked for.

    weights = layers(backbone, "refined_shf_cas")       # of the classifier's or the probe's layers
    weights = whole(backbone, "default")                # of the language model

4-bit weights are written out as the numbers that they stand for, so that the function stays the
one that was trained; what quantised again would be another. Merging adds scale x B A in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shfcas_lib.base.errors import InputError

if TYPE_CHECKING:
    import torch

    from shfcas_lib.models.backbone import Backbone

Weights = dict[str, "torch.Tensor"]


def layers(backbone: Backbone, adapter: str | None = None) -> Weights:
    """Weights and buffers of the layers below the language head, by their names there, float32.

    adapter: one that is on the backbone; None: none is merged.
    """
    start = backbone.causal.base_model_prefix + "."
    found = whole(backbone, adapter)
    return {name[len(start) :]: found[name] for name in found if name.startswith(start)}


def whole(backbone: Backbone, adapter: str | None = None) -> Weights:
    """The same of the whole language model. Raises InputError for a mixture of experts."""
    import torch
    from peft.tuners.lora import LoraLayer

    if backbone.experts.names:
        raise InputError(
            f"model.source {backbone.model.source!r} is a mixture of experts, whose weights are not"
            " written out here: expected a model without experts, or an adapter (reward.kind lora,"
            " without --merged)"
        )
    found: Weights = {}
    inside: tuple[str, ...] = ()  # layers whose adapters were merged: what is below is done
    with torch.no_grad():
        for name, module in backbone.causal.named_modules():
            if name.startswith(inside) and inside:
                continue
            if isinstance(module, LoraLayer):
                inside = (*inside, f"{name}.")
                found |= _named(name, _own(module.get_base_layer()))
                if adapter is not None and adapter in module.lora_A:
                    found[f"{name}.weight"] += _difference(module, adapter)
            else:
                found |= _named(name, _own(module))
    return found


def _named(place: str, weights: Weights) -> Weights:
    return {f"{place}.{key}" if place else key: weight for key, weight in weights.items()}


def _own(module: torch.nn.Module) -> Weights:
    """A module's own weights and persistent buffers in float32, on the CPU."""
    tensors: dict[str, Any] = dict(module.named_parameters(recurse=False))
    kept = module._non_persistent_buffers_set
    buffers = module.named_buffers(recurse=False)
    tensors |= {key: buffer for key, buffer in buffers if key not in kept}
    if "weight" in tensors:
        tensors["weight"] = _dequantised(module)
    return {key: _plain(tensor) for key, tensor in tensors.items()}


def _dequantised(module: Any) -> torch.Tensor:
    """What a layer's weight stands for; bitsandbytes' 4-bit and 8-bit ones are spelt out. (PEFT's
    own function leaves an 8-bit layer without its scales.)"""
    weight = module.weight
    if getattr(weight, "quant_state", None) is not None:
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    scales = getattr(weight, "SCB", None)
    if scales is None and hasattr(module, "state"):
        scales = module.state.SCB  # where a first pass has put them
    return weight if scales is None else weight.data.float() * scales.float()[:, None] / 127


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A copy on the CPU, floating point numbers in float32."""
    tensor = tensor.detach().cpu()
    return tensor.float().clone() if tensor.is_floating_point() else tensor.clone()


def _difference(layer: Any, adapter: str) -> torch.Tensor:
    """What an adapter adds to a layer's weight, as that weight lies."""
    up, down = layer.lora_B[adapter].weight.float(), layer.lora_A[adapter].weight.float()
    added = (up @ down) * layer.scaling[adapter]
    return (added.T if layer.fan_in_fan_out else added).cpu()
