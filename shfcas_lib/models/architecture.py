"""What kind of model a configuration describes, and the language model inside it.

    check_policy(config, "model.source 'x'")      # raises: encoder, classifier, encoder-decoder ...
    causal = skeleton(config)                     # that language model without weights

A multimodal checkpoint holds a language model beside its towers for pictures and sound. It is
loaded as the class that wrote it, and the language model is taken out (`language_part`): every
stage then sees the text model alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shfcas_lib.base.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# How the names of classes end that read texts and write none.
_READERS = (
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
    "ForMaskedLM",
    "ForPreTraining",
    "ForTextEncoding",
    "RewardModel",
)
_CACHE_METHODS = ("batch_repeat_interleave", "batch_select_indices")
# What a loader of transformers notes on a model that it quantised; PEFT reads it.
_MARKS = (
    "hf_quantizer",
    "is_quantized",
    "quantization_method",
    "is_loaded_in_4bit",
    "is_loaded_in_8bit",
)


def check_policy(config: Any, name: str, trust_remote_code: bool = False) -> None:
    """Raise InputError for a configuration of anything but a decoder-only language model.

    name: what messages call the model. A class of the model's own, where it may run, is not
    judged here.
    """
    if _own_code(config, "AutoModelForCausalLM") and trust_remote_code:
        return
    kind = _kind(config)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError(f"{name} is an encoder-decoder ({kind}), {_EXPECTED}")
    if kind.endswith(_READERS):
        raise InputError(f"{name} is a {kind}, which writes no text, {_EXPECTED}")
    if _encodes(config):
        raise InputError(
            f"{name} is an encoder ({kind}), which reads a text in both directions, {_EXPECTED}"
        )
    text = text_config(config) if written_by(config) is not None else config
    if causal_class(text) is None:
        several = ", and none for the language model inside it" if is_composite(config) else ""
        raise InputError(
            f"{name} is a {kind}: transformers has no causal language model of the type"
            f" {config.model_type!r}{several}, {_EXPECTED}"
        )
    if _keeps_state(text):
        raise InputError(
            f"{name} is a {kind}, which keeps a running state in place of keys and values (linear"
            " attention, state space): sampling cannot share a prompt among its completions there,"
            " expected a model of attention layers alone"
        )


_EXPECTED = "expected a decoder-only language model"


def check_classifier(config: Any, name: str, trust_remote_code: bool = False) -> None:
    """Raise InputError where transformers has no sequence classifier of this type."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as classifiers

    own = _own_code(config, "AutoModelForSequenceClassification") and trust_remote_code
    if not own and type(config) not in classifiers:
        raise InputError(
            f"{name} is a {_kind(config)}: transformers has no sequence classifier of the type"
            f" {config.model_type!r}, expected a reward model"
        )


def _kind(config: Any) -> str:
    """The class that wrote the checkpoint, else the type of its configuration."""
    return next(iter(config.architectures or []), config.model_type)


def _own_code(config: Any, auto: str) -> bool:
    """Does the model bring a class of its own for this auto class?"""
    return auto in (getattr(config, "auto_map", None) or {})


def _encodes(config: Any) -> bool:
    """Is it an encoder that transformers would run as a language model all the same?"""
    from transformers import MODEL_FOR_MASKED_LM_MAPPING as encoders

    return type(config) in encoders and getattr(config, "is_decoder", None) is False


def _keeps_state(config: Any) -> bool:
    """Does any layer keep something else than keys and values of every token?"""
    from transformers import DynamicCache

    if getattr(causal_class(config), "_is_stateful", False):
        return True
    try:
        return not shares_prompts(DynamicCache(config=text_config(config)))
    except (
        AttributeError,
        ValueError,
    ):  # a family with a cache of its own, tried when it is loaded
        return False


def shares_prompts(cache: Any) -> bool:
    """Can the decoder repeat and drop rows of this cache?"""
    layers = getattr(cache, "layers", [])
    return all(hasattr(layer, method) for layer in layers for method in _CACHE_METHODS)


def text_config(config: Any) -> Any:
    """The configuration of the language model; of a plain language model its own."""
    return config.get_text_config(decoder=True)


def is_composite(config: Any) -> bool:
    """Does the configuration describe other parts beside a language model?"""
    return text_config(config) is not config


def causal_class(config: Any) -> Any:
    """transformers' language model for a configuration, or None."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as language_models

    return language_models.get(type(config), None)


def written_by(config: Any) -> Any:
    """The multimodal class to load a checkpoint with; None for one that holds text alone."""
    import transformers

    if not is_composite(config):
        return None
    writer = getattr(transformers, _kind(config), None)
    inner = (causal_class(config), causal_class(text_config(config)))
    # some families write their text model alone under the configuration of the whole
    if writer is not None and writer.__name__.endswith("ForCausalLM") and writer in inner:
        return None
    return writer or causal_class(config)


def skeleton(config: Any, trust_remote_code: bool = False) -> PreTrainedModel:
    """The language model that a configuration describes, on torch's meta device."""
    import torch
    from transformers import AutoModelForCausalLM

    if written_by(config) is not None:
        config = text_config(config)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def body(model: Any) -> str:
    """The name of a model's part below its head: the one that holds the input embedding."""
    embedding = model.get_input_embeddings()
    for name, part in model.named_children():
        if any(module is embedding for module in part.modules()):
            return name
    raise InputError(f"a {type(model).__name__} has no part below its head that reads tokens")


def language_part(whole: PreTrainedModel, name: str) -> PreTrainedModel:
    """The language model of a loaded multimodal one; no weight is copied.

    name: what messages call the model. Raises InputError where the parts are not found.
    """
    causal = skeleton(whole.config)
    place = body(causal)
    wanted = type(getattr(causal, place))
    found = [module for module in whole.modules() if type(module) is wanted]
    head = whole.get_output_embeddings()
    if len(found) != 1 or head is None:
        raise InputError(
            f"{name}: no {wanted.__name__} with an output layer was found in the"
            f" {type(whole).__name__}, expected a language model"
        )
    setattr(causal, place, found[0])
    causal.set_output_embeddings(head)
    causal.generation_config = whole.generation_config
    for mark in _MARKS:
        if hasattr(whole, mark):
            setattr(causal, mark, getattr(whole, mark))
    return causal
