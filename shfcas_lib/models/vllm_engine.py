"""Completions of the base policy written by vLLM: token ids go in, token ids come out.

    table = draw(backbone, ids, sampling, seed)      # prompt_id, index, tokens, logp_vllm

vLLM pins other versions of torch and transformers than this library, so it lives in an
environment of its own, whose Python the environment variable SHFCAS_VLLM_PYTHON names, and runs
there as a process (`vllm_worker`) that ends, and gives its memory back, before the backbone
reads what it wrote. Prompts are tokenised here, by the backbone. vLLM computes with the model's
unquantised weights: `logp_vllm` is kept so that `logp_gap` can say how far that is from the
backbone, whose log-probabilities and features are the pool's.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import derive
from shfcas_lib.models import loading, vllm_worker
from shfcas_lib.params.schema import Sampling

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

PYTHON = "SHFCAS_VLLM_PYTHON"
# nats per token: one model in bfloat16 and in float32 is well below, another quantisation above
TOLERANCE = 0.05
_VERSION = (
    "from importlib import metadata as m; name = m.packages_distributions()['vllm'][0]; print(name,"
    " m.version(name))"
)


def engine_facts(sampling: Sampling) -> dict[str, str]:
    """Facts about the engine for run.json: which vLLM, if it is asked for.

    Raises InputError where it cannot be had.
    """
    if sampling.engine != "vllm":
        return {}
    if processes.count() > 1:
        raise InputError(
            "sampling.engine: found 'vllm', which takes one process: run the stage pools without a"
            " launcher, or use 'backbone'"
        )
    return {"engine": _version(_python())}


@functools.cache
def _version(python: str) -> str:
    try:
        done = subprocess.run(
            [python, "-c", _VERSION], capture_output=True, text=True, env=_environment()
        )
    except OSError as error:
        raise InputError(
            f"{PYTHON}: {python!r} cannot be run ({error.strerror}), expected the python of the"
            " environment that vLLM is installed in"
        ) from error
    if done.returncode and "KeyError: 'vllm'" not in done.stderr:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise InputError(f"{PYTHON}: {python} cannot say which vLLM it has: {lines[-1]}")
    if done.returncode:
        raise InputError(
            f"sampling.engine: found 'vllm', which needs the package vllm, and {python} has none:"
            " install it in an environment of its own and name that environment's python in"
            f" {PYTHON} (docs/models.md), or use 'backbone'"
        )
    return done.stdout.strip()


def draw(
    backbone: Backbone, ids: dict[str, list[int]], sampling: Sampling, seed: int
) -> pd.DataFrame:
    """`sampling.n` completions for each prompt from the model without adapters.

    ids: token ids by prompt_id. Each completion has a seed of its own, named by (seed,
    prompt_id, index). Columns:

        prompt_id, index
        tokens       ids, the end token included
        logp_vllm    as the pool's logp, but by vLLM

    Raises InputError where vLLM is missing or fails.
    """
    engine_facts(sampling)
    keys = list(product(sorted(ids), range(sampling.n)))
    completions = _ask(
        {
            "model": _model_options(backbone, sampling, longest=max(map(len, ids.values()))),
            "sampling": {
                "temperature": sampling.temperature,
                "top_k": sampling.top_k,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_new_tokens,
                "stop_token_ids": backbone.stop_ids,
            },
            "prompts": [ids[prompt_id] for prompt_id, _ in keys],
            "seeds": [derive(seed, f"vllm/{prompt_id}/{index}") for prompt_id, index in keys],
        }
    )
    table = pd.DataFrame(keys, columns=["prompt_id", "index"])
    return table.assign(
        tokens=[tokens for tokens, _ in completions],
        logp_vllm=[logp for _, logp in completions],
    )


def _model_options(backbone: Backbone, sampling: Sampling, longest: int) -> dict[str, Any]:
    """Keywords of vllm.LLM. longest: tokens of the longest prompt."""
    model = backbone.model
    return {
        "model": loading.located(model.source, "model.source"),
        "revision": model.revision,
        "trust_remote_code": model.trust_remote_code,
        "dtype": str(backbone.causal.config.dtype).removeprefix("torch."),
        "max_num_seqs": sampling.batch_size,
        "max_model_len": longest + sampling.max_new_tokens,
    }


def logp_gap(pool: pd.DataFrame) -> str:
    """How far vLLM's log-probabilities are from the backbone's, in one sentence.

    pool: a table of completions; nothing is said of one that another engine wrote.
    """
    if "logp_vllm" not in pool:
        return ""
    gap = (pool["logp"] - pool["logp_vllm"]) / pool["n_tokens"]
    size = gap.abs()
    sentence = (
        f"log-probability per token, backbone minus vLLM, {len(pool)} completions: mean"
        f" {gap.mean():+.4f}, mean size {size.mean():.4f}, largest {size.max():.4f}"
    )
    # NaN is no small gap either
    if not size.mean() <= TOLERANCE:
        sentence += (
            f"; more than {TOLERANCE} on average: vLLM's weights are not the backbone's"
            " (quantisation?)"
        )
    return sentence


def _python() -> str:
    return os.environ.get(PYTHON) or sys.executable


def _environment() -> dict[str, str]:
    """The environment of vLLM's Python.

    With it nothing is imported from the folder that it starts in, nor from this library's.
    """
    return os.environ | {"PYTHONSAFEPATH": "1"}


def _ask(question: dict[str, Any]) -> list[tuple[list[int], float]]:
    """Put a question to the worker process and wait for its answer."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch holds back here, vLLM could not have
    with tempfile.TemporaryDirectory() as folder:
        question_file, answer_file = Path(folder, "question.json"), Path(folder, "answer.json")
        log = Path(folder, "log.txt")
        question_file.write_text(json.dumps(question))
        command = [_python(), vllm_worker.__file__, str(question_file), str(answer_file)]
        with open(log, "w") as output:
            done = subprocess.run(command, stdout=output, stderr=output, env=_environment())
        if done.returncode:
            reason = _reason(log.read_text(errors="replace"))
            raise InputError(
                f"sampling.engine vllm: vLLM ended with code {done.returncode}: {reason}"
            )
        return json.loads(answer_file.read_text())


def _reason(log: str) -> str:
    """The line of vLLM's messages that says why it ended: the last error, else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line and "WARNING" not in line]
    return (errors or lines or ["no message"])[-1]
