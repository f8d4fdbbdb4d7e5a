"""Sampling and scoring on the tiny model, against plain transformers called on one example at a
time."""

import contextlib
import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from tiny_pool import PROMPTS, SAMPLING, assert_same_pool, prompt_tokens, reference

from shfcas_lib import pool as pools
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import decoding
from shfcas_lib.models.loading import load_backbone
from shfcas_lib.params.schema import Lora, Model
from shfcas_lib.pool import COLUMNS, sample, sample_adapted, score


@pytest.fixture(scope="module")
def sampled(backbone):
    return sample(backbone, PROMPTS, SAMPLING, seed=0)


# what is recorded


def test_the_tiny_model_gives_the_tests_something_to_see(sampled):
    assert 0 < sampled["ended"].sum() < len(sampled)
    assert sampled["completion"].nunique() > len(sampled) / 2
    lengths = PROMPTS["prompt"].map(len)
    assert lengths.min() < 3 and lengths.max() > 32


def test_pool_is_complete_and_in_order(sampled):
    assert list(sampled) == COLUMNS
    assert list(zip(sampled["prompt_id"], sampled["index"], strict=True)) == [
        (p, i) for p in "abcde" for i in range(4)
    ]
    assert dict(zip(sampled["prompt_id"], sampled["prompt"], strict=True)) == dict(
        zip(PROMPTS["prompt_id"], PROMPTS["prompt"], strict=True)
    )


def test_logp_recorded_while_sampling_equals_a_plain_forward_pass(sampled, plain):
    for row in sampled.itertuples():
        steps, _ = reference(plain, prompt_tokens(plain[1], row.prompt), row.tokens)
        assert row.logp == pytest.approx(sum(steps), abs=1e-4)
        assert row.logp_mean == pytest.approx(np.mean(steps), abs=1e-4)


def test_features_recorded_while_sampling_equal_a_plain_forward_pass(sampled, plain):
    for row in sampled.itertuples():
        _, features = reference(plain, prompt_tokens(plain[1], row.prompt), row.tokens)
        np.testing.assert_allclose(row.features, features, atol=1e-4)


def test_the_end_token_counts_where_it_was_produced(sampled, plain):
    for row in sampled[sampled["ended"]].itertuples():
        steps, _ = reference(plain, prompt_tokens(plain[1], row.prompt), row.tokens)
        assert row.tokens[-1] == plain[1].eos_token_id
        assert steps[-1] < -1e-3 and row.logp != pytest.approx(sum(steps[:-1]), abs=5e-4)


def test_length_of_finished_and_unfinished_rows(sampled, backbone):
    stop = backbone.stop_ids[0]
    for row in sampled.itertuples():
        assert len(row.tokens) == row.n_tokens <= SAMPLING.max_new_tokens
        assert stop not in row.tokens[:-1]
        assert row.ended == (row.tokens[-1] == stop)
        assert row.ended or row.n_tokens == SAMPLING.max_new_tokens


def test_completion_is_the_text_of_the_tokens(sampled, plain):
    for row in sampled.itertuples():
        assert row.completion == plain[1].decode(row.tokens, skip_special_tokens=True).strip()
        assert "<|im_end|>" not in row.completion


def test_logp_is_that_of_temperature_one_whatever_the_sampling(backbone, plain):
    cold = sample(
        backbone,
        PROMPTS,
        SAMPLING.model_copy(update={"temperature": 0.3, "top_k": 5, "top_p": 0.9}),
        seed=0,
    )
    for row in cold.itertuples():
        steps, _ = reference(plain, prompt_tokens(plain[1], row.prompt), row.tokens)
        assert row.logp == pytest.approx(sum(steps), abs=1e-4)


def test_one_new_token_is_enough(backbone, plain):
    short = sample(backbone, PROMPTS, SAMPLING.model_copy(update={"max_new_tokens": 1}), seed=0)
    assert (short["n_tokens"] == 1).all()
    steps, features = reference(
        plain, prompt_tokens(plain[1], short.at[0, "prompt"]), short.at[0, "tokens"]
    )
    assert short.at[0, "logp"] == pytest.approx(steps[0], abs=1e-4)
    np.testing.assert_allclose(short.at[0, "features"], features, atol=1e-4)


# what sampling may not depend on


def test_the_same_seed_gives_the_same_pool(backbone, sampled):
    assert_same_pool(sample(backbone, PROMPTS, SAMPLING, seed=0), sampled)


def test_another_seed_gives_another_pool(backbone, sampled):
    assert (
        sample(backbone, PROMPTS, SAMPLING, seed=1)["completion"].tolist()
        != sampled["completion"].tolist()
    )


def test_every_prompt_and_every_completion_has_draws_of_its_own(backbone):
    twice = pd.DataFrame({"prompt_id": ["one", "two"], "prompt": ["the cat", "the cat"]})
    pool = sample(backbone, twice, SAMPLING, seed=0)
    one, two = (set(pool.loc[pool["prompt_id"] == name, "completion"]) for name in ("one", "two"))
    assert len(one) > 1 and one != two


def test_the_order_of_prompts_does_not_matter(backbone, sampled):
    assert_same_pool(sample(backbone, PROMPTS.iloc[::-1], SAMPLING, seed=0), sampled)


@pytest.mark.parametrize("batch_size", [1, 8, 12])
def test_batch_size_leaves_completions_and_their_logp_alone(backbone, sampled, batch_size):
    other = sample(
        backbone, PROMPTS, SAMPLING.model_copy(update={"batch_size": batch_size}), seed=0
    )
    same = (other["completion"] == sampled["completion"]).to_numpy()
    assert same.mean() >= 0.9  # rounding may decide between two tokens, rarely
    np.testing.assert_allclose(
        other.loc[same, "logp"], sampled.loc[same, "logp"], rtol=0, atol=1e-4
    )
    np.testing.assert_allclose(
        pools.features(other[same]), pools.features(sampled[same]), rtol=0, atol=1e-4
    )


def test_a_prompt_alone_gets_what_it_got_among_others(backbone, sampled):
    alone = sample(backbone, PROMPTS[PROMPTS["prompt_id"] == "b"], SAMPLING, seed=0)
    assert_same_pool(alone, sampled[sampled["prompt_id"] == "b"].reset_index(drop=True), atol=1e-4)


def test_more_completions_leave_the_first_ones_as_they_were(backbone, sampled):
    fewer = sample(backbone, PROMPTS, SAMPLING.model_copy(update={"n": 2}), seed=0)
    assert_same_pool(fewer, sampled[sampled["index"] < 2].reset_index(drop=True), atol=1e-4)


# scoring


def test_scoring_agrees_with_decoding(backbone, sampled):
    assert_same_pool(score(backbone, sampled), sampled, atol=1e-4)


@pytest.mark.parametrize(("most", "answers"), [(1, 1), (60, 30), (2000, 40), (2000, 1024)])
def test_scores_do_not_depend_on_the_composition_of_batches(
    backbone, sampled, most, answers, monkeypatch
):
    """Also where the answers to prompts of one batch need several passes."""
    monkeypatch.setattr(decoding, "ANSWER_TOKENS", answers)
    shuffled = sampled.sample(frac=1, random_state=most)
    found = score(backbone, shuffled, most=most).set_index(shuffled.index).sort_index()
    assert_same_pool(found, sampled, atol=1e-4)


def test_the_bar_moves_with_every_pass_over_answers(backbone, sampled, monkeypatch):
    """However few batches of prompts there are: short questions have long answers."""
    moved, passes = [], decoding.by_tokens(list(sampled["tokens"]), 40, 0, 10**6)
    monkeypatch.setattr(decoding, "ANSWER_TOKENS", 40)
    bar = SimpleNamespace(update=moved.append)
    monkeypatch.setattr(pools, "_bar", lambda *_: contextlib.nullcontext(bar))
    score(backbone, sampled, most=10**6)
    assert sum(moved) == len(
        {(p, *t) for p, t in zip(sampled["prompt"], sampled["tokens"], strict=True)}
    )
    assert len(moved) >= len(passes) // 2 > 1


def test_what_is_said_twice_is_a_tie(backbone, sampled):
    """Whichever batches the two are in: rounding must not make a conflict of them."""
    twice = pd.concat(
        [sampled, sampled.assign(index=sampled["index"] + 100).iloc[::-1]], ignore_index=True
    )
    found = score(backbone, twice, most=40).groupby(["prompt_id", twice["tokens"].map(tuple)])
    assert (found["logp"].nunique() == 1).all() and (
        found["features"].agg(lambda f: len({tuple(x) for x in f})) == 1
    ).all()


def test_scoring_keeps_the_order_of_rows(backbone, sampled):
    shuffled = sampled.sample(frac=1, random_state=1)
    found = score(backbone, shuffled)
    assert list(zip(found["prompt_id"], found["index"], strict=True)) == list(
        zip(shuffled["prompt_id"], shuffled["index"], strict=True)
    )


def test_scoring_does_not_depend_on_the_padding_side_of_the_tokenizer(backbone, sampled):
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.padding_side = "left" if tokenizer.padding_side == "right" else "right"
    assert_same_pool(
        score(dataclasses.replace(backbone, tokenizer=tokenizer), sampled), sampled, atol=1e-4
    )


def test_text_without_tokens_is_scored_with_its_end_token(backbone, plain):
    given = pd.DataFrame(
        {
            "prompt_id": ["p", "p", "q"],
            "index": [0, 1, 0],
            "prompt": ["hi", "hi", "the cat"],
            "completion": ["the cat sat", "a longer answer, and an honest one", "no"],
        }
    )
    for row in score(backbone, given).itertuples():
        tokens = plain[1](row.completion)["input_ids"] + [plain[1].eos_token_id]
        steps, features = reference(plain, prompt_tokens(plain[1], row.prompt), tokens)
        assert (row.tokens, row.n_tokens, row.ended) == (tokens, len(tokens), True)
        assert row.logp == pytest.approx(sum(steps), abs=1e-4)
        np.testing.assert_allclose(row.features, features, atol=1e-4)


def test_a_pool_read_back_from_disk_scores_the_same(backbone, sampled, tmp_path):
    sampled.to_parquet(tmp_path / "pool.parquet")
    assert_same_pool(
        score(backbone, pd.read_parquet(tmp_path / "pool.parquet")), sampled, atol=1e-4
    )


def test_the_system_prompt_is_part_of_the_prompt(backbone, sampled, plain):
    careful = dataclasses.replace(backbone, system_prompt="be honest")
    row = score(careful, sampled.head(1)).iloc[0]
    text = (
        "<|im_start|>system\nbe"
        f" honest<|im_end|>\n<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n"
    )
    steps, _ = reference(plain, plain[1](text)["input_ids"], row["tokens"])
    assert row["logp"] == pytest.approx(sum(steps), abs=1e-4)
    assert abs(row["logp"] - sampled.at[0, "logp"]) > 1e-3


def test_a_tokenizer_without_chat_template_gets_plain_text(backbone, plain):
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = None
    pool = sample(dataclasses.replace(backbone, tokenizer=tokenizer), PROMPTS, SAMPLING, seed=0)
    for row in pool.itertuples():
        steps, _ = reference(plain, plain[1](f"{row.prompt}\n\n")["input_ids"], row.tokens)
        assert row.logp == pytest.approx(sum(steps), abs=1e-4)


# errors


def test_a_prompt_that_does_not_fit_the_context_is_an_error(backbone):
    prompts = pd.DataFrame({"prompt_id": ["a", "b"], "prompt": ["hi", "!?" * 400]})
    with pytest.raises(
        InputError, match=r"'!\?!\?.* tokens; with max_new_tokens 12 .* context of 512"
    ):
        sample(backbone, prompts, SAMPLING, seed=0)


def test_a_prompt_that_just_fits_the_context_is_fine(backbone):
    room = 512 - len(backbone.prompt_ids("hi"))
    backbone.check_prompts(["hi"], room=room)
    with pytest.raises(InputError, match="context"):
        backbone.check_prompts(["hi"], room=room + 1)


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>"])
def test_a_prompt_that_spells_a_control_token_is_an_error(backbone, token):
    prompts = pd.DataFrame({"prompt_id": ["a"], "prompt": [f"hi {token}system"]})
    with pytest.raises(InputError) as error:
        sample(backbone, prompts, SAMPLING, seed=0)
    assert f"control token '{token}'" in str(error.value)


def test_a_pool_of_empty_completions_is_an_error(fresh_backbone):
    import torch

    head = torch.nn.Linear(64, fresh_backbone.causal.config.vocab_size)
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()[fresh_backbone.stop_ids[0]] = 100.0
    fresh_backbone.causal.lm_head = head
    with pytest.raises(InputError, match="every sampled completion is empty"):
        sample(fresh_backbone, PROMPTS, SAMPLING, seed=0)


def test_output_that_is_not_finite_names_prompt_and_completion(fresh_backbone):
    import torch

    with torch.no_grad():
        fresh_backbone.causal.lm_head.weight.fill_(float("nan"))
    given = pd.DataFrame(
        {"prompt_id": ["p", "p"], "index": [3, 4], "prompt": "hi", "completion": ["a", "b"]}
    )
    with pytest.raises(InputError, match="completion 3 of prompt p .* not finite"):
        score(fresh_backbone, given)


# adapters and quantisation


def test_a_trained_policy_keeps_its_own_logp_and_the_features_of_the_reference(fresh_backbone):
    import torch

    fresh_backbone.add_adapter("default", Lora())
    with torch.no_grad():
        for name, weight in fresh_backbone.causal.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    pool = sample_adapted(fresh_backbone, "default", PROMPTS, SAMPLING, seed=0, label="policy")
    with fresh_backbone.using("default"):
        policy = score(fresh_backbone, pool)
    with fresh_backbone.using(None):
        base = score(fresh_backbone, pool)
    np.testing.assert_allclose(pool["logp"], policy["logp"], atol=1e-4)
    np.testing.assert_allclose(pool["logp_reference"], base["logp"], atol=1e-4)
    np.testing.assert_allclose(pools.features(pool), pools.features(base), atol=1e-4)
    assert np.abs(pool["logp"] - pool["logp_reference"]).min() > 1e-3


def test_a_quantised_model_decodes_and_scores_alike(tiny_model):
    import torch

    backbone = load_backbone(Model(source=str(tiny_model), quantisation="nf4", device="cpu"))
    assert backbone.causal.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    pool = sample(backbone, PROMPTS, SAMPLING, seed=0)
    assert_same_pool(score(backbone, pool), pool, atol=1e-3)


def test_a_quantised_model_is_not_the_unquantised_one(tiny_model, sampled):
    backbone = load_backbone(Model(source=str(tiny_model), quantisation="nf4", device="cpu"))
    assert np.abs(score(backbone, sampled)["logp"] - sampled["logp"]).max() > 0.01
