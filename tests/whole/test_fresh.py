"""The confirmation on fresh prompts: docs/results/fresh.py, its rows and the tables of
docs/trust.md."""

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from shfcas_lib import loop
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.experiment import replication
from shfcas_lib.params import reading
from shfcas_lib.storage import provenance, runs

FOLDER = ROOT / "docs" / "results"


@pytest.fixture
def fresh(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("fresh", FOLDER / "fresh.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("tables", None)


def test_fresh_prompts_are_those_that_no_development_pool_holds(fresh, tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "WORK", tmp_path)
    drawn = {}
    for task, path in fresh.QUICKSTART.items():
        params = reading.load(path)
        used = [load_prompts(params.model_copy(update={"seed": seed})) for seed in (0, 9001)]
        for pool in fresh.POOLS:
            prompts = load_prompts(fresh.pool_params(task, pool))
            assert len(prompts) == fresh.PROMPTS[task]
            assert not prompts["prompt_id"].isin(pd.concat(used)["prompt_id"]).any()
            drawn[task, pool] = set(prompts["prompt_id"])
    # another pool, other prompts
    assert len({frozenset(ids) for ids in drawn.values()}) == len(drawn)


def test_fresh_settings_are_the_quickstarts_and_the_sweeps(fresh):
    for task, path in fresh.QUICKSTART.items():
        known = fresh.settings(task)
        flaws = [bias.model_dump(mode="json") for bias in reading.load(path).bias]
        validated = reading.validate({"task": task, "bias": known[_demo(task)][0]}, "test")
        assert [bias.model_dump(mode="json") for bias in validated.bias] == flaws
        assert known["no flaw, human errs"] == ([], 0.2)
        assert len(known) == 10


def _demo(task):
    return {"safety": "compliance 90%", "helpfulness": "length 90%"}[task]


def test_a_unit_gives_every_arm_after_every_round(fresh, planted, monkeypatch):
    pool, quality = planted
    prompts = pd.DataFrame({"prompt_id": pool["prompt_id"].unique()})
    prompts = prompts.assign(prompt="q", category="c", harmful=False, split="train")
    params = reading.validate(
        {
            "seed": 1,
            "reward": {"l2": 3.0},
            "selection": {"strategies": ["random"], "budget": 16, "rounds": 2},
            "gold": {"kind": "task"},
        },
        "test",
    )
    known = pool.assign(gold=quality)
    case = replication.build_case(params, prompts, known, 5, full=False)
    rows = pd.DataFrame(fresh._rows(case, "gain"))
    assert set(rows.loc[rows["labels"] == 0, "policy"]) == {"proxy", "clean"}
    arms = rows[rows["labels"] > 0].groupby(["policy", "refinement"])["labels"].apply(list)
    wanted = {(name, how) for name, how, _ in fresh.ARMS["gain"]}
    assert set(arms.index) == wanted | {("random", "merge")}
    assert all(counts == [8, 16] for counts in arms)

    # the same as what the loop gives without the script
    outcome = loop.run_rounds("random", case.setting, case.human, runs.Memory())
    gold = replication.tilted_gold(case, outcome.reward.score(case.evaluate))
    mine = rows.query("policy == 'random' and refinement == 'trust' and labels == 16").iloc[0]
    assert mine["gold"] == gold and mine["disbelieved"] == outcome.reward.report.disbelieved
    # gamma counts, and what the biased pairs say is not forgotten where it changes
    changed = fresh._changed(case.setting, "trust", {"gamma": 0.0})
    assert changed.params.selection.gamma == 0.0 and changed.belief is case.setting.belief


def planted_rows(gain):
    """Rows in which every arm has its gain over merged random labels, beside noise of its own."""
    generator = np.random.default_rng(0)
    rows = []
    for pool in (1, 2, 3):
        for seed in range(12):
            base = generator.normal()
            for (policy, refinement), more in gain.items():
                score = base + more + generator.normal() * 0.001
                rows.append((pool, seed, policy, refinement, score))
    table = pd.DataFrame(rows, columns=["pool", "seed", "policy", "refinement", "gold"])
    said = {"decided": 60, "disbelieved": 0.7, "tau": 0.3, "kappa": 2.0, "error": 0.05}
    where = {"task": "safety", "setting": "no flaw", "labels": 80}
    return table.assign(**where, **said, arm=table["policy"] + ", " + table["refinement"])


def test_tables_tell_planted_gains_apart(fresh, monkeypatch):
    gain = {("random", "merge"): 0.0, ("random", "trust"): 0.02, ("targeted", "trust"): 0.05}
    gain |= {("targeted, gamma 0", "trust"): 0.04, ("shf_cas", "trust"): 0.03}
    gain |= {("placebo", "trust"): 0.03, ("uncertainty", "merge"): 0.06}
    table = planted_rows(gain)
    monkeypatch.setattr(fresh, "rows", lambda: table)
    line = fresh.gains().splitlines()[2]
    assert "| **+0.050 [" in line and "| **−0.010 [" in line and "| 36 |" in line
    line = fresh.parts().splitlines()[2]
    assert all(f"| **+0.0{share} [" in line for share in ("20", "30", "10"))
    assert "| +0.000 [" in line or "| −0.000 [" in line
    assert "| 70% | about two thirds |" in fresh.reports()


RELEASED = (FOLDER / "fresh" / "rows.csv.gz").exists()


@pytest.mark.skipif(not RELEASED, reason="no rows are released")
def test_every_table_of_the_trust_page_is_what_its_rows_say(fresh, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda *_: 0)
    page = (ROOT / "docs" / "trust.md").read_text()
    assert fresh.fill(page) == page, "run `python docs/results/fresh.py tables`"
    assert all(f"<!-- table: {name} -->" in page for name in fresh.BLOCKS)


@pytest.mark.skipif(not RELEASED, reason="no rows are released")
def test_released_rows_are_whole_and_say_how_to_make_them_again(fresh):
    table = fresh.rows()
    keys = ["task", "setting", "pool", "seed", "arm", "labels"]
    assert not table.duplicated(keys).any() and np.isfinite(table["gold"]).all()
    origin = provenance.trace(FOLDER / "fresh" / "rows.csv.gz")
    assert provenance.commands(origin)[-1] == "make fresh"
