"""The loop survives a kill at any write, and two processes with different hash seeds agree."""

import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from shfcas_lib import loop
from shfcas_lib.conflict import conflict_table

# A whole experiment on random features, no language model: pool, preferences, bias, proxy, two
# strategies, evaluation.
PROGRAM = """
import os, signal, sys
import numpy as np, pandas as pd
from shfcas_lib import bias, feedback, loop, refine
from shfcas_lib.data.preferences import preferences_from_gold
from shfcas_lib.data.prompts import split
from shfcas_lib.experiment import replication
from shfcas_lib.params import reading
from shfcas_lib.storage import files, runs
from shfcas_lib.tasks.embedded import embedded_prompts

writes, last = 0, int(sys.argv[1])
atomic = files.atomic
def counted(path):
    global writes
    writes += 1
    if writes == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return atomic(path)
files.atomic = runs.atomic = counted

settings = reading.validate(
    {
        "run": "r",
        "bias": [{"kind": "attribute", "attribute": "length", "strength": 0.8}],
        "selection": {"budget": 12, "rounds": 3},
        "reward": {"l2": 10.0},
        "evaluation": {"replicates": 2},
    },
    "test",
)
generator = np.random.default_rng(0)
prompts = split(embedded_prompts("helpfulness").head(30), settings.split, 0)
columns = ["prompt_id", "index", "prompt", "completion", "features", "logp"]
draw = lambda: ("x" * int(generator.integers(1, 40)), generator.normal(size=16), generator.normal())
rows = [(p, i, "prompt", *draw()) for p in prompts["prompt_id"] for i in range(4)]
pool = pd.DataFrame(rows, columns=columns).sort_values(columns[:2], ignore_index=True)
gold = np.stack(pool["features"])[:, 0]
where = pool["prompt_id"].map(dict(zip(prompts["prompt_id"], prompts["split"])))
train, asked = (pool[where == name].reset_index(drop=True) for name in ("train", "feedback"))
run = runs.open_run(settings)
first, stage = run.stage("01_proxy"), run.stage("03_feedback")
scored = train.assign(gold=gold[where == "train"])
clean = first.table("clean", lambda: preferences_from_gold(scored, 4, 0))
category = dict(zip(prompts["prompt_id"], prompts["category"]))
biased = first.table("biased", lambda: bias.inject(clean, train, category, settings.bias, 0))
observed = bias.observed(biased)
proxy = refine.kept(first / "proxy", settings.reward, train, observed, 0)
setting = loop.Setting(settings, 0, prompts, train, asked, observed, proxy)
truth = pd.Series(gold, index=pd.MultiIndex.from_frame(pool[["prompt_id", "index"]]))
known = lambda t: truth.loc[list(zip(t["prompt_id"], t["index"]))].to_numpy()
human = feedback.SimulatedHuman(known, noise=0.2, seed=0)
for name in settings.selection.strategies:
    outcome = loop.run_rounds(name, setting, human, stage / name)
    stage.table(f"rounds_{name}", lambda: outcome.rounds)
repeated = lambda: replication.replicates(settings, prompts, pool, gold)
stage.table("replicates", lambda: repeated()["replicates"])
print(writes)
"""


def execute(folder, die_at=0, hash_seed="0"):
    environment = os.environ | {
        "SHFCAS_RUNS": str(folder),
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": str(ROOT),
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(die_at)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )


def tables(folder):
    found = {
        str(p.relative_to(folder)): pd.read_parquet(p) for p in sorted(folder.rglob("*.parquet"))
    }
    for table in found.values():
        table.drop(columns="time", errors="ignore", inplace=True)  # when an answer was given
    return found


def assert_same(one, other):
    assert list(one) == list(other) and one
    for name in one:
        pd.testing.assert_frame_equal(one[name], other[name], obj=name)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    done = execute(folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return tables(folder), int(done.stdout.split()[-1])


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7, 0.95])
def test_a_run_killed_at_a_write_and_resumed_equals_an_undisturbed_one(
    undisturbed, tmp_path, share
):
    expected, writes = undisturbed
    killed = execute(tmp_path, die_at=max(1, round(share * writes)))
    assert killed.returncode == -signal.SIGKILL
    resumed = execute(tmp_path)
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert_same(tables(tmp_path), expected)


def test_hash_seed_does_not_matter(undisturbed, tmp_path):
    expected, _ = undisturbed
    assert execute(tmp_path, hash_seed="12345").returncode == 0
    assert_same(tables(tmp_path), expected)


def test_feedback_prompts_are_the_only_ones_asked_about(undisturbed):
    expected, _ = undisturbed
    labels = pd.concat([t for name, t in expected.items() if name.endswith("labels.parquet")])
    training = expected["r/01_proxy/clean.parquet"]
    assert len(labels) == 24 and not set(labels["prompt_id"]) & set(training["prompt_id"])


def test_no_comparison_is_asked_twice(undisturbed):
    expected, _ = undisturbed
    for strategy in ("shf_cas", "random"):
        labels = pd.concat(
            [
                t
                for name, t in expected.items()
                if f"/{strategy}/" in name and name.endswith("labels.parquet")
            ]
        )
        assert not labels.duplicated(["prompt_id", "i", "j"]).any()


def test_a_round_reports_the_conflict_of_prompts_that_can_be_ranked():
    rows = [("a", 0, -1.0), ("a", 1, -2.0), ("flat", 0, -3.0), ("flat", 1, -3.0)]
    pool = pd.DataFrame(rows, columns=["prompt_id", "index", "logp"])
    conflict = conflict_table(pool, np.array([0.0, 1.0, 0.0, 1.0]))
    labels = pd.DataFrame({"prompt_id": ["a"], "i": [0], "j": [1], "label": [1.0]})
    found = loop._summary(1, conflict, labels)
    assert (found["kendall"], found["mean_abs_pacs"], found["contradicted"]) == (1.0, 2.0, 1.0)
