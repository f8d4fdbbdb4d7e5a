"""One backbone, many adapters: all roles of a run share one frozen, quantised model.

    backbone = load_backbone(params.model)
    with backbone.using(None):        # reference: adapters off
        ...

The reference policy is the backbone with every adapter off; each other role is a LoRA adapter
on it.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import templates, tokens
from shfcas_lib.models.experts import Experts, by_name, find, unreached
from shfcas_lib.params.schema import Lora, Model
from shfcas_lib.storage import files

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# what configurations call the longest sequence
_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
POLICY = "default"  # TRL's DPOTrainer insists on this name for the adapter it trains


@dataclass
class Backbone:
    """A causal language model, its tokenizer, and the LoRA adapters that live on it.

    `causal` is the plain transformers model; PEFT puts its layers inside it, so calling
    `causal` runs whichever adapter is in use. `peft` is PEFT's handle, None until the first
    adapter is added.
    """

    causal: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    system_prompt: str = ""
    peft: Any = None
    active: str | None = field(default=None)
    model: Model = Model()  # what it was loaded as
    experts: Experts = Experts()  # of a mixture; found before the first adapter comes
    _told: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        if not self.experts.names:
            self.experts = find(self.causal)

    @property
    def device(self) -> torch.device:
        """Where prompts have to be: the device of the first layer."""
        return cast("torch.Tensor", self.causal.get_input_embeddings().weight).device

    @functools.cached_property
    def context(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        return positions(self.causal)

    @functools.cached_property
    def layers(self) -> Any:
        """The decoder layers, in their order: the longest list of modules."""
        import torch

        lists = [part for part in self.causal.modules() if isinstance(part, torch.nn.ModuleList)]
        return max(lists, key=len)

    @functools.cached_property
    def stop_ids(self) -> list[int]:
        """Token ids that end a completion, the one first that closes a given completion.

        That is what the chat template writes after an answer, else the tokenizer's end token.
        """
        known = self.causal.generation_config.eos_token_id
        ids = [templates.end_of_answer(self.tokenizer), self.tokenizer.eos_token_id]
        ids += known if isinstance(known, (list, tuple)) else [known]
        return list(dict.fromkeys(k for k in ids if k is not None))

    @functools.cached_property
    def writer(self) -> tokens.Writer:
        """Turns prompts and completions into token ids."""
        style = templates.Style.of(self.model)
        return tokens.Writer(self.tokenizer, style, self.system_prompt, self.stop_ids[0])

    def prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of one prompt up to where the completion starts.

        They come through the chat template where there is one.
        """
        return self.writer.prompt(prompt)

    def completion_ids(self, completion: str) -> list[int]:
        """Token ids of a completion given as text, closed by the end-of-turn token.

        A control token that the text spells is text.
        """
        return self.writer.completion(completion)

    def text(self, completion: list[int]) -> str:
        """What a person reads of a completion's tokens; its end is left out."""
        if completion and completion[-1] in self.stop_ids:
            completion = completion[:-1]
        return str(self.tokenizer.decode(completion, skip_special_tokens=True)).strip()

    def check_prompts(self, prompts: list[str], room: int) -> None:
        """Raise InputError for a prompt that `refusal` finds something against."""
        for prompt in prompts:
            refusal = self.refusal(prompt, room)
            if refusal:
                raise InputError(f"prompt {prompt[:60]!r} {refusal.told}")

    def refusal(self, prompt: str, room: int) -> templates.Refusal | None:
        """What stands against a prompt; None where nothing does.

        It does not leave `room` tokens of context, or spells what only the template may write.
        """
        return self.writer.refusal(prompt, room, self.context)

    def answer_refusal(self, prompt: str, completion: str) -> templates.Refusal | None:
        """What stands against an answer that is given to a prompt; None where nothing does."""
        return self.writer.answer_refusal(prompt, completion, self.context)

    def add_adapter(self, name: str, lora: Lora, task: str = "CAUSAL_LM", seed: int = 0) -> None:
        """Add a fresh adapter under `name`, replacing one of that name, and put it in use.

        New adapters change nothing yet.
        """
        import torch
        from peft import LoraConfig, get_peft_model

        self._tell_of_experts(lora)
        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            task_type=task,
            **self.experts.targets(lora.dropout),
        )
        with torch.random.fork_rng(devices=[]), by_name(self.causal, self.experts):
            torch.manual_seed(seed)
            self.drop_adapter(name)
            if self.peft is None:
                self.peft = get_peft_model(self.causal, config, adapter_name=name)
            else:
                self.peft.add_adapter(name, config)
        self.use(name)

    def _tell_of_experts(self, lora: Lora) -> None:
        """Say once, on stderr, where LoRA does not reach the experts of a mixture."""
        told = unreached(self.experts, "none", {"lora": lora.dropout})
        if told and not self._told and processes.is_main():
            print(told, file=sys.stderr)
            self._told = True

    def load_adapter(self, name: str, folder: Path) -> None:
        """Put a saved adapter on the backbone as `name`, replacing one of that name.

        It is not put in use.
        """
        from peft import PeftModel

        self.drop_adapter(name)
        with by_name(self.causal, self.experts):
            if self.peft is None:
                self.peft = PeftModel.from_pretrained(self.causal, str(folder), adapter_name=name)
            else:
                self.peft.load_adapter(str(folder), adapter_name=name)
        self.use(None)

    def save_adapter(self, name: str, folder: Path) -> None:
        """Write an adapter as safetensors and its configuration into `folder`.

        Every file is written whole, the weights last.
        """
        kept = set()
        with files.writing(folder), files.scratch(folder.parent, folder.name) as scratch:
            folder.mkdir(parents=True, exist_ok=True)
            self.peft.save_pretrained(scratch, selected_adapters=[name], safe_serialization=True)
            # PEFT puts the adapter called default at the top, all others below
            saved = scratch / name if (scratch / name).is_dir() else scratch
            fresh = [file for file in saved.iterdir() if file.is_file()]
            for file in sorted(fresh, key=lambda file: file.suffix == ".safetensors"):
                with files.atomic(folder / file.name) as target:
                    file.rename(target)
                kept.add(file.name)
        for file in folder.iterdir():  # of an older adapter
            if file.is_file() and file.name not in kept:
                file.unlink()

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter; unknown names are ignored.

        If it was in use, the reference is in use afterwards.
        """
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
        """Switch to adapter `name`, or to the bare backbone with None, in eval mode.

        No weights are copied. Raises InputError for an adapter that is not there.
        """
        self.causal.eval()
        if self.peft is None:
            if name is not None:
                raise InputError(f"backbone has no adapter {name!r}")
            self.active = None
            return
        if name is None:
            self.peft.base_model.disable_adapter_layers()
        else:
            adapters = self.peft.peft_config
            if name not in adapters:
                raise InputError(
                    f"backbone has no adapter {name!r} (it has: {', '.join(adapters)})"
                )
            self.peft.base_model.enable_adapter_layers()
            self.peft.set_adapter(name)
        self.active = name

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Use adapter `name`, or the reference with None, inside the block, in eval mode.

        Afterwards the one from before is in use again.
        """
        before = self.active
        self.use(name)
        try:
            yield
        finally:
            there = self.peft is not None and before in self.peft.peft_config
            self.use(before if there else None)


def positions(model: Any) -> int:
    """The longest sequence that a model was made for, in tokens.

    Beyond it are positions that it has not learnt. A model whose positions are computed and that
    names no limit has none.
    """
    import torch

    text = model.config.get_text_config()
    limits = [getattr(text, name, None) for name in _LIMITS]
    for name, module in model.named_modules():
        # the models of the RoBERTa family count from the pad token's position on
        learnt = isinstance(module, torch.nn.Embedding) and "position" in name
        if learnt and module.padding_idx is not None and len(module.weight) in limits:
            limits.append(len(module.weight) - module.padding_idx - 1)
    return min((limit for limit in limits if limit), default=1 << 30)
