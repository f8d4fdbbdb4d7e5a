"""Gold rewards: which one a run has, a function of the user's own, bad input."""

import sys

import numpy as np
import pandas as pd
import pytest
from gold_tables import BENIGN, HARMFUL, load, table

from shfcas_lib.base.errors import InputError

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
