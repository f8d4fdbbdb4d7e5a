"""The trust report: words, numbers, and what a taste follows."""

import numpy as np
import pandas as pd
import pytest

from shfcas_lib import trust
from shfcas_lib.analysis import belief, figures
from shfcas_lib.rewards import Probe


def found(shares):
    """A report with this posterior over rho."""
    rows = [(rho, 1.0, 0.1, share) for rho, share in shares.items()]
    return trust.Report(0.3, 40, pd.DataFrame(rows, columns=["rho", "kappa", "error", "share"]))


@pytest.fixture
def completions():
    """A pool whose first feature is the completion's length."""
    generator = np.random.default_rng(0)
    words = generator.integers(1, 40, 120)
    features = generator.normal(size=(120, 16))
    features[:, 0] = words / 10
    return pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k}" for k in range(15)], 8),
            "index": np.tile(range(8), 15),
            "prompt": "prompt",
            "completion": ["word " * count for count in words],
            "features": list(features),
        }
    )


def probe(place):
    weight = np.zeros(16)
    weight[place] = 1.0
    return Probe(np.zeros((2, 16)), np.ones((2, 16)), weight)


MOSTLY, HARDLY = {1.0: 0.1, 0.3: 0.6, 0.1: 0.3}, {1.0: 0.95, 0.5: 0.05}


def test_the_report_says_in_words_how_much_is_contradicted():
    assert "about two thirds" in str(found({1.0: 0.0, 0.5: 0.05, 0.3: 0.95}))
    assert "almost nothing" in str(found(HARDLY))
    assert str(found({0.1: 1.0})).count("most of what the biased preferences say (90%)") == 1
    assert found(MOSTLY).disbelieved == pytest.approx(1 - (0.1 + 0.18 + 0.03))


def test_a_taste_for_length_is_seen_in_the_table_and_the_figure(completions, tmp_path):
    trusted = trust.Trusted(probe(5), probe(0), found(MOSTLY))
    merged = probe(3)
    rewards = {"targeted": trusted, "random": merged}
    table = belief.report(rewards, completions, 0, 500)
    assert set(table["strategy"]) == {"targeted"}
    rows = table.set_index(["part", "name"])
    assert rows.at[("taste", "length"), "low"] > 0.8
    assert rows.at[("reward", "length"), "low"] < 0 < rows.at[("reward", "length"), "high"]
    # no completion flatters: nothing to compare with
    assert ("taste", "flattery") not in rows.index
    assert rows.loc["rho"]["value"].sum() == pytest.approx(1)
    figure = figures.trust_report(table, tmp_path / "trust_report")
    assert len(figure.axes) == 2 and (tmp_path / "trust_report.csv").exists()


def test_labels_that_were_merged_are_said_to_be(completions, tmp_path, capsys):
    rewards = {"random": probe(3)}
    assert belief.report(rewards, completions, 0, 500) is None
    assert belief.facts(rewards) == {}
    assert "cannot tell whom to trust" in belief.sentences(rewards)["random"]
    assert figures.trust_report(None, tmp_path / "trust_report") is None
    assert "refinement trust" in capsys.readouterr().out


def test_the_numbers_are_those_of_the_posterior():
    facts = belief.facts({"targeted": trust.Trusted(probe(5), probe(0), found(MOSTLY))})
    assert facts["targeted"]["rho"] == {"0.1": 0.3, "0.3": 0.6, "1.0": 0.1}
    assert facts["targeted"]["tau"] == 0.3 and facts["targeted"]["decided"] == 40
