"""Models from where they lie: asset, folder or hub id becomes a frozen, quantised model.

    backbone = load_backbone(params.model)

Weights are read from safetensors alone; a model's own program code runs only where the
parameters say so.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import templates
from shfcas_lib.models.backbone import Backbone
from shfcas_lib.params.schema import Model
from shfcas_lib.storage import assets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_backbone(model: Model) -> Backbone:
    """Load the backbone of a run, quantised as its parameters say.

    It comes from an embedded asset, a local folder or a hub id.

    Raises InputError when the source cannot be found, when it needs code of its own, or when a
    package, a GPU or a template is missing.
    """
    from transformers import AutoModelForCausalLM

    common = loading_options(model, "model.source", model.source)
    tokenizer = _settled_tokenizer(model)
    causal, _ = load_weights(
        AutoModelForCausalLM, "model.source", model.source, revision=model.revision, **common
    )
    backbone = Backbone(causal, tokenizer, model.system_prompt, model=model)
    _check_end(backbone)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = backbone.stop_ids[0]
    # TRL's online trainers write with it
    causal.generation_config.eos_token_id = list(backbone.stop_ids)
    return backbone


def load_reader(model: Model) -> Backbone:
    """The backbone of a run without its weights (torch's meta device).

    That is enough to say which prompts it can read. Raises InputError.
    """
    from transformers import GenerationConfig

    skeleton = load_skeleton(
        "AutoModelForCausalLM", model, "model.source", model.source, model.revision
    )
    reader = Backbone(skeleton, _settled_tokenizer(model), model.system_prompt, model=model)
    if not reader.stop_ids:
        # the end token may stand in a file beside the configuration
        skeleton.generation_config = _loaded(
            GenerationConfig.from_pretrained, "model.source", model.source, model.revision
        )
        del reader.stop_ids
    _check_end(reader)
    return reader


def _check_end(backbone: Backbone) -> None:
    if not backbone.stop_ids:
        raise InputError(
            f"model.source {backbone.model.source!r}: neither tokenizer nor generation config names"
            " an end token: no completion could end"
        )


def load_skeleton(kind: str, model: Model, key: str, source: str, revision: str | None) -> Any:
    """A model of transformers' class `kind` without weights (torch's meta device).

    Raises InputError that calls it `key`.
    """
    import torch
    import transformers

    config = load_config(model, key, source, revision)
    auto = getattr(transformers, kind)
    with torch.device("meta"):
        return auto.from_config(config, trust_remote_code=model.trust_remote_code)


def _settled_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(model, "model.source", model.source, model.revision)
    templates.settle(tokenizer, model)
    return tokenizer


def loading_options(
    model: Model, key: str, source: str, skip: list[str] | None = None
) -> dict[str, Any]:
    """What `from_pretrained` is told about device, compute type, quantisation and attention.

    skip: modules left unquantised.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = pick_device(model.device)
    dtype = _dtype(model.dtype, device)
    _check_attention(model, device, dtype, key, source)
    attention = {} if model.attention == "auto" else {"attn_implementation": model.attention}
    # a number: each process of a launch has a GPU of its own
    place = torch.cuda.current_device() if device == "cuda" else device
    return {
        "dtype": dtype,
        "device_map": {"": place},
        "quantization_config": _quantisation(model.quantisation, dtype, skip),
        "trust_remote_code": model.trust_remote_code,
        **attention,
    }


def load_tokenizer(
    model: Model, key: str, source: str, revision: str | None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, local folder or embedded asset.

    Raises InputError that calls it `key`.
    """
    from transformers import AutoTokenizer

    return _loaded(
        AutoTokenizer.from_pretrained,
        key,
        source,
        revision=revision,
        trust_remote_code=model.trust_remote_code,
    )


def load_config(model: Model, key: str, source: str, revision: str | None) -> Any:
    """The configuration of a hub id, local folder or embedded asset.

    Raises InputError that calls it `key`.
    """
    from transformers import AutoConfig

    return _loaded(
        AutoConfig.from_pretrained,
        key,
        source,
        revision=revision,
        trust_remote_code=model.trust_remote_code,
    )


def load_weights(kind: Any, key: str, source: str, **options: Any) -> tuple[Any, Any]:
    """A frozen model of transformers' class `kind`, from safetensors alone.

    With it comes transformers' report of what was missing. options: of `loading_options`, and
    what else from_pretrained takes. Raises InputError that calls the model `key`.
    """
    import torch

    options |= {"use_safetensors": True, "output_loading_info": True}
    model, report = _loaded(kind.from_pretrained, key, source, **options)
    if options["dtype"] == torch.float32:
        _keep_float32(model)
    return model.eval().requires_grad_(False), report


def _loaded(
    load: Callable[..., Any], key: str, source: str, revision: str | None, **options: Any
) -> Any:
    """What a loader of transformers makes of a source. Raises InputError that calls it `key`."""
    if revision:
        options["revision"] = revision
    try:
        return load(located(source, key), **options)
    except (OSError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{key} {source!r} brings program code of its own, which is not run unless"
                " model.trust_remote_code is true: set it only after reading that code"
            ) from error
        if isinstance(error, OSError):
            raise InputError(
                f"{key} {source!r}: no such embedded model, local folder or reachable hub id"
                f" ({first})"
            ) from error
        raise InputError(f"{key} {source!r} cannot be loaded: {first}") from error


def free_memory() -> None:
    """Let go of models that nobody holds any more, and hand a GPU's free blocks back.

    Models whose parts hold each other go too.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(wanted: str) -> str:
    """`auto` is a GPU where there is one. Raises InputError for a GPU that is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "model.device: found 'cuda', but this machine shows no GPU: use 'auto' or 'cpu'"
        )
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _keep_float32(model: PreTrainedModel) -> None:
    """Compute in float32 where float32 was asked for.

    On CPUs with bfloat16 instructions bitsandbytes 0.50 runs 4-bit layers through a bfloat16
    kernel whatever the compute type says. It is 1.4 times as fast, and the log-probability of
    one completion then differs by 0.3 between decoding and re-scoring, and between machines; in
    float32 they agree to 5e-5. `model.dtype: bfloat16` takes the fast kernel.
    """
    modules: Iterable[Any] = model.modules()
    for module in modules:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_attention(model: Model, device: str, dtype: torch.dtype, key: str, source: str) -> None:
    """Raise InputError for an attention that cannot be used.

    It is not installed, does not run here, or would change what the model computes.
    """
    import torch

    # asked before the weights are loaded, which takes minutes
    if model.attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise InputError(
                "model.attention: found 'flash_attention_2', which needs the package flash-attn:"
                " install it, or use 'auto'"
            )
        if device == "cpu" or dtype == torch.float32:
            raise InputError(
                "model.attention: found 'flash_attention_2', which runs on a GPU in bfloat16 or"
                " float16: use 'auto'"
            )
    if model.attention == "sdpa":
        revision = model.revision if key == "model.source" else None
        config = load_config(model, key, source, revision)
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            raise InputError(
                f"model.attention: found 'sdpa', which leaves out the soft-capping of {source!r}:"
                " use 'auto' or 'eager'"
            )


def located(source: str, key: str) -> str:
    """The folder of an embedded asset or local model, or the hub id as it is.

    Raises InputError that calls it `key`.
    """
    if source in assets.ASSETS:
        return str(assets.asset_path(source))
    folder = places.user_path(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise InputError(f"{key} {source!r}: the folder has no config.json")
    return str(folder) if folder.exists() else source


def _dtype(name: str, device: str) -> torch.dtype:
    import torch

    if name == "auto":
        name = {"cpu": "float32", "cuda": "bfloat16"}[device]
    return getattr(torch, name)


def _quantisation(kind: str, dtype: torch.dtype, skip: list[str] | None = None) -> Any:
    if kind == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"model.quantisation: found {kind!r}, which needs the package bitsandbytes: install it,"
            " or use 'none'"
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip,
    )
