"""Relevance on the real sentence model."""

import numpy as np
import pytest
from gold_tables import load, table

from shfcas_lib.tasks import helpfulness

# --- relevance


@pytest.fixture(scope="module")
def relevance():
    return load(task="helpfulness")


@pytest.mark.parametrize(
    ("prompt", "good", "bad"),
    [
        (
            "How do I keep rice from sticking to the pot?",
            "Rinse the rice first and keep the heat low while it cooks.",
            "The train to Rome leaves at nine in the morning.",
        ),
        (
            "Why is the sky blue?",
            "Air scatters blue sunlight more than red, so the sky looks blue.",
            "Whisk the eggs and fold in the flour slowly.",
        ),
        (
            "Write a short thank-you note to my teacher.",
            "Dear teacher, thank you for your patience and your help this year.",
            "Interest rates rose again in the last quarter.",
        ),
        (
            "How often should I water a cactus?",
            "Water a cactus every two weeks, when its soil is dry.",
            "Yes! Yes! Yes! Yes! Yes! Yes! Yes! Yes! Yes!",
        ),
    ],
)
def test_relevance_ranks_an_answer_above_something_else(relevance, prompt, good, bad):
    scores = relevance(table((prompt, good), (prompt, bad)))
    assert scores[0] > scores[1] + 0.2


def test_the_same_answers_swapped_between_questions_lose(relevance):
    rice, sky = "How do I cook rice?", "Why is the sky blue?"
    about_rice, about_sky = (
        "Boil the rice in twice as much water.",
        "Air scatters blue light more than red.",
    )
    scores = relevance(
        table((rice, about_rice), (rice, about_sky), (sky, about_sky), (sky, about_rice))
    )
    assert scores[0] > scores[1] and scores[2] > scores[3]


def test_a_completion_that_is_cut_off_is_worth_a_little_less(relevance):
    prompt = "How do I cook rice?"
    whole, cut = relevance(
        table(
            (prompt, "Boil the rice in twice as much water."),
            (prompt, "Boil the rice in twice as much water"),
        )
    )
    assert 0.05 < whole - cut < 0.25


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("It is.", True),
        ("Is it?", True),
        ("Yes!", True),
        ('She said "no."', True),
        ("(See there.)", True),
        ("It is. ", True),
        ("It is", False),
        ("It is. And then", False),
        ("one, two,", False),
        ("", False),
    ],
)
def test_complete(text, whole):
    assert helpfulness.complete(text) == whole


def test_relevance_does_not_depend_on_what_else_is_scored(relevance):
    rows = table(
        ("How do I cook rice?", "Boil it."),
        ("Why is the sky blue?", "Because of scattering, " * 30),
        ("Hi", ""),
    )
    together = relevance(rows)
    alone = [relevance(rows.iloc[[k]])[0] for k in range(len(rows))]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_relevance_keeps_the_order_of_rows(relevance):
    rows = table(*[("How do I cook rice?", "Boil the rice. " * k) for k in (5, 1, 3, 2, 4)])
    np.testing.assert_allclose(relevance(rows)[::-1], relevance(rows.iloc[::-1]), atol=1e-5)


def test_relevance_is_a_cosine_plus_the_worth_of_a_complete_sentence(relevance):
    text = "How do I cook rice?"
    assert relevance(table((text, text)))[0] == pytest.approx(1 + helpfulness.COMPLETE, abs=1e-5)
