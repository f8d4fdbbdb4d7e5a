"""Injected bias: what the done_ columns say is exactly what was done, in the order of the
mechanisms."""

import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas_lib import bias
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Attribute, Coverage, Noise
from shfcas_lib.tasks.attributes import ATTRIBUTES, attribute

CATEGORY = {"p0": "one", "p1": "two", "p2": "one", "p3": "three"}
TEXTS = ["a", "bb", "cc", "dddd", "I cannot help with that.", "great question! **yes**"]

mechanism = st.one_of(
    st.builds(Noise, kind=st.just("noise"), rate=st.floats(0, 1)),
    st.builds(
        Attribute,
        kind=st.just("attribute"),
        attribute=st.sampled_from([*ATTRIBUTES, "keyword:a"]),
        strength=st.floats(0, 1),
    ),
    st.builds(
        Coverage,
        kind=st.just("coverage"),
        absent=st.lists(st.sampled_from(["one", "two", "three", "four"]), max_size=2),
    ),
)


@st.composite
def tables(draw):
    """(preferences, completions): up to four prompts with two to four completions, any pairs of
    them, any labels."""
    completions, preferences = [], []
    for prompt in draw(st.lists(st.sampled_from(sorted(CATEGORY)), min_size=1, unique=True)):
        texts = draw(st.lists(st.sampled_from(TEXTS), min_size=2, max_size=4))
        completions += [(prompt, k, text) for k, text in enumerate(texts)]
        pairs = [(i, j) for i in range(len(texts)) for j in range(i + 1, len(texts))]
        for i, j in draw(st.lists(st.sampled_from(pairs), unique=True)):
            preferences.append((prompt, i, j, draw(st.sampled_from([0.0, 0.5, 1.0]))))
    table = pd.DataFrame(preferences, columns=["prompt_id", "i", "j", "label"])
    table = table.astype({"prompt_id": str, "i": int, "j": int, "label": float})
    return table, pd.DataFrame(completions, columns=["prompt_id", "index", "completion"])


def many(pairs=2000, label=1.0):
    """One pair per prompt; the second completion is the longer one on every other prompt, and
    they tie on every tenth."""
    preferences = pd.DataFrame(
        {"prompt_id": [f"p{k:04}" for k in range(pairs)], "i": 0, "j": 1, "label": label}
    )
    texts = [("long", "x") if k % 2 else ("x", "long") for k in range(pairs)]
    texts = [("same", "size") if k % 10 == 0 else pair for k, pair in enumerate(texts)]
    completions = pd.DataFrame(
        [
            (p, k, t)
            for p, pair in zip(preferences["prompt_id"], texts, strict=True)
            for k, t in enumerate(pair)
        ],
        columns=["prompt_id", "index", "completion"],
    )
    return preferences, completions


def noise(rate):
    return Noise(kind="noise", rate=rate)


def follow(name, strength=1.0):
    return Attribute(kind="attribute", attribute=name, strength=strength)


def absent(*categories):
    return Coverage(kind="coverage", absent=list(categories))


def longer(completions):
    """The label that length gives to the pairs of `many`: 0.5 where it does not decide."""
    size = completions.set_index(["prompt_id", "index"])["completion"].str.len().unstack()
    return (np.sign(size[0] - size[1]).to_numpy() + 1) / 2


# --- the masks


@settings(max_examples=150, deadline=None)
@given(tables(), st.lists(mechanism, max_size=4), st.integers(0, 5))
def test_replaying_the_masks_gives_the_labels(data, mechanisms, seed):
    """From label_clean and the done_ columns alone one gets the biased labels: no change is
    unrecorded, none is invented."""
    preferences, completions = data
    biased = bias.inject(preferences, completions, CATEGORY, mechanisms, seed)
    text = completions.set_index(["prompt_id", "index"])["completion"]
    label = biased["label_clean"].to_numpy().copy()
    gone = np.zeros(len(biased), bool)
    for number, applied in enumerate(mechanisms, 1):
        done = biased[f"done_{number}_{applied.kind}"].to_numpy()
        if applied.kind == "coverage":
            assert list(done) == [CATEGORY[p] in applied.absent for p in biased["prompt_id"]]
            gone |= done
            continue
        before = label.copy()
        for k in np.flatnonzero(done):
            if applied.kind == "noise":
                label[k] = 1 - label[k]
            else:
                first, second = (
                    attribute(applied.attribute)(text[biased.at[k, "prompt_id"], biased.at[k, c]])
                    for c in ("i", "j")
                )
                assert first != second, (
                    "an attribute that does not tell a pair apart changes nothing"
                )
                label[k] = float(first > second)
        assert (label != before)[done].all(), "a row is marked only where its label changed"
    assert list(label) == list(biased["label"])
    assert list(gone) == list(biased["absent"])


@settings(max_examples=60, deadline=None)
@given(tables(), st.lists(mechanism, max_size=3), st.integers(0, 5))
def test_no_row_is_lost_and_the_clean_label_is_kept(data, mechanisms, seed):
    preferences, completions = data
    biased = bias.inject(preferences, completions, CATEGORY, mechanisms, seed)
    key = ["prompt_id", "i", "j"]
    expected = preferences.sort_values(key, ignore_index=True)
    pd.testing.assert_frame_equal(
        biased[[*key, "label_clean"]], expected.rename(columns={"label": "label_clean"})
    )
    assert [c for c in biased if c.startswith("done_")] == [
        f"done_{k}_{m.kind}" for k, m in enumerate(mechanisms, 1)
    ]


@settings(max_examples=40, deadline=None)
@given(tables(), st.lists(mechanism, min_size=1, max_size=3), st.integers(0, 5))
def test_injection_is_deterministic_and_ignores_the_order_of_rows(data, mechanisms, seed):
    preferences, completions = data
    one = bias.inject(preferences, completions, CATEGORY, mechanisms, seed)
    other = bias.inject(preferences.iloc[::-1], completions.iloc[::-1], CATEGORY, mechanisms, seed)
    pd.testing.assert_frame_equal(one, other)


def test_the_input_is_not_changed():
    preferences, completions = many(20)
    before = preferences.copy()
    bias.inject(preferences, completions, {}, [noise(1.0), follow("length")], 0)
    pd.testing.assert_frame_equal(preferences, before)


def test_without_mechanisms_nothing_happens():
    preferences, completions = many(20)
    biased = bias.inject(preferences, completions, {}, [], 0)
    pd.testing.assert_frame_equal(bias.observed(biased), preferences)


# --- noise


@pytest.mark.parametrize(("rate", "flipped"), [(0.0, 0), (1.0, 2000)])
def test_noise_at_its_ends(rate, flipped):
    biased = bias.inject(*many(), {}, [noise(rate)], 0)
    assert biased["done_1_noise"].sum() == flipped == (biased["label"] == 0).sum()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_noise_flips_its_share(seed):
    """Five standard deviations of a binomial with 2000 draws are 0.05."""
    assert abs(bias.inject(*many(), {}, [noise(0.3)], seed)["done_1_noise"].mean() - 0.3) < 0.05


def test_ties_stay_ties_under_noise():
    biased = bias.inject(*many(label=0.5), {}, [noise(1.0)], 0)
    assert (biased["label"] == 0.5).all() and not biased["done_1_noise"].any()


def test_seeds_flip_different_rows():
    masks = [bias.inject(*many(), {}, [noise(0.5)], seed)["done_1_noise"] for seed in (0, 0, 1)]
    assert masks[0].equals(masks[1]) and 0.4 < (masks[0] != masks[2]).mean() < 0.6


def test_two_noises_draw_independently():
    """Rates 0.5 and 0.5 leave a quarter flipped twice; one stream for both would leave nothing
    flipped."""
    biased = bias.inject(*many(), {}, [noise(0.5), noise(0.5)], 0)
    assert abs((biased["done_1_noise"] & biased["done_2_noise"]).mean() - 0.25) < 0.06
    assert (biased.loc[biased["done_1_noise"] & biased["done_2_noise"], "label"] == 1.0).all()


# --- attributes


def test_at_full_strength_every_label_follows_the_attribute_where_it_decides():
    preferences, completions = many()
    biased = bias.inject(preferences, completions, {}, [follow("length")], 0)
    expected = np.where(longer(completions) == 0.5, 1.0, longer(completions))
    assert list(biased["label"]) == list(expected)
    assert list(biased["done_1_attribute"]) == list(expected != 1.0)
    assert {0.0, 1.0} == set(biased["label"])


def test_without_strength_nothing_follows():
    assert not bias.inject(*many(), {}, [follow("length", 0.0)], 0)["done_1_attribute"].any()


def test_the_attribute_is_followed_with_the_strength_asked_for():
    preferences, completions = many()
    against = longer(completions) == 0.0
    done = bias.inject(preferences, completions, {}, [follow("length", 0.6)], 0)[
        "done_1_attribute"
    ].to_numpy()
    assert not done[~against].any() and abs(done[against].mean() - 0.6) < 0.08


def test_the_attribute_decides_ties():
    preferences, completions = many(label=0.5)
    biased = bias.inject(preferences, completions, {}, [follow("length")], 0)
    assert list(biased["label"]) == list(longer(completions))
    assert list(biased["done_1_attribute"]) == list(longer(completions) != 0.5)


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "mine_for_bias.py").write_text("def questions(text):\n    return text.count('?')\n")
    monkeypatch.syspath_prepend(tmp_path)
    preferences = pd.DataFrame(
        [("p", 0, 1, 1.0), ("p", 0, 2, 1.0)], columns=["prompt_id", "i", "j", "label"]
    )
    completions = pd.DataFrame(
        [("p", 0, "no"), ("p", 1, "why?"), ("p", 2, "so")],
        columns=["prompt_id", "index", "completion"],
    )
    biased = bias.inject(
        preferences, completions, {"p": "x"}, [follow("mine_for_bias:questions")], 0
    )
    assert list(biased["label"]) == [0.0, 1.0]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("lenght", "choose length, compliance, flattery, markdown"),
        ("keyword:", "choose length"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("tiny_gold:no_such_function", "no_such_function"),
        ("tiny_gold:__name__", "is not a function"),
        (":f", "cannot be imported"),
    ],
)
def test_an_attribute_that_leads_nowhere(name, why):
    with pytest.raises(InputError) as caught:
        bias.inject(*many(20), {}, [follow(name)], 0)
    assert (
        repr(name) in str(caught.value)
        and why in str(caught.value)
        and "\n" not in str(caught.value)
    )


@pytest.mark.parametrize("value", ["float('nan')", "None", "'many'"])
def test_an_attribute_of_the_users_own_that_gives_no_number(tmp_path, monkeypatch, value):
    """NaN compares false with everything: without an error, the second completion would always
    win."""
    (tmp_path / "no_number.py").write_text(
        f"def attribute(text):\n    return {value} if text == 'x' else 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "no_number", raising=False)
    with pytest.raises(InputError, match="no_number:attribute"):
        bias.inject(*many(20), {}, [follow("no_number:attribute")], 0)


# --- coverage


def test_coverage_marks_the_rows_of_its_categories_and_observed_leaves_them_out():
    preferences, completions = many(6)
    category = {p: "gone" if k % 3 == 0 else "here" for k, p in enumerate(preferences["prompt_id"])}
    biased = bias.inject(preferences, completions, category, [absent("gone")], 0)
    assert (
        list(biased["done_1_coverage"])
        == list(biased["absent"])
        == [True, False, False, True, False, False]
    )
    seen = bias.observed(biased)
    assert list(seen) == ["prompt_id", "i", "j", "label"]
    assert list(seen["prompt_id"]) == [p for p in preferences["prompt_id"] if category[p] == "here"]


def test_two_coverages_add_up():
    preferences, completions = many(4)
    category = dict(zip(preferences["prompt_id"], "abca", strict=True))
    biased = bias.inject(preferences, completions, category, [absent("a"), absent("b")], 0)
    assert list(biased["absent"]) == [True, True, False, True]
    assert list(biased["done_2_coverage"]) == [False, True, False, False]


# --- composition


def test_the_order_of_mechanisms_is_the_order_of_the_list():
    """Attribute and then noise ends against the attribute; noise and then attribute ends with
    it."""
    preferences, completions = many()
    length = longer(completions)
    decided = length != 0.5
    first = bias.inject(preferences, completions, {}, [follow("length"), noise(1.0)], 0)[
        "label"
    ].to_numpy()
    second = bias.inject(preferences, completions, {}, [noise(1.0), follow("length")], 0)[
        "label"
    ].to_numpy()
    assert (first[decided] == 1 - length[decided]).all() and (
        second[decided] == length[decided]
    ).all()
    assert (first[~decided] == 0.0).all() and (second[~decided] == 0.0).all()


def test_a_mechanism_appended_leaves_the_others_alone():
    preferences, completions = many()
    short = bias.inject(preferences, completions, {}, [noise(0.3), follow("length", 0.5)], 0)
    long = bias.inject(
        preferences, completions, {}, [noise(0.3), follow("length", 0.5), noise(0.2)], 0
    )
    columns = ["done_1_noise", "done_2_attribute"]
    pd.testing.assert_frame_equal(short[columns], long[columns])
    assert list(long["label"]) == list(
        np.where(long["done_3_noise"], 1 - short["label"], short["label"])
    )


def test_the_biased_labels_are_what_the_proxy_sees():
    preferences, completions = many(50)
    biased = bias.inject(preferences, completions, {}, [noise(0.5)], 0)
    assert (
        list(bias.observed(biased)["label"]) == list(biased["label"]) != list(biased["label_clean"])
    )


# --- the summary


def test_the_summary_counts_what_was_done():
    preferences, completions = many(10)
    category = {p: "gone" if k < 4 else "here" for k, p in enumerate(preferences["prompt_id"])}
    table = bias.summary(
        bias.inject(preferences, completions, category, [noise(1.0), absent("gone")], 0)
    )
    assert table.to_dict("records") == [
        {"mechanism": "1_noise", "rows": 10, "share": 1.0},
        {"mechanism": "2_coverage", "rows": 4, "share": 0.4},
        {"mechanism": "labels that are now wrong", "rows": 6, "share": 1.0},
    ]


def test_a_label_flipped_twice_is_not_wrong():
    table = bias.summary(bias.inject(*many(10), {}, [noise(1.0), noise(1.0)], 0))
    assert list(table["rows"]) == [10, 10, 0]
