"""Checkpoints that are quantised already, and what `model.quantisation` makes of them.

how = treat(config, "nf4", torch.float32, "cpu", where)     # raises where it cannot be
how.config, how.quantisation, how.widened                   # for from_pretrained

as_stored   the weights as they lie in the files
nf4, int8   files that hold just that (bitsandbytes); no other is quantised a second time
none        widened to the compute type, where transformers can widen them
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import one_line

BNB4, BNB8 = "bitsandbytes in 4 bits", "bitsandbytes in 8 bits"
# Methods whose weights transformers can widen while it loads them. bitsandbytes' are widened
# afterwards.
_WIDENED_ON_THE_WAY = ("fp8", "mxfp8", "mxfp4", "compressed-tensors")
# Methods that transformers widens without a word where there is no GPU.
_GPU_ALONE = ("fp8", "mxfp8", "mxfp4", "metal")


@dataclass(frozen=True)
class Where:
    """How messages name a model and its keys.

    name: the model (model.source 'x'); key: the parameter that says how it is quantised; dtype:
    the one that gives the compute type.
    """

    name: str
    key: str = "model.quantisation"
    dtype: str = "model.dtype"


@dataclass(frozen=True)
class Treatment:
    """How a checkpoint is to be loaded.

    config: transformers' configuration, with what the files' quantisation is told.
    quantisation: what is done to unquantised files, nf4, int8 or none.
    method: how the files are quantised; None: they are not.
    widened: quantised files whose weights are wanted in the compute type.
    trainable: can an adapter be trained on it?
    """

    config: Any
    quantisation: str
    method: str | None = None
    widened: bool = False
    trainable: bool = True


def method_of(config: Any) -> str | None:
    """How the weights of a checkpoint are quantised; None where they are not."""
    settings = _settings(config)
    if settings is None:
        return None
    if settings.get("load_in_8bit"):
        return BNB8
    if settings.get("load_in_4bit"):
        return BNB4
    return str(settings.get("quant_method") or "a method that its config.json does not name")


def _settings(config: Any) -> dict[str, Any] | None:
    """The quantisation in a configuration, as written there."""
    inner = config.get_text_config(decoder=True)
    for part in (config, inner):
        for key in ("quantization_config", "compression_config"):
            found = getattr(part, key, None)
            if found:
                return dict(found if isinstance(found, dict) else found.to_dict())
    return None


def treat(config: Any, wanted: str, dtype: Any, device: str, where: Where) -> Treatment:
    """What loading does to a checkpoint so that it is what the parameters say.

    wanted: nf4, int8, none or as_stored; dtype: torch's compute type; device: cpu or cuda.
    Raises InputError where the files are quantised otherwise, or where what reads them is missing.
    """
    method = method_of(config)
    if method is None:
        return Treatment(config, "none" if wanted == "as_stored" else wanted)
    check(config, wanted, where)
    if wanted == "as_stored" and device == "cpu" and method in _GPU_ALONE:
        raise InputError(
            f"{where.name} is stored quantised ({method}), which computes on a GPU alone: set"
            f" {where.key} to none, which widens its weights"
        )
    told = _told(config, method, wanted == "none", dtype)
    trainable = _tried(told, wanted, dtype, device, method, where)
    return Treatment(told, "none", method, wanted == "none", trainable)


def check(config: Any, wanted: str, where: Where) -> None:
    """Raise InputError where a checkpoint's files cannot become what is wanted."""
    method = method_of(config)
    if method is not None:
        _check_known(method, where)
        _check_wanted(method, _settings(config) or {}, wanted, where)


def bits_of(config: Any) -> int:
    """Bits of a stored weight; 4 where the configuration does not say."""
    settings = _settings(config) or {}
    if settings.get("load_in_8bit") or "fp8" in str(settings.get("quant_method")):
        return 8
    return next((int(found) for found in _find(settings) if str(found).isdigit()), 4)


def _find(settings: Any) -> Iterator[Any]:
    """Values of the keys, at any depth, under which methods note their bits."""
    if not isinstance(settings, dict):
        return
    for key, value in settings.items():
        if key in ("bits", "w_bit", "num_bits", "nbits"):
            yield value
        yield from _find(value)


def _check_known(method: str, where: Where) -> None:
    from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING as known

    if method not in (BNB4, BNB8, *known):
        raise InputError(
            f"{where.name} is stored quantised ({method}), which transformers does not read:"
            " expected another form of the model"
        )


def _check_wanted(method: str, settings: dict[str, Any], wanted: str, where: Where) -> None:
    """Raise InputError where the files cannot become what is wanted."""
    values = ["as_stored"]
    if method == BNB4 and settings.get("bnb_4bit_quant_type", "fp4") == "nf4":
        values.append("nf4")
    if method == BNB8:
        values.append("int8")
    if widens(method):
        values.append("none")
    if wanted in values:
        return
    ways = values[0]
    if "none" in values:
        ways = f"{', '.join(values[:-1])}, or to none to widen its weights"
    raise InputError(
        f"{where.key}: found {wanted!r}, but {where.name} is stored quantised ({method}): set it to"
        f" {ways}"
    )


def widens(method: str | None) -> bool:
    """Can weights that are stored so be had in the compute type?"""
    return method in (None, BNB4, BNB8, *_WIDENED_ON_THE_WAY)


def _told(config: Any, method: str, widen: bool, dtype: Any) -> Any:
    """The configuration whose quantisation computes in `dtype`, or is undone on the way."""
    settings = _settings(config) or {}
    if method == BNB4:
        settings["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    if widen and method in _WIDENED_ON_THE_WAY:
        settings["dequantize"] = True
    told = copy.deepcopy(config)
    told.quantization_config = settings
    return told


def _tried(config: Any, wanted: str, dtype: Any, device: str, method: str, where: Where) -> bool:
    """Ask transformers' quantiser whether it runs here, before any weight is read.

    Returns whether it can be trained on. Raises InputError.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    settings = copy.deepcopy(config.quantization_config)
    try:
        quantiser = AutoHfQuantizer.from_config(settings, pre_quantized=True)
        quantiser.validate_environment(device_map={"": device}, weights_only=True)
        computed = quantiser.update_dtype(dtype)
        trainable = wanted == "none" or bool(quantiser.is_trainable)
    # whatever a package of somebody else's raises where it is missing or does not fit
    except Exception as error:
        raise InputError(
            f"{where.name} is stored quantised ({method}), which cannot be used here"
            f" ({first_line(error)})"
        ) from error
    if wanted == "as_stored" and getattr(quantiser.quantization_config, "dequantize", False):
        raise InputError(
            f"{where.name} is stored quantised ({method}), which this machine's GPU cannot compute"
            f" with: set {where.key} to none, which widens its weights"
        )
    if computed != dtype:
        named = str(computed).removeprefix("torch.")
        raise InputError(
            f"{where.dtype}: {where.name} is stored quantised ({method}), which computes in {named}"
            f" here: set it to {named}"
        )
    return trainable


def settle(model: Any, how: Treatment, dtype: Any, where: Where) -> Any:
    """A model that was loaded as `how` says, its weights widened where that was asked for.

    Raises InputError where a quantiser did otherwise.
    """
    if how.method is None:
        return model
    if how.widened:
        if getattr(model, "hf_quantizer", None) is not None:
            model = model.dequantize(dtype)
        # trainers would still train its adapters in bfloat16
        for mark in ("is_loaded_in_4bit", "is_loaded_in_8bit"):
            if getattr(model, mark, False):
                setattr(model, mark, False)
        return model.to(dtype)
    if getattr(model, "hf_quantizer", None) is None:
        raise InputError(
            f"{where.name} is stored quantised ({how.method}), but was widened on this machine: set"
            f" {where.key} to none"
        )
    if how.method in (BNB4, BNB8):
        _retype(model, dtype)
    if model.dtype != dtype:
        found = str(model.dtype).removeprefix("torch.")
        raise InputError(
            f"{where.dtype}: {where.name} is stored quantised ({how.method}) and computes in"
            f" {found}, as its files have it: set it to {found}"
        )
    return model


def _retype(model: Any, dtype: Any) -> None:
    """Give what bitsandbytes left whole the compute type: transformers leaves that of the files."""
    for weight in model.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.to(dtype)


def first_line(error: BaseException) -> str:
    """What an error of another package says, cut to its first line."""
    lines = str(error).strip().splitlines()
    return one_line(lines[0]) if lines else type(error).__name__
