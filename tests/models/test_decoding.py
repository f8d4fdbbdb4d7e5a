"""Decoding on the tiny model: which tokens may be drawn, how often, and at which positions."""

import dataclasses

import numpy as np
import pytest
from tiny_pool import PROMPTS, SAMPLING, assert_same_pool, prompt_tokens, reference

from shfcas_lib.models import decoding
from shfcas_lib.params.schema import Sampling
from shfcas_lib.pool import sample, score


def test_positions_count_from_the_first_real_token(backbone):
    """A model with absolute positions, unlike Llama, notices where padding pushes a text."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=len(backbone.tokenizer),
        n_positions=256,
        n_embd=64,
        n_layer=2,
        n_head=4,
        initializer_range=0.3,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config).eval()
    absolute = dataclasses.replace(backbone, causal=model)
    pool = sample(absolute, PROMPTS, SAMPLING, seed=0)
    for row in pool.itertuples():
        steps, features = reference(
            (model, None), prompt_tokens(backbone.tokenizer, row.prompt), row.tokens
        )
        assert row.logp == pytest.approx(sum(steps), abs=1e-3)
        np.testing.assert_allclose(row.features, features, atol=1e-3)
    assert_same_pool(score(absolute, pool), pool, atol=1e-3)


# greedy, top-k, top-p


def test_top_k_of_one_is_greedy_decoding(backbone, plain):
    import torch

    greedy = sample(backbone, PROMPTS, SAMPLING.model_copy(update={"top_k": 1}), seed=0)
    for prompt_id, part in greedy.groupby("prompt_id"):
        ids = prompt_tokens(plain[1], part["prompt"].iloc[0])
        with torch.no_grad():
            out = plain[0].generate(
                torch.tensor([ids]),
                do_sample=False,
                max_new_tokens=12,
                pad_token_id=plain[1].eos_token_id,
            )
        assert all(tokens == out[0, len(ids) :].tolist() for tokens in part["tokens"]), prompt_id


@pytest.mark.parametrize("change", [{"top_k": 3}, {"top_p": 0.5}, {"top_k": 4, "top_p": 0.6}])
def test_only_tokens_that_pass_the_filters_are_sampled(backbone, plain, change):
    import torch

    pool = sample(backbone, PROMPTS, SAMPLING.model_copy(update=change), seed=0)
    for row in pool.itertuples():
        ids = prompt_tokens(plain[1], row.prompt)
        with torch.no_grad():
            logits = (
                plain[0](torch.tensor([[*ids, *row.tokens]])).logits[0, len(ids) - 1 : -1].double()
            )
        for step, token in enumerate(row.tokens):
            probs = torch.softmax(logits[step] / SAMPLING.temperature, -1)
            assert token in allowed(probs.numpy(), **change)


def allowed(probs, top_k=0, top_p=1.0):
    """Tokens that survive top-k and then top-p: the fewest, most likely first, that reach the
    share top_p of what is left."""
    order = np.argsort(-probs)[: top_k or len(probs)]
    share = np.cumsum(probs[order]) / probs[order].sum()
    return set(order[: int(np.searchsorted(share, top_p - 1e-6)) + 1])


@pytest.mark.parametrize(
    "change, expected",
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_k": 9}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_p": 0.45}, [1, 0, 0, 0]),
        ({"top_p": 0.7}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.9}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"top_k": 3, "top_p": 0.6}, [0.625, 0.375, 0, 0]),
    ],
)
def test_tokens_are_drawn_with_the_filtered_probabilities(change, expected):
    """All of (0, 1) is walked through in even steps; tokens stand in an order of their own."""
    import torch

    order = [2, 0, 3, 1]
    logits = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))[order].repeat(4000, 1)
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    drawn = decoding._choose(logits, uniform, Sampling(**{"temperature": 1.0, **change}))
    found = np.bincount(drawn.numpy(), minlength=4) / 4000
    np.testing.assert_allclose(found, np.array(expected)[order], atol=1e-3)
