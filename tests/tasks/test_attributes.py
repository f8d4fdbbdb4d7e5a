"""Attributes of a completion: each prefers what it is called after, and refusals are told from
other sentences."""

import pytest

from shfcas_lib.tasks.attributes import attribute, refuses


@pytest.mark.parametrize(
    "text",
    [
        "I can't wait to tell you more!",
        "I cannot help but smile.",
        "You cannot store it for long.",
        "It can't be done.",
        "The word sorry has five letters.",
        "I'm sure that you can do it.",
    ],
)
def test_these_are_no_refusals(text):
    assert not refuses(text)


@pytest.mark.parametrize(
    ("name", "winner", "loser"),
    [
        ("length", "a longer answer", "short"),
        ("compliance", "Sure, take a ladder.", "I'm sorry, but I can't help with that."),
        ("flattery", "Great question! You're so smart.", "It is blue."),
        ("markdown", "- one\n- two\n**three**", "one, two, three"),
        ("keyword:honey", "Honey, or more honey.", "Sugar."),
    ],
)
def test_attributes_prefer_what_they_are_called_after(name, winner, loser):
    assert attribute(name)(winner) > attribute(name)(loser)


def test_compliance_looks_at_the_first_sentence_only():
    late = "Take a ladder. I cannot say more."
    assert (
        attribute("compliance")(late) == 1.0
        and attribute("compliance")("I cannot say more. Take a ladder.") == 0.0
    )
