"""Completions of the base policy written by vLLM: token ids of prompts go in, token ids of
completions come out.

    table = draw(backbone, ids, sampling, seed)      # prompt_id, index, tokens, logp_vllm

vLLM pins other versions of torch and transformers than this library, so it lives in an
environment of its own, whose Python the environment variable SHFCAS_VLLM_PYTHON names, and runs
there as a process (`vllm_worker`) that ends, and gives its memory back, before the backbone reads
what it wrote. Prompts are tokenised here, by the backbone. vLLM computes with the model's
unquantised weights: `logp_vllm` is kept so that `agreement` can say how far that is from the
backbone, whose log-probabilities and features are the pool's."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

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
    """Facts about the engine for run.json: which vLLM, if it is asked for. Raises InputError
    where it cannot be had."""
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
        raise InputError(
            f"{PYTHON}: {python} cannot say which vLLM it has:"
            f" {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        )
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
    """`sampling.n` completions for each prompt from the model without adapters: prompt_id, index,
    tokens (ids, the end token included) and logp_vllm (as the pool's logp, but by vLLM). ids:
    token ids by prompt_id. Each completion has a seed of its own, named by (seed, prompt_id,
    index). Raises InputError where vLLM is missing or fails."""
    engine_facts(sampling)
    keys = [(prompt_id, index) for prompt_id in sorted(ids) for index in range(sampling.n)]
    model = backbone.model
    asked = {
        "model": {
            "model": loading.located(model.source, "model.source"),
            "revision": model.revision,
            "trust_remote_code": model.trust_remote_code,
            "dtype": str(backbone.causal.config.dtype).removeprefix("torch."),
            "max_num_seqs": sampling.batch_size,
            "max_model_len": max(map(len, ids.values())) + sampling.max_new_tokens,
        },
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
    written = _ask(asked)
    return pd.DataFrame(
        {
            "prompt_id": [key[0] for key in keys],
            "index": [key[1] for key in keys],
            "tokens": [tokens for tokens, _ in written],
            "logp_vllm": [logp for _, logp in written],
        }
    )


def logp_gap(pool: pd.DataFrame) -> str:
    """How far vLLM's log-probabilities of a pool's completions are from the backbone's, in one
    sentence; nothing for a pool of another engine."""
    if "logp_vllm" not in pool:
        return ""
    gap = (pool["logp"] - pool["logp_vllm"]) / pool["n_tokens"]
    told = (
        f"log-probability per token, backbone minus vLLM, {len(pool)} completions: mean"
        f" {gap.mean():+.4f}, mean size {gap.abs().mean():.4f}, largest {gap.abs().max():.4f}"
    )
    return told + (
        ""
        if gap.abs().mean() <= TOLERANCE
        else (
            f"; more than {TOLERANCE} on average: vLLM's weights are not the backbone's"
            " (quantisation?)"
        )
    )


def _python() -> str:
    return os.environ.get(PYTHON) or sys.executable


def _environment() -> dict[str, str]:
    """For vLLM's Python: nothing is imported from the folder that it starts in, nor from this
    library's."""
    return os.environ | {"PYTHONSAFEPATH": "1"}


def _ask(asked: dict) -> list[tuple[list[int], float]]:
    """Put a question to the worker process and wait for its answer."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what torch holds back here, vLLM could not have
    with tempfile.TemporaryDirectory() as folder:
        question, answer, log = (
            Path(folder) / name for name in ("question.json", "answer.json", "log.txt")
        )
        question.write_text(json.dumps(asked))
        with open(log, "w") as messages:
            done = subprocess.run(
                [_python(), vllm_worker.__file__, str(question), str(answer)],
                stdout=messages,
                stderr=messages,
                env=_environment(),
            )
        if done.returncode:
            lines = [
                line.strip()
                for line in log.read_text(errors="replace").splitlines()
                if line.strip()
            ]
            told = next(
                (line for line in reversed(lines) if "Error" in line and "WARNING" not in line),
                (lines or ["no message"])[-1],
            )
            raise InputError(
                f"sampling.engine vllm: vLLM ended with code {done.returncode}: {told}"
            )
        return json.loads(answer.read_text())
