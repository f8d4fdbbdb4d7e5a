"""What transformers says of a checkpoint that it loaded: every weight must have found its place.

    check_report(report, "model.source 'x'", "LlamaForCausalLM")

Weights that the files lack are filled at random, weights that are left over are ignored, both
with no more than a line in the log. A model that was loaded so is not the one that was asked for.
"""

from __future__ import annotations

import re
from typing import Any

from shfcas_lib.base.errors import InputError
from shfcas_lib.models.checkpoint import Tensor

# Left over and harmless: tables that models once stored and now compute.
_COMPUTED = re.compile(
    r"(attn|attention)\.(masked_)?bias$|rotary_emb\.|position_ids$|_extra_state$"
)
# How GPTQ and AWQ name the parts of a quantised weight.
_PACKED = (".qweight", ".qzeros", ".g_idx")


def check_report(
    report: dict[str, Any], name: str, kind: str, spare: str = "(?!)", head: str = "(?!)"
) -> None:
    """Raise InputError where weights are missing, do not fit, or were left over.

    report:  missing_keys, mismatched_keys, unexpected_keys, as from_pretrained gives them
    name:    what messages call the model
    kind:    the class that was loaded
    spare:   a pattern of weights that may be left over
    head:    a pattern of the weights of a score head, without which it is no reward model
    """
    left = [key for key in sorted(report["unexpected_keys"]) if not _COMPUTED.search(key)]
    left = [key for key in left if not re.search(spare, key)]
    packed = [key for key in left if key.endswith(_PACKED)]
    if packed:
        raise InputError(
            f"{name} holds weights that GPTQ or AWQ packed ({packed[0]}), but its config.json has"
            " no quantization_config that says how: expected one, or the unquantised model"
        )
    missing = sorted(report["missing_keys"])
    unscored = [key for key in missing if re.search(head, key)]
    if unscored:
        raise InputError(
            f"{name} has no trained score head ({unscored[0]} is not among its weights): expected a"
            " reward model, a sequence classifier"
        )
    for key, stored, built in sorted(report["mismatched_keys"]):
        raise InputError(_unlike(name, key, stored, built))
    if missing:
        more = f" ({left[0]} is left over instead)" if left else ""
        raise InputError(
            f"{name}: its files lack {_several(missing)} of a {kind}{more}: expected the whole of"
            " the model, no weight is made up"
        )
    if left:
        raise InputError(
            f"{name} holds {_several(left)}, for which a {kind} has no place: it is a model of"
            " another kind or size than its config.json says"
        )


def check_quantised(model: Any, name: str) -> None:
    """Raise InputError where a layer was quantised from a weight of another shape.

    transformers compares shapes of weights that it leaves as they are, not of those that
    bitsandbytes quantises on the way. name: what messages call the model.
    """
    for path, module in model.named_modules():
        if type(module).__name__ not in ("Linear4bit", "Linear8bitLt"):
            continue
        state = getattr(module.weight, "quant_state", None)
        stored = tuple(state.shape if state is not None else module.weight.shape)
        built = (module.out_features, module.in_features)
        if stored != built:
            raise InputError(_unlike(name, f"{path}.weight", stored, built))


def _unlike(name: str, weight: str, stored: Any, built: Any) -> str:
    return (
        f"{name}: {weight} has the shape {tuple(stored)} in its files and {tuple(built)} by its"
        " config.json: they do not belong together"
    )


def _several(keys: list[str]) -> str:
    """The first weight and how many there are beside it."""
    more = len(keys) - 1
    return keys[0] if not more else f"{keys[0]} and {more} more weight{'s' if more > 1 else ''}"


def foretold(kind: Any, config: Any, tensors: dict[str, Tensor], **options: Any) -> dict[str, Any]:
    """The report that loading these tensors would give; no weight is read.

    kind: the class that loads them. transformers itself renames and joins them, on torch's meta
    device. tensors: of `checkpoint.read_tensors`, unquantised.
    """
    import torch
    from transformers.utils import logging

    empty = {}
    for key, tensor in tensors.items():
        empty[key] = torch.empty(tensor.shape, device="meta", dtype=_dtype(tensor.dtype))
    level = logging.get_verbosity()
    logging.set_verbosity_error()  # the report is read here, not shown
    try:
        _, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map={"": "meta"},
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    finally:
        logging.set_verbosity(level)
    return report


def _dtype(stored: str) -> Any:
    """torch's type of a safetensors type. What is no plain number is read as float32."""
    import torch

    names = {"F16": "float16", "BF16": "bfloat16", "F64": "float64", "BOOL": "bool", "U8": "uint8"}
    return getattr(torch, names.get(stored, "float32"))
