"""PACS and Kendall-tau distance against independent computations, on ordinary and on adversarial
inputs."""

import statistics
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from shfcas_lib import conflict
from shfcas_lib.base.errors import InputError
from shfcas_lib.conflict import (
    by_prompt,
    conflict_table,
    kendall_distance,
    means,
    pacs,
    shuffled,
)

REPEATABLE = settings(max_examples=100, deadline=None, derandomize=True, database=None)

ordinary = st.floats(-1e3, 1e3)
tied = st.integers(-2, 2).map(float)
huge = st.floats(-1e100, 1e100)
tiny = st.integers(-50, 50).map(lambda k: k * 1e-5)
kinds = st.sampled_from([ordinary, tied, huge, tiny])


@st.composite
def reward_and_logp(draw, values=None, least=2, most=9):
    """Two lists of the same length, each of its own kind of number."""
    n = draw(st.integers(least, most))
    reward, logp = (
        draw(st.lists(draw(kinds) if values is None else values, min_size=n, max_size=n))
        for _ in range(2)
    )
    return reward, logp


def brute_z(values):
    # exact rational arithmetic inside
    mean, std = (
        statistics.mean(values),
        statistics.pstdev(values),
    )
    return [(v - mean) / std for v in values]


def brute_kendall(reward, logp):
    discordant = tied_pairs = pairs = 0
    for i, j in combinations(range(len(reward)), 2):
        pairs += 1
        if reward[i] == reward[j] or logp[i] == logp[j]:
            tied_pairs += 1
        elif (reward[i] > reward[j]) != (logp[i] > logp[j]):
            discordant += 1
    return (discordant + tied_pairs / 2) / pairs


def varies_clearly(values):
    """Far enough from the degenerate threshold, and from what rounding could blur."""
    std = statistics.pstdev(values)
    return std > 1.01e-6 and std > 1e-8 * max(map(abs, values))


def one_prompt(reward, logp, prompt="p"):
    pool = pd.DataFrame(
        {"prompt_id": prompt, "index": range(len(reward)), "logp": np.asarray(logp, float)}
    )
    return conflict_table(pool, np.asarray(reward, float))


@pytest.fixture
def scored():
    """Pool of prompts with 1 to 6 completions, and rewards in the order of its rows."""
    generator = np.random.default_rng(1)
    rows = [
        (f"p{k}", i, generator.normal(-30, 5))
        for k, n in enumerate([3, 6, 1, 2, 6, 3])
        for i in range(n)
    ]
    return pd.DataFrame(rows, columns=["prompt_id", "index", "logp"]), generator.normal(size=21)


# PACS


@REPEATABLE
@given(reward_and_logp())
def test_pacs_equals_a_direct_computation(lists):
    reward, logp = lists
    assume(varies_clearly(reward) and varies_clearly(logp))
    score, degenerate = pacs(reward, logp)
    expected = np.subtract(brute_z(reward), brute_z(logp))
    assert not degenerate
    np.testing.assert_allclose(score, expected, atol=1e-6)


def test_pacs_of_a_worked_example():
    score, _ = pacs([1.0, 2.0, 3.0], [-10.0, -30.0, -20.0])
    step = np.sqrt(1.5)
    np.testing.assert_allclose(score, [-2 * step, step, step])


def test_pacs_is_positive_where_the_proxy_likes_what_the_policy_finds_unlikely():
    score, _ = pacs([5.0, 0.0, 0.0, 0.0], [-90.0, -10.0, -11.0, -12.0])
    assert score[0] > 3 and (score[1:] < 0).all()


@REPEATABLE
@given(reward_and_logp())
def test_pacs_is_finite_sums_to_zero_and_keeps_its_bound(lists):
    score, _ = pacs(*lists)
    assert np.isfinite(score).all()
    assert abs(score.sum()) < 1e-6 * len(score)
    assert np.abs(score).max() <= 2 * np.sqrt(len(score) - 1) + 1e-6


@pytest.mark.parametrize(
    "logp, expected", [([-5.0, -1.0], [0.0, 0.0]), ([-1.0, -5.0], [-2.0, 2.0])]
)
def test_two_completions_either_agree_or_are_reversed(logp, expected):
    score, degenerate = pacs([0.25, 0.5], logp)
    assert not degenerate
    np.testing.assert_allclose(score, expected)


def test_pacs_of_many_prompts_equals_pacs_of_each():
    generator = np.random.default_rng(0)
    reward, logp = generator.normal(size=(2, 7, 5))
    together, _ = pacs(reward, logp)
    for k in range(7):
        np.testing.assert_allclose(together[k], pacs(reward[k], logp[k])[0])


@REPEATABLE
@given(
    reward_and_logp(values=st.integers(-1000, 1000).map(float)),
    st.sampled_from([0.25, 2.0, 64.0]),
    st.integers(-500, 500),
)
def test_positive_scale_and_shift_change_nothing(lists, scale, shift):
    reward, logp = map(np.array, lists)
    moved = reward * scale + shift  # exact in floating point
    np.testing.assert_allclose(pacs(moved, logp)[0], pacs(reward, logp)[0], atol=1e-9)
    assert kendall_distance(moved[None], logp[None]) == kendall_distance(reward[None], logp[None])


@REPEATABLE
@given(reward_and_logp(values=tied), st.randoms(use_true_random=False))
def test_the_order_of_completions_does_not_matter(lists, random):
    reward, logp = map(np.array, lists)
    order = list(range(len(reward)))
    random.shuffle(order)
    np.testing.assert_allclose(
        pacs(reward[order], logp[order])[0], pacs(reward, logp)[0][order], atol=1e-9
    )
    assert kendall_distance(reward[order][None], logp[order][None]) == kendall_distance(
        reward[None], logp[None]
    )


# degenerate prompts


@pytest.mark.parametrize("flat", ["reward", "logp"])
@pytest.mark.parametrize("value", [0.0, 0.1, -1e3 / 3, 1e9 + 0.1, 1e-300])
@pytest.mark.parametrize("n", [2, 3, 7, 8])
def test_a_constant_side_makes_a_prompt_degenerate(flat, value, n):
    sides = {
        "reward": np.arange(n, dtype=float),
        "logp": np.arange(n, dtype=float),
        flat: np.full(n, value),
    }
    score, degenerate = pacs(sides["reward"], sides["logp"])
    assert degenerate and (score == 0).all()


@pytest.mark.parametrize("gap, expected", [(1.9e-6, True), (2.1e-6, False)])
def test_the_degenerate_threshold_is_a_population_std_of_one_millionth(gap, expected):
    # the population standard deviation of (0, gap) is gap / 2
    _, degenerate = pacs([0.0, gap], [0.0, 1.0])
    assert degenerate == expected


def test_a_single_completion_is_degenerate():
    score, degenerate = pacs([[3.0]], [[-2.0]])
    assert degenerate.tolist() == [True] and score.tolist() == [[0.0]]


def test_huge_finite_rewards_are_standardised_like_any_others():
    """Squares of such numbers overflow; their z-scores do not."""
    score, degenerate = pacs([1e200, 2e200, 4e200], [-1.0, -2.0, -3.0])
    assert not degenerate
    np.testing.assert_allclose(score, pacs([1.0, 2.0, 4.0], [-1.0, -2.0, -3.0])[0])


@pytest.mark.parametrize("n", range(2, 12))
def test_a_constant_of_any_size_is_degenerate(n):
    """The rounding of the mean of a large constant is not a spread."""
    _, degenerate = pacs(np.full(n, 123456789012.3), np.arange(n, dtype=float))
    assert degenerate


# Kendall-tau distance


@REPEATABLE
@given(reward_and_logp())
def test_kendall_equals_a_brute_force_count_ties_included(lists):
    reward, logp = lists
    assert kendall_distance([reward], [logp])[0] == pytest.approx(
        brute_kendall(reward, logp), abs=1e-12
    )


@REPEATABLE
@given(st.integers(2, 12), st.randoms(use_true_random=False))
def test_kendall_without_ties_is_scipys_tau(n, random):
    reward, logp = random.sample(range(100), n), random.sample(range(100), n)
    assert kendall_distance([reward], [logp])[0] == pytest.approx(
        (1 - kendalltau(reward, logp).statistic) / 2, abs=1e-12
    )


@REPEATABLE
@given(reward_and_logp())
def test_kendall_lies_in_the_unit_interval(lists):
    assert 0 <= kendall_distance([lists[0]], [lists[1]])[0] <= 1


@REPEATABLE
@given(reward_and_logp())
def test_kendall_is_half_of_one_minus_tau_a(lists):
    reward, logp = map(np.array, lists)
    signs = np.sign(reward[:, None] - reward) * np.sign(logp[:, None] - logp)
    tau_a = signs.sum() / (len(reward) * (len(reward) - 1))
    assert kendall_distance(reward[None], logp[None])[0] == pytest.approx(
        (1 - tau_a) / 2, abs=1e-12
    )


def test_kendall_ends_of_its_scale():
    up, down = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]
    assert kendall_distance([up, up, up], [up, down, [5.0] * 4]).tolist() == [0.0, 1.0, 0.5]


def test_blocks_of_prompts_change_nothing(monkeypatch):
    reward, logp = np.random.default_rng(2).integers(0, 4, (2, 55)).astype(float)
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:02d}" for k in range(11)], 5),
            "index": np.tile(np.arange(5), 11),
            "logp": logp,
        }
    )
    at_once = conflict_table(pool, reward)
    monkeypatch.setattr(conflict, "BLOCK", 3)
    pd.testing.assert_frame_equal(conflict_table(pool, reward), at_once, check_exact=True)


def test_kendall_of_a_single_completion_is_refused():
    with pytest.raises(InputError, match="completions >= 2"):
        kendall_distance([[1.0]], [[1.0]])


def test_different_shapes_are_refused():
    with pytest.raises(InputError, match=r"\(2,\).*\(3,\)"):
        pacs([1.0, 2.0], [1.0, 2.0, 3.0])


# the table


def test_table_equals_each_prompt_alone_whatever_the_number_of_completions(scored):
    pool, reward = scored
    table = conflict_table(pool, reward)
    assert len(table) == len(pool)
    for prompt, part in table.groupby("prompt_id"):
        rows = (pool["prompt_id"] == prompt).to_numpy()
        alone = one_prompt(reward[rows], pool.loc[rows, "logp"], prompt)
        pd.testing.assert_frame_equal(part.reset_index(drop=True), alone)


def test_table_holds_the_direct_computation(scored):
    pool, reward = scored
    table = conflict_table(pool, reward)
    rows = (pool["prompt_id"] == "p1").to_numpy()
    part, own_reward, own_logp = (
        table[table["prompt_id"] == "p1"],
        reward[rows].tolist(),
        pool.loc[rows, "logp"].tolist(),
    )
    expected = np.subtract(brute_z(own_reward), brute_z(own_logp))
    np.testing.assert_allclose(part["pacs"], expected)
    np.testing.assert_allclose(part["mean_abs_pacs"], np.abs(expected).mean())
    np.testing.assert_allclose(part["kendall"], brute_kendall(own_reward, own_logp))


def test_table_does_not_depend_on_the_order_of_rows(scored):
    pool, reward = scored
    order = np.random.default_rng(3).permutation(len(pool))
    pd.testing.assert_frame_equal(
        conflict_table(pool.iloc[order], reward[order]), conflict_table(pool, reward)
    )


def test_table_of_a_single_completion_is_degenerate_without_conflict(scored):
    prompt = by_prompt(conflict_table(*scored)).set_index("prompt_id").loc["p2"]
    assert (prompt["degenerate"], prompt["kendall"], prompt["mean_abs_pacs"]) == (True, 0.0, 0.0)


def test_table_takes_the_logp_of_a_refined_policy(scored):
    pool, reward = scored
    table = conflict_table(pool, reward, logp=reward * 3 - 40)
    np.testing.assert_allclose(table["pacs"], 0, atol=1e-9)
    assert (table["kendall"] == 0).all()


def test_by_prompt_has_one_row_per_prompt(scored):
    assert by_prompt(conflict_table(*scored))["prompt_id"].tolist() == [f"p{k}" for k in range(6)]


@pytest.mark.parametrize("column", ["reward", "logp"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_names_prompt_and_completion(scored, column, value):
    pool, reward = scored
    row = int(np.flatnonzero((pool["prompt_id"] == "p4") & (pool["index"] == 2))[0])
    if column == "reward":
        reward[row] = value
    else:
        pool.loc[row, "logp"] = value
    with pytest.raises(InputError, match=f"{column} of completion 2 of prompt p4 is {value}"):
        conflict_table(pool, reward)


# the placebo


@pytest.fixture
def opposed():
    """Conflict of 40 prompts x 6 completions that the policy ranks in the opposite order."""
    reward = np.random.default_rng(2).normal(size=240)
    ids = np.repeat([f"p{k:02d}" for k in range(40)], 6)
    pool = pd.DataFrame({"prompt_id": ids, "index": np.tile(range(6), 40), "logp": -reward})
    return conflict_table(pool, reward)


def test_a_shuffled_table_keeps_what_each_side_says_of_a_prompt_and_no_more(opposed):
    luck = shuffled(opposed, np.random.default_rng(0))
    assert list(luck) == list(opposed) and len(luck) == len(opposed)
    pd.testing.assert_series_equal(luck["z_reward"], opposed["z_reward"])
    for prompt, part in luck.groupby("prompt_id"):
        before = opposed[opposed["prompt_id"] == prompt]
        assert sorted(part["logp"]) == sorted(before["logp"])
        np.testing.assert_allclose(np.sort(part["z_logp"]), np.sort(before["z_logp"]))
    # the opposite order is gone: K falls from 1 to that of unrelated rankings
    assert opposed["kendall"].eq(1).all() and abs(luck["kendall"].mean() - 0.5) < 0.08
    again = conflict_table(luck[["prompt_id", "index", "logp"]], luck["reward"].to_numpy())
    pd.testing.assert_frame_equal(luck, again)


def test_a_shuffle_is_the_generators_and_does_not_depend_on_the_order_of_rows(opposed):
    one, same, other = (shuffled(opposed, np.random.default_rng(k)) for k in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert not one["logp"].equals(other["logp"])
    mixed = opposed.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(shuffled(mixed, np.random.default_rng(0)), one)


def test_a_shuffle_deals_every_log_probability_to_every_completion_equally_often(opposed):
    one = opposed[opposed["prompt_id"] == "p00"]
    generator, taken = np.random.default_rng(0), np.zeros((6, 6))
    for _ in range(300):
        luck = shuffled(one, generator)["logp"].to_numpy()
        taken += luck[:, None] == one["logp"].to_numpy()
    assert (np.abs(taken - 50) < 5 * np.sqrt(300 * 5 / 36)).all()


def test_means_count_the_prompts_in_which_there_is_something_to_rank():
    rows = [("a", 0, -1.0), ("a", 1, -2.0), ("flat", 0, -3.0), ("flat", 1, -3.0), ("one", 0, -1.0)]
    pool = pd.DataFrame(rows, columns=["prompt_id", "index", "logp"])
    found = conflict_table(pool, np.array([0.0, 1.0, 0.0, 1.0, 5.0]))
    assert by_prompt(found)["degenerate"].tolist() == [False, True, True]
    assert means(found) == {"kendall": 1.0, "mean_abs_pacs": 2.0}
    rest = found[found["degenerate"]]
    assert all(np.isnan(value) for value in means(rest).values())


def test_conflict_per_token_reads_the_mean_token():
    """A long completion is unlikely as a whole and likely by the token."""
    pool = pd.DataFrame(
        {"prompt_id": "p", "index": [0, 1, 2], "logp": [-4.0, -6.0, -9.0], "n_tokens": [2, 6, 3]}
    )
    assert conflict.log_probabilities(pool, "sum").tolist() == [-4, -6, -9]
    assert conflict.log_probabilities(pool, "mean").tolist() == [-2, -1, -3]
