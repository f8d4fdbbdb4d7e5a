"""Rank statistics of resamples, against the statistic of the repeated rows themselves."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from shfcas_lib.analysis import resamples, stats


@pytest.fixture(params=["continuous", "tied"])
def table(request):
    """90 rows in 12 clusters of unequal size, in no order; a class and two scores."""
    draw = np.random.default_rng(3)
    cluster = np.array([f"p{k:02d}" for k in range(12)])[draw.integers(0, 12, 90)]
    score = draw.normal(size=90)
    columns = {"cluster": cluster, "positive": draw.random(90) < 0.3, "score": score}
    other = score + draw.normal(size=90)
    digits = 0 if request.param == "tied" else 9
    return pd.DataFrame(columns | {"other": other}).round(digits)


def repeated(table, counts):
    """The rows of a resample: those of each cluster as often as it was drawn."""
    names = sorted(table["cluster"].unique())
    times = table["cluster"].map(dict(zip(names, counts.astype(int), strict=True)))
    return table.loc[table.index.repeat(times)]


def test_every_resample_is_the_statistic_of_its_rows(table):
    drawn = resamples.draw(table["cluster"], np.random.default_rng(0), 30)
    area = drawn.area(table["positive"], [table["score"]])
    correlation = drawn.correlation(table["score"], [table["other"]])
    assert len(area) == len(correlation) == 31 and (drawn.counts.sum(1) == 12).all()
    for k, counts in enumerate(drawn.counts):
        rows = repeated(table, counts)
        assert area[k] == pytest.approx(stats.roc_auc(rows["positive"], rows["score"]))
        expected = spearmanr(rows["score"], rows["other"]).statistic
        assert correlation[k] == pytest.approx(expected)
    assert area[0] == pytest.approx(stats.roc_auc(table["positive"], table["score"]))


def test_the_interval_is_that_of_the_general_bootstrap(table):
    drawn = resamples.draw(table["cluster"], np.random.default_rng(5), 200)
    area = drawn.area(table["positive"], [table["score"]])
    general = stats.cluster_interval(
        table,
        "cluster",
        lambda t: stats.roc_auc(t["positive"], t["score"]),
        np.random.default_rng(5),
        200,
    )
    found = stats.from_draws(area[0], area[1:])
    limits = (found.value, found.low, found.high)
    assert limits == pytest.approx((general.value, general.low, general.high))


def test_several_scores_give_the_mean_of_what_each_gives(table):
    drawn = resamples.draw(table["cluster"], np.random.default_rng(1), 20)
    scores = [table["score"], table["other"], -table["score"].abs()]
    for statistic in (drawn.area, drawn.correlation):
        each = [statistic(table["positive"], [score]) for score in scores]
        np.testing.assert_allclose(statistic(table["positive"], scores), np.mean(each, 0))


def test_what_has_no_answer_is_nan(table):
    drawn = resamples.draw(table["cluster"], np.random.default_rng(0), 5)
    assert np.isnan(drawn.area(np.ones(90, bool), [table["score"]])).all()
    assert np.isnan(drawn.correlation(np.zeros(90), [table["score"]])).all()
    nothing = resamples.draw(table["cluster"].head(0), np.random.default_rng(0), 5)
    assert np.isnan(nothing.area([], [[]])).all() and np.isnan(nothing.correlation([], [[]])).all()
    alone = table.assign(cluster="p")
    assert len(resamples.draw(alone["cluster"], np.random.default_rng(0), 5).counts) == 1
