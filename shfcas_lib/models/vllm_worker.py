"""The process that runs vLLM: `python vllm_worker.py QUESTION ANSWER`, two JSON files, in the
environment where vLLM is installed.

Nothing of this library is imported here, and of other packages vLLM (and the torch it brings)
alone: that environment holds no more."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path


def write(asked: dict) -> list[tuple[list[int], float]]:
    """Tokens of one completion for each prompt, and vLLM's log-probability of them at temperature
    1.

    asked: `model` and `sampling` (keywords of vllm.LLM and vllm.SamplingParams), `prompts` (lists
    of token ids) and `seeds`, one for each."""
    from vllm import LLM, SamplingParams

    # the completions of one prompt share its prefill
    model = LLM(
        **asked["model"],
        **_device(),
        skip_tokenizer_init=True,
        load_format="safetensors",
        generation_config="vllm",
        logprobs_mode="raw_logprobs",
        enable_prefix_caching=True,
    )
    # ignore_eos: what ends a completion is said by stop_token_ids, which hold every end token
    # that the backbone knows
    sampling = [
        SamplingParams(
            **asked["sampling"], seed=seed, ignore_eos=True, detokenize=False, logprobs=0
        )
        for seed in asked["seeds"]
    ]
    written = model.generate(
        [{"prompt_token_ids": prompt} for prompt in asked["prompts"]], sampling
    )
    return [
        (list(request.outputs[0].token_ids), request.outputs[0].cumulative_logprob)
        for request in written
    ]


def _device() -> dict[str, float | bool]:
    """vLLM's share of the device: nine tenths of what is free on a GPU, for the backbone stays
    where it is; a quarter of a CPU's memory, and nothing compiled there, which takes minutes."""
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
    question, answer = map(Path, sys.argv[1:])
    answer.write_text(json.dumps(write(json.loads(question.read_text()))))
