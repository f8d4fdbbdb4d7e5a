"""Tilted policies: normalisation, limits, KL and win rate against direct computations."""

import numpy as np
import pytest

from shfcas_lib.policies import log_ratio, per_prompt, tilt, win_rate

BETAS = [1e-6, 0.01, 0.5, 8.0, 1e6]


@pytest.fixture
def pool():
    """Prompt ids of 5 prompts with 2 to 6 completions, rows shuffled, and rewards of unit size."""
    generator = np.random.default_rng(0)
    ids = generator.permutation(np.repeat(["a", "b", "c", "d", "e"], [2, 3, 4, 5, 6]))
    return ids, generator.normal(size=20)


def groups(ids):
    return [(prompt, ids == prompt) for prompt in sorted(set(ids))]


@pytest.mark.parametrize("beta", BETAS)
def test_weights_sum_to_one_within_each_prompt(pool, beta):
    ids, reward = pool
    weights = tilt(ids, reward, beta)
    assert (weights >= 0).all()
    for _, rows in groups(ids):
        assert weights[rows].sum() == pytest.approx(1)


def test_weights_are_proportional_to_the_exponential_of_reward_over_beta(pool):
    ids, reward = pool
    weights = tilt(ids, reward, 0.7)
    for _, rows in groups(ids):
        raised = np.exp(reward[rows] / 0.7)
        np.testing.assert_allclose(weights[rows], raised / raised.sum())


def test_a_large_beta_is_the_base_policy(pool):
    ids, reward = pool
    weights = tilt(ids, reward, 1e9)
    for _, rows in groups(ids):
        np.testing.assert_allclose(weights[rows], 1 / rows.sum(), rtol=1e-6)


def test_a_small_beta_is_best_of_n(pool):
    ids, reward = pool
    weights = tilt(ids, reward, 1e-4)
    for _, rows in groups(ids):
        best = reward[rows] == reward[rows].max()
        np.testing.assert_allclose(weights[rows], best.astype(float), atol=1e-12)


def test_best_completions_that_tie_share_the_weight():
    np.testing.assert_allclose(
        tilt(np.array(["a"] * 3), np.array([2.0, 1.0, 2.0]), 1e-4), [0.5, 0, 0.5]
    )


def test_a_shift_of_all_rewards_of_a_prompt_changes_nothing(pool):
    ids, reward = pool
    np.testing.assert_allclose(
        tilt(ids, reward + np.where(ids == "c", 1000, -500), 0.5), tilt(ids, reward, 0.5), rtol=1e-9
    )


def test_extreme_rewards_do_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        weights = tilt(np.array(["a", "a", "b", "b"]), np.array([-1e6, 1e6, 1e300, -1e300]), 0.0625)
        table = per_prompt(np.array(["a", "a", "b", "b"]), weights, {"reward": np.zeros(4)})
    np.testing.assert_allclose(weights, [0, 1, 1, 0])
    np.testing.assert_allclose(table["kl"], np.log(2))


def test_a_reward_over_beta_beyond_the_largest_float_is_still_best_of_n():
    np.testing.assert_allclose(tilt(np.array(["a", "a"]), np.array([1e300, 2e300]), 1e-9), [0, 1])


def test_log_ratio_is_the_log_of_the_weight_over_the_base_weight(pool):
    ids, reward = pool
    weights = tilt(ids, reward, 0.5)
    for _, rows in groups(ids):
        np.testing.assert_allclose(
            log_ratio(ids, weights)[rows], np.log(weights[rows] / (1 / rows.sum()))
        )


@pytest.mark.parametrize("beta", [0.1, 0.5, 4.0])
def test_kl_and_expectations_match_a_direct_computation(pool, beta):
    ids, reward = pool
    gold = np.random.default_rng(1).normal(size=20)
    weights = tilt(ids, reward, beta)
    table = per_prompt(ids, weights, {"gold": gold, "reward": reward}).set_index("prompt_id")
    for prompt, rows in groups(ids):
        w = weights[rows]
        assert table.loc[prompt, "kl"] == pytest.approx(sum(p * np.log(p * len(w)) for p in w))
        assert table.loc[prompt, "gold"] == pytest.approx(w @ gold[rows])
        assert table.loc[prompt, "reward"] == pytest.approx(w @ reward[rows])


def test_kl_grows_from_zero_to_log_n_as_beta_falls(pool):
    ids, reward = pool
    kl = np.array(
        [per_prompt(ids, tilt(ids, reward, beta), {})["kl"] for beta in sorted(BETAS, reverse=True)]
    )
    np.testing.assert_allclose(kl[0], 0, atol=1e-9)
    assert (np.diff(kl, axis=0) >= -1e-12).all()
    np.testing.assert_allclose(kl[-1], np.log([2, 3, 4, 5, 6]), rtol=1e-6)


def test_expected_reward_never_falls_when_the_anchor_loosens(pool):
    ids, reward = pool
    expected = np.array(
        [
            per_prompt(ids, tilt(ids, reward, beta), {"reward": reward})["reward"]
            for beta in sorted(BETAS, reverse=True)
        ]
    )
    assert (np.diff(expected, axis=0) >= -1e-9).all()


def test_win_rate_matches_a_count_over_all_pairs_of_draws(pool):
    ids, reward = pool
    gold = np.random.default_rng(2).integers(0, 3, 20).astype(float)  # many ties
    weights = tilt(ids, reward, 0.5)
    table = win_rate(ids, weights, gold).set_index("prompt_id")["win"]
    for prompt, rows in groups(ids):
        w, g = weights[rows], gold[rows]
        win = 0.0
        for i in range(len(g)):
            for j in range(len(g)):
                win += w[i] / len(g) * (1.0 if g[i] > g[j] else 0.5 if g[i] == g[j] else 0.0)
        assert table[prompt] == pytest.approx(win)


def test_the_base_policy_wins_half_of_the_time_against_itself(pool):
    ids, reward = pool
    np.testing.assert_allclose(win_rate(ids, tilt(ids, reward * 0, 1.0), reward)["win"], 0.5)
