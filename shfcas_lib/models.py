"""One backbone, many adapters: policy, reference, proxy and refined reward share one frozen, quantised model.

    backbone = load_backbone(params.model)
    with backbone.using(None):        # reference: adapters off
        ...

The reference policy is the backbone with every adapter off; each other role is a LoRA adapter on it.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas_lib import assets, dialogues, runs, templates
from shfcas_lib.params import InputError, Lora, Model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

POLICY = "default"  # TRL's DPOTrainer insists on this name for the adapter it trains


@dataclass
class Backbone:
    """A causal language model, its tokenizer, and the LoRA adapters that live on it.

    `causal` is the plain transformers model; PEFT puts its layers inside it, so calling `causal` runs whichever adapter
    is in use. `peft` is PEFT's handle, None until the first adapter is added.
    """

    causal: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    system_prompt: str = ""
    peft: Any = None
    active: str | None = field(default=None)
    model: Model = Model()  # what it was loaded as

    @property
    def device(self) -> torch.device:
        return self.causal.get_input_embeddings().weight.device

    @property
    def context(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return getattr(self.causal.config.get_text_config(), "max_position_embeddings", 1 << 30)

    @functools.cached_property
    def stop_ids(self) -> list[int]:
        """Token ids that end a completion; first the one that closes a given completion: what the chat template writes after an answer,
        else the tokenizer's end token."""
        known = self.causal.generation_config.eos_token_id
        known = list(known) if isinstance(known, (list, tuple)) else [known]
        ids = [templates.end_of_answer(self.tokenizer), self.tokenizer.eos_token_id, *known]
        return list(dict.fromkeys(k for k in ids if k is not None))

    def messages(self, prompt: str) -> list[dict[str, str]]:
        """The chat that a prompt stands for: the system message, if one is set, then the user's turn, or all turns of a history."""
        system = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        return [*system, *dialogues.messages(prompt)]

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of one prompt up to where the completion starts, through the chat template where there is one."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(self.prompt_text(prompt))["input_ids"]
        return self.tokenizer.apply_chat_template(self.messages(prompt), add_generation_prompt=True, return_dict=True)["input_ids"]

    def prompt_text(self, prompt: str) -> str:
        """The prompt as plain text, for models without a chat template."""
        text = "\n\n".join([*([self.system_prompt] if self.system_prompt else []), dialogues.plain(prompt), ""])
        return text + "Assistant: " if len(dialogues.messages(prompt)) > 1 else text

    def completion_ids(self, completion: str) -> list[int]:
        """Token ids of a completion given as text, closed by the end-of-turn token. A control token that the text spells is text."""
        return self.tokenizer(completion, add_special_tokens=False, split_special_tokens=True)["input_ids"] + [self.stop_ids[0]]

    def check_prompts(self, prompts: list[str], room: int) -> None:
        """Raise InputError for a prompt that `refusal` finds something against."""
        for prompt in prompts:
            refusal = self.refusal(prompt, room)
            if refusal:
                raise InputError(f"prompt {prompt[:60]!r} {refusal.told}")

    def refusal(self, prompt: str, room: int) -> templates.Refusal | None:
        """What stands against a prompt: that it does not leave `room` tokens of context, or spells what only the template may write."""
        spelt = self.guard.spelt(dialogues.messages(prompt))
        if spelt:
            text = f"holds the model's {spelt}"
            return templates.Refusal(text, text)
        length = len(self.prompt_ids(prompt))
        if length + room > self.context:
            more = f"with max_new_tokens {room} that is more than the model's context of {self.context}"
            return templates.Refusal(f"has {length} tokens; {more}", f"is too long; {more}")
        return None

    @functools.cached_property
    def guard(self) -> templates.Guard:
        """Knows what only the template may write."""
        return templates.Guard(self.tokenizer)

    def add_adapter(self, name: str, lora: Lora, task: str = "CAUSAL_LM", seed: int = 0) -> None:
        """Add a fresh adapter under `name`, replacing one of that name, and put it in use. New adapters change nothing yet."""
        import torch
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(r=lora.r, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules="all-linear", task_type=task)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.drop_adapter(name)
            if self.peft is None:
                self.peft = get_peft_model(self.causal, config, adapter_name=name)
            else:
                self.peft.add_adapter(name, config)
        self.use(name)

    def load_adapter(self, name: str, folder: Path) -> None:
        """Put a saved adapter on the backbone as `name`, replacing one of that name. It is not put in use."""
        from peft import PeftModel

        self.drop_adapter(name)
        if self.peft is None:
            self.peft = PeftModel.from_pretrained(self.causal, str(folder), adapter_name=name)
        else:
            self.peft.load_adapter(str(folder), adapter_name=name)
        self.use(None)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write an adapter as safetensors and its configuration into `folder`, file by file whole, the weights last."""
        kept = set()
        with runs.writing(folder), runs.scratch(folder.parent, folder.name) as scratch:
            folder.mkdir(parents=True, exist_ok=True)
            self.peft.save_pretrained(scratch, selected_adapters=[name], safe_serialization=True)
            saved = scratch / name if (scratch / name).is_dir() else scratch  # PEFT puts the adapter called default at the top, all others below
            for file in sorted((file for file in saved.iterdir() if file.is_file()), key=lambda file: file.suffix == ".safetensors"):
                with runs.atomic(folder / file.name) as target:
                    file.rename(target)
                kept.add(file.name)
        for file in folder.iterdir():  # of an older adapter
            if file.is_file() and file.name not in kept:
                file.unlink()

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter; unknown names are ignored. If it was in use, the reference is in use afterwards."""
        if self.peft is None or name not in self.peft.peft_config:
            return
        before = self.active
        if len(self.peft.peft_config) == 1:
            self.peft.unload()
            self.peft = None
        else:
            self.peft.delete_adapter(name)  # PEFT puts another adapter in use here
        self.use(None if before == name else before)

    def use(self, name: str | None) -> None:
        """Switch to adapter `name`, or to the bare backbone with None, in eval mode. No weights are copied."""
        self.causal.eval()
        if self.peft is None:
            if name is not None:
                raise InputError(f"backbone has no adapter {name!r}")
            self.active = None
            return
        if name is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            if name not in self.peft.peft_config:
                raise InputError(f"backbone has no adapter {name!r} (it has: {', '.join(self.peft.peft_config)})")
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(name)
        self.active = name

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Use adapter `name` (None: the reference) inside the block, in eval mode, then go back to the one before."""
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            self.use(before if self.peft is not None and before in self.peft.peft_config else None)


def load_backbone(model: Model) -> Backbone:
    """Load the backbone of a run: an embedded asset, a local folder or a hub id, quantised as asked.

    Raises InputError when the source cannot be found, when it needs code of its own, or when a package, a GPU or a template is missing.
    """
    from transformers import AutoModelForCausalLM

    common = loading(model, "model.source", model.source)
    tokenizer = _settled_tokenizer(model)
    causal, _ = load_weights(AutoModelForCausalLM, "model.source", model.source, revision=model.revision, **common)
    backbone = Backbone(causal, tokenizer, model.system_prompt, model=model)
    if not backbone.stop_ids:
        raise InputError(f"model.source {model.source!r}: neither tokenizer nor generation config names an end token: no completion could end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = backbone.stop_ids[0]
    return backbone


def load_reader(model: Model) -> Backbone:
    """The backbone of a run without its weights (torch's meta device): enough to say which prompts it can read. Raises InputError."""
    import torch
    from transformers import AutoModelForCausalLM

    config = load_config(model, "model.source", model.source, model.revision)
    with torch.device("meta"):
        causal = AutoModelForCausalLM.from_config(config, trust_remote_code=model.trust_remote_code)
    return Backbone(causal, _settled_tokenizer(model), model.system_prompt)


def _settled_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(model, "model.source", model.source, model.revision)
    templates.settle(tokenizer, model)
    return tokenizer


def loading(model: Model, key: str, source: str, skip: list[str] | None = None) -> dict[str, Any]:
    """What `from_pretrained` is told about device, compute type, quantisation and attention. skip: modules left unquantised."""
    import torch
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    device = pick_device(model.device)
    dtype = _dtype(model.dtype, device)
    _check_attention(model, device, dtype, key, source)
    attention = {} if model.attention == "auto" else {"attn_implementation": model.attention}
    place = torch.cuda.current_device() if device == "cuda" else device  # a number: each process of a launch has a GPU of its own
    return {"dtype": dtype, "device_map": {"": place}, "quantization_config": _quantisation(model.quantisation, dtype, skip),
            "trust_remote_code": model.trust_remote_code, **attention}


def load_tokenizer(model: Model, key: str, source: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id, local folder or embedded asset. Raises InputError that calls it `key`."""
    from transformers import AutoTokenizer

    return _found(AutoTokenizer.from_pretrained, key, source, revision=revision, trust_remote_code=model.trust_remote_code)


def load_config(model: Model, key: str, source: str, revision: str | None) -> Any:
    """The configuration of a hub id, local folder or embedded asset. Raises InputError that calls it `key`."""
    from transformers import AutoConfig

    return _found(AutoConfig.from_pretrained, key, source, revision=revision, trust_remote_code=model.trust_remote_code)


def load_weights(kind: Any, key: str, source: str, **told: Any) -> tuple[Any, Any]:
    """A frozen model of transformers' class `kind`, from safetensors alone, and transformers' report of what was missing. Raises InputError
    that calls it `key`."""
    import torch

    model, report = _found(kind.from_pretrained, key, source, use_safetensors=True, output_loading_info=True, **told)
    if told["dtype"] == torch.float32:
        _keep_float32(model)
    return model.eval().requires_grad_(False), report


def _found(load: Callable[..., Any], key: str, source: str, revision: str | None, **told: Any) -> Any:
    try:
        return load(resolved(source, key), **({"revision": revision} if revision else {}), **told)
    except InputError:
        raise
    except (OSError, ValueError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        if "trust_remote_code" in str(error):
            raise InputError(f"{key} {source!r} brings program code of its own, which is not run unless model.trust_remote_code is true: "
                             "set it only after reading that code") from error
        if isinstance(error, OSError):
            raise InputError(f"{key} {source!r}: no such embedded model, local folder or reachable hub id ({first})") from error
        raise InputError(f"{key} {source!r} cannot be loaded: {first}") from error


def free_memory() -> None:
    """Let go of models that nobody holds any more, also where their parts hold each other, and hand a GPU's free blocks back."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def pick_device(wanted: str) -> str:
    """`auto` is a GPU where there is one. Raises InputError for a GPU that is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError("model.device: found 'cuda', but this machine shows no GPU: use 'auto' or 'cpu'")
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def _keep_float32(model: PreTrainedModel) -> None:
    """Compute in float32 where float32 was asked for.

    On CPUs with bfloat16 instructions bitsandbytes 0.50 runs 4-bit layers through a bfloat16 kernel whatever the compute
    type says. It is 1.4 times as fast, and the log-probability of one completion then differs by 0.3 between decoding and
    re-scoring, and between machines; in float32 they agree to 5e-5. `model.dtype: bfloat16` takes the fast kernel.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def _check_attention(model: Model, device: str, dtype: torch.dtype, key: str, source: str) -> None:
    """Raise InputError for an attention that is not installed, does not run here, or would change what the model computes."""
    import torch

    if model.attention == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise InputError("model.attention: found 'flash_attention_2', which needs the package flash-attn: install it, or use 'auto'")
        if device == "cpu" or dtype == torch.float32:
            raise InputError("model.attention: found 'flash_attention_2', which runs on a GPU in bfloat16 or float16: use 'auto'")
    if model.attention == "sdpa":
        config = load_config(model, key, source, None if key != "model.source" else model.revision)
        if getattr(config.get_text_config(), "attn_logit_softcapping", None):
            raise InputError(f"model.attention: found 'sdpa', which leaves out the soft-capping of {source!r}: use 'auto' or 'eager'")


def resolved(source: str, key: str) -> str:
    """The folder of an embedded asset or local model, or the hub id as it is. Raises InputError that calls it `key`."""
    if source in assets.ASSETS:
        return str(assets.asset_path(source))
    folder = runs.found(source)
    if folder.exists() and not (folder / "config.json").is_file():
        raise InputError(f"{key} {source!r}: the folder has no config.json")
    return str(folder) if folder.exists() else source


def _dtype(name: str, device: str) -> torch.dtype:
    import torch

    return getattr(torch, {"cpu": "float32", "cuda": "bfloat16"}[device] if name == "auto" else name)


def _quantisation(kind: str, dtype: torch.dtype, skip: list[str] | None = None):
    if kind == "none":
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"model.quantisation: found {kind!r}, which needs the package bitsandbytes: install it, or use 'none'")
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=skip)
