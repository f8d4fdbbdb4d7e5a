"""One rule behind *higher*, *lower* and *not significant*, and nobody has a rule of their own."""

import re

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from shfcas_lib.analysis import agreement, diagnosis, stats, summary
from shfcas_lib.conflict import conflict_table
from shfcas_lib.params import reading
from shfcas_lib.sweeps import report


def rows(*differences):
    """(low, high, p) of differences as a table."""
    return pd.DataFrame(differences, columns=["low", "high", "p"])


@pytest.mark.parametrize(
    "low, high, p, word",
    [
        (0.1, 0.3, 0.001, "higher"),
        (-0.3, -0.1, 0.001, "lower"),
        (-0.1, 0.3, 0.001, "not significant"),  # the interval holds 0
        (0.0, 0.3, 0.001, "not significant"),
        (0.1, 0.3, 0.051, "not significant"),  # p does not reach 0.05
        (0.1, 0.3, np.nan, "not significant"),  # nothing was tested
    ],
)
def test_a_verdict_needs_the_interval_and_p(low, high, p, word):
    assert stats.verdicts(rows((low, high, p)))["verdict"].tolist() == [word]


def test_a_verdict_is_corrected_over_its_family_and_no_further():
    table = rows(*[(0.1, 0.3, 0.02)] * 3).assign(setting=["a", "a", "b"])
    assert (stats.verdicts(table)["verdict"] == "not significant").all()
    found = stats.verdicts(table, within="setting")
    np.testing.assert_allclose(found["p_holm"], [0.04, 0.04, 0.02])
    assert (found["verdict"] == "higher").all()
    crowded = table.assign(setting=["a", "a", "a"])
    assert (stats.verdicts(crowded, within="setting")["verdict"] == "not significant").all()


def test_where_there_are_pools_every_one_of_them_agrees():
    table = rows((0.1, 0.3, 0.001), (0.1, 0.3, 0.001)).assign(pools=3, agree=[3, 2])
    assert stats.verdicts(table)["verdict"].tolist() == ["higher", "not significant"]


def test_limits_may_have_a_longer_name_and_a_table_may_be_empty():
    table = rows((-0.3, -0.1, 0.001)).rename(columns={"low": "gain_low", "high": "gain_high"})
    assert stats.verdicts(table, prefix="gain_")["verdict"].tolist() == ["lower"]
    empty = stats.verdicts(rows().assign(setting=[]), within="setting")
    assert len(empty) == 0 and {"p_holm", "verdict"} <= set(empty)


def test_the_bootstraps_p_goes_with_its_interval():
    draws = np.random.default_rng(0).normal(size=999)
    for shift in (0.0, 1.5, 1.9, 2.1, 2.5, 6.0, -2.5):
        found = stats.from_draws(shift, draws + shift)
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
    assert found.p > 0 and stats.from_draws(6.0, draws + 6).p == 2 / 1000
    assert stats.from_draws(0.0, np.zeros(99)).p == 1.0
    assert np.isnan(stats.from_draws(np.nan, [np.nan]).p)


# every table that says it


def contrasts():
    draw = np.random.default_rng(0)
    table = [(name, k, draw.normal()) for name in ("base", "proxy", "random") for k in range(9)]
    columns = ["policy", "prompt_id", "gold"]
    settings = reading.validate({"selection": {"strategies": ["random"]}}, "test")
    return summary.contrasts(pd.DataFrame(table, columns=columns), settings)


def predictions():
    draw = np.random.default_rng(0)
    pool = pd.DataFrame({"prompt_id": np.repeat(range(8), 4), "index": np.tile(range(4), 8)})
    conflict = conflict_table(pool.assign(logp=draw.normal(size=32)), draw.normal(size=32))
    return diagnosis.predicts_error(conflict, pool.assign(gold=draw.normal(size=32)), 0)


def sweep():
    draw = np.random.default_rng(0)
    keys = [("a", 10, p, s, n) for p in (0, 1) for s in (0, 1) for n in ("random", "pacs")]
    table = pd.DataFrame(keys, columns=["setting", "budget", "pool", "seed", "policy"])
    return table.assign(gold=draw.normal(size=8), value=draw.normal(size=8), chance=0.5)


def agreements():
    draw = np.random.default_rng(0)
    ids = np.repeat([f"p{k}" for k in range(12)], 2)
    pool = pd.DataFrame({"prompt_id": ids, "index": np.tile(range(2), 12)})
    pool = pool.assign(features=list(draw.normal(size=(24, 4))), completion="!", logp=-1.0)
    pairs = pd.DataFrame({"prompt_id": pool["prompt_id"].unique(), "i": 0, "j": 1})
    labels = pairs.assign(label=draw.integers(0, 2, 12).astype(float))
    settings = reading.validate({"evaluation": {"bootstrap": 100}}, "test")
    proxy = agreement.refine.fit(settings.reward, pool, labels, 0)
    return agreement.table(settings, pool, labels, {"random": labels}, proxy)


PRODUCERS = {
    "contrasts": contrasts,
    "predicts_error": predictions,
    "agreement": agreements,
    "comparisons": lambda: report.comparisons(sweep()),
    "matrix": lambda: report.matrix(sweep()),
    "predictions": lambda: report.predictions(
        sweep().assign(measure=lambda table: table["policy"])
    ),
}


@pytest.mark.parametrize("name", PRODUCERS)
def test_every_table_with_verdicts_asks_the_one_function(name, monkeypatch):
    def word(result, *_, **__):
        return result.assign(p_holm=1.0, verdict="the rule's word")

    monkeypatch.setattr(stats, "verdicts", word)
    said = set(PRODUCERS[name]()["verdict"])
    assert said - {""} == {"the rule's word"}


def test_no_other_module_says_the_words():
    said = [
        path.name
        for path in (ROOT / "shfcas_lib").rglob("*.py")
        if re.search(r"[\"']not significant[\"']", path.read_text())
    ]
    assert said == ["stats.py"]
