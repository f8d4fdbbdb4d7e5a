"""Prompts: every bad file is refused with its place, splits are disjoint and the same
everywhere."""

import os
import subprocess
import sys
from collections import Counter

import pandas as pd
import pytest
from own_files import refusal, run, write
from project import ROOT

from shfcas_lib.base import dialogues
from shfcas_lib.data.prompts import SPLITS, load_prompts, split
from shfcas_lib.experiment import checks
from shfcas_lib.params.schema import Split
from shfcas_lib.tasks.embedded import embedded_prompts

SHARES = {"train": 0.4, "feedback": 0.3, "evaluate": 0.3}


def own(path, **values):
    """Parameters of a run with a prompts file of the user's own."""
    return run(prompts={"file": str(path), **values}, selection={"budget": 2})


def prompt_rows(count, categories=("one", "two")):
    return [
        {"prompt": f"Question number {k}?", "category": categories[k % len(categories)]}
        for k in range(count)
    ]


# --- prompt files


def test_own_prompts_are_read_and_split(tmp_path):
    table = load_prompts(own(write(tmp_path / "mine.jsonl", *prompt_rows(20))))
    assert list(table) == ["prompt_id", "prompt", "category", "harmful", "split"]
    assert sorted(table["prompt"]) == sorted(row["prompt"] for row in prompt_rows(20))
    assert Counter(table["split"]) == {"train": 8, "feedback": 6, "evaluate": 6}


def test_a_prompts_file_without_prompts(tmp_path):
    path = write(tmp_path / "mine.jsonl")
    assert refusal(load_prompts, own(path)) == f"{path} holds no prompts"


def test_a_missing_prompts_file(tmp_path):
    assert "does not exist" in refusal(load_prompts, own(tmp_path / "nowhere.jsonl"))


def test_a_row_without_a_prompt(tmp_path):
    path = write(tmp_path / "mine.jsonl", *prompt_rows(9), {"question": "a?"})
    assert (
        refusal(load_prompts, own(path))
        == f"{path}, line 10: no 'prompt' (columns found: question)"
    )


def test_duplicate_prompts_name_both_places(tmp_path):
    path = write(tmp_path / "mine.jsonl", *prompt_rows(9), prompt_rows(3)[2])
    assert (
        refusal(load_prompts, own(path))
        == f"{path}, line 10: the same prompt stands at {path}, line 3"
    )


def test_a_category_that_is_not_in_the_data_lists_those_that_are(tmp_path):
    path = write(tmp_path / "mine.jsonl", *prompt_rows(20))
    message = refusal(load_prompts, own(path, categories=["one", "three"]))
    assert "prompts.categories: found 'three'" in message and "one, two" in message


def test_only_the_categories_asked_for_are_kept(tmp_path):
    table = load_prompts(own(write(tmp_path / "mine.jsonl", *prompt_rows(40)), categories=["two"]))
    assert len(table) == 20 and set(table["category"]) == {"two"}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_too_few_prompts_for_three_splits(tmp_path, count):
    message = refusal(load_prompts, own(write(tmp_path / "mine.jsonl", *prompt_rows(count))))
    assert f"only {count} prompts" in message and "split" in message


def test_no_category_at_all(tmp_path):
    assert "only 0 prompts" in refusal(
        load_prompts, own(write(tmp_path / "mine.jsonl", *prompt_rows(9)), categories=[])
    )


def test_n_prompts_are_taken_evenly_over_categories(tmp_path):
    rows = prompt_rows(60, ("a", "a", "a", "b", "b", "c"))
    table = load_prompts(own(write(tmp_path / "mine.jsonl", *rows), n=24))
    assert Counter(table["category"]) == {"a": 8, "b": 8, "c": 8}


def test_prompts_of_the_pairs_are_dropped_from_the_other_splits(tmp_path):
    rows = prompt_rows(20)
    prompts = write(tmp_path / "prompts.jsonl", *rows)
    pairs = write(
        tmp_path / "pairs.jsonl",
        *[{"prompt": r["prompt"], "chosen": "yes", "rejected": "no"} for r in rows[:6]],
    )
    table = load_prompts(
        run(
            prompts={"file": str(prompts)},
            preferences={"file": str(pairs)},
            selection={"budget": 2},
            evaluation={"replicates": 0},
        )
    )
    assert set(table.loc[table["split"] == "train", "prompt"]) == {r["prompt"] for r in rows[:6]}
    assert set(table.loc[table["split"] != "train", "prompt"]) == {r["prompt"] for r in rows[6:]}
    assert not table["prompt_id"].duplicated().any()


def test_prompts_of_the_pairs_alone_are_split_three_ways(tmp_path):
    pairs = [{"prompt": f"{k % 20}?", "chosen": f"yes {k}", "rejected": "no"} for k in range(40)]
    table = load_prompts(
        run(
            preferences={"file": str(write(tmp_path / "pairs.jsonl", *pairs))},
            selection={"budget": 2},
            evaluation={"replicates": 0},
        )
    )
    assert len(table) == 20 and Counter(table["split"]) == {
        "train": 8,
        "feedback": 6,
        "evaluate": 6,
    }


# --- splits


@pytest.mark.parametrize("task", ["helpfulness", "safety"])
def test_splits_are_disjoint_and_complete(task):
    prompts = embedded_prompts(task)
    table = split(prompts, Split(), 0)
    assert set(table["split"]) == set(SPLITS)
    assert table["prompt_id"].is_unique and set(table["prompt_id"]) == set(prompts["prompt_id"])


@pytest.mark.parametrize("task", ["helpfulness", "safety"])
def test_every_category_has_its_share_of_every_split(task):
    table = split(embedded_prompts(task), Split(), 0)
    for _, group in table.groupby(["category", "harmful"]):
        count = Counter(group["split"])
        assert all(abs(count[name] - share * len(group)) < 2 for name, share in SHARES.items())


def test_the_order_of_prompts_does_not_change_their_split():
    prompts = embedded_prompts("helpfulness")
    shuffled = prompts.sample(frac=1, random_state=3)
    pd.testing.assert_frame_equal(split(prompts, Split(), 0), split(shuffled, Split(), 0))


def test_another_seed_gives_another_split_and_the_same_seed_the_same():
    tables = [split(embedded_prompts("helpfulness"), Split(), seed) for seed in (0, 0, 1)]
    assert tables[0].equals(tables[1])
    assert 0.3 < (tables[0]["split"] != tables[2]["split"]).mean() < 0.9


def test_processes_with_other_hash_seeds_get_the_same_tables():
    program = """
import hashlib
import numpy as np, pandas as pd
from shfcas_lib.data.preferences import preferences_from_gold
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.params import reading
for task in ("helpfulness", "safety"):
    table = load_prompts(reading.validate({"task": task, "prompts": {"n": 77}}, "test"))
    print(hashlib.sha256(table.to_csv().encode()).hexdigest())
rows = [(p, i, (i * 7 + len(p)) % 5) for p in table["prompt_id"] for i in range(6)]
scores = pd.DataFrame(rows, columns=["prompt_id", "index", "gold"])
print(hashlib.sha256(preferences_from_gold(scores, 4, 0).to_csv().encode()).hexdigest())
"""
    outputs = []
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        outputs.append(
            subprocess.run(
                [sys.executable, "-c", program],
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
    assert outputs[0] == outputs[1] and len(set(outputs[0].split())) == 3


def test_prompt_id_is_a_hash_of_the_text_alone():
    assert dialogues.prompt_id("How do bees find flowers?") == "af4790d91ea0140e"
    assert dialogues.prompt_id("a") != dialogues.prompt_id("a ")


# --- check


@pytest.mark.parametrize("budget", [42, 43])
def test_the_budget_may_not_exceed_the_pairs(tmp_path, budget):
    """Seven feedback prompts of four completions are 42 pairs."""
    path = write(tmp_path / "mine.jsonl", *prompt_rows(20))
    settings = run(
        prompts={"file": str(path)},
        split={"train": 0.35, "feedback": 0.35, "evaluate": 0.3},
        sampling={"n": 4},
        selection={"budget": budget, "rounds": 1},
    )
    if budget == 42:
        assert (checks.check(settings)["split"] == "feedback").sum() == 7
    else:
        assert "selection.budget: found 43, expected at most 42" in refusal(checks.check, settings)


def test_an_absent_category_that_is_not_in_the_data():
    message = refusal(
        checks.check,
        run(
            bias=[
                {"kind": "noise", "rate": 0.1},
                {"kind": "coverage", "absent": ["travel", "cookng"]},
            ]
        ),
    )
    assert "'cookng'" in message and "cooking" in message


@pytest.mark.parametrize(
    "name", ["lenght", "keyword:", "nowhere_at_all:function", "json:nothing", "json:__name__"]
)
def test_a_bias_attribute_that_leads_nowhere(name):
    assert repr(name) in refusal(
        checks.check, run(bias=[{"kind": "attribute", "attribute": name, "strength": 0.5}])
    )


@pytest.mark.parametrize("kind", ["relevence", "nowhere_at_all:function", "json:nothing"])
def test_a_gold_reward_that_leads_nowhere_is_found_before_work_starts(kind):
    assert "gold.kind" in refusal(lambda: checks.check(run(gold={"kind": kind})))


@pytest.mark.parametrize("file", [None, "nowhere.csv"])
def test_a_file_of_answers_that_is_not_there_is_found_before_work_starts(file):
    changes = {"feedback": {"kind": "replay", "file": file}, "evaluation": {"replicates": 0}}
    assert "feedback.file" in refusal(lambda: checks.check(run(**changes)))


def test_check_returns_the_prompts():
    settings = run(prompts={"n": 40}, selection={"budget": 10})
    pd.testing.assert_frame_equal(checks.check(settings), load_prompts(settings))


def test_another_seed_draws_other_prompts_of_the_same_categories():
    few = {"prompts": {"n": 40}}
    first, again, other = (load_prompts(run(**few, seed=seed)) for seed in (0, 0, 1))
    assert list(first["prompt_id"]) == list(again["prompt_id"])
    assert len(set(first["prompt_id"]) & set(other["prompt_id"])) < 20
    assert first["category"].value_counts().to_dict() == other["category"].value_counts().to_dict()
