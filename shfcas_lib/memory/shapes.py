"""A model's sizes, read off a skeleton without weights: configuration in, plain numbers out.

    shape = shape_of(read_config("params' model.source").config)

The skeleton is the transformers model itself on torch's meta device, so parameters are counted,
never guessed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.memory import known
from shfcas_lib.models import architecture, experts, hub, stored
from shfcas_lib.storage import assets


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder-only language model. Widths are in numbers, not bytes."""

    parameters: int  # all of them; tied embeddings count once
    # of these, in the linear layers that quantisation and LoRA work on (not embeddings, not the
    # output layer)
    linear: int
    largest: int  # of these, in the largest linear layer
    # in + out features over those layers: an adapter of rank r has r times as many parameters
    lora: int
    layers: int
    hidden: int
    intermediate: int  # width of the feed-forward part
    vocab: int
    heads: int
    queries: int  # heads x head size
    keys: int  # key-value heads x head size: K, and V, of one token in one layer
    inputs: int  # input features over one layer's linear layers
    norms: int  # input features over one layer's norms
    rms: bool  # norms that keep a float32 copy of their input (RMSNorm), or not (LayerNorm)
    parallel: bool  # attention and feed-forward read the same input (GPT-NeoX)
    fused: bool  # one matrix makes queries, keys and values
    gated: bool  # feed-forward of three matrices, one of which is a gate
    eager: bool  # attention that keeps its weights, tokens x tokens (Gemma 2)
    experts: int = 0  # of the parameters, in the fused experts of a mixture, beside the linear ones
    experts_inside: int = 0  # of these, in one layer
    # experts x (in + out): an adapter of rank r on them has r times as many parameters
    experts_lora: int = 0


@dataclass(frozen=True)
class Described:
    """A model's configuration, and a line about where it comes from, unless that is the model."""

    config: Any
    origin: str | None = None


def read_config(source: str, revision: str | None = None, config: Path | None = None) -> Described:
    """The transformers configuration of a model, or of the file or folder `config`.

    source: the name of an embedded model, a local folder or a hub id. Only config.json is read.
    For a hub's model the cache comes first, then the numbers that `known` has, then the hub; where
    a revision is pinned, the hub before `known`. Raises InputError where it cannot be had.
    """
    if config is not None:
        return Described(_read(str(config), local_files_only=True))
    if source in assets.ASSETS and not _fetched(source):
        return Described(*known.described(source))
    path = places.user_path(source)
    if source in assets.ASSETS or path.exists():
        place = assets.cache_dir() / source if source in assets.ASSETS else path
        return Described(_read(str(place), local_files_only=True))

    shipped = source in known.CONFIGS
    with contextlib.suppress(InputError):
        return Described(_read(source, revision=revision, local_files_only=True))
    if shipped and revision is None:
        return Described(*known.described(source))
    if hub.within_reach():
        return Described(_read(source, revision=revision))
    if shipped:
        return Described(*known.described(source))
    raise InputError(
        f"no config.json for {source!r} in a local folder or the cache, and no hub within reach:"
        " download that one file and name it with --config"
    )


def _read(place: str, **options: Any) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
    # transformers raises whatever a file makes it raise
    except Exception as error:
        raise InputError(
            f"no config.json for {place!r} in a local folder, the cache or a hub within reach:"
            f" download that one file and name it with --config ({stored.first_line(error)})"
        ) from error


def _fetched(asset: str) -> bool:
    """Does an embedded model lie in the cache?"""
    return (assets.cache_dir() / asset / "config.json").is_file()


def shape_of(config, classifier: bool = False) -> Shape:
    """Sizes of the causal language model, or sequence classifier, that a configuration describes.

    Raises InputError where transformers has none, or its sizes are not to be read.
    """
    try:
        return _sizes(config, classifier)
    except InputError:
        raise
    # a family's own code, met with its own configuration
    except Exception as error:
        raise InputError(
            f"the sizes of a {config.model_type!r} model cannot be read"
            f" ({stored.first_line(error)}): a plan cannot be made for it"
        ) from error


def _sizes(config: Any, classifier: bool) -> Shape:
    import torch

    model = _skeleton(config, classifier)
    layers = _layers(model)
    # the output layer is neither quantised nor adapted
    head_matrix = model.get_output_embeddings()
    linear = [sizes for sizes, matrix in _linear(model) if matrix is not head_matrix]
    # some mixtures begin with a dense layer
    layer = max(layers, key=_parameters)
    inside = [sizes for sizes, _ in _linear(layer)]
    norms = _norms(layer)
    text = model.config.get_text_config(decoder=True)
    # of a family whose layers differ, the widest
    varied = text.per_layer_config if getattr(text, "is_heterogeneous", False) else [text]
    widths = [_attention_widths(one) for one in varied]
    queries, keys = (max(widest) for widest in zip(*widths, strict=True))
    # the weight of these norms is one head wide, their input all heads
    wide = {"q_norm": queries, "k_norm": keys}
    mixture = experts.find(model)
    fused = _fused(model, mixture.names)
    routed = _routed(varied[-1], _fused(layer, experts.find_names(layer)))
    widest = max((reads for reads, _ in inside), default=0)
    return Shape(
        parameters=_parameters(model),
        linear=sum(reads * writes for reads, writes in linear),
        largest=max(reads * writes for reads, writes in linear),
        lora=sum(reads + writes for reads, writes in linear),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=max(widest, routed),
        vocab=text.vocab_size,
        heads=max(one.num_attention_heads for one in varied),
        queries=queries,
        keys=keys,
        inputs=sum(reads for reads, _ in inside),
        norms=sum(wide.get(name.rsplit(".")[-1], text.hidden_size) for name in norms),
        rms=not any(isinstance(norm, torch.nn.LayerNorm) for norm in norms.values()),
        parallel=bool(getattr(text, "use_parallel_residual", False)),
        fused=any(writes == queries + 2 * keys for _, writes in inside),
        gated=bool(routed) or sum(writes == widest for _, writes in inside) > 1,
        eager=getattr(text, "attn_logit_softcapping", None) is not None,
        experts=sum(map(math.prod, fused)),
        experts_inside=sum(map(math.prod, _fused(layer, experts.find_names(layer)))),
        experts_lora=sum(count * (one + other) for count, one, other in fused),
    )


def _fused(module: Any, names: Sequence[str]) -> list[tuple[int, int, int]]:
    """Shapes of fused experts: how many, and the two widths of each."""
    shapes = []
    for name in names:
        count, *widths = module.get_parameter(name).shape
        shapes.append((count, math.prod(widths[:-1]), widths[-1]))
    return shapes


def _routed(text: Any, fused: list[tuple[int, int, int]]) -> int:
    """Width of the feed-forward parts that one token goes through, where experts share it."""
    if not fused:
        return 0
    names = ("num_experts_per_tok", "moe_k", "num_experts_per_token", "top_k_experts")
    chosen = [getattr(text, name, None) for name in names]
    each = next((number for number in chosen if number), fused[0][0])
    return each * min(one * other for _, one, other in fused) // text.hidden_size


def _skeleton(config, classifier: bool):
    """The model on torch's meta device. Raises InputError where transformers has none."""
    import torch
    from transformers import AutoModelForSequenceClassification

    kind = "sequence classifier" if classifier else "causal language model"
    try:
        if not classifier:
            return architecture.skeleton(config)
        with torch.device("meta"):
            return AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise InputError(
            f"a {config.model_type!r} model is no {kind} that transformers knows: a plan cannot be"
            " made for it"
        ) from error


def _layers(model):
    """The decoder layers: the largest list of modules."""
    import torch

    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    return max(lists, key=_parameters)


def _norms(layer) -> dict:
    """The norms of a layer by name, whatever their class."""
    modules = dict(layer.named_modules())
    return {name: m for name, m in modules.items() if type(m).__name__.endswith("Norm")}


def _attention_widths(text) -> tuple[int, int]:
    """Width of the queries and of the keys of one token; keys and values may differ: their mean."""
    heads = text.num_attention_heads
    if getattr(text, "kv_lora_rank", None):  # DeepSeek's, whose cache holds what was widened again
        queries = heads * (text.qk_nope_head_dim + text.qk_rope_head_dim)
        return queries, (queries + heads * text.v_head_dim) // 2
    key_heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_kv_heads", None)
    if getattr(text, "multi_query", False) and not getattr(text, "new_decoder_architecture", False):
        key_heads = 1
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads * size, (key_heads or heads) * size


def _linear(module) -> list[tuple[tuple[int, int], Any]]:
    """The linear layers in a module, each with its inputs and outputs.

    GPT-2's are transformers' Conv1D, the same with its matrix transposed: both are quantised and
    adapted.
    """
    from transformers.pytorch_utils import Conv1D

    found: list[tuple[tuple[int, int], Any]] = []
    for part in module.modules():
        if not experts.is_linear(part):
            continue
        one, other = part.weight.shape
        found.append(((one, other) if isinstance(part, Conv1D) else (other, one), part))
    return found


def _parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
