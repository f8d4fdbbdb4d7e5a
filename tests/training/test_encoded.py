"""What TRL's trainers really receive: the ids at the model's embedding are those of the pools, over
the families' published chat templates, whoever trains."""

import families
import numpy as np
import pandas as pd
import pytest

from shfcas_lib import pool, rewards
from shfcas_lib.base import dialogues
from shfcas_lib.base.randomness import rng
from shfcas_lib.models import loading
from shfcas_lib.params.schema import Model, Policy, Reward, Sampling, Sft
from shfcas_lib.training import policy as policy_training
from shfcas_lib.training import reward as lora_reward
from shfcas_lib.training import sft

HISTORY = dialogues.encode(
    [
        {"role": "user", "content": "the cat"},
        {"role": "assistant", "content": "sat on the mat"},
        {"role": "user", "content": "and the dog?"},
    ]
)
PROMPTS = pd.DataFrame({"prompt_id": ["a", "b"], "prompt": ["the cat", HISTORY]})
# (family, may it think): today's date, thinking, channels, no system turn, no template
FAMILIES = ("llama", "qwen3", "deepseek_r1", "gpt_oss", "gemma3", "gpt_neox")
STYLES = [(family, False) for family in FAMILIES]
STYLES += [(family, True) for family in ("qwen3", "deepseek_r1")]


class _Seen(Exception):
    """A training has shown its first batch."""


@pytest.fixture(scope="module", params=STYLES, ids=lambda style: "{} {}".format(*style))
def trained(request, tmp_path_factory):
    """A backbone, and completions that it wrote, some of them cut off."""
    family, thinking = request.param
    folder = families.save(family, tmp_path_factory.mktemp(family))
    model = Model(source=str(folder), quantisation="none", device="cpu", thinking=thinking)
    backbone = loading.load_backbone(model)
    written = pool.sample(backbone, PROMPTS, Sampling(n=4, max_new_tokens=12), seed=0)
    # as a table comes back from a file
    return backbone, written.assign(tokens=written["tokens"].map(np.array))


@pytest.fixture
def first_batch(trained):
    """The first batch of ids that reaches the model in a training, without padding."""
    backbone, _ = trained

    def seen(train):
        rows = []

        def watch(_, given):
            rows.extend(given[0].tolist())
            raise _Seen

        hook = backbone.causal.get_input_embeddings().register_forward_pre_hook(watch)
        try:
            with pytest.raises(_Seen):
                train()
        finally:
            hook.remove()
        return rows

    return seen


def same(backbone, found, expected):
    """Are these the rows, but for padding, in any order?"""
    pad = backbone.tokenizer.pad_token_id

    def bare(row):
        row = list(row)
        while row and row[-1] == pad:
            row.pop()
        while row and row[0] == pad:
            row.pop(0)
        return row

    return sorted(map(bare, found)) == sorted(map(bare, expected))


def test_a_lora_reward_reads_the_pools_tokens(trained, first_batch):
    backbone, written = trained
    pairs = pd.DataFrame({"prompt_id": ["a", "b"], "i": [0, 1], "j": [2, 3], "label": [1.0, 0.0]})
    settings = Reward(kind="lora", batch_size=2)
    found = first_batch(
        lambda: lora_reward.train(backbone, "proxy", written, pairs, settings, seed=0)
    )
    asked = written.set_index(["prompt_id", "index"]).loc[[("a", 0), ("a", 2), ("b", 1), ("b", 3)]]
    expected = [backbone.prompt_ids(row.prompt) + list(row.tokens) for row in asked.itertuples()]
    assert same(backbone, found, expected)


@pytest.mark.parametrize("kind", ["dpo", "rso", "kto"])
def test_a_policy_is_trained_on_the_pools_tokens(kind, trained, first_batch):
    backbone, written = trained
    policy = Policy(kind=kind, pairs=2, batch_size=4 if kind == "kto" else 2)
    reward = np.arange(len(written), dtype=float)
    table = policy_training.examples(written, reward, policy, rng(0, "pairs"))
    found = first_batch(lambda: policy_training.train(backbone, table, policy, seed=0))
    if kind == "kto":
        used = list(zip(table["prompt"], table["tokens"], strict=True))
    else:
        used = []
        for side in ("chosen_tokens", "rejected_tokens"):
            used += zip(table["prompt"], table[side], strict=True)
    known = {(row.prompt, tuple(row.tokens)) for row in written.itertuples()}
    assert {(prompt, tuple(tokens)) for prompt, tokens in used} <= known
    expected = [backbone.prompt_ids(prompt) + list(tokens) for prompt, tokens in used]
    if kind == "kto":  # its first pass is over prompts beside the completions of others
        expected = _mismatched(backbone, table)
    assert same(backbone, found, expected)


def _mismatched(backbone, table):
    answers = [list(tokens) for tokens in table["tokens"]]
    others = [answers[-1], *answers[:-1]]
    asked = map(backbone.prompt_ids, table["prompt"])
    return [prompt + other for prompt, other in zip(asked, others, strict=True)]


def test_fine_tuning_reads_given_answers_as_pools_do(trained, first_batch):
    backbone, _ = trained
    given = pd.DataFrame(
        {
            "prompt_id": "a",
            "index": [0, 1],
            "prompt": PROMPTS["prompt"],
            "completion": ["the cat sat", " an honest answer "],
        }
    )
    if not backbone.writer.form.given:
        pytest.skip("given answers are refused, which test_tokens.py of the models shows")
    found = first_batch(lambda: sft.train(backbone, given, Sft(batch_size=2), seed=0))
    scored = pool.score(backbone, given)
    expected = [backbone.prompt_ids(row.prompt) + list(row.tokens) for row in scored.itertuples()]
    assert same(backbone, found, expected)
    assert all(row[-1] == backbone.stop_ids[0] for row in expected)


@pytest.mark.parametrize("kind", ["rloo", "grpo"])
def test_an_online_policy_writes_after_the_pools_prompts(kind, trained, first_batch):
    backbone, written = trained
    policy = Policy(kind=kind, batch_size=4, generations=2, prompts=2)
    labels = [("a", 0, 1, 1.0), ("b", 0, 1, 0.0)]
    pairs = pd.DataFrame(labels, columns=["prompt_id", "i", "j", "label"])
    online = policy_training.Online(
        rewards.fit_probe(written, pairs, l2=1.0), Sampling(max_new_tokens=4)
    )
    table = policy_training.examples(written, None, policy, rng(0, "prompts"))
    found = first_batch(
        lambda: policy_training.train(backbone, table, policy, seed=0, online=online)
    )
    expected = [backbone.prompt_ids(prompt) for prompt in table["prompt"] for _ in range(2)]
    assert same(backbone, found, expected)
