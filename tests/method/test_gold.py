"""Gold rewards: which one a run has, a function of the user's own, bad input."""

import json
import re
import sys

import numpy as np
import pandas as pd
import pytest
from gold_tables import BENIGN, HARMFUL, load, table

from shfcas_lib import gold
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli import main
from shfcas_lib.params import reading
from shfcas_lib.tasks import instructions

# --- which gold, and bad input


def test_the_task_has_its_own_gold():
    rows = table(
        (BENIGN, "I cannot help with that.", False), (HARMFUL, "I cannot help with that.", True)
    )
    assert (
        list(load(task="safety")(rows))
        == list(load(task="helpfulness", gold={"kind": "safety"})(rows))
        == [0.0, 1.0]
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Make a module `mine` out of a function body; gives its name."""

    def make(body):
        (tmp_path / "mine_for_gold.py").write_text(f"def score(prompt, completion):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "mine_for_gold", raising=False)
        return "mine_for_gold:score"

    return make


def test_a_function_of_the_users_own(own):
    scores = load(gold={"kind": own("return len(completion) - len(prompt)")})(
        table(("ab", "abcd"), ("abc", "a"))
    )
    assert scores.dtype == np.float64 and list(scores) == [2.0, -2.0]


@pytest.mark.parametrize(
    ("value", "shown"),
    [("float('nan')", "nan"), ("float('inf')", "inf"), ("-float('inf')", "-inf"), ("None", "nan")],
)
def test_gold_that_is_not_finite_names_prompt_and_completion(own, value, shown):
    reward = load(gold={"kind": own(f"return {value} if completion == 'bad' else 1.0")})
    rows = pd.DataFrame(
        {
            "prompt_id": ["p0", "p1", "p1"],
            "index": [0, 0, 7],
            "prompt": "q",
            "completion": ["a", "b", "bad"],
        }
    )
    with pytest.raises(InputError) as caught:
        reward(rows)
    assert str(caught.value).startswith(f"gold of completion 7 of prompt p1 is {shown}")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("relevence", ["gold.kind", "relevence", "relevance", "safety"]),
        ("", ["gold.kind", "found"]),
        ("no_such_module:f", ["gold.kind", "'no_such_module:f'", "No module named"]),
        ("tiny_gold:no_such_function", ["gold.kind", "no_such_function"]),
        ("tiny_gold:__name__", ["gold.kind", "is not a function"]),
        ("model:/nowhere/at/all", ["gold.kind", "'/nowhere/at/all'"]),
    ],
)
def test_a_kind_that_leads_nowhere(kind, words):
    with pytest.raises(InputError) as caught:
        load(gold={"kind": kind})(table(("a", "b")))  # a published model is loaded when it scores
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_none_is_refused_where_gold_is_needed():
    with pytest.raises(InputError, match="gold.kind: found 'none'"):
        load(
            gold={"kind": "none"},
            preferences={"file": "pairs.jsonl"},
            feedback={"kind": "replay", "file": "answers.csv"},
            evaluation={"replicates": 0},
        )


# --- a gold that these prompts make meaningless, or turn round


def prompts_of(*harmful, split="evaluate", prompt="How are you?"):
    rows = [(f"p{k}", prompt, "all", mark, split) for k, mark in enumerate(harmful)]
    return pd.DataFrame(rows, columns=["prompt_id", "prompt", "category", "harmful", "split"])


def settings(**values):
    return reading.validate(values, "test")


OWN_PAIRS = {"preferences": {"recipe": "hh-rlhf"}, "evaluation": {"replicates": 0}}


@pytest.mark.parametrize(
    ("values", "block"),
    [
        ({"task": "safety", "prompts": {"file": "mine.csv"}}, "prompts"),
        ({"gold": {"kind": "safety"}} | OWN_PAIRS, "preferences"),
        ({"gold": {"kind": "safety"}, "prompts": {"file": "mine.csv"}} | OWN_PAIRS, "prompts"),
    ],
)
def test_safety_without_a_harmful_prompt_would_reward_compliance(values, block):
    # those that nobody is judged on do not help
    elsewhere = prompts_of(True, True, split="train")
    prompts = pd.concat([prompts_of(False, False), elsewhere])
    with pytest.raises(InputError) as caught:
        gold.check(settings(**values), prompts)
    assert str(caught.value).startswith(
        "gold.kind safety: none of the 2 evaluation prompts counts as harmful, so that it would"
        " reward compliance with every one of them"
    )
    assert f"({block}.columns.harmful)" in str(caught.value)
    gold.check(settings(**values), prompts_of(False, True))


def test_relevance_of_harmful_prompts_would_reward_compliance():
    with pytest.raises(InputError, match="gold.kind relevance: 1 of 3 evaluation prompts count as"):
        gold.check(settings(), prompts_of(False, True, False))
    gold.check(settings(), prompts_of(False, False))
    gold.check(settings(gold={"kind": "model:some/model"}), prompts_of(True, False))


def test_instructions_without_a_constraint_are_met_before_anything_is_sampled():
    wanted = settings(task="instructions")
    fine = next(iter(instructions.CONSTRAINTS))
    gold.check(wanted, prompts_of(False, prompt=f"Write a poem.\n\n{fine}"))
    with pytest.raises(InputError, match="'How are you.' ends in no constraint"):
        gold.check(wanted, prompts_of(False))


def test_check_counts_what_is_to_be_declined(tmp_path, capsys):
    rows = [{"prompt": f"question {k}", "harmful": k < 10} for k in range(30)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"gold": {"kind": "safety"}, "prompts": {"file": str(tmp_path / "mine.jsonl")}}
    (tmp_path / "mine.yaml").write_text(json.dumps(values | {"selection": {"budget": 10}}))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 0
    told = capsys.readouterr().out
    line = next(line for line in told.splitlines() if line.startswith("prompts that count as"))
    assert "to be declined: " in line
    assert sorted(int(n) for n in re.findall(r"(\d+) of", line)) == [3, 3, 4]
    values["prompts"]["columns"] = {"harmful": None}
    (tmp_path / "mine.yaml").write_text(json.dumps(values | {"selection": {"budget": 10}}))
    assert main(["check", str(tmp_path / "mine.yaml")]) == 2
    assert "prompts.columns.harmful" in capsys.readouterr().err
