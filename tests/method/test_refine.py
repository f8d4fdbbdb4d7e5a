"""The reward update: what labels replace, what a stage keeps, and the tilted policy of the next
round."""

import numpy as np
import pandas as pd
import pytest

from shfcas_lib import loop, refine, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import replication
from shfcas_lib.feedback import SimulatedHuman
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Reward
from shfcas_lib.storage.runs import Memory, Stage

KEY = ["prompt_id", "i", "j"]


def pairs(*rows):
    return pd.DataFrame(rows, columns=[*KEY, "label"])


def test_feedback_wins_where_both_speak_about_a_pair():
    biased = pairs(("a", 0, 1, 1.0), ("b", 0, 1, 0.0))
    merged = refine.merge(biased, pairs(("a", 0, 1, 0.0), ("c", 1, 2, 0.5)), 3.0)
    assert merged.to_numpy().tolist() == [
        ["a", 0, 1, 0.0, 3.0],
        ["b", 0, 1, 0.0, 1.0],
        ["c", 1, 2, 0.5, 3.0],
    ]


def test_much_better_multiplies_a_labels_weight_and_keeps_its_grade():
    labels = pairs(("a", 0, 1, 0.0), ("c", 1, 2, 0.5), ("d", 0, 1, 1.0), ("e", 0, 1, 0.75))
    graded = labels.assign(grade=[2.0, np.nan, 1.0, 1.5])
    assert refine.grade_weight(labels).tolist() == [1, 1, 1, 1]
    assert refine.grade_weight(graded).tolist() == [2, 1, 1, 1.5]
    assert refine.grade_weight(graded, much=5.0).tolist() == [5, 1, 1, 3]
    merged = refine.merge(pairs(("a", 0, 1, 1.0), ("b", 0, 1, 0.0)), graded, 3.0, much=2.0)
    assert merged["weight"].tolist() == [6, 1, 3, 3, 4.5]
    assert merged["grade"].fillna(0).tolist() == [2, 0, 0, 1, 1.5]
    assert "grade" not in refine.merge(pairs(("b", 0, 1, 0.0)), labels, 3.0, much=2.0)


def test_a_probe_learns_from_much_better_as_from_the_same_label_twice(planted):
    pool, gold = planted
    given = preferences(pool, gold)
    biased, labels = given.iloc[:60], given.iloc[60:].assign(grade=1.0)
    settings = Reward(l2=20.0)

    def fitted(table, biased=biased):
        merged = refine.merge(biased, table, settings.feedback_weight, settings.grade_weight)
        return refine.fit(settings, pool, merged, 0).score(pool)

    plain = fitted(labels.drop(columns="grade"))
    np.testing.assert_array_equal(fitted(labels), plain)
    much = fitted(labels.assign(grade=2.0))
    assert np.abs(much - plain).max() > 1e-3
    heavy = refine.merge(biased, labels, 2 * settings.feedback_weight)
    np.testing.assert_array_equal(refine.fit(settings, pool, heavy, 0).score(pool), much)


def test_for_a_lora_reward_a_grade_is_a_margin_and_no_weight():
    assert Reward(much_weight=4.0).grade_weight == 4.0
    assert Reward(kind="lora", much_weight=4.0).grade_weight == 1.0


def preferences(pool, gold):
    """Neighbours of every prompt, as gold ranks them."""
    rows = []
    for prompt, part in pool.assign(gold=gold).groupby("prompt_id"):
        own = part["gold"].to_numpy()
        rows += [(prompt, i, i + 1, float(own[i] > own[i + 1])) for i in range(len(own) - 1)]
    return pairs(*rows)


def test_a_stage_keeps_a_reward_whole_and_memory_keeps_none(planted, tmp_path):
    pool, gold = planted
    settings, given = Reward(l2=20.0), preferences(pool, gold)
    stage = Stage(tmp_path / "here", None)
    first = refine.kept(stage, settings, pool, given, 0)
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["reward.safetensors"]
    np.testing.assert_array_equal(
        refine.finished(settings, tmp_path / "here").score(pool), first.score(pool)
    )
    assert refine.kept(Memory(), settings, pool, given, 0).score(pool) == pytest.approx(
        first.score(pool)
    )


def test_a_lora_reward_without_a_backbone_is_refused_in_one_sentence(planted):
    pool, gold = planted
    with pytest.raises(InputError, match="reward.kind lora needs the backbone"):
        refine.fit(Reward(kind="lora"), pool, preferences(pool, gold), 0)


def test_the_tilted_policy_of_the_next_round_prefers_what_the_reward_likes(planted, tmp_path):
    """logp of round 2 is l + log(N w), w proportional to exp(r / beta): by loops, sign and all."""
    pool, gold = planted
    values = {"selection": {"budget": 10, "rounds": 2}, "reward": {"l2": 20.0}}
    settings = reading.validate(values | {"evaluation": {"replicates": 0}}, "test")
    asked = pool["prompt_id"] >= "p15"
    train, feedback = (pool[rows].reset_index(drop=True) for rows in (~asked, asked))
    observed = preferences(train, gold[~asked.to_numpy()])
    proxy = refine.fit(settings.reward, train, observed, 0)
    prompts = pd.DataFrame({"prompt_id": pool["prompt_id"].unique(), "harmful": False})
    setting = loop.Setting(settings, 0, prompts, train, feedback, observed, proxy)
    truth = dict(zip(zip(pool["prompt_id"], pool["index"], strict=True), gold, strict=True))
    human = SimulatedHuman(
        lambda t: np.array([truth[k] for k in zip(t["prompt_id"], t["index"], strict=True)])
    )
    outcome = loop.run_rounds("shf_cas", setting, human, Stage(tmp_path, None))
    assert len(outcome.rounds) == 2 and "grade" not in outcome.labels

    beta = settings.policy.beta
    refined = refine.finished(settings.reward, tmp_path / "round_1").score(feedback)
    table = pd.read_parquet(tmp_path / "round_2" / "conflict.parquet")
    logp = table.set_index(["prompt_id", "index"])["logp"]
    for prompt in feedback["prompt_id"].unique():
        mine = (feedback["prompt_id"] == prompt).to_numpy()
        raised = np.exp((refined[mine] - refined[mine].max()) / beta)
        weight = raised / raised.sum()
        expected = feedback["logp"][mine].to_numpy() + np.log(mine.sum() * weight)
        assert logp[prompt].to_numpy() == pytest.approx(expected)
        shift = logp[prompt].to_numpy() - feedback["logp"][mine].to_numpy()
        assert np.corrcoef(shift, refined[mine])[0, 1] == pytest.approx(1)


def test_the_human_of_replicates_grades_as_the_runs_own_does():
    gold = {("p", 0): 0.0, ("p", 1): 0.4, ("p", 2): 2.0}
    shown = pd.DataFrame({"prompt_id": "p", "index": [0, 1, 2]})
    asked = [{"prompt_id": "p", "i": 0, "j": j} for j in (1, 2)]
    for graded, words in (
        (False, ["second", "second"]),
        (True, ["second_better", "second_much_better"]),
    ):
        params = reading.validate({"feedback": {"graded": graded}}, "test")
        human = replication._human(params, gold, 0)
        assert [human.answer(pair, shown.iloc[[0, pair["j"]]]) for pair in asked] == words


@pytest.mark.parametrize("refinement", ["trust", "merge"])
def test_a_round_learns_from_the_grades_of_its_answers(planted, tmp_path, refinement):
    pool, gold = planted
    reward = {"l2": 20.0, "much_weight": 7.0, "refinement": refinement}
    values = {"selection": {"budget": 30, "rounds": 1}, "reward": reward}
    settings = reading.validate(values | {"evaluation": {"replicates": 0}}, "test")
    asked = pool["prompt_id"] >= "p15"
    train, feedback = (pool[rows].reset_index(drop=True) for rows in (~asked, asked))
    observed = preferences(train, gold[~asked.to_numpy()])
    proxy = refine.fit(settings.reward, train, observed, 0)
    prompts = pd.DataFrame({"prompt_id": pool["prompt_id"].unique(), "harmful": False})
    setting = loop.Setting(settings, 0, prompts, train, feedback, observed, proxy)
    truth = dict(zip(zip(pool["prompt_id"], pool["index"], strict=True), gold, strict=True))
    human = SimulatedHuman(
        lambda t: np.array([truth[k] for k in zip(t["prompt_id"], t["index"], strict=True)]),
        much=1.0,
    )
    outcome = loop.run_rounds("random", setting, human, Stage(tmp_path, None))
    labels = pd.read_parquet(tmp_path / "round_1" / "labels.parquet")
    assert labels["grade"].value_counts().min() > 3
    merged = refine.merge(observed, labels, 3.0, much=7.0)
    assert set(merged["weight"]) == {1.0, 3.0, 21.0}
    expected = refine.fit(settings.reward, pool, merged, 0)
    if refinement == "trust":
        weighed = labels.assign(weight=refine.grade_weight(labels, 7.0))
        expected = trust.fit(setting.belief, pool, weighed)
    np.testing.assert_allclose(outcome.reward.score(pool), expected.score(pool), atol=1e-9)
