"""Models from where they lie: asset, folder or hub id becomes a frozen, quantised model.

    backbone = load_backbone(params.model)

Weights are read from safetensors alone; a model's own program code runs only where the
parameters say so.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas_lib.base import places, processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import (
    architecture,
    checkpoint,
    experts,
    hub,
    report,
    stored,
    templates,
    trial,
    vocabulary,
)
from shfcas_lib.models.backbone import Backbone
from shfcas_lib.params.schema import Model
from shfcas_lib.storage import assets

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_backbone(model: Model) -> Backbone:
    """Load the backbone of a run, quantised as its parameters say.

    model: the block `model` of a run's parameters; its source is an embedded asset, a local folder
    or a hub id. Where its quantisation leaves the experts of a mixture whole, a line on stderr
    says so.

    Raises InputError when the source cannot be found, is no whole decoder-only language model, is
    quantised otherwise than the parameters say, needs code of its own, or when a package, a GPU or
    a template is missing.
    """
    whence = Source("model.source", model.source, model.revision)
    config = checked_config(model, whence)
    architecture.check_policy(config, whence.name, model.trust_remote_code)
    tokenizer = settled_tokenizer(model)  # asked before the weights, which take minutes
    causal, how = _language_model(model, config, whence)
    rows = vocabulary.rows_of(causal)
    vocabulary.check(tokenizer, rows, whence.name)
    backbone = Backbone(causal, tokenizer, model.system_prompt, model=model)
    if backbone.experts.names and quantises_experts(model, how):
        backbone.experts = experts.quantise(causal, backbone.experts)
    left = experts.unreached(backbone.experts, model.quantisation, {})
    if left and processes.is_main():
        print(left, file=sys.stderr)
    _check_stops(backbone, rows, whence.name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = backbone.stop_ids[0]
    # TRL's online trainers write with it
    causal.generation_config.eos_token_id = list(backbone.stop_ids)
    trial.run(backbone, whence.name)
    return backbone


def quantises_experts(model: Model, how: stored.Treatment) -> bool:
    """Are the experts of a mixture held in NF4?"""
    return model.quantisation == "nf4" and how.method is None


def _language_model(
    model: Model, config: Any, whence: Source
) -> tuple[PreTrainedModel, stored.Treatment]:
    """The frozen language model of a source, and how it was loaded."""
    from transformers import AutoModelForCausalLM

    whole = architecture.written_by(config)
    options = loading_options(model, config, whence)
    causal = load_weights(whole or AutoModelForCausalLM, whence, **options)
    if whole is not None:
        causal = architecture.language_part(causal, whence.name)
        free_memory()
    if not hasattr(causal, causal.base_model_prefix):
        causal.base_model_prefix = architecture.body(causal)  # TRL looks there (Llama 4)
    return causal, options["how"]


def _check_stops(backbone: Backbone, rows: int, name: str) -> None:
    """Raise InputError where no completion could end. rows: tokens that the model can write."""
    if not backbone.stop_ids:
        raise InputError(
            f"{name}: neither tokenizer nor generation config names an end token: no completion"
            " could end"
        )
    if all(token >= rows for token in backbone.stop_ids):
        raise InputError(
            f"{name}: its end token has the number {backbone.stop_ids[0]}, but the model writes"
            f" {rows} tokens: no completion could end"
        )


def load_reader(model: Model) -> Backbone:
    """The backbone of a run without its weights (torch's meta device).

    That is enough to say which prompts it can read. Raises InputError.
    """
    from transformers import GenerationConfig

    whence = Source("model.source", model.source, model.revision)
    config = load_config(model, whence.key, whence.source, whence.revision)
    architecture.check_policy(config, whence.name, model.trust_remote_code)
    causal = architecture.skeleton(config, model.trust_remote_code)
    reader = Backbone(causal, settled_tokenizer(model), model.system_prompt, model=model)
    if not reader.stop_ids:
        # the end token may stand in a file beside the configuration
        causal.generation_config = _loaded(GenerationConfig.from_pretrained, whence)
        del reader.stop_ids
    _check_stops(reader, vocabulary.rows_of(causal), whence.name)
    return reader


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


def settled_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer with the template that the run asks for. Raises InputError."""
    tokenizer = load_tokenizer(model, "model.source", model.source, model.revision)
    templates.settle(tokenizer, model)
    return tokenizer


@dataclass(frozen=True)
class Source:
    """Where a model lies, and how messages call it and the key that names it."""

    key: str  # the parameter that names it
    source: str
    revision: str | None = None
    quantisation: str = "model.quantisation"  # the parameter that says how it is quantised

    @property
    def name(self) -> str:
        """What messages call the model."""
        return f"{self.key} {self.source!r}"

    @property
    def where(self) -> stored.Where:
        """The same for its quantisation."""
        return stored.Where(self.name, self.quantisation)


def checked_config(model: Model, whence: Source) -> Any:
    """The configuration of a model whose files, where they lie here, are whole.

    Raises InputError for pointers, missing and truncated files.
    """
    folder = checkpoint.local_folder(whence.source, whence.revision)
    if folder is not None:
        checkpoint.check_files(folder, whence.name)
        checkpoint.read_tensors(folder, whence.name)
    return load_config(model, whence.key, whence.source, whence.revision)


def treatment(model: Model, config: Any, whence: Source) -> stored.Treatment:
    """How a model's files are made what the parameters say. Raises InputError."""
    device = pick_device(model.device)
    dtype = _dtype(model.dtype, device)
    return stored.treat(config, model.quantisation, dtype, device, whence.where)


def loading_options(
    model: Model, config: Any, whence: Source, skip: list[str] | None = None
) -> dict[str, Any]:
    """What `load_weights` is told about device, compute type, quantisation and attention.

    config: the model's configuration, as its files have it; skip: modules left unquantised.
    """
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = pick_device(model.device)
    dtype = _dtype(model.dtype, device)
    _check_attention(model, device, dtype, config, whence.source)
    how = treatment(model, config, whence)
    attention = {} if model.attention == "auto" else {"attn_implementation": model.attention}
    # a number: each process of a launch has a GPU of its own
    place = torch.cuda.current_device() if device == "cuda" else device
    return {
        "how": how,
        "dtype": dtype,
        "device_map": {"": place},
        "quantization_config": _quantisation(how.quantisation, dtype, skip),
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
        Source(key, source, revision),
        trust_remote_code=model.trust_remote_code,
    )


def load_config(model: Model, key: str, source: str, revision: str | None) -> Any:
    """The configuration of a hub id, local folder or embedded asset.

    Raises InputError that calls it `key`.
    """
    from transformers import AutoConfig

    return _loaded(
        AutoConfig.from_pretrained,
        Source(key, source, revision),
        trust_remote_code=model.trust_remote_code,
    )


def load_weights(
    kind: Any,
    whence: Source,
    how: stored.Treatment,
    spare: str = "(?!)",
    head: str = "(?!)",
    **options: Any,
) -> Any:
    """A frozen model of transformers' class `kind`, from safetensors alone, every weight its own.

    how and options: of `loading_options`, and what else from_pretrained takes. spare: a pattern of
    weights that may be left over; head: of those of a score head. Raises InputError, also where a
    weight is missing, does not fit or is left over.
    """
    import torch

    options |= {
        "config": how.config,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,  # to name them, see the report
    }
    with _quiet():
        model, said = _loaded(kind.from_pretrained, whence, **options)
    report.check_report(said, whence.name, type(model).__name__, spare, head)
    report.check_quantised(model, whence.name)
    if getattr(model, "peft_config", None):
        raise InputError(
            f"{whence.name} is a LoRA adapter on a model, expected the model: merge it into the"
            " weights first"
        )
    with _quiet():
        model = stored.settle(model, how, options["dtype"], whence.where)
    if options["dtype"] == torch.float32:
        _keep_float32(model)
    return model.eval().requires_grad_(False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of what was not loaded, which is an error here anyway."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _loaded(load: Callable[..., Any], whence: Source, **options: Any) -> Any:
    """What a loader of transformers makes of a source. Raises InputError."""
    if whence.revision:
        options["revision"] = whence.revision
    place = located(whence.source, whence.key)
    if not Path(place).exists() and not hub.within_reach():
        options["local_files_only"] = True
    return guarded(whence, lambda: load(place, **options))


def guarded(whence: Source, load: Callable[[], Any]) -> Any:
    """What `load` makes of a model; whatever it raises becomes one sentence, an InputError."""
    try:
        return load()
    except InputError:
        raise
    # transformers, and the packages that it calls, raise whatever they like
    except Exception as error:
        raise InputError(_told(error, whence.name)) from error


def _told(error: Exception, name: str) -> str:
    """One sentence about a model that could not be loaded."""
    first = stored.first_line(error)
    if "trust_remote_code" in str(error):
        return (
            f"{name} brings program code of its own, which is not run unless"
            " model.trust_remote_code is true: set it only after reading that code"
        )
    if isinstance(error, OSError):
        return f"{name}: no such embedded model, local folder or reachable hub id ({first})"
    return f"{name} cannot be loaded: {first}"


def free_memory() -> None:
    """Let go of models that nobody holds any more, and hand a GPU's free blocks back.

    Models whose parts hold each other go too.
    """
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def pick_device(wanted: str) -> str:
    """`auto` is a CUDA GPU where there is one. Raises InputError for a GPU that is not there.

    `mps` was never tried here, so `auto` does not take it.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "model.device: found 'cuda', but this machine shows no GPU: use 'auto' or 'cpu'"
        )
    if wanted == "mps" and not torch.backends.mps.is_available():
        raise InputError(
            "model.device: found 'mps', but this machine shows no GPU of Apple's: use 'auto' or"
            " 'cpu'"
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


def _check_attention(
    model: Model, device: str, dtype: torch.dtype, config: Any, source: str
) -> None:
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
        name = "bfloat16" if device == "cuda" else "float32"
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
