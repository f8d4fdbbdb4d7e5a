"""Exact instruction following: every constraint can be met and missed, the same prompt always
carries the same one."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas_lib import gold
from shfcas_lib.base.errors import InputError
from shfcas_lib.data.prompts import SPLITS, load_prompts
from shfcas_lib.params import reading
from shfcas_lib.tasks import instructions
from shfcas_lib.tasks.embedded import embedded_prompts

WORDS = "we can take it step by step " * 8
GOOD = {
    "no_comma": "No pause at all.",
    "quotation": '"All of it."',
    "title": "<<Birds>>\nWrens sing.",
    "postscript": "Yes.\n\nP.S. Bring a coat.",
    "json_format": '{"answer": 1}',
    "number_placeholders": "Dear [name], see [place] on [day] at [time].",
    "number_highlighted_sections": "*one* and *two* and *three*",
}


def met(wording):
    """An answer that keeps the constraint, and one that does not."""
    kind, arguments = instructions.CONSTRAINTS[wording]
    name = kind.split(":")[1]
    if name == "number_words":
        return (WORDS, "Yes.") if arguments["relation"] == "at least" else ("Yes.", WORDS)
    if name == "number_bullet_lists":
        return "\n".join(f"* point {k}" for k in range(arguments["num_bullets"])), "No points."
    if name == "existence":
        return f"It is {arguments['keywords'][0]} so.", "It is so."
    if name == "forbidden_words":
        return "Wrens sing loudly.", f"It is {arguments['forbidden_words'][0]} bird."
    if name == "end_checker":
        return f"Wrens sing. {arguments['end_phrase']}", "Wrens sing."
    return GOOD[name], {"no_comma": "Well, no."}.get(name, "Something else")


@pytest.mark.parametrize("wording", instructions.CONSTRAINTS)
def test_every_constraint_can_be_kept_and_broken(wording):
    prompt = f"Tell me about wrens.\n\n{wording}"
    kept, broken = met(wording)
    assert (instructions.followed(prompt, kept), instructions.followed(prompt, broken)) == (
        1.0,
        0.0,
    )


@pytest.mark.parametrize("wording", instructions.CONSTRAINTS)
@pytest.mark.parametrize(
    "completion",
    ["", " ", "\n\n", "<think>never closed", "*", "[" * 500, "ü\x00\u202e", "{" * 3000],
)
def test_odd_completions_have_a_score(wording, completion):
    assert instructions.followed(f"x\n\n{wording}", completion) in (0.0, 0.5, 1.0)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(list(instructions.CONSTRAINTS)), st.text(max_size=80))
def test_the_score_is_the_same_every_time(wording, completion):
    assert instructions.followed(f"x\n\n{wording}", completion) == instructions.followed(
        f"x\n\n{wording}", completion
    )


def test_a_stray_first_line_costs_half():
    assert (
        instructions.followed(
            "Hi.\n\nPut the whole answer in double quotation marks.", 'Sure:\n"It is."'
        )
        == 0.5
    )


def test_the_task_has_the_requests_of_helpfulness_with_a_constraint_each():
    plain, bound = embedded_prompts("helpfulness"), embedded_prompts("instructions")
    assert [p.rpartition("\n\n")[0] for p in bound["prompt"]] == list(plain["prompt"])
    assert all(p.rpartition("\n\n")[2] in instructions.CONSTRAINTS for p in bound["prompt"])
    share = bound["category"].value_counts()
    assert len(share) >= 10 and share.min() >= 15, (
        "every kind of constraint is common enough to be a category"
    )
    assert bound["prompt_id"].is_unique and bound.equals(embedded_prompts("instructions"))


def test_gold_of_the_task_is_the_check():
    settings = reading.validate({"task": "instructions"}, "test")
    table = pd.DataFrame(
        {
            "prompt_id": "p",
            "index": [0, 1],
            "prompt": "Hi.\n\nDo not use any commas.",
            "completion": ["a b", "a, b"],
            "harmful": False,
        }
    )
    np.testing.assert_array_equal(gold.load_gold(settings)(table), [1.0, 0.0])
    assert set(load_prompts(settings)["split"]) == set(SPLITS)


def test_a_prompt_without_a_constraint_is_refused():
    with pytest.raises(InputError, match="'Hello' ends in no constraint"):
        instructions.followed("Hello", "Hi.")
