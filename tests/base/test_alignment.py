"""What stands beside a table belongs to its rows, or is refused; never taken by position."""

import numpy as np
import pandas as pd
import pytest
from own_files import refusal

from shfcas_lib import evaluation, policies, rewards
from shfcas_lib.base.alignment import alike, beside, nearest, need
from shfcas_lib.conflict import conflict_table, pacs

ROWS = [("p", 0), ("p", 1), ("q", 0), ("q", 1), ("q", 2)]


@pytest.fixture
def pool():
    table = pd.DataFrame(ROWS, columns=["prompt_id", "index"])
    return table.assign(logp=[-1.0, -5.0, -2.0, -3.0, -9.0], reward=[3.0, 1.0, 2.0, 5.0, 4.0])


def reordered(series, seed=1):
    return series.iloc[np.random.default_rng(seed).permutation(len(series))]


def test_a_series_is_taken_by_its_index_whatever_its_order(pool):
    expected = pool["reward"].tolist()
    assert beside(pool, reordered(pool["reward"]), "reward").tolist() == expected
    by_id = pool.set_index(["prompt_id", "index"])["reward"]
    assert beside(pool, reordered(by_id), "reward").tolist() == expected
    assert beside(pool, expected, "reward").tolist() == expected
    assert (
        beside(reordered(pool), pool["reward"], "reward").tolist()
        == reordered(pool)["reward"].tolist()
    )


@pytest.mark.parametrize(
    "values, words",
    [
        (pd.Series(range(5), index=[10, 11, 12, 13, 14]), "whose index is not that of the table"),
        (pd.Series([1.0, 2.0]), "2 values whose index is not that of the table of 5 rows"),
        (pd.Series(range(5), index=[0, 1, 2, 3, 3]), "whose index is not that"),
        (np.zeros(4), "shape (4,), expected one number for each of the 5 rows"),
        (np.zeros((5, 1)), "shape (5, 1)"),
        (1.0, "shape ()"),
    ],
)
def test_what_belongs_to_other_rows_is_refused(pool, values, words):
    assert words in refusal(beside, pool, values, "reward")
    assert words in refusal(conflict_table, pool, values)
    assert words in refusal(evaluation.curve, pool, values, {}, [1.0, 2.0])


def test_every_function_beside_a_table_gives_the_same_for_a_reordered_series(pool):
    """A wrong order is a wrong result without a word: each public function is asked."""
    reward, logp = pool["reward"], pool["logp"]
    ids = pool["prompt_id"]
    mixed = reordered(reward)

    def same(function, *arguments, **named):
        first, second = (function(values, *arguments, **named) for values in (reward, mixed))
        for one, other in zip(
            *(x if isinstance(x, tuple) else (x,) for x in (first, second)), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))

    same(lambda values: conflict_table(pool, values).drop(columns="prompt_id"))
    same(
        lambda values: conflict_table(
            pool, reward, reordered(logp, 2) if values is mixed else logp
        ).drop(columns="prompt_id")
    )
    same(lambda values: pacs(logp, values))
    same(lambda values: policies.tilt(ids, values, 0.5))
    same(lambda values: policies.log_ratio(ids, values))
    weights = pd.Series(policies.tilt(ids, reward, 0.5))
    same(lambda values: policies.win_rate(ids, weights, values)["win"])
    same(lambda values: policies.per_prompt(ids, weights, {"gold": values})["gold"])
    same(lambda values: evaluation.pair_accuracy(ids, values, logp)["pair_accuracy"])
    same(lambda values: evaluation.headroom_share(ids, logp, values)["headroom"])
    same(lambda values: evaluation.curve(pool, logp, {"r": values}, [1.0, 2.0])["gold_gain"])
    same(lambda values: evaluation.tilted(pool, values, {"r": logp}, 0.5)["gold"])
    same(lambda values: np.array(rewards.spread(values, ids)))


def test_a_reordered_series_beside_an_array_is_refused(pool):
    said = refusal(policies.tilt, pool["prompt_id"].to_numpy(), reordered(pool["reward"]), 0.5)
    assert "index is not in order" in said
    assert alike(np.zeros(5), {"r": pool["reward"]})["r"] is not None


@pytest.mark.parametrize(
    "wanted, there, found",
    [
        ("completion", ["prompt", "response"], "response"),
        ("completion", ["prompt", "complétion"], "complétion"),
        ("logp", ["cumulative_logprob", "reward"], "cumulative_logprob"),
        ("reward", ["Reward"], "Reward"),
        ("prompt", ["question", "instruction"], "question"),
        ("logp", ["a", "b"], None),
    ],
)
def test_the_nearest_column_is_named(wanted, there, found):
    assert nearest(wanted, there) == found


def test_a_missing_column_names_those_found_and_the_nearest(pool):
    said = refusal(need, pool.rename(columns={"logp": "logprob"}), ["reward", "logp"], "a pool")
    assert said == (
        "a pool has no column 'logp' (columns found: prompt_id, index, logprob, reward; is it"
        " 'logprob'?)"
    )
    wide = pd.DataFrame(columns=[f"c{k}" for k in range(50)])
    assert "and 20 more" in refusal(need, wide, ["logp"], "a pool")


def test_a_conflict_table_needs_its_columns_and_each_completion_once(pool):
    assert "no column 'logp'" in refusal(conflict_table, pool.drop(columns="logp"))
    assert "no column 'reward'" in refusal(conflict_table, pool.drop(columns="reward"))
    assert "no column 'prompt_id'" in refusal(conflict_table, pool.drop(columns="prompt_id"))
    twice = pool.assign(index=[0, 0, 0, 1, 2])
    assert "completion 0 of prompt p has more than one row" in refusal(conflict_table, twice)
    pd.testing.assert_frame_equal(conflict_table(pool), conflict_table(pool, pool["reward"]))
