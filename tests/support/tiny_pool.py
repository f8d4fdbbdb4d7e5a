"""Prompts for pools of the tiny model, and what plain transformers says of their completions."""

import numpy as np
import pandas as pd

from shfcas_lib import pool as pools
from shfcas_lib.params.schema import Sampling

PROMPTS = pd.DataFrame(
    {
        "prompt_id": ["c", "a", "e", "b", "d"],
        "prompt": ["the cat", "hi", "name three good answers " * 4, "who ran in the rain?", "x"],
    }
)
SAMPLING = Sampling(n=4, temperature=0.8, max_new_tokens=12, batch_size=64)


def prompt_tokens(tokenizer, prompt):
    return tokenizer(f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]


def reference(plain, prompt_ids, tokens):
    """(log-probability of each completion token, features), by one forward pass without batch,
    padding or cache."""
    import torch

    model, _ = plain
    with torch.no_grad():
        out = model(torch.tensor([[*prompt_ids, *tokens]]), output_hidden_states=True)
    logp = torch.log_softmax(out.logits[0].double(), -1)
    steps = [float(logp[len(prompt_ids) - 1 + t, token]) for t, token in enumerate(tokens)]
    # 60% of the way through embeddings and two layers
    layer = out.hidden_states[1][0].double().numpy()
    # the very first token is left out
    own, before = (
        layer[len(prompt_ids) :],
        layer[1 : len(prompt_ids)][-32:],
    )
    return steps, np.concatenate([own.mean(0), own[:8].mean(0), own[-1], before.mean(0)])


def assert_same_pool(one, other, atol=0.0):
    """The same completions; numbers equal, or within atol."""
    plain_columns = ["prompt_id", "index", "prompt", "completion", "n_tokens", "ended"]
    pd.testing.assert_frame_equal(one[plain_columns], other[plain_columns])
    assert list(map(list, one["tokens"])) == list(map(list, other["tokens"]))
    np.testing.assert_allclose(one["logp"], other["logp"], rtol=0, atol=atol)
    np.testing.assert_allclose(pools.features(one), pools.features(other), rtol=0, atol=atol)
