"""Figures of merit against an independent computation: loops over prompts and completions, by the
definitions, with none of the library's arrays."""

import math
from itertools import combinations, product
from statistics import mean, pstdev

import numpy as np
import pandas as pd
import pytest

from shfcas_lib import evaluation
from shfcas_lib.rewards import Probe

BETA = 0.7


@pytest.fixture
def scored():
    """A pool of 12 prompts with 3 to 6 completions, some tied in gold: (pool, gold, scores)."""
    draw = np.random.default_rng(5)
    rows = [(f"p{k:02d}", i) for k in range(12) for i in range(3 + k % 4)]
    pool = pd.DataFrame(rows, columns=["prompt_id", "index"])
    pool = pool.assign(prompt="?", completion="!", logp=draw.normal(-20, 4, len(pool)))
    gold = draw.integers(0, 4, len(pool)) / 2
    scores = {"one": draw.normal(size=len(pool)), "two": gold + draw.normal(size=len(pool))}
    return pool, gold, scores


def prompts_of(pool, *columns):
    """For every prompt its completions' values, one tuple a completion."""
    found = {}
    for prompt, *values in zip(pool["prompt_id"], *columns, strict=True):
        found.setdefault(prompt, []).append(tuple(map(float, values)))
    return found


def weights(rewards, beta):
    """Weights of the policy that is optimal for KL-regularised RLHF on these samples."""
    raised = [math.exp(reward / beta) for reward in rewards]
    return [value / sum(raised) for value in raised]


def unit(pool, values):
    """Mean standard deviation within prompts: what gains are measured in."""
    return mean(pstdev([v for (v,) in rows]) for rows in prompts_of(pool, values).values())


def test_tilted_policies_by_their_definition(scored):
    pool, gold, scores = scored
    table = evaluation.tilted(pool, gold, scores, BETA).set_index(["policy", "prompt_id"])
    gold_unit = unit(pool, gold)
    for name, reward in scores.items():
        reward_unit = unit(pool, reward)
        for prompt, rows in prompts_of(pool, gold, reward).items():
            g, r = zip(*rows, strict=True)
            w, n = weights(r, BETA), len(rows)
            row = table.loc[(name, prompt)]
            expected = sum(a * b for a, b in zip(w, g, strict=True))
            assert row["gold"] == pytest.approx(expected)
            assert row["kl"] == pytest.approx(sum(a * math.log(a * n) for a in w))
            duels = [
                w[i] * ((g[i] > g[j]) + (g[i] == g[j]) / 2) / n
                for i, j in product(range(n), range(n))
            ]
            assert row["win"] == pytest.approx(sum(duels))
            gained = expected - mean(g)
            believed = sum(a * b for a, b in zip(w, r, strict=True)) - mean(r)
            assert row["gold_gain"] == pytest.approx(gained / gold_unit)
            assert row["reward_gain"] == pytest.approx(believed / reward_unit)
            assert row["gap"] == pytest.approx(believed / reward_unit - gained / gold_unit)


def test_the_base_policy_gains_nothing_and_has_no_reward_to_be_measured_by(scored):
    pool, gold, scores = scored
    table = evaluation.tilted(pool, gold, scores, BETA)
    base = table[table["policy"] == "base"].set_index("prompt_id")
    for prompt, rows in prompts_of(pool, gold).items():
        assert base.at[prompt, "gold"] == pytest.approx(mean(g for (g,) in rows))
    assert base["win"].to_numpy() == pytest.approx(0.5) and (base["gold_gain"] == 0).all()
    assert base["kl"].to_numpy() == pytest.approx(0, abs=1e-12)
    assert base[["pair_accuracy", "gap", "kendall", "mean_abs_pacs"]].isna().all(axis=None)


def test_a_policy_is_held_against_pairs_that_gold_tells_apart(scored):
    pool, gold, scores = scored
    table = evaluation.pair_accuracy(pool["prompt_id"].to_numpy(), scores["one"], gold)
    found = table.set_index("prompt_id")["pair_accuracy"]
    for prompt, rows in prompts_of(pool, gold, scores["one"]).items():
        right = [
            float((a[0] - b[0]) * (a[1] - b[1]) > 0)
            for a, b in combinations(rows, 2)
            if a[0] != b[0]
        ]
        assert (prompt in found) == bool(right)
        assert not right or found[prompt] == pytest.approx(mean(right))


def test_conflict_columns_are_those_of_the_conflict_table(scored):
    from scipy.stats import kendalltau, zscore

    pool, gold, scores = scored
    table = evaluation.tilted(pool, gold, scores, BETA).set_index(["policy", "prompt_id"])
    for prompt, rows in prompts_of(pool, scores["two"], pool["logp"]).items():
        reward, logp = np.array(rows).T
        row = table.loc[("two", prompt)]
        assert row["kendall"] == pytest.approx((1 - kendalltau(reward, logp).statistic) / 2)
        pacs = np.abs(zscore(reward) - zscore(logp))
        assert row["mean_abs_pacs"] == pytest.approx(pacs.mean())


def test_evaluate_scores_the_pool_with_each_reward(planted):
    pool, gold = planted
    pool = pool.assign(logp=np.random.default_rng(0).normal(size=len(pool)))
    size = pool["features"][0].size
    draw = np.random.default_rng(1).normal(size=size)
    probe = Probe(np.zeros((2, size)), np.ones((2, size)), draw)
    table = evaluation.evaluate(pool, gold, {"probe": probe}, BETA)
    expected = evaluation.tilted(pool, gold, {"probe": probe.score(pool)}, BETA)
    pd.testing.assert_frame_equal(table, expected)


def test_the_over_optimisation_curve_is_the_mean_of_tilted_policies(scored):
    pool, gold, scores = scored
    curve = evaluation.curve(pool, gold, scores, [0.3, 3.0])
    assert curve["beta"].tolist() == [3.0, 0.3] * 2
    for row in curve.itertuples():
        table = evaluation.tilted(pool, gold, scores, row.beta)
        own = table[table["policy"] == row.policy]
        for measure in ("kl", "reward_gain", "gold_gain"):
            assert getattr(row, measure) == pytest.approx(own[measure].mean())


def test_headroom_is_what_the_best_of_n_gains(scored):
    pool, gold, scores = scored
    table = evaluation.headroom_share(pool["prompt_id"].to_numpy(), scores["one"], gold)
    for row in table.itertuples():
        rows = prompts_of(pool, gold, scores["one"])[row.prompt_id]
        even = mean(g for g, _ in rows)
        favourite = max(rows, key=lambda pair: pair[1])
        assert row.gained == pytest.approx(favourite[0] - even)
        assert row.headroom == pytest.approx(max(g for g, _ in rows) - even)


def test_a_sampled_policy_is_held_against_the_base_policys_answers():
    base = pd.DataFrame({"prompt_id": ["a", "a", "b", "b"]})
    sampled = pd.DataFrame(
        {
            "prompt_id": ["a", "a", "a", "b"],
            "logp": [-3.0, -2.0, -4.0, -1.0],
            "logp_reference": [-5.0, -2.0, -3.0, -1.5],
        }
    )
    gold = np.array([1.0, 2.0, 3.0, 0.0])
    table = evaluation.sampled_policy("x", sampled, gold, base, np.array([1.0, 2.5, 0.0, 1.0]))
    first, second = table.to_dict("records")
    # of six duels on prompt a: 1-1 tied, 1-2.5 lost, 2-1 won, 2-2.5 lost, 3-1 and 3-2.5 won
    assert first["win"] == pytest.approx(3.5 / 6) and second["win"] == pytest.approx(0.25)
    assert first["kl"] == pytest.approx((2 + 0 - 1) / 3) and second["kl"] == pytest.approx(0.5)
    assert (first["gold"], second["gold"], first["policy"]) == (2.0, 0.0, "x")
