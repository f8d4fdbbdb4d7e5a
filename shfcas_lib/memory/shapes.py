"""A model's sizes, read off a skeleton without weights: configuration in, plain numbers out.

    shape = shape_of(read_config("params' model.source"))

The skeleton is the transformers model itself on torch's meta device, so parameters are counted,
never guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
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


def read_config(source: str, revision: str | None = None, config: Path | None = None):
    """The transformers configuration of a model, or of the file or folder `config`.

    source: the name of an embedded model, a local folder or a hub id. Only config.json is read;
    from a hub, the cache comes first. Raises InputError where it cannot be had.
    """
    from transformers import AutoConfig

    place = str(config) if config else _place(source)
    try:
        return AutoConfig.from_pretrained(place, revision=None if config else revision)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(
            f"no config.json for {place!r} in a local folder, the cache or a hub within reach:"
            f" download that one file and name it with --config ({first})"
        ) from error


def _place(source: str) -> str:
    if source in assets.ASSETS:
        folder = assets.cache_dir() / source
        if not (folder / "config.json").is_file():
            raise InputError(
                f"the embedded model {source!r} has not been fetched yet: `shfcas assets` fetches"
                " it, or name a config.json with --config"
            )
        return str(folder)
    path = places.user_path(source)
    return str(path) if path.exists() else source


def shape_of(config, classifier: bool = False) -> Shape:
    """Sizes of the causal language model, or sequence classifier, that a configuration describes.

    Raises InputError where transformers has none.
    """
    import torch

    model = _skeleton(config, classifier)
    layers = _layers(model)
    # the output layer is neither quantised nor adapted
    head_matrix = model.get_output_embeddings()
    linear = [matrix for matrix in _linear(model) if matrix is not head_matrix]
    inside = _linear(layers[0])
    norms = _norms(layers[0])
    text = config.get_text_config()
    queries, keys = _attention_widths(text)
    # the weight of these norms is one head wide, their input all heads
    wide = {"q_norm": queries, "k_norm": keys}
    widest = max(matrix.in_features for matrix in inside)
    return Shape(
        parameters=_parameters(model),
        linear=sum(matrix.weight.numel() for matrix in linear),
        largest=max(matrix.weight.numel() for matrix in linear),
        lora=sum(matrix.in_features + matrix.out_features for matrix in linear),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=widest,
        vocab=text.vocab_size,
        heads=text.num_attention_heads,
        queries=queries,
        keys=keys,
        inputs=sum(matrix.in_features for matrix in inside),
        norms=sum(wide.get(name.rsplit(".")[-1], text.hidden_size) for name in norms),
        rms=not any(isinstance(norm, torch.nn.LayerNorm) for norm in norms.values()),
        parallel=bool(getattr(text, "use_parallel_residual", False)),
        fused=any(matrix.out_features == queries + 2 * keys for matrix in inside),
        gated=sum(matrix.out_features == widest for matrix in inside) > 1,
        eager=getattr(text, "attn_logit_softcapping", None) is not None,
    )


def _skeleton(config, classifier: bool):
    """The model on torch's meta device. Raises InputError where transformers has none."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto = AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
    try:
        with torch.device("meta"):
            return auto.from_config(config)
    except ValueError as error:
        kind = "sequence classifier" if classifier else "causal language model"
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
    """Width of the queries and of the keys of one token."""
    heads = text.num_attention_heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    return heads * size, key_heads * size


def _linear(module) -> list:
    import torch

    return [part for part in module.modules() if isinstance(part, torch.nn.Linear)]


def _parameters(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
