"""Intervals, ROC and paired tests against known answers and against scipy and scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, spearmanr, wilcoxon
from sklearn import metrics

from shfcas_lib.analysis import stats
from shfcas_lib.analysis.stats import (
    Interval,
    cluster_interval,
    mean_interval,
    roc_auc,
    roc_curve,
    spearman,
    wilcoxon_p,
)
from shfcas_lib.base.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(params=["continuous", "tied"])
def classified(request):
    """(positive, score) of 200 items, with and without ties in the score."""
    generator = rng(4)
    positive = generator.random(200) < 0.3
    score = generator.normal(size=200) + positive
    return positive, np.round(score) if request.param == "tied" else score


def test_mean_interval_covers_the_true_mean_about_as_often_as_it_says():
    generator = rng()
    hits = 0
    for _ in range(300):
        interval = mean_interval(generator.normal(5, 2, 40), generator, resamples=400)
        hits += interval.low <= 5 <= interval.high
    assert 0.89 <= hits / 300 <= 0.98


def test_mean_interval_has_the_width_of_the_normal_approximation():
    values = rng().normal(size=400)
    interval = mean_interval(values, rng())
    assert interval.value == pytest.approx(values.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_a_higher_level_is_wider():
    values = rng().normal(size=50)
    narrow, wide = (mean_interval(values, rng(), level=level) for level in (0.8, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high


def test_two_calls_with_the_same_seed_agree_and_another_seed_differs():
    values = rng().normal(size=30)
    assert mean_interval(values, rng(1)) == mean_interval(values, rng(1))
    assert mean_interval(values, rng(1)) != mean_interval(values, rng(2))


def test_one_value_or_equal_values_have_no_width():
    for values in ([0.3], [0.3, 0.3, 0.3]):
        interval = mean_interval(values, rng())
        assert (interval.low, interval.value, interval.high) == pytest.approx((0.3, 0.3, 0.3))


@pytest.mark.parametrize("values", [[], [1.0, np.nan], [1.0, np.inf], [[1.0, 2.0]]])
def test_mean_interval_refuses_what_has_no_mean(values):
    with pytest.raises(InputError, match="mean_interval"):
        mean_interval(values, rng())


def test_an_interval_prints_as_the_pages_show_it():
    interval = Interval(np.float64(0.5), np.float64(0.25), np.float64(0.75))
    assert str(interval) == "0.500 [0.250, 0.750]"


@pytest.fixture
def duplicated():
    """25 prompts, each with ten copies of one value: 250 rows that hold 25 observations."""
    values = rng(3).normal(size=25)
    return values, pd.DataFrame(
        {"prompt_id": np.repeat(range(25), 10), "value": np.repeat(values, 10)}
    )


def test_cluster_interval_is_wider_than_a_bootstrap_of_duplicated_rows(duplicated):
    _, table = duplicated
    cluster = cluster_interval(
        table, "prompt_id", lambda t: t["value"].mean(), rng(), resamples=500
    )
    rows = mean_interval(table["value"], rng())
    assert (cluster.high - cluster.low) / (rows.high - rows.low) == pytest.approx(
        np.sqrt(10), rel=0.15
    )


def test_cluster_interval_equals_the_interval_of_the_observations(duplicated):
    values, table = duplicated
    cluster = cluster_interval(
        table, "prompt_id", lambda t: t["value"].mean(), rng(), resamples=500
    )
    direct = mean_interval(values, rng())
    assert cluster.value == pytest.approx(direct.value)
    assert cluster.high - cluster.low == pytest.approx(direct.high - direct.low, rel=0.15)


def test_cluster_interval_repeats_with_the_same_seed(duplicated):
    _, table = duplicated
    one, other = (
        cluster_interval(table, "prompt_id", lambda t: t["value"].mean(), rng(), resamples=50)
        for _ in range(2)
    )
    assert one == other


def test_cluster_interval_does_not_depend_on_the_order_of_rows(duplicated):
    _, table = duplicated
    one = cluster_interval(table, "prompt_id", lambda t: t["value"].mean(), rng(), resamples=50)
    other = cluster_interval(
        table.sample(frac=1, random_state=1),
        "prompt_id",
        lambda t: t["value"].mean(),
        rng(),
        resamples=50,
    )
    assert (one.low, one.high) == pytest.approx((other.low, other.high))


def test_cluster_interval_leaves_out_resamples_without_a_value():
    table = pd.DataFrame({"prompt_id": [0, 1, 2, 3], "value": [np.nan, 1.0, 2.0, 3.0]})
    interval = cluster_interval(
        table,
        "prompt_id",
        lambda t: np.nanmean(t["value"]) if len(set(t["value"])) > 2 else np.nan,
        rng(),
        200,
    )
    assert np.isfinite([interval.value, interval.low, interval.high]).all()


def test_cluster_interval_of_an_undefined_statistic_is_nan():
    interval = cluster_interval(
        pd.DataFrame({"prompt_id": [0, 1]}), "prompt_id", lambda t: np.nan, rng(), resamples=5
    )
    assert np.isnan([interval.value, interval.low, interval.high]).all()


def naive_interval(table, statistic, generator, resamples):
    """`cluster_interval` with a data frame put together for each resample."""
    groups = [part for _, part in table.groupby("prompt_id", sort=True)]
    draws = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(groups), len(groups))
        draws.append(statistic(pd.concat([groups[k] for k in chosen])))
    draws = np.array(draws)
    low, high = np.quantile(draws[np.isfinite(draws)], [0.025, 0.975])
    return Interval(statistic(table), low, high)


@pytest.mark.parametrize(
    "statistic",
    [
        lambda t: spearman(t["score"], t["error"]),
        lambda t: spearmanr(t["score"], t["tied"]).statistic,
        lambda t: roc_auc(t["wrong"], t["score"]),
        lambda t: roc_auc(t["wrong"], t["tied"]),
        lambda t: t["score"].sum() / t["error"].sum(),
    ],
    ids=["spearman", "scipy", "roc_auc", "roc_auc of ties", "ratio"],
)
def test_cluster_interval_equals_a_concatenation_of_frames_to_the_last_bit(statistic):
    generator = rng(7)
    sizes = generator.integers(1, 9, 48)
    prompts = np.repeat([f"p{k}" for k in generator.permutation(48)], sizes)
    score = generator.normal(size=len(prompts))
    table = pd.DataFrame(
        {
            "prompt_id": prompts,
            "score": score,
            "error": np.abs(score + generator.normal(size=len(prompts))),
            "tied": np.round(score),
            "wrong": generator.random(len(prompts)) < 0.3,
        }
    ).sample(frac=1, random_state=0)
    fast = cluster_interval(table, "prompt_id", statistic, rng(8), resamples=100)
    assert fast == naive_interval(table, statistic, rng(8), 100)


@pytest.mark.parametrize("decimals", [0, 1, 12])
def test_spearman_and_roc_auc_equal_scipy_to_the_last_bit(decimals):
    generator = rng(9)
    for size in (3, 17, 400):
        first, second = np.round(generator.normal(size=(2, size)), decimals)
        positive = np.arange(size) % 3 == 0
        n, m = positive.sum(), (~positive).sum()
        below = mannwhitneyu(first[positive], first[~positive]).statistic
        if np.ptp(first) and np.ptp(second):
            assert spearman(first, second) == spearmanr(first, second).statistic
        assert roc_auc(positive, first) == below / (n * m)


def test_ranks_of_a_missing_value_are_missing():
    assert np.isnan(spearman([1, 2, np.nan, 4], [1, 2, 3, 4]))
    assert np.isnan(roc_auc([True, False, False], [1, np.nan, 2]))


def test_roc_auc_equals_scikit_learn(classified):
    positive, score = classified
    assert roc_auc(positive, score) == pytest.approx(metrics.roc_auc_score(positive, score))


@pytest.mark.parametrize(
    "score, expected", [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([7, 7, 7, 7], 0.5)]
)
def test_roc_auc_of_perfect_reversed_and_constant_scores(score, expected):
    assert roc_auc([False, False, True, True], score) == expected


@pytest.mark.parametrize("positive", [[True, True], [False, False]])
def test_roc_auc_of_one_class_is_nan(positive):
    assert np.isnan(roc_auc(positive, [0.1, 0.2]))


def test_roc_curve_equals_scikit_learn(classified):
    positive, score = classified
    false_positive, true_positive, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    curve = roc_curve(positive, score)
    np.testing.assert_allclose(curve["false_positive_rate"], false_positive)
    np.testing.assert_allclose(curve["true_positive_rate"], true_positive)


def test_roc_curve_runs_from_corner_to_corner(classified):
    curve = roc_curve(*classified)
    assert curve.iloc[0].tolist() == [0, 0] and curve.iloc[-1].tolist() == [1, 1]
    assert (curve.diff().dropna() >= 0).all(axis=None)


def test_roc_curve_encloses_the_area_under_it(classified):
    curve = roc_curve(*classified)
    assert np.trapezoid(curve["true_positive_rate"], curve["false_positive_rate"]) == pytest.approx(
        roc_auc(*classified)
    )


def test_spearman_sees_ranks_only():
    assert spearman([1, 2, 3, 4], np.exp([1, 2, 3, 4])) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [8, 3, 2, -100]) == pytest.approx(-1)


@pytest.mark.parametrize(
    "first, second", [([1, 1, 1], [1, 2, 3]), ([1, 2, 3], [0, 0, 0]), ([1, 2], [1, 2])]
)
def test_spearman_of_too_little_is_nan(first, second):
    assert np.isnan(spearman(first, second))


def test_wilcoxon_of_no_difference_is_one():
    assert wilcoxon_p(np.zeros(12)) == 1.0


def test_wilcoxon_equals_scipy():
    differences = rng(5).normal(0.4, 1, 20)
    assert wilcoxon_p(differences) == wilcoxon(differences).pvalue


def test_wilcoxon_tells_a_shift_from_noise():
    noise = rng(6).normal(size=30)
    assert wilcoxon_p(noise + 2) < 0.001 < 0.05 < wilcoxon_p(noise - np.median(noise))


# intervals over pools and seeds, corrections, label efficiency


def two_levels(pools=3, seeds=20, between=0.5, within=0.1, mean=1.0, generator=None):
    generator = generator or np.random.default_rng(0)
    level = mean + generator.normal(0, between, pools)
    return pd.DataFrame(
        [
            (p, s, level[p] + generator.normal(0, within))
            for p in range(pools)
            for s in range(seeds)
        ],
        columns=["pool", "seed", "d"],
    )


def test_nested_interval_covers_the_spread_between_pools():
    table = two_levels(between=0.5, within=0.01)
    nested = stats.nested_interval(table, "pool", "d", np.random.default_rng(0))
    flat = stats.mean_interval(table["d"], np.random.default_rng(0))
    assert nested.value == pytest.approx(flat.value)
    assert nested.high - nested.low > 3 * (flat.high - flat.low)


def test_nested_interval_is_the_plain_bootstrap_where_there_is_one_pool():
    table = two_levels(pools=1)
    nested = stats.nested_interval(table, "pool", "d", np.random.default_rng(0), 8000)
    flat = stats.mean_interval(table["d"], np.random.default_rng(1), 8000)
    assert nested.low == pytest.approx(flat.low, abs=0.01) and nested.high == pytest.approx(
        flat.high, abs=0.01
    )


def test_nested_interval_matches_a_bootstrap_written_out():
    table = two_levels(pools=4, seeds=5)
    groups = [part["d"].to_numpy() for _, part in table.groupby("pool")]
    generator = np.random.default_rng(5)
    draws = [
        np.mean(
            [
                generator.choice(groups[k], len(groups[k])).mean()
                for k in generator.integers(0, 4, 4)
            ]
        )
        for _ in range(6000)
    ]
    nested = stats.nested_interval(table, "pool", "d", np.random.default_rng(0), 6000)
    np.testing.assert_allclose(
        [nested.low, nested.high], np.quantile(draws, [0.025, 0.975]), atol=0.03
    )


def test_nested_interval_covers_at_about_its_level_with_many_pools():
    hits = 0
    for k in range(200):
        table = two_levels(
            pools=15, seeds=5, between=0.3, within=0.3, generator=np.random.default_rng(k)
        )
        interval = stats.nested_interval(table, "pool", "d", np.random.default_rng(k), 500)
        hits += interval.low <= 1.0 <= interval.high
    assert 0.86 <= hits / 200 <= 0.995


def test_two_calls_agree():
    table = two_levels()
    assert stats.nested_interval(
        table, "pool", "d", np.random.default_rng(3)
    ) == stats.nested_interval(table, "pool", "d", np.random.default_rng(3))


def test_holm_against_the_definition():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    ordered = np.sort(p)
    stepped = np.minimum(1, np.maximum.accumulate(ordered * [4, 3, 2, 1]))
    np.testing.assert_allclose(np.sort(stats.holm(p)), stepped)
    assert len(stats.holm([])) == 0


def test_interquartile_mean_leaves_out_both_quarters():
    assert stats.interquartile_mean([-100, 1, 2, 3, 4, 5, 6, 1000]) == pytest.approx(3.5)


def test_probability_of_improvement_counts_ties_half():
    assert stats.probability_of_improvement([1, 2, -1, 0]) == pytest.approx(0.625)


def test_effect_size_is_the_mean_in_standard_deviations():
    assert stats.effect_size([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert np.isnan(stats.effect_size([1.0, 1.0])) and np.isnan(stats.effect_size([1.0]))


def compared(shift, noise=0.01):
    generator = np.random.default_rng(0)
    level = generator.normal(size=(3, 10))
    rows = [
        (p, s, name, level[p, s] + by + generator.normal(0, noise))
        for p in range(3)
        for s in range(10)
        for name, by in shift.items()
    ]
    return pd.DataFrame(rows, columns=["pool", "seed", "policy", "gold"])


def test_compare_is_paired_and_says_not_significant_in_those_words():
    result = stats.compare(
        compared({"random": 0.0, "good": 0.05, "same": 0.0, "bad": -0.05}), "random", 0
    ).set_index("policy")
    assert result["verdict"].to_dict() == {
        "good": "higher",
        "same": "not significant",
        "bad": "lower",
    }
    assert (
        result.loc["good", "difference"] == pytest.approx(0.05, abs=0.01)
        and result.loc["good", "improvement"] == 1.0
    )
    assert (result["p_holm"] >= result["p"]).all() and (result["units"] == 30).all()


def test_compare_corrects_for_the_number_of_strategies():
    """A difference that passes alone, interval, pools and all, does not among nine others."""
    alone = compared({"random": 0.0, "s": 0.014}, noise=0.02)
    many = pd.concat(
        [
            alone,
            *(
                compared({"random": 0.0, f"s{k}": 0.0}, noise=0.02).query("policy != 'random'")
                for k in range(9)
            ),
        ]
    )
    one, ten = (
        stats.compare(alone, "random", 0).set_index("policy").loc["s"],
        stats.compare(many, "random", 0).set_index("policy").loc["s"],
    )
    assert (
        one["verdict"] == "higher" and one["p"] == ten["p"] and ten["low"] > 0 and ten["agree"] == 3
    )
    assert ten["p_holm"] == pytest.approx(10 * ten["p"]) and ten["verdict"] == "not significant"


def test_a_difference_that_one_pool_contradicts_is_not_significant():
    table = compared({"random": 0.0, "good": 0.05})
    turned = (table["pool"] == 2) & (table["policy"] == "good")
    table.loc[turned, "gold"] -= 0.06
    found = stats.compare(table, "random", 0).iloc[0]
    assert (found["pools"], found["agree"], found["verdict"]) == (3, 2, "not significant")


def test_policies_that_share_no_unit_are_left_out():
    table = compared({"random": 0.0, "good": 0.05, "gone": 0.0})
    table = table[(table["policy"] != "gone") | (table["pool"] == 9)]
    assert stats.compare(
        pd.concat([table, table.head(1).assign(policy="gone", pool=9)]), "random", 0
    )["policy"].tolist() == ["good"]


def efficient(slopes, pools=3, seeds=10, noise=0.002):
    generator = np.random.default_rng(0)
    rows = [
        (p, s, name, b, 0.5 + slope * b + generator.normal(0, noise))
        for p in range(pools)
        for s in range(seeds)
        for name, slope in slopes.items()
        for b in (0, 10, 20, 40, 80)
    ]
    return pd.DataFrame(rows, columns=["pool", "seed", "policy", "budget", "gold"])


def test_label_efficiency_is_the_budget_that_reaches_the_same_gold():
    result = stats.label_efficiency(
        efficient({"random": 0.001, "twice": 0.002, "half": 0.0005}), "random", 40, 0, resamples=300
    ).set_index("policy")
    assert result.loc["random", "labels"] == pytest.approx(40) and result.loc[
        "random", ["ratio_low", "ratio_high"]
    ].tolist() == pytest.approx([1, 1])
    assert result.loc["twice", "labels"] == pytest.approx(20, abs=2) and result.loc[
        "twice", "ratio"
    ] == pytest.approx(2, abs=0.2)
    assert result.loc["half", "labels"] == pytest.approx(80, abs=4)
    assert result.loc["twice", "low"] < result.loc["twice", "labels"] < result.loc["twice", "high"]


def test_label_efficiency_says_how_often_a_level_was_reached():
    result = stats.label_efficiency(
        efficient({"random": 0.001, "flat": 0.0}), "random", 40, 0, resamples=200
    ).set_index("policy")
    assert result.loc["flat", "reached"] == 0 and result.loc["flat", "labels"] == 80
    assert result.loc["random", "reached"] == 1


def test_label_efficiency_leaves_out_units_that_lack_a_budget():
    table = efficient({"random": 0.001, "twice": 0.002})
    holes = table[~((table["pool"] == 1) & (table["budget"] == 40))]
    result = stats.label_efficiency(holes, "random", 40, 0, resamples=200).set_index("policy")
    assert (
        result.loc["twice", "labels"] == pytest.approx(20, abs=2) and (result["units"] == 20).all()
    )


def test_label_efficiency_has_no_answer_where_the_reference_gains_nothing():
    result = stats.label_efficiency(
        efficient({"random": 0.0, "good": 0.001}), "random", 40, 0, resamples=200
    )
    assert (
        result[["labels", "ratio", "ratio_high"]].isna().all().all()
        and (result["flat"] > 0.1).all()
    )
