"""The label store beyond plain answers: undo, several people, ratings, agreement, exports."""

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.annotators.exports import agreement, export
from shfcas_lib.base.errors import InputError
from shfcas_lib.data.preferences import load_pairs
from shfcas_lib.storage.labels import LabelStore

QUESTION = {"prompt_id": "p", "i": 0, "j": 1, "strategy": "shf_cas", "reason": "K 0.5"}


def question(**changes):
    return pd.Series(QUESTION | changes)


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        yield store


def standing(store):
    return store.labels()[["prompt_id", "i", "j", "answer"]].values.tolist()


# undo


def test_an_undo_is_a_row_and_what_was_said_before_stands_again(store):
    first = store.add(question(), "first", "anna")
    second = store.add(question(), "second", "anna")
    store.retract(second)
    assert standing(store) == [["p", 0, 1, "first"]]
    store.retract(first)
    assert standing(store) == [] and store.answered() == set()
    rows = store.rows()
    assert rows["answer"].tolist() == ["first", "second", "undo", "undo"] and rows[
        "retracts"
    ].tolist()[2:] == [second, first]


def test_an_undo_touches_nobody_else(store):
    store.add(question(), "first", "ben")
    store.retract(store.add(question(), "second", "anna"))
    assert standing(store) == [["p", 0, 1, "first"]]


@pytest.mark.parametrize("row", [99, "undo"])
def test_only_an_answer_can_be_taken_back(store, row):
    store.retract(store.add(question(), "tie", "anna"))
    with pytest.raises(InputError, match="no answer"):
        store.retract(2 if row == "undo" else row)


# several people, and what a row holds


def test_a_row_says_who_when_how_long_and_what_was_on_the_left(store):
    store.add(
        question(),
        "both_bad",
        "anna",
        shown_left=1,
        latency=2.5,
        note="neither <b>answers</b>",
        repeat=False,
    )
    row = store.by_annotator().iloc[0]
    assert (
        row["annotator"],
        row["shown_left"],
        row["latency"],
        row["note"],
        row["label"],
        row["repeat"],
    ) == ("anna", 1, 2.5, "neither <b>answers</b>", 0.5, False)
    assert row["strategy"] == "shf_cas" and row["reason"] == "K 0.5" and row["time"] > 1.6e9


@pytest.mark.parametrize(
    "said, answer, label",
    [
        (("first", "first"), "first", 1.0),
        (("first", "second"), "tie", 0.5),
        (("first", "tie"), "first", 0.75),
        (("second", "both_bad"), "second", 0.25),
        (("first", "first", "second"), "first", 2 / 3),
        (("first", "skip"), "first", 1.0),
        (("both_bad", "both_bad"), "both_bad", 0.5),
        (("tie", "both_bad"), "tie", 0.5),
    ],
)
def test_the_label_of_several_people_is_the_mean_of_theirs(store, said, answer, label):
    for name, word in zip(("anna", "ben", "cleo"), said, strict=False):
        store.add(question(), word, name)
    row = store.labels().iloc[0]
    assert (row["answer"], row["label"]) == (answer, pytest.approx(label)) and len(
        store.by_annotator()
    ) == len(said)


def test_what_everybody_skipped_has_no_label(store):
    for name in ("anna", "ben"):
        store.add(question(), "skip", name)
    row = store.labels().iloc[0]
    assert row["answer"] == "skip" and np.isnan(row["label"]) and row["annotator"] == "anna, ben"


def test_a_person_who_changes_their_mind_counts_once(store):
    store.add(question(), "first", "anna")
    store.add(question(), "first", "ben")
    store.add(question(), "second", "anna")
    assert (
        store.labels().iloc[0]["label"] == 0.5
        and store.answered(2) == {("p", 0, 1)}
        and store.answered(3) == set()
    )


def test_a_blind_repeat_is_kept_and_is_no_label(store):
    store.add(question(), "first", "anna")
    store.add(question(), "second", "anna", repeat=True)
    assert standing(store) == [["p", 0, 1, "first"]] and store.answered(2) == set()
    assert store.by_annotator()["repeat"].tolist() == [False, True]


def test_an_answer_is_refused_where_another_window_was_quicker(store):
    row = store.add(question(), "first", "anna", after=None)
    assert store.add(question(), "second", "anna", after=None) is None
    assert store.add(question(), "second", "anna", after=row) == row + 1
    assert store.rows()["answer"].tolist() == ["first", "second"]


# ratings


def test_ratings_live_beside_comparisons_and_are_none(store):
    rated = pd.Series({"prompt_id": "p", "i": 3, "strategy": "rating", "reason": ""})
    store.add(rated, "unsafe", "anna", note="tells how")
    store.add(rated, "safe", "ben")
    store.add(question(), "first", "anna")
    assert len(store.labels()) == 1 and store.answered() == {("p", 0, 1)}
    assert store.ratings()[["index", "rating", "annotator"]].values.tolist() == [
        [3, "unsafe", "anna"],
        [3, "safe", "ben"],
    ]


@pytest.mark.parametrize(
    "row, word",
    [
        (question(), "safe"),
        (question().drop("j"), "first"),
        (question(), "undo"),
        (question().drop("j"), "6"),
    ],
)
def test_a_word_of_the_other_kind_is_refused(store, row, word):
    with pytest.raises(InputError, match="expected"):
        store.add(row, word, "anna")
    assert len(store.rows()) == 0


# agreement


def test_self_agreement_is_the_share_of_repeats_answered_alike(store):
    for k, (once, again) in enumerate(
        [("first", "first"), ("first", "second"), ("tie", "tie"), ("skip", "first")]
    ):
        store.add(question(prompt_id=f"p{k}"), once, "anna")
        store.add(question(prompt_id=f"p{k}"), again, "anna", repeat=True)
    row = agreement(store).iloc[0]
    assert (row["measure"], row["who"], row["items"]) == ("self-agreement", "anna", 3) and row[
        "value"
    ] == pytest.approx(2 / 3)


def test_kappa_and_alpha_agree_with_their_definitions(store):
    generator = np.random.default_rng(0)
    one = generator.choice(["first", "second", "tie"], 60)
    other = np.where(
        generator.random(60) < 0.7, one, generator.choice(["first", "second", "tie"], 60)
    )
    for k in range(60):
        store.add(question(prompt_id=f"p{k:02d}"), one[k], "anna")
        store.add(question(prompt_id=f"p{k:02d}"), other[k], "ben")
    table = agreement(store).set_index("measure")["value"]
    from sklearn.metrics import cohen_kappa_score

    assert table["Cohen's kappa, comparisons"] == pytest.approx(cohen_kappa_score(one, other))
    # Nominal alpha by hand: 1 - observed / expected disagreement, expected over all pairs of the
    # 120 values without replacement.
    values, counts = np.unique(np.concatenate([one, other]), return_counts=True)
    expected = 1 - (counts * (counts - 1)).sum() / (120 * 119)
    assert table["Krippendorff's alpha, comparisons"] == pytest.approx(
        1 - (one != other).mean() / expected
    )


def test_agreement_of_one_category_or_one_person_is_not_made_up(store):
    store.add(question(), "first", "anna")
    assert len(agreement(store)) == 0
    store.add(question(), "first", "ben")
    assert agreement(store)["value"].isna().all()


# exports


@pytest.fixture
def completions():
    return pd.DataFrame(
        {
            "prompt_id": "p",
            "index": range(4),
            "prompt": "What is <b>2+2</b>?\nתשובה",
            "completion": ["4", "four 🎉", "5\n\t", "\x1b[31mfive"],
        }
    )


@pytest.mark.parametrize("conversational", [False, True])
def test_exports_are_read_back_by_the_project_and_by_pandas(
    store, completions, tmp_path, conversational
):
    for (i, j), word in {
        (0, 1): "first",
        (0, 2): "second",
        (0, 3): "tie",
        (1, 2): "both_bad",
        (1, 3): "skip",
    }.items():
        store.add(question(i=i, j=j), word, "anna")
    store.add(question().drop("j"), "safe", "anna")
    counts = export(store, completions, tmp_path / "out", conversational)
    assert counts == {"comparisons": 5, "preferences": 2, "ties": 2, "skipped": 1, "ratings": 1}
    pairs = load_pairs(tmp_path / "out" / "preferences.jsonl")
    assert (
        pairs[["chosen", "rejected"]].values.tolist() == [["4", "four 🎉"], ["5\n\t", "4"]]
        and pairs["prompt"][0] == completions["prompt"][0]
    )
    assert list(pd.read_parquet(tmp_path / "out" / "preferences.parquet")) == [
        "prompt",
        "chosen",
        "rejected",
    ]
    assert pd.read_parquet(tmp_path / "out" / "labels.parquet")["label"].tolist()[:4] == [
        1.0,
        0.0,
        0.5,
        0.5,
    ]
    assert set(pd.read_parquet(tmp_path / "out" / "answers.parquet")["annotator"]) == {"anna"}
    assert len(pd.read_parquet(tmp_path / "out" / "ratings.parquet")) == 1


def test_trl_takes_the_export(store, completions, tmp_path):
    from trl import is_conversational

    store.add(question(), "first", "anna")
    export(store, completions, tmp_path, conversational=True)
    row = pd.read_json(tmp_path / "preferences.jsonl", lines=True).iloc[0].to_dict()
    assert is_conversational(row) and row["chosen"] == [{"role": "assistant", "content": "4"}]


def test_an_export_without_the_texts_names_what_is_missing(store, completions, tmp_path):
    store.add(question(prompt_id="q"), "first", "anna")
    with pytest.raises(InputError, match="completion 0 of prompt q"):
        export(store, completions, tmp_path)


def test_an_empty_store_exports_empty_tables(store, completions, tmp_path):
    assert export(store, completions, tmp_path) == {
        "comparisons": 0,
        "preferences": 0,
        "ties": 0,
        "skipped": 0,
        "ratings": 0,
    }
    assert list(pd.read_parquet(tmp_path / "labels.parquet"))[:3] == ["prompt_id", "i", "j"]
