"""A guard against getting slower: the benchmarks' own contests at small size, ratios alone, with
generous bounds. And the fast ways' results."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from shfcas_lib.params import reading

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def bench():
    """The benchmark scripts as modules."""
    sys.path.insert(0, str(BENCHMARKS))
    import conflict_metrics
    import pool_building
    import race
    import reward_probe

    yield {
        "conflict_metrics": conflict_metrics,
        "pool_building": pool_building,
        "race": race,
        "reward_probe": reward_probe,
    }
    sys.path.remove(str(BENCHMARKS))


def ratio(bench, contestants, other, rounds=3):
    table = (
        bench["race"]
        .ratios(bench["race"].race(contestants, rounds), "ours")
        .set_index("contestant")
    )
    return table.at[other, "ratio"]


def test_conflict_metrics_stay_far_ahead_of_a_loop_over_prompts(bench):
    metrics = bench["conflict_metrics"]
    reward, logp = np.random.default_rng().normal(size=(2, 20_000, 8))
    loop = {
        "ours": lambda: metrics.both(reward, logp) and 20_000,
        "loop": lambda: metrics.by_prompt(reward[:200], logp[:200]) and 200,
    }
    assert ratio(bench, loop, "loop") > 300  # 1,500 on a quiet machine


@pytest.fixture(scope="module")
def contest(bench, tiny_model):
    settings = reading.validate(
        {
            "model": {"source": str(tiny_model), "quantisation": "none", "device": "cpu"},
            "prompts": {"n": 60},
        },
        "a test",
    )
    return bench["pool_building"].Contest(settings, prompts=6)


def test_building_a_pool_stays_ahead_of_three_passes(bench, contest):
    assert ratio(bench, {"ours": contest.ours, "usual": contest.usual}, "usual") > 1.2


def test_every_way_to_build_a_pool_counts_tokens_alike(contest):
    rows = len(contest.prompts) * contest.sampling.n
    for way in (contest.ours, contest.usual, contest.bound, contest.strict):
        assert rows <= way() <= rows * 32
    # TRL gives text, which may have more tokens than were sampled once it is tokenised again
    assert rows <= contest.trl() <= 2 * rows * 32


def test_what_decoding_records_is_what_a_plain_pass_finds(bench, contest):
    found = (
        bench["pool_building"]
        .agreement(contest, seed=int(np.random.default_rng().integers(2**31)))
        .iloc[0]
    )
    assert (
        found["largest difference of logp"] < 1e-3
        and found["largest difference of features"] < 1e-3
    )
    assert found["prompts with another K"] == 0 and found["comparisons chosen otherwise"] == 0


def test_the_probe_finds_scikit_learns_optimum_in_no_more_than_three_times_its_time(bench):
    probe = bench["reward_probe"]
    data = probe.Data(1600)
    contest = {
        "ours": lambda: probe.ours(data, 1600) and None,
        "sklearn": lambda: probe.theirs(data, 1600).sum() * 0 or None,
    }
    with threadpool_limits(
        1
    ):  # threads of BLAS that wait for a busy core take many times as long, now here, now there
        ours, theirs = (
            probe.loss(data, 1600, probe.ours(data, 1600).weight),
            probe.loss(data, 1600, probe.theirs(data, 1600)),
        )
        assert ours == pytest.approx(theirs, rel=1e-6)
        assert ratio(bench, contest, "sklearn") > 1 / 3


def test_growth_fits_the_exponent(bench):
    assert bench["race"].exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)


def test_ratios_compare_the_same_amount_of_work(bench):
    rounds = pd.DataFrame(
        [
            (0, "ours", 2.0, 10.0),
            (0, "slow", 3.0, 5.0),
            (1, "ours", 1.0, 10.0),
            (1, "slow", 2.0, 5.0),
        ],
        columns=["round", "name", "seconds", "amount"],
    )
    table = bench["race"].ratios(rounds, "ours").set_index("contestant")
    assert table.loc["slow", ["least", "ratio", "most"]].tolist() == pytest.approx([3, 3.5, 4])


def test_the_page_shows_what_was_released():
    sys.path.insert(0, str(BENCHMARKS))
    import tables

    assert tables.fill(tables.PAGE.read_text()) == tables.PAGE.read_text(), (
        "run `python benchmarks/tables.py`"
    )
