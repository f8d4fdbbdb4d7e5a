"""The way back: shares of what a flaw cost, with intervals over seeds."""

import re

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.analysis import figures, stats, way
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.params.schema import Params

PARAMS = Params()
TRUE = {("targeted", "trust"): 0.75, ("random", "trust"): 0.4, ("random", "merge"): 0.1}


def walked(cost, seeds=30, noise=0.004):
    """Gold of planted seeds on which the strategies undo the shares TRUE of the cost."""
    generator = np.random.default_rng(5)
    rows = []
    for seed in range(seeds):
        start = 0.6 + generator.normal(0, 0.03)  # seeds differ more than policies do
        rows += [(seed, "proxy", "", 0, start), (seed, "clean", "", 0, start + cost)]
        for (policy, refinement), share in TRUE.items():
            for part, labels in ((0.5, 40), (1.0, 80)):
                gold = start + share * part * cost + generator.normal(0, noise)
                rows.append((seed, policy, refinement, labels, gold))
    return pd.DataFrame(rows, columns=["seed", "policy", "refinement", "labels", "gold"])


def test_planted_shares_are_found_and_lie_in_their_intervals():
    found = way.shares(walked(0.1), PARAMS).set_index(["policy", "refinement", "labels"])
    assert len(found) == 6
    for (policy, refinement), share in TRUE.items():
        row = found.loc[(policy, refinement, 80)]
        assert row["low"] < share < row["high"]
        assert row["high"] - row["low"] < 0.08


def test_a_flaw_that_cost_nothing_has_no_way_back(tmp_path, capsys):
    table = walked(0.0)
    table.loc[table["policy"] == "clean", "gold"] += np.tile([0.01, -0.01], 15)
    assert not len(way.shares(table, PARAMS))
    assert "nothing to undo" in way.headline(table, PARAMS)["what labels undo"]
    assert figures.way_back(None, tmp_path / "way_back") is None
    assert "replicates in which the flaw cost something" in capsys.readouterr().out


def test_the_headline_names_every_strategy_and_the_refinement_that_is_not_the_runs():
    numbers = way.headline(walked(0.1), PARAMS)
    assert set(numbers) == {
        "what the flaw cost: gold of clean labels over the proxy",
        "80 labels bring back, targeted",
        "80 labels bring back, random",
        "80 labels bring back, random, refined by merge",
    }
    assert re.fullmatch(r"7\d% \[7\d%, 7\d%\]", numbers["80 labels bring back, targeted"])


def test_a_ratio_of_means_is_covered_as_often_as_it_says():
    generator = np.random.default_rng(1)
    inside = 0
    for k in range(300):
        below = generator.normal(0.1, 0.02, 20)
        above = 0.5 * below + generator.normal(0, 0.02, 20)
        interval = stats.ratio_interval(above, below, rng(k, "ratio"), 500)
        inside += interval.low <= 0.5 <= interval.high
    assert inside / 300 > 0.9


@pytest.mark.parametrize("values", [[], [np.nan, 1.0]])
def test_a_ratio_of_nothing_is_refused(values):
    with pytest.raises(InputError, match="ratio_interval"):
        stats.ratio_interval(values, [1.0] * len(values), rng(0, "ratio"))


def test_the_figure_has_a_line_for_every_strategy_and_refinement(tmp_path):
    drawn = figures.way_back(way.shares(walked(0.1), PARAMS), tmp_path / "way_back")
    labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
    assert labels == ["targeted labels", "random labels", "random labels, merge"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".svg", ".csv"}
