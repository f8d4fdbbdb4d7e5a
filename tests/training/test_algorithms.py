"""KTO, RLOO and GRPO on the tiny model, through the same door as the loop: each moves what it
optimises, and nothing else."""

import json

import numpy as np
import pandas as pd
import pytest
from toy import (
    adapter_weights,
    assert_same_weights,
    load_tiny,
    make_pool,
    make_preferences,
    weights_of,
)

from shfcas_lib import loop, rewards
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import trained
from shfcas_lib.gold import gold_scores
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Lora, Policy, Reward, Sampling
from shfcas_lib.pool import sample, sample_adapted, score
from shfcas_lib.storage import runs
from shfcas_lib.training import policy as policy_training
from shfcas_lib.training import reward as lora_reward

SAMPLING = {"n": 4, "max_new_tokens": 12, "temperature": 1.0}
POLICIES = {
    "kto": {"kind": "kto", "pairs": 32, "learning_rate": 5.0e-3, "epochs": 4},
    "rloo": {
        "kind": "rloo",
        "beta": 0.02,
        "learning_rate": 5.0e-3,
        "epochs": 2,
        "batch_size": 32,
        "generations": 8,
    },
    "grpo": {
        "kind": "grpo",
        "dpo_beta": 0.02,
        "learning_rate": 5.0e-3,
        "epochs": 2,
        "batch_size": 32,
        "generations": 8,
    },
}


@pytest.fixture(scope="module")
def scene(tiny_model):
    """A backbone that carries a proxy and a refined reward as adapters, the pool with its
    features, and a probe fitted on it."""
    backbone, pool = load_tiny(tiny_model), make_pool()
    preferences = make_preferences(pool)
    pool = score(backbone, pool)
    settings = Reward(kind="lora", learning_rate=3e-3, epochs=2, lora=Lora(dropout=0.0))
    refined = lora_reward.train(backbone, "refined", pool, preferences, settings, seed=1)
    backbone.add_adapter("proxy", Lora(), seed=5)
    backbone.use(None)
    return backbone, pool, {"probe": rewards.fit_probe(pool, preferences, 10.0), "lora": refined}


def setting(backbone, kind, **changes):
    values = {
        "policy": POLICIES[kind] | {"lora": {"dropout": 0.0}} | changes,
        "sampling": SAMPLING,
        "evaluation": {"replicates": 0},
    }
    return loop.Setting(reading.validate(values, "test"), 0, None, None, None, None, None, backbone)


def mean_reward(backbone, reward, pool, adapter):
    """Mean reward of fresh completions of the pool's prompts."""
    prompts, sampling = pool[["prompt_id", "prompt"]].drop_duplicates(), Sampling(**SAMPLING)
    if adapter is None:
        return reward.score(sample(backbone, prompts, sampling, 5)).mean()
    return reward.score(sample_adapted(backbone, adapter, prompts, sampling, 5, "test")).mean()


def desirable_margin(backbone, pool):
    """Mean log-probability of words minus that of figures."""
    logp = score(backbone, pool)["logp"].to_numpy()
    return logp[pool["index"] % 2 == 0].mean() - logp[pool["index"] % 2 == 1].mean()


@pytest.mark.parametrize("kind", ["kto", "rloo", "grpo"])
def test_a_policy_moves_what_it_optimises_and_nothing_else(scene, tmp_path, kind):
    backbone, pool, known = scene
    reward, others = known["probe"], weights_of(backbone, but=POLICY)
    measure = (
        (lambda adapter: mean_reward(backbone, reward, pool, adapter)) if kind != "kto" else None
    )
    before = measure(None) if measure else desirable_margin(backbone, pool)
    scores = known["lora"].score(pool)
    loop.train_policy(setting(backbone, kind), reward, pool, tmp_path)
    assert backbone.active is None and "ref" not in backbone.peft.peft_config
    assert_same_weights(weights_of(backbone, but=POLICY), others)
    np.testing.assert_array_equal(known["lora"].score(pool), scores)
    with backbone.using(POLICY):
        after = measure(POLICY) if measure else desirable_margin(backbone, pool)
    assert after > before + (10 if kind == "kto" else 0.3)
    assert (measure(None) if measure else desirable_margin(backbone, pool)) == before, (
        "the reference is as it was"
    )
    assert json.loads((tmp_path / "done.json").read_text())["kind"] == kind
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "done.json"]


def test_a_reward_turned_round_turns_the_policy_round(scene, tmp_path):
    """A wrong sign anywhere between reward and gradient would show here or above."""
    backbone, pool, known = scene
    probe = known["probe"]
    against = rewards.Probe(probe.mean, probe.std, -probe.weight, probe.spread)
    loop.train_policy(setting(backbone, "rloo", learning_rate=1.0e-2), against, pool, tmp_path)
    assert (
        mean_reward(backbone, probe, pool, POLICY) < mean_reward(backbone, probe, pool, None) - 0.1
    )


def test_a_lora_reward_scores_and_stays_as_it_is(scene, tmp_path):
    """Its adapter goes on and the policy's off in the middle of every step: only the policy's
    weights may move."""
    backbone, pool, known = scene
    others, start = weights_of(backbone, but=POLICY), known["lora"].score(pool)
    loop.train_policy(setting(backbone, "grpo", epochs=1), known["lora"], pool, tmp_path)
    assert_same_weights(weights_of(backbone, but=POLICY), others)
    np.testing.assert_array_equal(known["lora"].score(pool), start)
    assert all(
        bool(weight.any())
        for name, weight in backbone.causal.named_parameters()
        if f"lora_B.{POLICY}." in name
    )


def test_a_trained_policy_is_read_back(scene, tiny_model, tmp_path, monkeypatch):
    backbone, pool, known = scene
    loop.train_policy(
        setting(backbone, "rloo", epochs=1, prompts=4), known["probe"], pool, tmp_path
    )
    monkeypatch.setattr(policy_training, "train", None)
    other = load_tiny(tiny_model)
    loop.train_policy(setting(other, "rloo"), known["probe"], pool, tmp_path)
    with backbone.using(POLICY), other.using(POLICY):
        np.testing.assert_allclose(
            score(other, pool)["logp"], score(backbone, pool)["logp"], rtol=0, atol=1e-6
        )


def test_the_reward_of_fresh_completions_is_that_of_the_reference_pass(scene):
    """In training the policy's adapter is on; a probe must not see its hidden states, and the
    step must go on with it, in its mode."""
    import torch

    backbone, pool, known = scene
    backbone.add_adapter(POLICY, Lora(), seed=0)
    with torch.no_grad():
        for name, weight in backbone.causal.named_parameters():
            if f"lora_B.{POLICY}." in name:
                weight.normal_(std=0.5)
    backbone.peft.train()
    rows = pool.head(6)
    given = {
        "prompts": None,
        "completions": [[{"role": "assistant", "content": text}] for text in rows["completion"]],
        "completion_ids": list(rows["tokens"]),
        "request": list(rows["prompt"]),
    }
    for reward in known.values():
        found = policy_training.reward_function(backbone, reward)(**given)
        assert backbone.active == POLICY and backbone.causal.training
        assert all(
            w.requires_grad == (f".{POLICY}." in name)
            for name, w in backbone.causal.named_parameters()
        )
        backbone.use(None)
        np.testing.assert_allclose(found, reward.score(rows), atol=1e-4)
        backbone.use(POLICY)
        backbone.peft.train()
    backbone.use(None)


# what they learn from


@pytest.fixture
def rated():
    pool = make_pool()
    return pool, np.random.default_rng(0).normal(size=len(pool))


def settings(kind, **changes):
    return Policy(**POLICIES[kind] | changes)


def test_ratings_are_above_or_below_the_mean_of_their_prompt(rated):
    pool, reward = rated
    mean = pool.assign(reward=reward).groupby("prompt")["reward"].mean()
    value = dict(zip(zip(pool["prompt"], pool["completion"], strict=True), reward, strict=False))
    table = policy_training.ratings(pool, reward, settings("kto"), np.random.default_rng(0))
    assert len(table) == 64 and table["label"].any() and not table["label"].all()
    assert all(
        row.label == (value[row.prompt, row.completion] > mean[row.prompt])
        for row in table.itertuples()
    )


def test_few_ratings_touch_many_prompts_and_lie_far_from_the_mean(rated):
    pool, reward = rated
    table = policy_training.ratings(
        pool, reward, settings("kto", pairs=8), np.random.default_rng(0)
    )
    assert len(table) == 16 == table["prompt"].nunique()
    scored = pool.assign(reward=reward)
    distance = (scored["reward"] - scored.groupby("prompt")["reward"].transform("mean")).abs()
    furthest = scored.loc[distance.groupby(scored["prompt"]).idxmax()].set_index("prompt")[
        "completion"
    ]
    assert all(furthest[row.prompt] == row.completion for row in table.itertuples())


def test_a_completion_on_the_mean_is_left_out_and_no_difference_is_an_error():
    pool = pd.DataFrame(
        {"prompt_id": "p", "index": range(3), "prompt": "hi", "completion": ["a", "b", "c"]}
    )
    table = policy_training.ratings(
        pool, np.array([1.0, 2.0, 3.0]), settings("kto"), np.random.default_rng(0)
    )
    assert sorted(zip(table["completion"], table["label"], strict=True)) == [
        ("a", False),
        ("c", True),
    ]
    with pytest.raises(InputError, match="tells no two completions apart"):
        policy_training.ratings(pool, np.ones(3), settings("kto"), np.random.default_rng(0))


def test_online_kinds_take_each_prompt_once_a_pass_and_at_most_as_many_as_asked_for():
    pool = make_pool()
    table = policy_training.examples(
        pool, None, settings("rloo", prompts=5, epochs=2), np.random.default_rng(0)
    )
    first, second = table["prompt"].tolist()[:5], table["prompt"].tolist()[5:]
    assert (
        len(set(first)) == 5
        and set(first) == set(second) <= set(pool["prompt"])
        and first != second
    )
    assert (table["request"] == table["prompt"]).all()
    assert (
        len(
            policy_training.examples(
                pool, None, settings("rloo", epochs=1), np.random.default_rng(0)
            )
        )
        == 16
    )


def test_a_rating_that_would_stand_alone_is_refused(fresh_backbone):
    pool = make_pool()
    for changes in ({"batch_size": 7}, {"pairs": 1}):
        table = policy_training.examples(
            pool, np.arange(64.0), settings("kto", **changes), np.random.default_rng(0)
        )
        with pytest.raises(InputError, match="leave a completion alone"):
            policy_training.train(fresh_backbone, table, settings("kto", **changes), 0)


def test_fewer_prompts_than_a_step_takes_are_an_error(fresh_backbone, scene):
    _, pool, known = scene
    few = policy_training.examples(
        pool, None, settings("rloo", prompts=3, epochs=1), np.random.default_rng(0)
    )
    with pytest.raises(InputError, match="takes 4 prompts .* there are 3"):
        policy_training.train(
            fresh_backbone,
            few,
            settings("rloo"),
            0,
            online=policy_training.Online(known["probe"], Sampling()),
        )


def test_policies_of_one_reward_are_one_policy(scene, tmp_path):
    """Start, order and pairs are the run's, not the policy's: two policies differ by what their
    rewards differ."""
    backbone, pool, known = scene
    weights = []
    for name in ("proxy", "shf_cas"):
        loop.train_policy(setting(backbone, "kto", epochs=1), known["probe"], pool, tmp_path / name)
        weights.append(adapter_weights(backbone, POLICY))
    assert_same_weights(*weights)


def test_a_policy_that_learned_nothing_writes_what_the_base_policy_wrote(scene, tmp_path):
    backbone, pool, _ = scene
    settings = reading.validate(
        {
            "gold": {"kind": "tiny_gold:vowels"},
            "policy": POLICIES["kto"],
            "sampling": SAMPLING,
            "evaluation": {"replicates": 0},
        },
        "test",
    )
    prompts = (
        pool[["prompt_id", "prompt"]].drop_duplicates().assign(split="evaluate", harmful=False)
    )
    base = sample(backbone, prompts, settings.sampling, settings.seed)
    backbone.add_adapter(POLICY, settings.policy.lora, seed=3)
    backbone.save_adapter(POLICY, tmp_path / "adapter")
    stage = runs.Stage(tmp_path / "stage", None)
    pools = trained.sampled_policies(settings, prompts, backbone, {"fresh": tmp_path}, stage)
    gold = gold_scores(base, prompts, settings)
    table = trained.trained_policies(settings, prompts, pools, base, gold, stage)
    assert list(stage.table("pool_fresh", None)["completion"]) == list(base["completion"])
    gold = table.pivot(index="prompt_id", columns="policy", values="gold")
    np.testing.assert_allclose(gold["fresh"], gold["base"])
    np.testing.assert_allclose(table["kl"], 0, atol=1e-4)


@pytest.mark.parametrize("kind", ["dpo", "rso"])
def test_two_rewards_take_the_prompts_in_one_order(kind):
    """Also where one of them draws other completions, and tells those of some prompts not apart."""
    pool = make_pool()
    policy = Policy(kind=kind, pairs=3 * pool["prompt_id"].nunique())
    generator = np.random.default_rng(4)
    one, other = generator.normal(size=(2, len(pool)))
    flat = pool["prompt_id"].isin(pool["prompt_id"].unique()[:2]).to_numpy()
    asked = [
        policy_training.pairs(pool, reward, policy, np.random.default_rng(1))
        for reward in (one, other, np.where(flat, 0.0, other))
    ]
    firsts = [list(table["prompt"].drop_duplicates()) for table in asked]
    silent = set(pool.loc[flat, "prompt"])
    assert (
        [p for p in firsts[0] if p not in silent]
        == [p for p in firsts[1] if p not in silent]
        == firsts[2]
    )
    if (
        kind == "rso"
    ):  # what the third reward's flat prompts would have drawn does not move the others' draws
        kept = asked[1][~asked[1]["prompt"].isin(silent)].reset_index(drop=True)
        assert kept.equals(asked[2].reset_index(drop=True))


@pytest.mark.parametrize("kind", ["dpo", "kto"])
def test_an_answer_that_spells_control_tokens_is_trained_on_as_text(kind, backbone):
    mark = next(
        m for m in backbone.writer.guard.marks if m in backbone.tokenizer.all_special_tokens
    )
    names = ("completion",) if kind == "kto" else ("chosen", "rejected")
    row = {"prompt": "Hello?", "label": True} | dict.fromkeys(names, f"No.{mark}Well done!")
    (given,) = policy_training.encoded(backbone, pd.DataFrame([row]))
    special = set(backbone.tokenizer.all_special_ids) - {backbone.tokenizer.unk_token_id}
    for name in names:
        *answer, end = given[f"{name}_ids"]
        assert end == backbone.stop_ids[0] and not special & set(answer)
        assert backbone.tokenizer.decode(answer) == f"No.{mark}Well done!"
