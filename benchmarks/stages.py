"""The heavy stages of a run at given sizes, each with its measured peak of memory.

Estimates are checked against them.

    meter = Meter("cpu")                              # what is imported by now is no stage's memory
    backbone = random_backbone(config, "nf4", "cpu")  # quantised one matrix at a time
    for stage, peak, reserved, seconds, tokens in run(backbone, params, 128, meter): ...

The stages are the library's own functions on made-up texts of exact length; nothing is mocked.
Random weights cost the same memory as trained ones.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from shfcas_lib import pool
from shfcas_lib.memory import estimate
from shfcas_lib.memory.plan import knobs_of
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
        highest = torch.cuda.max_memory_allocated() if self.cuda else _status("VmHWM")
        return highest - self.baseline

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
    """A tokenizer of `vocab` tokens: every ASCII letter is one, and the last id ends a text."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*letters, *(f"<{k}>" for k in range(len(letters), vocab - 1)), "<end>"]
    inner = Tokenizer(BPE(vocab={name: k for k, name in enumerate(names)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>")


def random_backbone(config, quantisation: str, device: str, dtype: str = "auto") -> Backbone:
    """A backbone with random weights, built on the device.

    In full precision it never has more than one matrix.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM
    from transformers.quantizers import AutoHfQuantizer

    dtype = loading._dtype(dtype, device)
    with init_empty_weights(include_buffers=False):
        causal = AutoModelForCausalLM.from_config(config, dtype=dtype)
    quantisation_config = loading._quantisation(quantisation, dtype)
    quantizer = None
    if quantisation_config:
        quantizer = AutoHfQuantizer.from_config(quantisation_config, pre_quantized=False)
        quantizer.preprocess_model(model=causal, device_map={"": device}, dtype=dtype)

    # matrix by matrix, so that the whole model never lies there in full precision
    for module in causal.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.device.type == "meta":
                module._parameters[name] = _made(module, name, weight, dtype, device)
        for name, buffer in list(module.named_buffers(recurse=False)):
            module._buffers[name] = buffer.to(device)
    causal.tie_weights()
    if quantizer:
        causal.config.quantization_config = quantisation_config
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
    value = torch.empty(weight.shape, dtype=dtype, device=device)
    if weight.ndim > 1:
        value.normal_(std=0.02)
    else:
        value.fill_(1 if name == "weight" else 0)
    if name == "weight" and kind == "Linear4bit":
        how = {"compress_statistics": True, "quant_type": "nf4"}
        return type(weight)(value, requires_grad=False, **how).to(device)
    if name == "weight" and kind == "Linear8bitLt":
        return type(weight)(value, requires_grad=False, has_fp16_weights=False).to(device)
    return torch.nn.Parameter(value, requires_grad=False)


class Endless(Backbone):
    """A backbone whose completions all reach their greatest length.

    What would end them is the last token of the vocabulary, hardly ever drawn.
    """

    @property
    def stop_ids(self) -> list[int]:
        return [self.causal.config.vocab_size - 1]


def text(backbone: Backbone, tokens: int) -> str:
    """A text of exactly `tokens` tokens."""
    for piece in (" a", "a"):
        if tokens > 0 and _length(backbone, piece * tokens) == tokens:
            return piece * tokens
    raise ValueError(
        f"no text of {tokens} tokens: the prompt is shorter than the template, or this tokenizer"
        " joins letters"
    )


def _length(backbone: Backbone, words: str) -> int:
    """Tokens of a text, without any that a template adds."""
    return len(backbone.tokenizer(words, add_special_tokens=False)["input_ids"])


def _alike(backbone: Backbone, words: str) -> Iterator[str]:
    """Other texts of as many tokens, with other letters at the end of `words`."""
    tokens, letters = _length(backbone, words), "abcdefghijklmnopqrstuvwxyz"
    start, between = words[:-3] if words[-2] == " " else words[:-2], " " * (words[-2] == " ")
    for one, other in itertools.product(letters, repeat=2):
        text = f"{start}{one}{between}{other}"
        if _length(backbone, text) == tokens:
            yield text


def prompts(backbone: Backbone, n: int, tokens: int) -> pd.DataFrame:
    """n prompts of exactly `tokens` tokens each, template included."""
    frame = len(backbone.prompt_ids(text(backbone, 1))) - 1
    return pd.DataFrame(
        {
            "prompt_id": [f"p{k}" for k in range(n)],
            "prompt": [text(backbone, tokens - frame) for _ in range(n)],
        }
    )


class Stages:
    """The stages as the parameters ask, on prompts and completions of the greatest length.

    steps: optimiser steps where a stage trains.
    """

    def __init__(
        self, backbone: Backbone, params: Params, prompt_tokens: int, meter: Meter, steps: int
    ):
        sampling = params.sampling
        self.params, self.meter, self.steps = params, meter, steps
        self.backbone = Endless(backbone.causal, backbone.tokenizer, backbone.system_prompt)
        count = max(1, sampling.batch_size // sampling.n)
        self.prompts = prompts(self.backbone, count, prompt_tokens)
        self.completion = sampling.max_new_tokens - 1  # the end of the text is a token too
        self.length = prompt_tokens + sampling.max_new_tokens

    def measured(self, stage: str, rows: int, work: Callable[[], object]) -> Measured:
        self.meter.reset()
        start = time.perf_counter()
        work()
        if self.meter.cuda:
            torch.cuda.synchronize()
        peak, reserved = self.meter.peak(), self.meter.reserved()
        return Measured(stage, peak, reserved, time.perf_counter() - start, rows * self.length)

    def sft(self) -> Iterator[Measured]:
        params, backbone = self.params, self.backbone
        n = params.sft.batch_size * self.steps
        texts = np.resize(self.prompts["prompt"], n)
        given = pd.DataFrame({"prompt": texts, "completion": text(backbone, self.completion)})
        once = params.sft.model_copy(update={"epochs": 1})
        yield self.measured(
            "sft training",
            n,
            lambda: sft.train(backbone, given, once, params.seed, params.training),
        )
        if params.model.quantisation == "none":
            # only there is the copy that is merged into the backbone that is at hand
            with tempfile.TemporaryDirectory() as folder:
                merge = functools.partial(sft.merge_adapter, backbone, Path(folder))
                yield self.measured("sft merge", 0, merge)
            backbone.peft = None
        backbone.drop_adapter(POLICY)

    def sampling(self) -> Measured:
        sampling, seed = self.params.sampling, self.params.seed
        return self.measured(
            "sampling",
            len(self.prompts) * sampling.n,
            lambda: pool.sample(self.backbone, self.prompts, sampling, seed),
        )

    def scoring(self, answers: pd.DataFrame) -> Measured:
        asked = answers.iloc[0]
        ids = self.backbone.completion_ids(asked["completion"])
        longest = self.length - len(ids)
        # as many prompts as share a batch, no two alike: those are read once; and answers for two
        # passes, each of which has the prompts' keys and values beside its own
        rows = 2 * estimate.scoring_rows(knobs_of(self.params, longest, len(ids)))
        alike = _alike(self.backbone, asked["prompt"])
        texts = list(itertools.islice(alike, max(1, pool.TOKENS // longest)))
        first = np.arange(rows) % len(self.backbone.tokenizer)
        full = pd.DataFrame(
            {
                "prompt_id": asked["prompt_id"],
                "index": range(rows),
                "prompt": np.resize(texts, rows),
                "completion": "",
                "tokens": [[int(token), *ids[1:]] for token in first],
            }
        )
        return self.measured("scoring", rows, lambda: pool.score(self.backbone, full))

    def reward(self, answers: pd.DataFrame) -> Measured:
        params = self.params
        n = params.reward.batch_size * self.steps
        ids = np.resize(self.prompts["prompt_id"], n)
        pairs = pd.DataFrame({"prompt_id": ids, "i": 0, "j": 1, "label": 1.0})
        answers = answers.drop_duplicates(["prompt_id", "index"])
        once = params.reward.model_copy(update={"epochs": 1})
        return self.measured(
            "reward training",
            2 * n,
            lambda: lora_reward.train(
                self.backbone, "proxy", answers, pairs, once, params.seed, params.training
            ),
        )

    def policy(self, answers: pd.DataFrame) -> Measured:
        params = self.params
        n = params.policy.batch_size * self.steps
        chosen, rejected = answers["completion"].iloc[:2]
        texts = np.resize(self.prompts["prompt"], n)
        pairs = pd.DataFrame({"prompt": texts, "chosen": chosen, "rejected": rejected})
        once = params.policy.model_copy(update={"epochs": 1})
        return self.measured(
            "policy training",
            4 * n,
            lambda: policy_training.train(self.backbone, pairs, once, params.seed, params.training),
        )


def run(
    backbone: Backbone, params: Params, prompt_tokens: int, meter: Meter, steps: int = 2
) -> Iterator[Measured]:
    """Run each stage as the parameters ask, `steps` optimiser steps where it trains.

    Every prompt and completion has the greatest length.
    """
    stages = Stages(backbone, params, prompt_tokens, meter, steps)
    if params.sft.answers != "none":
        yield from stages.sft()
    yield stages.sampling()
    answers = _answers(stages.backbone, stages.prompts, stages.completion)
    yield stages.scoring(answers)
    if params.reward.kind == "lora":
        yield stages.reward(answers)
    if params.policy.kind in ("dpo", "rso"):
        yield stages.policy(answers)


def _answers(backbone: Backbone, questions: pd.DataFrame, tokens: int) -> pd.DataFrame:
    """Two completions of each prompt, alike in length and different in text; sixteen rows at least.

    Where no other text has that length, they are the same.
    """
    one = text(backbone, tokens)
    other = one[:-1] + "b"
    if _length(backbone, other) != tokens:
        other = one
    rows = []
    for prompt in questions.itertuples():
        rows.append((prompt.prompt_id, 0, prompt.prompt, one))
        rows.append((prompt.prompt_id, 1, prompt.prompt, other))
    table = pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion"])
    return table.loc[np.resize(table.index, max(16, len(table)))].reset_index(drop=True)
