"""The probe reward: what it learns, that its fit is the optimum, what weights and ties do; and
the merge with feedback."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from shfcas_lib import pool as pools
from shfcas_lib import refine, rewards
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Reward
from shfcas_lib.rewards import Probe, fit_probe
from shfcas_lib.storage.runs import Stage

KEY = ["prompt_id", "i", "j"]


def preferences(pool, gold, label=None):
    """All pairs of each prompt with the label that gold gives them, or one label for all."""
    value = dict(zip(zip(pool["prompt_id"], pool["index"], strict=True), gold, strict=False))
    rows = [
        (prompt, i, j, float(value[prompt, i] > value[prompt, j]) if label is None else label)
        for prompt, part in pool.groupby("prompt_id")
        for i, j in combinations(part["index"], 2)
    ]
    return pd.DataFrame(rows, columns=[*KEY, "label"])


def accuracy(pool, score, gold):
    """Share of within-prompt pairs that score ranks as gold does."""
    truth, guess = preferences(pool, gold)["label"], preferences(pool, score)["label"]
    return (truth == guess).mean()


def margins(reward, pool, pairs):
    score = dict(
        zip(zip(pool["prompt_id"], pool["index"], strict=True), reward.score(pool), strict=False)
    )
    return np.array([score[r.prompt_id, r.i] - score[r.prompt_id, r.j] for r in pairs.itertuples()])


# what it learns


def test_probe_recovers_a_planted_linear_reward(planted):
    pool, gold = planted
    reward = fit_probe(pool, preferences(pool, gold), l2=1.0)
    assert accuracy(pool, reward.score(pool), gold) > 0.97


def test_probe_ranks_completions_of_prompts_it_never_saw(planted):
    pool, gold = planted
    seen = (pool["prompt_id"] < "p20").to_numpy()
    reward = fit_probe(pool[seen], preferences(pool[seen], gold[seen]), l2=1.0)
    assert accuracy(pool[~seen], reward.score(pool[~seen]), gold[~seen]) > 0.9


def test_probe_learns_that_a_completion_suits_its_prompt():
    """A reward that is the product of completion and prompt, with the prompt's state the same for
    all its completions."""
    generator = np.random.default_rng(0)
    features = generator.normal(size=(240, 32))
    features[:, 24:] = np.repeat(generator.normal(size=(40, 8)), 6, axis=0)
    prompt_ids = np.repeat([f"p{k:02d}" for k in range(40)], 6)
    pool = pd.DataFrame(
        {"prompt_id": prompt_ids, "index": np.tile(range(6), 40), "features": list(features)}
    )
    gold = (features[:, :8] * features[:, 24:]).sum(1)
    reward = fit_probe(pool, preferences(pool, gold), l2=1.0)
    assert accuracy(pool, reward.score(pool), gold) > 0.95


def test_reversed_labels_give_a_reversed_reward(planted):
    pool, gold = planted
    pairs = preferences(pool, gold)
    reward, reverse = (
        fit_probe(pool, pairs.assign(label=label), l2=5.0).score(pool)
        for label in (pairs["label"], 1 - pairs["label"])
    )
    centred = reward - pd.Series(reward).groupby(pool["prompt_id"]).transform("mean").to_numpy()
    back = reverse - pd.Series(reverse).groupby(pool["prompt_id"]).transform("mean").to_numpy()
    np.testing.assert_allclose(centred, -back, atol=1e-3)


def test_scores_have_unit_spread_on_the_completions_of_the_fit(planted):
    pool, gold = planted
    score = fit_probe(pool, preferences(pool, gold), l2=30.0).score(pool)
    assert pd.Series(score).groupby(pool["prompt_id"]).std(ddof=0).mean() == pytest.approx(1)


def test_a_stronger_penalty_gives_smaller_weights(planted):
    pool, gold = planted
    weak, strong = (fit_probe(pool, preferences(pool, gold), l2=l2) for l2 in (1.0, 1000.0))
    assert np.linalg.norm(strong.weight) < 0.1 * np.linalg.norm(weak.weight)


def test_the_design_is_standardised_on_the_completions_that_the_preferences_name(planted):
    pool, gold = planted
    named = (pool["prompt_id"] < "p12").to_numpy()
    pool = pool.assign(features=list(pools.features(pool) * np.where(named, 5, 1)[:, None] + 3))
    reward = fit_probe(pool, preferences(pool[named], gold[named]), l2=1.0)
    columns = rewards.design(pools.features(pool[named]), reward.mean, reward.std)
    np.testing.assert_allclose(columns.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(columns.std(0), 1)


# convexity


def test_the_same_data_gives_the_same_reward(planted):
    pool, gold = planted
    one, other = (fit_probe(pool, preferences(pool, gold), l2=10.0) for _ in range(2))
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.score(pool), other.score(pool))


def test_the_order_of_rows_does_not_matter(planted):
    pool, gold = planted
    pairs = preferences(pool, gold)
    expected = fit_probe(pool, pairs, l2=10.0).score(pool)
    found = fit_probe(
        pool.sample(frac=1, random_state=1), pairs.sample(frac=1, random_state=2), l2=10.0
    ).score(pool)
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_naming_a_pair_the_other_way_round_does_not_matter(planted):
    pool, gold = planted
    pairs = preferences(pool, gold)
    swapped = pairs.assign(i=pairs["j"], j=pairs["i"], label=1 - pairs["label"])
    np.testing.assert_allclose(
        fit_probe(pool, swapped, l2=10.0).score(pool),
        fit_probe(pool, pairs, l2=10.0).score(pool),
        atol=1e-3,
    )


@pytest.mark.parametrize("l2", [1.0, 60.0, 300.0])
def test_the_gradient_vanishes_at_the_fit(planted, l2):
    """The gradient of the documented loss, written out here once more."""
    pool, gold = planted
    pairs = preferences(pool, gold).assign(weight=np.random.default_rng(0).choice([1.0, 3.0], 450))
    reward = fit_probe(pool, pairs, l2=l2)
    design = rewards.design(pools.features(pool), reward.mean, reward.std)
    row = {key: k for k, key in enumerate(zip(pool["prompt_id"], pool["index"], strict=True))}
    difference = np.array(
        [design[row[r.prompt_id, r.i]] - design[row[r.prompt_id, r.j]] for r in pairs.itertuples()]
    )

    def gradient(w):
        return (
            difference.T
            @ (pairs["weight"].to_numpy() * (expit(difference @ w) - pairs["label"].to_numpy()))
            + l2 * w
        )

    assert np.linalg.norm(gradient(reward.weight)) < 1e-4 * np.linalg.norm(
        gradient(np.zeros_like(reward.weight))
    )


# weights and ties


def test_weight_two_is_the_row_twice(planted):
    pool, gold = planted
    pairs = preferences(pool, gold).head(60)
    pairs["label"] = np.where(np.arange(60) % 7 == 0, 1 - pairs["label"], pairs["label"])
    weighted = fit_probe(pool, pairs.assign(weight=np.where(np.arange(60) < 20, 2.0, 1.0)), l2=10.0)
    repeated = fit_probe(pool, pd.concat([pairs, pairs.head(20)]), l2=10.0)
    np.testing.assert_allclose(weighted.score(pool), repeated.score(pool), atol=1e-3)


def test_of_two_answers_to_one_pair_the_heavier_decides(planted):
    pool, _ = planted
    pairs = pd.DataFrame(
        [("p00", 0, 1, 1.0, 1.0), ("p00", 0, 1, 0.0, 3.0)], columns=[*KEY, "label", "weight"]
    )
    assert (margins(fit_probe(pool, pairs, l2=1.0), pool, pairs) < 0).all()


def test_ties_alone_leave_nothing_to_prefer(planted):
    pool, gold = planted
    np.testing.assert_allclose(
        fit_probe(pool, preferences(pool, gold, label=0.5), l2=1.0).score(pool), 0, atol=1e-9
    )


def test_a_tie_draws_its_two_completions_together(planted):
    pool, gold = planted
    pairs = preferences(pool, gold)
    tied = pairs.head(1).assign(label=0.5)
    without = margins(fit_probe(pool, pairs, l2=10.0), pool, tied)
    with_tie = margins(
        fit_probe(pool, pd.concat([pairs.assign(weight=1.0), tied.assign(weight=200.0)]), l2=10.0),
        pool,
        tied,
    )
    assert abs(with_tie[0]) < 0.2 * abs(without[0])


def test_a_feature_that_does_not_vary_does_no_harm(planted):
    pool, gold = planted
    features = pools.features(pool)
    features[:, [9, 30]] = 3.0
    reward = fit_probe(pool.assign(features=list(features)), preferences(pool, gold), l2=1.0)
    assert np.isfinite(reward.score(pool.assign(features=list(features)))).all()


# errors and files


def test_a_completion_that_is_missing_is_named(planted):
    pool, gold = planted
    pairs = preferences(pool, gold)
    pairs.loc[17, "j"] = 99
    with pytest.raises(InputError, match=f"completion 99 of prompt {pairs.loc[17, 'prompt_id']}"):
        fit_probe(pool, pairs, l2=1.0)


def test_no_preferences_is_an_error(planted):
    pool, gold = planted
    with pytest.raises(InputError, match="no preferences"):
        fit_probe(pool, preferences(pool, gold).head(0), l2=1.0)


def test_a_saved_probe_scores_exactly_as_before(planted, tmp_path):
    pool, gold = planted
    reward = fit_probe(pool, preferences(pool, gold), l2=20.0)
    reward.save(tmp_path / "sub")
    again = Probe.load(tmp_path / "sub")
    np.testing.assert_array_equal(again.score(pool), reward.score(pool))
    assert [p.name for p in (tmp_path / "sub").iterdir()] == ["reward.safetensors"]


def test_refine_reads_back_what_it_fitted_instead_of_fitting_again(planted, tmp_path):
    pool, gold = planted
    settings = Reward(l2=20.0)
    stage = Stage(tmp_path, None)
    first = refine.kept(stage, settings, pool, preferences(pool, gold), seed=0)
    again = refine.kept(stage, settings, pool, preferences(pool, -gold), seed=0)
    np.testing.assert_array_equal(first.score(pool), again.score(pool))


def test_a_reward_that_nobody_kept_is_said_to_be_missing(tmp_path):
    with pytest.raises(InputError, match="holds no finished reward"):
        refine.finished(Reward(), tmp_path)


# the merge with feedback


@pytest.fixture
def biased():
    return pd.DataFrame(
        [("b", 0, 1, 1.0), ("a", 0, 2, 0.0), ("a", 0, 1, 1.0)], columns=[*KEY, "label"]
    )


def labels(*rows):
    return pd.DataFrame(rows, columns=[*KEY, "label"])


def test_feedback_wins_over_a_biased_label_of_the_same_pair(biased):
    merged = refine.merge(biased, labels(("a", 0, 1, 0.0)), weight=3.0)
    assert merged.to_numpy().tolist() == [
        ["a", 0, 1, 0.0, 3.0],
        ["a", 0, 2, 0.0, 1.0],
        ["b", 0, 1, 1.0, 1.0],
    ]


def test_feedback_on_a_new_pair_is_added(biased):
    merged = refine.merge(biased, labels(("c", 2, 5, 0.5)), weight=4.0)
    assert len(merged) == 4 and merged.iloc[-1].tolist() == ["c", 2, 5, 0.5, 4.0]


def test_a_later_round_wins_over_an_earlier_one(biased):
    rounds = pd.concat([labels(("a", 0, 1, 0.0)), labels(("a", 0, 1, 0.5))])
    assert refine.merge(biased, rounds, weight=3.0).iloc[0]["label"] == 0.5


def test_merge_without_feedback_keeps_the_biased_labels(biased):
    merged = refine.merge(biased, labels(), weight=3.0)
    assert merged["weight"].tolist() == [1.0] * 3
    pd.testing.assert_frame_equal(
        merged[[*KEY, "label"]], biased.sort_values(KEY, ignore_index=True), check_dtype=False
    )


def test_merge_does_not_depend_on_the_order_of_biased_rows(biased):
    feedback = labels(("a", 0, 2, 1.0), ("d", 0, 1, 1.0))
    pd.testing.assert_frame_equal(
        refine.merge(biased.iloc[::-1], feedback, 3.0), refine.merge(biased, feedback, 3.0)
    )


def test_feedback_mends_a_biased_reward(planted):
    pool, gold = planted
    clean = preferences(pool, gold)
    spoilt = clean.assign(
        label=np.where(np.arange(len(clean)) % 3 == 0, clean["label"], 1 - clean["label"])
    )
    asked = clean.sample(200, random_state=0)
    before = fit_probe(pool, spoilt, l2=30.0)
    after = fit_probe(pool, refine.merge(spoilt, asked, 3.0), l2=30.0)
    assert accuracy(pool, after.score(pool), gold) > accuracy(pool, before.score(pool), gold) + 0.2
