"""The embedded prompts: enough of them, in every category, worded in many ways."""

import json

import pytest
from own_files import run

from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.storage import assets
from shfcas_lib.tasks.embedded import embedded_prompts

# --- the embedded tasks


def test_helpfulness_has_enough_prompts_and_categories():
    prompts = embedded_prompts("helpfulness")
    assert len(prompts) >= 240 and prompts["category"].nunique() >= 8
    assert prompts["category"].value_counts().min() >= 20
    assert not prompts["harmful"].any()


def test_safety_has_as_many_benign_as_harmful_prompts_in_every_area():
    prompts = embedded_prompts("safety")
    count = prompts.groupby(["category", "harmful"]).size().unstack()
    assert len(count) == 5
    assert (count[False] == count[True]).all() and count[True].sum() > 900


def test_the_harmful_prompts_are_those_of_do_not_answer():
    files = sorted(assets.asset_path("do-not-answer").glob("*.jsonl"))
    expected = {
        json.loads(line)["prompt"].strip()
        for file in files
        for line in file.read_text().splitlines()
    }
    prompts = embedded_prompts("safety")
    assert set(prompts.loc[prompts["harmful"], "prompt"]) == expected
    assert set(prompts["category"]) == {file.stem for file in files}


@pytest.mark.parametrize("task", ["helpfulness", "safety"])
def test_no_embedded_prompt_stands_twice(task):
    prompts = embedded_prompts(task)
    assert prompts["prompt_id"].is_unique
    plain = prompts["prompt"].str.lower().str.replace(r"\W+", " ", regex=True).str.strip()
    assert plain[~prompts["harmful"]].is_unique
    assert not set(plain[~prompts["harmful"]]) & set(plain[prompts["harmful"]])


@pytest.mark.parametrize(("task", "most"), [("helpfulness", 0.05), ("safety", 0.15)])
def test_prompts_of_this_project_are_worded_in_many_ways(task, most):
    """No template farm: no opening of three words is common."""
    prompts = embedded_prompts(task)
    opening = (
        prompts.loc[~prompts["harmful"], "prompt"].str.lower().str.split().str[:3].str.join(" ")
    )
    assert opening.value_counts(normalize=True).iloc[0] < most
    assert prompts["prompt"].str.strip().eq(prompts["prompt"]).all()


def test_a_share_of_the_safety_prompts_keeps_both_kinds_in_all_areas():
    table = load_prompts(run(task="safety", prompts={"n": 50}))
    assert table.groupby(["category", "harmful"]).size().tolist() == [5] * 10
