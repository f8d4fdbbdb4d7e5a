"""The process that runs vLLM, in the environment where it is installed.

It is started as `python vllm_worker.py QUESTION ANSWER`, with the names of two JSON files.

Nothing of this library is imported here, and of other packages vLLM (and the torch it brings)
alone: that environment holds no more.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def write(question: dict[str, Any]) -> list[tuple[list[int], float]]:
    """Tokens of one completion for each prompt, and vLLM's log-probability of them.

    The log-probability is that at temperature 1. question:

        model, sampling    keywords of vllm.LLM and vllm.SamplingParams
        prompts            lists of token ids
        seeds              one for each prompt
    """
    from vllm import LLM, SamplingParams

    # the completions of one prompt share its prefill
    model = LLM(
        **question["model"],
        **_device(),
        skip_tokenizer_init=True,
        load_format="safetensors",
        generation_config="vllm",
        logprobs_mode="raw_logprobs",
        enable_prefix_caching=True,
    )

    # what ends a completion is said by stop_token_ids, which hold every end token that the
    # backbone knows
    common = {**question["sampling"], "ignore_eos": True, "detokenize": False, "logprobs": 0}
    sampling = [SamplingParams(**common, seed=seed) for seed in question["seeds"]]
    prompts = [{"prompt_token_ids": prompt} for prompt in question["prompts"]]
    completions = [request.outputs[0] for request in model.generate(prompts, sampling)]
    return [(list(one.token_ids), one.cumulative_logprob) for one in completions]


def _device() -> dict[str, float | bool]:
    """Keywords of vllm.LLM for vLLM's share of the device.

    It is nine tenths of what is free on a GPU, for the backbone stays where it is; a quarter of a
    CPU's memory, and nothing compiled there, which takes minutes.
    """
    import torch

    if not torch.cuda.is_available():
        return {"gpu_memory_utilization": 0.25, "enforce_eager": True}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": 0.9 * free / total}


if __name__ == "__main__":
    if sys.platform == "linux":
        # PR_SET_PDEATHSIG: a run that is killed leaves no vLLM behind on its GPU
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    # vLLM would report its use to its makers
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process: nothing else to end
        "VLLM_NO_USAGE_STATS": "1",
    }
    question_file, answer_file = map(Path, sys.argv[1:])
    answer = write(json.loads(question_file.read_text()))
    answer_file.write_text(json.dumps(answer))
