"""The label store beyond plain answers: undo, several people, ratings, grades, agreement,
exports."""

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from project import ROOT

from shfcas_lib.annotators.exports import agreement, export
from shfcas_lib.base.errors import InputError
from shfcas_lib.data.preferences import load_pairs
from shfcas_lib.storage.labels import GRADED, LabelStore, margin, said
from shfcas_lib.storage.sqlite import MEMORY

QUESTION = {"prompt_id": "p", "i": 0, "j": 1, "strategy": "shf_cas", "reason": "K 0.5"}


def question(**changes):
    return pd.Series(QUESTION | changes)


@pytest.fixture
def store(tmp_path):
    with LabelStore(tmp_path / "labels.sqlite") as store:
        yield store


def standing(store):
    return store.labels()[["prompt_id", "i", "j", "answer"]].values.tolist()


# in memory


def test_stores_in_memory_know_nothing_of_each_other_and_leave_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with LabelStore(Path(MEMORY)) as one, LabelStore(Path(MEMORY)) as other:
        one.add(question(), "first", "anna")
        assert standing(one) == [["p", 0, 1, "first"]] and standing(other) == []
    with LabelStore(Path(MEMORY)) as later:
        assert standing(later) == []
    assert list(tmp_path.iterdir()) == []


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
        (question().drop("j"), "first_better"),
    ],
)
def test_a_word_of_the_other_kind_is_refused(store, row, word):
    with pytest.raises(InputError, match="expected"):
        store.add(row, word, "anna")
    assert len(store.rows()) == 0


# grades


def grades(store):
    return store.labels()[["answer", "label", "grade"]].astype(object).values.tolist()


def test_a_graded_answer_is_a_side_and_a_grade(store):
    for word in (*GRADED, "tie", "skip"):
        store.add(question(prompt_id=word), word, "anna")
    table = store.by_annotator().set_index("prompt_id")
    assert table.loc[list(GRADED), ["answer", "grade"]].values.tolist() == [
        ["first", 1.0],
        ["first", 2.0],
        ["second", 1.0],
        ["second", 2.0],
    ]
    assert table.loc[["tie", "skip"], "grade"].isna().all()
    labels = store.labels().set_index("prompt_id")
    pd.testing.assert_series_equal(labels["grade"], table["grade"].loc[labels.index])
    assert labels.loc["second_much_better", "label"] == 0.0


def test_a_store_without_grades_gives_the_tables_that_it_gave_before_there_were_any(store):
    store.add(question(), "first", "anna")
    store.add(question(), "second", "ben")
    plain = ["prompt_id", "i", "j", "answer", "label", "annotator", "time", "strategy", "reason"]
    assert list(store.labels()) == plain and list(store.by_annotator()) == [
        "id",
        *plain,
        "shown_left",
        "latency",
        "note",
        "repeat",
    ]


@pytest.mark.parametrize(
    "said_by, expected",
    [
        (("first_much_better", "first_better"), ["first", 1.0, 1.5]),
        (("first_much_better", "tie"), ["first", 0.75, 2.0]),
        (("first_much_better", "second_better"), ["tie", 0.5, None]),
        (("first_better", "second_much_better", "first_much_better"), ["first", 2 / 3, 1.5]),
        (("second_much_better", "skip"), ["second", 0.0, 2.0]),
        (("second", "second_much_better"), ["second", 0.0, 2.0]),
    ],
)
def test_the_grade_of_several_people_is_the_mean_over_those_on_the_labels_side(
    store, said_by, expected
):
    for name, word in zip(("anna", "ben", "cleo"), said_by, strict=False):
        store.add(question(), word, name)
    store.add(question(prompt_id="q"), "first_better", "anna")
    answer, label, grade = grades(store)[0]
    assert [answer, label] == [expected[0], pytest.approx(expected[1])]
    assert np.isnan(grade) if expected[2] is None else grade == expected[2]


def test_what_was_said_before_an_undo_stands_again_with_its_grade(store):
    store.add(question(), "first_much_better", "anna")
    store.retract(store.add(question(), "first_better", "anna"))
    assert grades(store) == [["first", 1.0, 2.0]]


@pytest.mark.parametrize("word", [*GRADED, "first", "tie", "both_bad", "skip"])
def test_a_word_is_found_again_in_what_is_stored_of_it(store, word):
    store.add(question(), word, "anna")
    store.add(question(prompt_id="q"), "first_better", "anna")
    row = store.by_annotator().iloc[0]
    assert said(row["answer"], row["grade"]) == word


def test_a_margin_is_nothing_for_better_and_one_for_much_better():
    table = pd.DataFrame({"grade": [1.0, 2.0, 1.5, np.nan]})
    assert margin(table).tolist() == [0.0, 1.0, 0.5, 0.0]
    assert margin(table[[]]).tolist() == [0.0] * 4


# the table of versions that knew no grades
BEFORE = """
CREATE TABLE answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt_id TEXT NOT NULL, i INTEGER NOT NULL, j INTEGER,
    answer TEXT NOT NULL CHECK (answer IN ('first', 'second', 'tie', 'both_bad', 'skip', 'safe',
        'unsafe', 'unsure', '1', '2', '3', '4', '5', 'undo')),
    annotator TEXT NOT NULL, time REAL NOT NULL, strategy TEXT NOT NULL, reason TEXT NOT NULL,
    shown_left INTEGER, latency REAL,
    note TEXT NOT NULL DEFAULT '', repeat INTEGER NOT NULL DEFAULT 0,
    retracts INTEGER REFERENCES answers (id)
)"""
SAID_BEFORE = (
    "INSERT INTO answers (prompt_id, i, j, answer, annotator, time, strategy, reason, note)"
    " VALUES (?, 0, 1, ?, 'anna', 1.5, 's', 'r', 'n')"
)


@pytest.fixture
def old(tmp_path):
    """A store that a version without grades wrote."""
    path = tmp_path / "old.sqlite"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(BEFORE)
        for number in range(300):
            word = ("first", "second", "tie", "skip")[number % 4]
            connection.execute(SAID_BEFORE, (f"p{number:03d}", word))
        connection.commit()
    return path


def stored(path):
    """All rows of a store, without the column that old stores lack; SQLite finds no fault."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        table = pd.read_sql_query("SELECT * FROM answers ORDER BY id", connection)
    return table.drop(columns="grade", errors="ignore")


def test_a_store_of_an_older_version_keeps_every_row_and_takes_grades(old):
    before = stored(old)
    with LabelStore(old) as store:
        pd.testing.assert_frame_equal(stored(old), before)
        assert "grade" not in store.labels() and len(store.labels()) == 300
        store.add(question(prompt_id="p000"), "first_much_better", "anna")
        assert store.labels()["grade"].dropna().tolist() == [2.0]
    with contextlib.closing(sqlite3.connect(old)) as connection:
        connection.execute(SAID_BEFORE, ("p999", "tie"))  # the older version goes on with it
        connection.commit()
    with LabelStore(old) as store:
        assert len(store.rows()) == 302 and store.labels()["answer"].iloc[-1] == "tie"
    pd.testing.assert_frame_equal(stored(old).head(300), before)


@pytest.mark.parametrize("fresh", [True, False])
def test_no_store_takes_another_grade_whatever_its_age(old, store, fresh):
    path = store.path if fresh else old
    LabelStore(path).close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(SAID_BEFORE.replace("note", "grade").replace("'n'", "2"), ("p", "tie"))
        with pytest.raises(sqlite3.IntegrityError, match="grade IN"):
            connection.execute(
                SAID_BEFORE.replace("note", "grade").replace("'n'", "3"), ("p", "tie")
            )


OPENER = """
import os, signal, sqlite3, sys
from pathlib import Path
from shfcas_lib.storage import labels
print("ready", flush=True)
sys.stdin.readline()
if sys.argv[2] == "die":
    def trace(statement):
        if statement == sys.argv[3]:
            os.kill(os.getpid(), signal.SIGKILL)
    def connect(*arguments, connect=sqlite3.connect, **more):
        connection = connect(*arguments, **more)
        connection.set_trace_callback(trace)
        return connection
    sqlite3.connect = connect
with labels.LabelStore(Path(sys.argv[1])) as store:
    store.add({"prompt_id": sys.argv[2], "i": 0, "j": 1, "strategy": "s", "reason": "r"},
              "first_better", sys.argv[2])
"""


def opener(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", OPENER, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("statement", ["BEGIN IMMEDIATE", "ALTER", "COMMIT"])
def test_a_kill_while_an_old_store_learns_of_grades_costs_no_row(old, statement):
    """Right before each statement of the change."""
    before = stored(old)
    if statement == "ALTER":
        statement = "ALTER TABLE answers ADD COLUMN grade INTEGER CHECK (grade IN (1, 2))"
    process = opener(old, "die", statement)
    process.communicate("go\n", timeout=60)
    assert process.returncode == -signal.SIGKILL
    pd.testing.assert_frame_equal(stored(old), before)
    with LabelStore(old) as store:
        store.add(question(), "second_better", "anna")
        assert len(store.rows()) == 301


def test_processes_that_open_an_old_store_at_once_change_it_once(old):
    before = stored(old)
    openers = [opener(old, name) for name in ("ann", "bob", "cyd", "dan")]
    for process in openers:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in openers:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in openers:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    pd.testing.assert_frame_equal(stored(old).head(300), before)
    with LabelStore(old) as store:
        assert store.labels()["grade"].notna().sum() == 4 and len(store.rows()) == 304


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


def test_better_and_much_better_agree_on_the_side_and_grades_have_a_share_of_their_own(store):
    said_twice = [
        ("first_better", "first_much_better"),
        ("first_much_better", "first_much_better"),
        ("second_better", "second_better"),
        ("first_better", "second_better"),
        ("tie", "tie"),
    ]
    for k, (once, again) in enumerate(said_twice):
        store.add(question(prompt_id=f"p{k}"), once, "anna")
        store.add(question(prompt_id=f"p{k}"), again, "anna", repeat=True)
        store.add(question(prompt_id=f"p{k}"), again, "ben")
    table = agreement(store).set_index("measure")
    assert table.loc["self-agreement", ["value", "items"]].tolist() == [pytest.approx(4 / 5), 5]
    row = table.loc["self-agreement, grades", ["value", "items"]].tolist()
    assert row == [pytest.approx(2 / 3), 3]
    plain = [word.replace("_much_better", "_better") for pair in said_twice for word in pair]
    from sklearn.metrics import cohen_kappa_score

    kappa = cohen_kappa_score(plain[::2], plain[1::2])
    assert table.loc["Cohen's kappa, comparisons", "value"] == pytest.approx(kappa)


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


@pytest.mark.parametrize("conversational", [False, True])
def test_grades_leave_as_margins_in_every_file(store, completions, tmp_path, conversational):
    answers = {
        (0, 1): "first_much_better",
        (0, 2): "second_better",
        (0, 3): "tie",
        (1, 2): "second_much_better",
        (1, 3): "first",
    }
    for (i, j), word in answers.items():
        store.add(question(i=i, j=j), word, "anna")
    export(store, completions, tmp_path, conversational)
    table = pd.read_parquet(tmp_path / "preferences.parquet")
    assert list(table) == ["prompt", "chosen", "rejected", "margin"]
    assert table["margin"].tolist() == [1.0, 0.0, 1.0, 0.0]
    lines = pd.read_json(tmp_path / "preferences.jsonl", lines=True)
    assert lines["margin"].tolist() == table["margin"].tolist()
    pairs = load_pairs(tmp_path / "preferences.jsonl")
    assert pairs["chosen"].tolist() == ["4", "5\n\t", "5\n\t", "four 🎉"]
    labels = pd.read_parquet(tmp_path / "labels.parquet")
    assert labels["grade"].fillna(0).tolist() == [2, 1, 0, 2, 0]
    assert pd.read_parquet(tmp_path / "answers.parquet")["grade"].max() == 2


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
