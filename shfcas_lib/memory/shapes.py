"""A model's sizes, read off a skeleton that holds no weights: configuration goes in, plain
numbers come out.

    shape = measure(read_config("params' model.source"))

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
    """The transformers configuration of an embedded model, a local folder or a hub id, or of the
    file or folder `config`.

    Only config.json is read; from a hub, the cache comes first. Raises InputError where it cannot
    be had.
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
    return str(places.user_path(source)) if places.user_path(source).exists() else source


def shape_of(config, classifier: bool = False) -> Shape:
    """Sizes of the causal language model, or sequence classifier, that a configuration describes.

    Raises InputError where transformers has none.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            model = (
                AutoModelForSequenceClassification if classifier else AutoModelForCausalLM
            ).from_config(config)
    except ValueError as error:
        kind = "sequence classifier" if classifier else "causal language model"
        raise InputError(
            f"a {config.model_type!r} model is no {kind} that transformers knows: a plan cannot be"
            " made for it"
        ) from error
    layers = max(
        (m for m in model.modules() if isinstance(m, torch.nn.ModuleList)),
        key=lambda m: sum(p.numel() for p in m.parameters()),
    )
    linear = [
        m
        for m in model.modules()
        if isinstance(m, torch.nn.Linear) and m is not model.get_output_embeddings()
    ]
    inside = [m for m in layers[0].modules() if isinstance(m, torch.nn.Linear)]
    norms = {name: m for name, m in layers[0].named_modules() if type(m).__name__.endswith("Norm")}
    text = config.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads, keys = (
        text.num_attention_heads,
        (getattr(text, "num_key_value_heads", None) or text.num_attention_heads),
    )
    # their weight is one head wide, their input all heads
    wide = {
        "q_norm": heads * head,
        "k_norm": keys * head,
    }
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for m in linear),
        largest=max(m.weight.numel() for m in linear),
        lora=sum(m.in_features + m.out_features for m in linear),
        layers=len(layers),
        hidden=text.hidden_size,
        intermediate=max(m.in_features for m in inside),
        vocab=text.vocab_size,
        heads=heads,
        queries=heads * head,
        keys=keys * head,
        inputs=sum(m.in_features for m in inside),
        norms=sum(wide.get(name.rsplit(".")[-1], text.hidden_size) for name in norms),
        rms=not any(isinstance(m, torch.nn.LayerNorm) for m in norms.values()),
        parallel=bool(getattr(text, "use_parallel_residual", False)),
        fused=any(m.out_features == heads * head + 2 * keys * head for m in inside),
        gated=sum(m.out_features == max(n.in_features for n in inside) for m in inside) > 1,
        eager=getattr(text, "attn_logit_softcapping", None) is not None,
    )
