"""A reward as a folder that `AutoModelForSequenceClassification.from_pretrained` loads.

    write_reward(backbone, reward, folder)                 # an adapter, or a probe with its layers
    write_reward(backbone, reward, folder, merged=True)    # whole weights, no quantisation

The raw logit of what is written is the reward's own score, its unit of spread included. A LoRA
reward is a standard classifier. A probe reads pooled states of a middle layer, which no standard
class does; so its folder holds the layers up to that one and a file of code, which runs only where
`trust_remote_code=True` says so. (A standard classifier could only imitate it: trained on the
probe's scores, it would be another reward, with errors of its own.)
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas_lib import trust
from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import architecture
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.models.decoding import DEPTH, PROMPT_TOKENS, START_TOKENS
from shfcas_lib.out import templates, weights
from shfcas_lib.rewards import Corrected, Probe, Published, RewardModel
from shfcas_lib.storage import assets

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.training.reward import LoraReward

CODE = "modeling_probe_reward.py"
_LABELS = {"id2label": {0: "reward"}, "label2id": {"reward": 0}}


@dataclass(frozen=True)
class Written:
    """What lies in a folder now. form: probe, adapter or merged; arguments: what from_pretrained
    is given beside the folder, as text."""

    folder: Path
    form: str
    dtype: str
    arguments: dict[str, str]


def write_reward(
    backbone: Backbone,
    reward: RewardModel,
    folder: Path,
    merged: bool = False,
    dtype: str | None = None,
) -> Written:
    """Write a reward, its tokenizer and its configuration into an empty folder.

    dtype: of whole weights; None: the compute type of the run. Raises InputError for a reward that
    is no single model, or of an architecture that transformers has no classifier of.
    """
    from shfcas_lib.training.reward import LoraReward

    plain = trust.inner(reward)
    templates.check_standard(backbone)
    if isinstance(plain, (Published, Corrected)):
        raise InputError(
            "the reward is a published model, or one with a correction on top: two models, which"
            " no single classifier holds; expected a reward that was trained here"
            " (reward.proxy trained)"
        )
    if isinstance(plain, LoraReward):
        name = f"model.source {backbone.model.source!r}"
        architecture.check_classifier(backbone.causal.config, name)
        templates.check_whole(merged, dtype)
    dtype = dtype or str(backbone.causal.dtype).removeprefix("torch.")
    if isinstance(plain, Probe):
        written = _write_probe(backbone, plain, folder, dtype)
    elif isinstance(plain, LoraReward) and merged:
        written = _write_merged(backbone, plain, folder, dtype)
    else:
        assert isinstance(plain, LoraReward)
        written = _write_adapter(backbone, plain, folder, dtype)
    templates.for_reward(backbone, written.form != "probe").save_pretrained(folder)
    return written


def _write_probe(backbone: Backbone, probe: Probe, folder: Path, dtype: str) -> Written:
    import torch

    from shfcas_lib.out.modeling_probe_reward import ProbeReward, ProbeRewardConfig

    layers = _cut(backbone)
    config = ProbeRewardConfig(
        backbone=layers.to_dict(),
        layer=round(DEPTH * _depth(backbone)),
        start_tokens=START_TOKENS,
        prompt_tokens=PROMPT_TOKENS,
        answer_start=templates.answer_start(backbone),
        stop=backbone.stop_ids,
        num_labels=1,
        pad_token_id=backbone.tokenizer.pad_token_id,
        **_LABELS,
    )
    config.auto_map = {
        "AutoConfig": f"{CODE.removesuffix('.py')}.ProbeRewardConfig",
        "AutoModelForSequenceClassification": f"{CODE.removesuffix('.py')}.ProbeReward",
    }
    with torch.device("meta"):
        model = ProbeReward(config)
    head = {"mean": probe.mean, "std": probe.std, "weight": probe.weight / probe.spread}
    found = {f"backbone.{name}": tensor for name, tensor in weights.layers(backbone).items()}
    found |= {f"head.{name}": torch.as_tensor(value).float() for name, value in head.items()}
    _save(model, found, folder, dtype, but="head.")
    shutil.copy(Path(__file__).with_name(CODE), folder / CODE)
    return Written(folder, "probe", dtype, {"trust_remote_code": "True"})


def _cut(backbone: Backbone) -> Any:
    """The configuration of the layers that a probe needs: one above the one it reads, whose
    states come before whatever a model does after its last layer."""
    config = _plain_config(backbone)
    text = config.get_text_config()
    kept = min(round(DEPTH * _depth(backbone)) + 1, _depth(backbone))
    text.num_hidden_layers = kept
    for name in ("layer_types", "attention_types", "no_rope_layers", "mlp_layer_types"):
        listed = getattr(text, name, None)
        if isinstance(listed, list) and len(listed) > kept:
            setattr(text, name, listed[:kept])
    return config


def _depth(backbone: Backbone) -> int:
    return backbone.causal.config.get_text_config().num_hidden_layers


def _plain_config(backbone: Backbone) -> Any:
    """The backbone's configuration without its quantisation."""
    config = copy.deepcopy(backbone.causal.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def _write_merged(backbone: Backbone, reward: LoraReward, folder: Path, dtype: str) -> Written:
    import torch
    from transformers import AutoModelForSequenceClassification

    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(_classifier_config(backbone))
    start = f"{model.base_model_prefix}."
    layers = weights.layers(backbone, reward.name)
    found = {f"{start}{name}": tensor for name, tensor in layers.items()}
    found["score.weight"] = _head(reward)
    _save(model, found, folder, dtype)
    return Written(folder, "merged", dtype, {})


def _classifier_config(backbone: Backbone) -> Any:
    config = _plain_config(backbone)
    config.num_labels, config.pad_token_id = 1, backbone.tokenizer.pad_token_id
    config.get_text_config().pad_token_id = config.pad_token_id
    config.id2label, config.label2id = _LABELS["id2label"], _LABELS["label2id"]
    # servers then give the logit as it is, and no probability of it
    config.problem_type = "regression"
    return config


def _head(reward: LoraReward) -> Any:
    """The score head in units of the reward's spread, (1, hidden), float32."""
    return (reward.head.weight.detach() / reward.spread).float().cpu()


def _save(model: Any, found: weights.Weights, folder: Path, dtype: str, but: str = " ") -> None:
    """Write a model that has its shape alone, with these weights. but: how the names begin of
    those that stay float32."""
    import torch

    wanted = {name: found[name] for name in model.state_dict()}
    kind = getattr(torch, dtype)
    for name, tensor in wanted.items():
        if tensor.is_floating_point() and not name.startswith(but):
            wanted[name] = tensor.to(kind)
    model.load_state_dict(wanted, assign=True)
    model.tie_weights()
    model.config.dtype = kind
    model.save_pretrained(folder)


def _write_adapter(backbone: Backbone, reward: LoraReward, folder: Path, dtype: str) -> Written:
    from safetensors.torch import save_file

    config = _adapter_config(backbone, reward.name)
    config.task_type, config.modules_to_save = "SEQ_CLS", ["score"]
    config.save_pretrained(str(folder))
    found = _adapter_weights(backbone, reward.name)
    found["base_model.model.score.weight"] = _head(reward)
    save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    arguments = {"num_labels": "1", "pad_token_id": str(backbone.tokenizer.pad_token_id)}
    arguments |= {"id2label": str(_LABELS["id2label"])}
    return Written(folder, "adapter", dtype, arguments | loading_arguments(backbone, "score"))


def _adapter_weights(backbone: Backbone, name: str) -> weights.Weights:
    from peft import get_peft_model_state_dict

    found = get_peft_model_state_dict(backbone.peft, adapter_name=name)
    return {key: tensor.detach().cpu().contiguous() for key, tensor in found.items()}


def _adapter_config(backbone: Backbone, name: str) -> Any:
    """PEFT's configuration of an adapter, which names where its base lies."""
    config = copy.deepcopy(backbone.peft.peft_config[name])
    config.inference_mode = True
    config.base_model_name_or_path = base_of(backbone)
    config.revision = backbone.model.revision
    return config


def write_policy_adapter(backbone: Backbone, folder: Path, dtype: str) -> Written:
    """Write the policy's adapter as PEFT loads it."""
    from safetensors.torch import save_file

    _adapter_config(backbone, POLICY).save_pretrained(str(folder))
    found = _adapter_weights(backbone, POLICY)
    save_file(found, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return Written(folder, "adapter", dtype, loading_arguments(backbone))


def write_merged_policy(backbone: Backbone, folder: Path, dtype: str) -> Written:
    """Write the language model with the policy's adapter merged into it."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_plain_config(backbone))
    model.generation_config = copy.deepcopy(backbone.causal.generation_config)
    _save(model, weights.whole(backbone, POLICY), folder, dtype)
    return Written(folder, "merged", dtype, {})


def base_of(backbone: Backbone) -> str:
    """Where the base model of an adapter is found: a hub id, or a folder on this machine."""
    source = backbone.model.source
    if source in assets.ASSETS:
        return str(assets.asset_path(source))
    place = places.user_path(source)
    return str(place.resolve()) if place.exists() else source


def loading_arguments(backbone: Backbone, head: str | None = None) -> dict[str, str]:
    """What from_pretrained is told, as text, so that the base is the one of the run. head: a
    module that is not quantised."""
    dtype = f"torch.{str(backbone.causal.dtype).removeprefix('torch.')}"
    skip = f", llm_int8_skip_modules=[{head!r}]" if head else ""
    quantised = {
        "none": "",
        "int8": f"BitsAndBytesConfig(load_in_8bit=True{skip})",
        "nf4": (
            "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4',"
            f" bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype={dtype}{skip})"
        ),
    }[backbone.model.quantisation]
    return {"dtype": dtype} | ({"quantization_config": quantised} if quantised else {})
