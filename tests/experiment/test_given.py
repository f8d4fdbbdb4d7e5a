"""A run on completions that are there already: nothing is sampled, and what came with them is
what counts."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import tiny_completions
import yaml
from own_files import refusal
from project import ROOT, environment

from shfcas_lib import pool as pools
from shfcas_lib.cli import program
from shfcas_lib.data.completions import own_completions
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.experiment import checks, proxy_data, stages
from shfcas_lib.gold import load_gold
from shfcas_lib.params import reading
from shfcas_lib.storage.runs import open_run


def values(tiny_model, file, **changes):
    """A run of seconds on the completions of a file, whose rewards are the proxy."""
    return {
        "run": "given",
        "model": {"source": str(tiny_model), "quantisation": "none"},
        "completions": {"file": str(file)},
        "reward": {"proxy": "given"},
        "gold": {"kind": "given"},
        "selection": {"budget": 12, "rounds": 2},
        "evaluation": {"replicates": 0, "bootstrap": 200},
    } | changes


@pytest.fixture
def file(tmp_path):
    tiny_completions.table().to_parquet(tmp_path / "c.parquet")
    return tmp_path / "c.parquet"


@pytest.fixture
def no_sampling(monkeypatch):
    """Whoever samples here fails."""

    def sampled(*_, **__):
        raise AssertionError("a run on given completions sampled")

    for module in (pools, proxy_data):
        monkeypatch.setattr(module, "sample", sampled)


def by_text(table):
    return table.set_index(["prompt", "completion"]).sort_index()


def test_pools_hold_what_came_and_compute_what_did_not(
    tiny_model, file, backbone, runs_folder, no_sampling
):
    run = open_run(reading.validate(values(tiny_model, file), "a test"))
    prompts = stages.prompts(run)
    train, evaluate = stages.first_pools(run, backbone)
    feedback = stages.feedback_pool(run, backbone)
    whole = pd.concat([train, evaluate, feedback])
    table = tiny_completions.table()
    assert len(whole) == len(table) and set(prompts["split"]) == {"train", "feedback", "evaluate"}
    came = by_text(table)
    for name in ("logp", "reward"):
        np.testing.assert_allclose(by_text(whole)[name], came[name])
    assert (whole["proxy"] == whole["reward"]).all() and np.stack(whole["features"]).any()
    assert "gold" not in whole, "what chooses and learns reads this table"
    # the model's own log-probability where the table is asked to give none
    changed = values(
        tiny_model, file, run="own", completions={"file": str(file), "logp": "backbone"}
    )
    other = open_run(reading.validate(changed, "a test"))
    stages.prompts(other)
    again, _ = stages.first_pools(other, backbone)
    scored = pools.score(backbone, again[["prompt_id", "index", "prompt", "completion"]])
    np.testing.assert_allclose(again["logp"], scored["logp"], rtol=1e-5)
    assert not np.allclose(again["logp"], train["logp"])


def test_given_gold_answers_by_name_and_nothing_else(tiny_model, file):
    params = reading.validate(values(tiny_model, file), "a test")
    completions = own_completions(params)[0]
    gold = load_gold(params)
    mixed = completions.sample(frac=1, random_state=0)[
        ["prompt_id", "index", "prompt", "completion"]
    ]
    expected = completions.set_index(["prompt_id", "index"])["gold"]
    found = gold(mixed)
    np.testing.assert_array_equal(
        found, expected.reindex(pd.MultiIndex.from_frame(mixed[["prompt_id", "index"]]))
    )
    said = refusal(gold, mixed.assign(index=99))
    assert "gold of completion 99 of prompt" in said


@pytest.mark.timeout(600)
def test_the_four_notebooks_run_without_sampling(tiny_model, file, tmp_path):
    """One whole run (a minute): every notebook, with rewards, gold and log-probabilities of the
    table."""
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values(tiny_model, file)))
    done = subprocess.run(
        [sys.executable, "-m", "shfcas_lib", "run", str(path)],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "given"
    for stage in ("01_proxy", "02_conflict", "03_feedback", "04_evaluation"):
        assert json.loads((run / stage / "metrics.json").read_text())
    comparisons = pd.concat(
        map(pd.read_parquet, run.glob("03_feedback/*/round_*/comparisons.parquet"))
    )
    assert len(comparisons) == 24
    labels = pd.concat(map(pd.read_parquet, run.glob("03_feedback/shf_cas/round_*/labels.parquet")))
    gold = own_completions(reading.load(path))[0].set_index(["prompt_id", "index"])["gold"]
    first, second = (
        gold.reindex(pd.MultiIndex.from_frame(labels[["prompt_id", s]])).to_numpy()
        for s in ("i", "j")
    )
    assert (np.sign(first - second) == np.sign(labels["label"] - 0.5)).all(), "gold answered"
    pools_kept = [pd.read_parquet(p) for p in run.glob("0*/pool_*.parquet")]
    assert sum(map(len, pools_kept)) == len(tiny_completions.table())


def test_own_preferences_train_the_proxy_and_completions_are_the_rest(
    tiny_model, file, tmp_path, backbone, runs_folder, no_sampling
):
    rows = [
        {"prompt": f"What about {k}?", "chosen": f"good {k}", "rejected": f"bad {k}"}
        for k in range(8)
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {"preferences": {"file": str(pairs)}, "reward": {"l2": 10.0}, "run": "both"}
    run = open_run(reading.validate(values(tiny_model, file, **changes), "a test"))
    prompts = stages.prompts(run)
    assert set(prompts.loc[prompts["split"] == "train", "prompt"]) == {
        row["prompt"] for row in rows
    }
    train, evaluate = stages.first_pools(run, backbone)
    assert len(train) == 16 and set(evaluate["prompt"]) <= set(tiny_completions.table()["prompt"])
    stages.proxy_and_ceiling(run, backbone)
    assert stages.proxy(run).score(evaluate).std() > 0


def test_a_table_that_changed_makes_another_run(tiny_model, file, runs_folder):
    params = reading.validate(values(tiny_model, file), "a test")
    open_run(params).stage("01_proxy")
    assert open_run(params).belongs("01_proxy")
    tiny_completions.table(seed=1).to_parquet(file)
    assert "made with other parameters" in refusal(open_run(params).belongs, "01_proxy")


def test_prompts_are_chosen_by_number_and_category(tiny_model, file):
    everything = tiny_completions.table()
    topic = everything["category"].mode()[0]
    wanted = {"prompts": {"n": 6, "categories": [topic]}}
    kept = load_prompts(reading.validate(values(tiny_model, file) | wanted, "a test"))
    assert len(kept) <= 6 and set(kept["category"]) == {topic}


def test_check_says_what_the_table_holds_and_what_is_not_used(tiny_model, file, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values(tiny_model, file, gold={"kind": "tiny_gold:vowels"})))
    assert program.main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "132 completions of 40 prompts, 2 to 5 each" in said
    assert "column gold is not used: gold.kind given would take it" in said
    bare = tmp_path / "bare.parquet"
    tiny_completions.table().drop(columns=["logp", "gold"]).to_parquet(bare)
    path.write_text(yaml.safe_dump(values(tiny_model, bare)))
    assert program.main(["check", str(path)]) == 2
    assert "no gold" in capsys.readouterr().err


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"completions": {}},
            ["reward.proxy given is a column of completions", "completions.file"],
        ),
        ({"prompts": {"file": "p.jsonl"}}, ["completions bring their own prompts"]),
        ({"policy": {"kind": "dpo"}}, ["reward.proxy given knows the table's completions alone"]),
        (
            {"policy": {"kind": "dpo"}, "reward": {}, "gold": {"kind": "relevance"}},
            ["completions.logp to backbone"],
        ),
        ({"preferences": {"file": "p.jsonl"}}, ["has no rewards for the answers of preferences"]),
        ({"bias": [{"kind": "noise", "rate": 0.1}]}, ["a column of completions, which no"]),
        ({"evaluation": {"replicates": 2}}, ["set evaluation.replicates to 0"]),
        ({"completions": {"file": "c", "layout": "trl", "requests": "r"}}, ["layout openai"]),
    ],
)
def test_what_does_not_go_together_is_refused(tiny_model, changes, words):
    said = refusal(reading.validate, values(tiny_model, "c.parquet") | changes, "test")
    assert all(word in said for word in words), said


def test_a_budget_above_the_tables_pairs_is_refused(tiny_model, file):
    changed = values(tiny_model, file, selection={"budget": 500, "rounds": 1})
    said = refusal(checks.check, reading.validate(changed, "a test"))
    assert "selection.budget: found 500, expected at most" in said and "feedback prompts" in said
