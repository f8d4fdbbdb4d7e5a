"""The heavy stages of a run at given sizes, each with its measured peak of memory: what estimates
are checked against.

    meter = Meter("cpu")                                    # everything imported so far is no stage's memory
    backbone = random_backbone(config, "nf4", "cpu")        # random weights, quantised one matrix at a time
    for stage, peak, seconds, tokens in run(backbone, params, 128, meter): ...

The stages are the library's own functions on made-up texts of exact length; nothing is mocked.
Random weights cost the same memory as trained ones.
"""

from __future__ import annotations

import ctypes
import gc
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from shfcas_lib import pool
from shfcas_lib.models import loading
from shfcas_lib.models.backbone import POLICY, Backbone
from shfcas_lib.params.schema import Params
from shfcas_lib.training import policy as policy_training
from shfcas_lib.training import reward as lora_reward
from shfcas_lib.training import sft

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt's names for them


class Measured(NamedTuple):
    stage: str
    peak: int  # bytes above what was in use before the backbone
    reserved: int  # bytes that the allocator held
    seconds: float
    tokens: int  # that went through the model forwards, prompts included


class Meter:
    """Peak memory above what was in use when the meter was made, in bytes.

    On a GPU: torch's own count of allocated bytes. On a CPU: the kernel's high-water mark of
    resident memory, reset before each stage. There, the allocator is told to give every block
    above a quarter of a megabyte back at once, so that resident memory follows the tensors that
    live.
    """

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        if not self.cuda:
            libc = ctypes.CDLL(None)
            libc.mallopt(MMAP_THRESHOLD, 1 << 18)
            libc.mallopt(TRIM_THRESHOLD, 1 << 18)
        self.baseline = self._tidy()

    def reset(self) -> None:
        self._tidy()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")

    def reserved(self) -> int:
        """What the allocator held at the peak; on a CPU the peak itself."""
        return torch.cuda.max_memory_reserved() if self.cuda else self.peak()

    def peak(self) -> int:
        return (
            torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        ) - self.baseline

    def current(self) -> int:
        return self._tidy() - self.baseline

    def _tidy(self) -> int:
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            return torch.cuda.memory_allocated()
        ctypes.CDLL(None).malloc_trim(0)
        return _status("VmRSS")


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def tokenizer(vocab: int):
    """A tokenizer of `vocab` tokens for which every ASCII letter is one token; the last id ends a
    text.
    """
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"<{k}>" for k in range(len(letters), vocab - 1)), "<end>"]
    inner = Tokenizer(BPE(vocab={name: k for k, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer, inner.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


def random_backbone(config, quantisation: str, device: str, dtype: str = "auto") -> Backbone:
    """A backbone with random weights, built on the device: in full precision it holds one matrix
    at a time.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    dtype = loading._dtype(dtype, device)
    with init_empty_weights(include_buffers=False):
        causal = AutoModelForCausalLM.from_config(config, dtype=dtype)
    asked = loading._quantisation(quantisation, dtype)
    quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=False) if asked else None
    if quantizer:
        quantizer.preprocess_model(model=causal, device_map={"": device}, dtype=dtype)
    for module in causal.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.device.type == "meta":
                module._parameters[name] = _made(module, name, weight, dtype, device)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)
    causal.tie_weights()
    if quantizer:
        causal.config.quantization_config = asked
        quantizer.postprocess_model(causal)
        causal.hf_quantizer = quantizer
    causal.eval().requires_grad_(False)
    if dtype == torch.float32:
        loading._keep_float32(causal)
    return Backbone(causal, tokenizer(config.vocab_size))


def unmapped(backbone: Backbone) -> Backbone:
    """The same backbone with its weights copied out of the file they were loaded from.

    On a CPU a weight of the file's own type stays a window into it, and the whole file counts as
    resident although the kernel may drop it.
    """
    for weight in backbone.causal.parameters():
        if weight.is_floating_point():
            weight.data = weight.data.clone()
    return backbone


def _made(module, name: str, weight, dtype, device: str):
    kind = type(module).__name__
    if weight.ndim == 1:
        value = (
            torch.ones(weight.shape, dtype=dtype, device=device)
            if name == "weight"
            else torch.zeros(weight.shape, dtype=dtype, device=device)
        )
    else:
        value = torch.empty(weight.shape, dtype=dtype, device=device).normal_(std=0.02)
    if name == "weight" and kind == "Linear4bit":
        return type(weight)(
            value, requires_grad=False, compress_statistics=True, quant_type="nf4"
        ).to(device)
    if name == "weight" and kind == "Linear8bitLt":
        return type(weight)(value, requires_grad=False, has_fp16_weights=False).to(device)
    return torch.nn.Parameter(value, requires_grad=False)


class Endless(Backbone):
    """A backbone whose completions all reach their greatest length: what would end them is the
    last token of the vocabulary, hardly ever drawn.
    """

    @property
    def stop_ids(self) -> list[int]:
        return [self.causal.config.vocab_size - 1]


def text(backbone: Backbone, tokens: int) -> str:
    """A text of exactly `tokens` tokens."""
    for piece in (" a", "a"):
        if (
            tokens > 0
            and len(backbone.tokenizer(piece * tokens, add_special_tokens=False)["input_ids"])
            == tokens
        ):
            return piece * tokens
    raise ValueError(
        f"no text of {tokens} tokens: the prompt is shorter than the template, or this tokenizer"
        " joins letters"
    )


def prompts(backbone: Backbone, n: int, tokens: int) -> pd.DataFrame:
    """n prompts of exactly `tokens` tokens each, template included."""
    frame = len(backbone.prompt_ids(text(backbone, 1))) - 1
    return pd.DataFrame(
        {
            "prompt_id": [f"p{k}" for k in range(n)],
            "prompt": [text(backbone, tokens - frame) for _ in range(n)],
        }
    )


def run(
    backbone: Backbone, params: Params, prompt_tokens: int, meter: Meter, steps: int = 2
) -> Iterator[Measured]:
    """Run each stage as the parameters ask, `steps` optimiser steps where it trains; every prompt
    and completion has the greatest length.
    """
    sampling, settings, policy = params.sampling, params.reward, params.policy
    backbone = Endless(backbone.causal, backbone.tokenizer, backbone.system_prompt)
    asked = prompts(backbone, max(1, sampling.batch_size // sampling.n), prompt_tokens)
    length = prompt_tokens + sampling.max_new_tokens

    def measured(stage: str, rows: int, work) -> Measured:
        meter.reset()
        start = time.perf_counter()
        work()
        if meter.cuda:
            torch.cuda.synchronize()
        return Measured(
            stage, meter.peak(), meter.reserved(), time.perf_counter() - start, rows * length
        )

    if params.sft.answers != "none":
        n = params.sft.batch_size * steps
        given = pd.DataFrame(
            {
                "prompt": np.resize(asked["prompt"], n),
                "completion": text(backbone, sampling.max_new_tokens - 1),
            }
        )
        once = params.sft.model_copy(update={"epochs": 1})
        yield measured(
            "sft training",
            n,
            lambda: sft.train(backbone, given, once, params.seed, params.training),
        )
        if (
            params.model.quantisation == "none"
        ):  # where the copy that is merged into is the backbone that is at hand
            with tempfile.TemporaryDirectory() as folder:
                yield measured("sft merge", 0, lambda: sft.merge_adapter(backbone, Path(folder)))
            backbone.peft = None
        backbone.drop_adapter(POLICY)
    yield measured(
        "sampling",
        len(asked) * sampling.n,
        lambda: pool.sample(backbone, asked, sampling, params.seed),
    )
    answers = _answers(backbone, asked, sampling.max_new_tokens - 1)
    yield measured("scoring", 16, lambda: pool.score(backbone, answers.head(16)))
    if settings.kind == "lora":
        n = settings.batch_size * steps
        pairs = pd.DataFrame(
            {"prompt_id": np.resize(asked["prompt_id"], n), "i": 0, "j": 1, "label": 1.0}
        )
        once = settings.model_copy(update={"epochs": 1})
        yield measured(
            "reward training",
            2 * n,
            lambda: lora_reward.train(
                backbone, "proxy", answers, pairs, once, params.seed, params.training
            ),
        )
    if policy.kind in ("dpo", "rso"):
        n = policy.batch_size * steps
        texts = answers.iloc[:2]["completion"].tolist()
        pairs = pd.DataFrame(
            {"prompt": np.resize(asked["prompt"], n), "chosen": texts[0], "rejected": texts[1]}
        )
        once = policy.model_copy(update={"epochs": 1})
        yield measured(
            "policy training",
            4 * n,
            lambda: policy_training.train(backbone, pairs, once, params.seed, params.training),
        )


def _answers(backbone: Backbone, asked: pd.DataFrame, tokens: int) -> pd.DataFrame:
    """Two completions of each prompt (sixteen rows at least), alike in length and different in
    text.
    """
    one = text(backbone, tokens)
    other = (
        one[:-1] + "b"
        if len(backbone.tokenizer(one[:-1] + "b", add_special_tokens=False)["input_ids"]) == tokens
        else one
    )
    rows = [
        (p.prompt_id, i, p.prompt, (one, other)[i]) for p in asked.itertuples() for i in range(2)
    ]
    table = pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion"])
    return table.loc[np.resize(table.index, max(16, len(table)))].reset_index(drop=True)
