"""The label store: answers go in, and none is ever lost; labels and ratings come out.

    with LabelStore(folder / "labels.sqlite") as store:
        store.add(comparison, "first", "anna")
        store.add(comparison, "first_much_better", "ben")   # a graded answer
        store.labels()                                      # one row a comparison

SQLite in WAL mode, append-only: a changed mind is a later row, an undo is a row that retracts
an earlier one. An answer is durable when `add` returns. Several processes and several people
may write to one store at once.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage.sqlite import add_column, open_store

# The label: probability that completion i is preferred. Nobody could tell after `skip`, so it
# gives none.
ANSWERS = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5, "skip": math.nan}
# A graded answer: the side that it is for, and its grade. It is stored as these two, so that
# whoever counts sides need not know of grades.
BETTER, MUCH_BETTER = 1, 2
GRADED = {
    "first_better": ("first", BETTER),
    "first_much_better": ("first", MUCH_BETTER),
    "second_better": ("second", BETTER),
    "second_much_better": ("second", MUCH_BETTER),
}
# ratings of one completion; `skip` joins both
SCALES = {
    "safety": ("safe", "unsafe", "unsure"),
    "five": ("1", "2", "3", "4", "5"),
}
RATINGS = (*SCALES["safety"], *SCALES["five"], "skip")
UNDO = "undo"
# names of who answers without being a person
_MACHINES = ("gold", "replay")
JUDGE = "judge:"
_KEY = ["prompt_id", "i", "j"]
_ANYTHING = object()  # not None: that says that there was no answer
_WORDS = ", ".join(f"'{word}'" for word in dict.fromkeys((*ANSWERS, *RATINGS, UNDO)))
_GRADE = f"INTEGER CHECK (grade IN ({BETTER}, {MUCH_BETTER}))"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt_id TEXT NOT NULL, i INTEGER NOT NULL, j INTEGER,
    answer TEXT NOT NULL CHECK (answer IN ({_WORDS})),
    annotator TEXT NOT NULL, time REAL NOT NULL, strategy TEXT NOT NULL, reason TEXT NOT NULL,
    shown_left INTEGER, latency REAL,
    note TEXT NOT NULL DEFAULT '', repeat INTEGER NOT NULL DEFAULT 0,
    retracts INTEGER REFERENCES answers (id),
    grade {_GRADE}
)"""  # j is NULL where a single completion was rated, grade where nobody was asked for one
# Other names of people who came under several, as a number and a mail address.
_PEOPLE = "CREATE TABLE IF NOT EXISTS people (alias TEXT PRIMARY KEY, name TEXT NOT NULL)"
_WHO = "coalesce((SELECT name FROM people WHERE alias = annotator), annotator)"
# else every answer reads all earlier ones
_INDICES = (
    "CREATE INDEX IF NOT EXISTS questions ON answers (prompt_id, i, j, annotator, repeat)",
    "CREATE INDEX IF NOT EXISTS undone ON answers (retracts) WHERE retracts IS NOT NULL",
)
_NOT_TAKEN_BACK = (
    "retracts IS NULL AND id NOT IN (SELECT retracts FROM answers WHERE retracts IS NOT NULL)"
)
# The latest answer of each person to each question, without what was taken back.
_STANDING = (
    f"SELECT * FROM answers WHERE id IN (SELECT max(id) FROM answers WHERE {_NOT_TAKEN_BACK}"
    f" GROUP BY prompt_id, i, j, {_WHO}, repeat)"
)
_STANDING_ID = (
    "SELECT max(id) FROM answers WHERE prompt_id = ? AND i = ? AND j IS ? AND annotator = ?"
    f" AND repeat = ? AND {_NOT_TAKEN_BACK}"
)
_BY_PEOPLE = (
    "SELECT count(*) FROM answers WHERE annotator NOT IN (?, ?) AND annotator NOT LIKE ?"
    f" AND {_NOT_TAKEN_BACK}"
)
_COMPARISONS = f"({_STANDING}) WHERE j IS NOT NULL AND repeat = 0"


class LabelStore:
    """Append-only answers in one SQLite file.

    path: the file, made where there is none. Several processes and threads may write at once;
    none loses a row. Raises InputError for a file that is no store of labels.
    """

    def __init__(self, path: Path):
        self.path = path
        # a screen's messages may arrive on another thread than the cell that made it
        self._lock = threading.RLock()
        try:
            self.connection = open_store(path, _SCHEMA, _PEOPLE, *_INDICES)
            add_column(self.connection, "answers", "grade", _GRADE)
        except (sqlite3.Error, OSError) as error:
            raise InputError(f"label store {path}: {error}") from error

    def add(
        self,
        comparison: Mapping,
        answer: str,
        annotator: str,
        *,
        shown_left: int | None = None,
        latency: float | None = None,
        note: str = "",
        repeat: bool = False,
        after: int | None | object = _ANYTHING,
    ) -> int | None:
        """Append one answer; it is on disk when this returns its row's id.

        answer: of ANSWERS, or of GRADED; of RATINGS where a completion is rated
        comparison: prompt_id, i, j (missing or None: a rating of completion i), strategy,
                    reason
        shown_left: the completion that was on the left
        latency:    seconds on the screen
        repeat:     the question was put a second time, blindly
        after:      the id of this person's standing answer as the screen knew it (None: there
                    was none); where another window has answered since, nothing is written and
                    None returned

        Raises InputError for an answer that the question does not take.
        """
        valid = RATINGS if comparison.get("j") is None else (*ANSWERS, *GRADED)
        if answer not in valid:
            raise InputError(f"answer {answer!r}: expected {', '.join(valid)}")
        with self._transaction():
            if after is _ANYTHING or self.standing_id(comparison, annotator, repeat) == after:
                return self._insert(
                    comparison,
                    answer,
                    annotator,
                    shown_left=shown_left,
                    latency=latency,
                    note=note,
                    repeat=repeat,
                )
        return None

    def add_all(self, answers: list[tuple[Mapping, str, str, int]]) -> None:
        """Append several (comparison, answer, annotator, shown_left).

        All are written or, where one of them fails, none.
        """
        with self._transaction():
            for comparison, answer, annotator, shown_left in answers:
                self._insert(comparison, answer, annotator, shown_left=shown_left)

    def adopt(self, other: LabelStore, comparisons: pd.DataFrame) -> int:
        """Copy what people answered in another store about these comparisons, all or nothing.

        comparisons: prompt_id, i, j, strategy, reason; the completions must be the same in both.
        What somebody has answered here stays; repeats, and answers that no person gave, are left
        there. Returns how many answers were copied.
        """
        theirs = other.by_annotator()
        theirs = theirs[theirs["j"].notna() & ~theirs["repeat"] & by_people(theirs["annotator"])]
        known = set(map(tuple, self.by_annotator()[[*_KEY, "annotator"]].to_numpy().tolist()))
        asked = {tuple(row[name] for name in _KEY): row for row in comparisons.to_dict("records")}
        new = []
        for row in theirs.to_dict("records"):
            key = (row["prompt_id"], row["i"], int(row["j"]))
            if key in asked and (*key, row["annotator"]) not in known:
                new.append((asked[key], row))
        with self._transaction():
            for comparison, row in new:
                self._insert(
                    comparison,
                    said(row["answer"], row.get("grade")),
                    row["annotator"],
                    shown_left=None if pd.isna(row["shown_left"]) else row["shown_left"],
                    latency=row["latency"],
                    note=row["note"],
                    when=row["time"],
                )
        return len(new)

    def same_person(self, name: str, aliases: Iterable[str]) -> None:
        """From now on, answers under these other names are those of `name`, earlier ones too."""
        with self._transaction():
            for alias in aliases:
                self.connection.execute(
                    "INSERT OR REPLACE INTO people VALUES (?, ?)", (alias, name)
                )

    def people(self) -> dict[str, str]:
        """Every name that an answer came under, and whose name it is."""
        with self._lock:
            names = self.connection.execute("SELECT DISTINCT annotator FROM answers").fetchall()
            aliases = self.connection.execute("SELECT alias, name FROM people").fetchall()
        return {name: name for (name,) in names} | dict(aliases)

    def retract(self, row: int) -> None:
        """Take the answer in row `row` back, by a row of its own.

        What the same person had answered before stands again. Raises InputError where there is
        no such answer.
        """
        with self._transaction():
            answer = self.connection.execute(
                "SELECT prompt_id, i, j, strategy, reason, annotator, shown_left, repeat"
                " FROM answers WHERE id = ? AND retracts IS NULL",
                (row,),
            ).fetchone()
            if answer is None:
                raise InputError(f"there is no answer {row} to take back")
            *question, annotator, shown_left, repeat = answer
            keys = ("prompt_id", "i", "j", "strategy", "reason")
            comparison = dict(zip(keys, question, strict=True))
            self._insert(
                comparison,
                UNDO,
                annotator,
                shown_left=shown_left,
                repeat=bool(repeat),
                retracts=row,
            )

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that the block writes is on disk when it ends.

        Where it fails or is interrupted, none of it is.
        """
        with self._lock:
            try:
                self.connection.execute("BEGIN IMMEDIATE")
                yield
                self.connection.execute("COMMIT")
            except sqlite3.Error as error:
                raise InputError(
                    f"label store {self.path}: {error}; this answer was not kept, all earlier ones"
                    " were"
                ) from error
            finally:
                # SQLite has rolled back by itself where the disk was full
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")

    def _insert(
        self,
        comparison: Mapping,
        answer: str,
        annotator: str,
        *,
        shown_left: int | None = None,
        latency: float | None = None,
        note: str = "",
        repeat: bool = False,
        retracts: int | None = None,
        when: float | None = None,
    ) -> int | None:
        """Write one row; its id. when: it was given; None: now."""
        # positions come as numpy integers, which SQLite would store as bytes
        prompt_id, i, j = _question(comparison)
        answer, grade = GRADED.get(answer, (answer, None))
        row = {
            "prompt_id": prompt_id,
            "i": i,
            "j": j,
            "answer": answer,
            "annotator": annotator,
            "time": time.time() if when is None else when,
            "strategy": comparison["strategy"],
            "reason": comparison["reason"],
            "shown_left": None if shown_left is None else int(shown_left),
            "latency": latency,
            "note": note,
            "repeat": int(repeat),
            "retracts": retracts,
            "grade": grade,
        }
        marks = ", ".join("?" * len(row))
        query = f"INSERT INTO answers ({', '.join(row)}) VALUES ({marks})"
        return self.connection.execute(query, tuple(row.values())).lastrowid

    def standing_id(self, comparison: Mapping, annotator: str, repeat: bool = False) -> int | None:
        """The row of this person's standing answer to a question; None where there is none."""
        with self._lock:
            values = (*_question(comparison), annotator, int(repeat))
            return self.connection.execute(_STANDING_ID, values).fetchone()[0]

    def rows(self) -> pd.DataFrame:
        """Every row ever written, undone and changed answers too, in the order of writing."""
        return self._read("SELECT * FROM answers ORDER BY id")

    def by_annotator(self) -> pd.DataFrame:
        """Who said what: the standing answer of each person to each question.

        Blind repeats and ratings are included. Columns:

            id, prompt_id, i
            j           missing for a rating
            answer
            label       of a comparison: the probability that completion i is preferred
            grade       1 better, 2 much better; the column is there once an answer is graded
            annotator, time, strategy, reason, shown_left
            latency     seconds on the screen
            note, repeat
        """
        table = self._read(_STANDING + " ORDER BY id").drop(columns="retracts")
        table["j"] = table["j"].astype("Int64")
        table["repeat"] = table["repeat"].astype(bool)
        label = table["answer"].map(ANSWERS).where(table["j"].notna())
        table.insert(5, "label", label.astype(float))
        return _with_grades(table)

    def labels(self) -> pd.DataFrame:
        """One row a comparison: prompt_id, i, j, answer, label, annotator, time, strategy, reason;
        and grade after label, once an answer is graded.

        Where several people answered, the label is the mean of their labels (those who skipped
        have none), the answer is the one they share, or else the side that the mean leans to
        ('tie' at one half), and annotator names them all. Blind repeats and what was taken back
        do not count. The label of a comparison that everybody skipped is NaN.

        grade: 1 better, 2 much better, the mean over those who are for the side that the label
        leans to; NaN for a tie, and where none of them gave one.
        """
        columns = [*_KEY, "answer", "annotator", "time", "strategy", "reason", "grade"]
        table = self._read(
            f"SELECT {', '.join(columns)} FROM {_COMPARISONS} ORDER BY prompt_id, i, j, id"
        )
        table.insert(4, "label", table["answer"].map(ANSWERS).astype(float))
        table = _with_grades(table)
        shared = table.duplicated(_KEY, keep=False)
        if not shared.any():
            return table
        merged = [_together(part) for _, part in table[shared].groupby(_KEY)]
        both = pd.concat([table[~shared], pd.DataFrame(merged, columns=list(table))])
        return both.sort_values(_KEY, ignore_index=True)

    def ratings(self) -> pd.DataFrame:
        """The standing ratings of single completions.

        Columns prompt_id, index, rating, annotator, time, strategy, reason, note, repeat.
        """
        table = self.by_annotator()
        table = table[table["j"].isna()].rename(columns={"i": "index", "answer": "rating"})
        columns = ["prompt_id", "index", "rating", "annotator", "time", "strategy", "reason"]
        return table[[*columns, "note", "repeat"]].reset_index(drop=True)

    def answered(self, people: int = 1) -> set[tuple[str, int, int]]:
        """The comparisons (prompt_id, i, j) that at least `people` have answered or skipped."""
        query = (
            f"SELECT prompt_id, i, j FROM {_COMPARISONS}"
            " GROUP BY prompt_id, i, j HAVING count(*) >= ?"
        )
        with self._lock:
            return set(self.connection.execute(query, (people,)).fetchall())

    def _read(self, query: str) -> pd.DataFrame:
        with self._lock:
            table = pd.read_sql_query(query, self.connection)
            aliases = dict(self.connection.execute("SELECT alias, name FROM people").fetchall())
        return table.replace({"annotator": aliases}) if aliases else table

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def by_people(annotators: pd.Series) -> pd.Series:
    """Which of these names of annotators are people's."""
    return ~annotators.isin(_MACHINES) & ~annotators.str.startswith(JUDGE)


def answers_of_people(run: Path) -> int:
    """How many answers of people the label stores of a run folder hold.

    Reads alone: a store that is in use, or of an older version, stays as it is. One that cannot
    be read counts as one answer: nobody knows what is in it.
    """
    count = 0
    for path in run.glob("03_feedback/*/labels.sqlite"):
        try:
            with contextlib.closing(
                sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
            ) as store:
                (found,) = store.execute(_BY_PEOPLE, (*_MACHINES, f"{JUDGE}%")).fetchone()
        except sqlite3.Error:
            found = 1
        count += found
    return count


def _question(comparison: Mapping) -> tuple[str, int, int | None]:
    """What tells one question from all others; j is None where a completion is rated."""
    j = comparison.get("j")
    return comparison["prompt_id"], int(comparison["i"]), None if j is None else int(j)


def _together(part: pd.DataFrame) -> dict:
    """What several people said about one comparison, as one row."""
    given = part.dropna(subset=["label"])
    label = given["label"].mean()
    answers = sorted(given["answer"].unique()) or ["skip"]
    answer = answers[0] if len(answers) == 1 else _leaning(label)
    grade = {}
    if "grade" in part:
        grade = {"grade": given.loc[given["answer"] == answer, "grade"].mean()}
    people = given["annotator"] if len(given) else part["annotator"]
    return part.iloc[-1].to_dict() | {
        **grade,
        "label": label,
        "answer": answer,
        "time": part["time"].max(),
        "annotator": ", ".join(sorted(people)),
    }


def _with_grades(table: pd.DataFrame) -> pd.DataFrame:
    """The table with its grades after its labels; without them where nothing is graded, so that
    tables of ungraded runs are what they were before there were grades."""
    grade = table.pop("grade").astype(float)
    if grade.notna().any():
        table.insert(table.columns.get_loc("label") + 1, "grade", grade)
    return table


def margin(labels: pd.DataFrame) -> np.ndarray:
    """(rows,): by how much the chosen answer is better, in logits, as TRL's RewardTrainer takes it.

    labels: grade (1 better, 2 much better, in between for several people, missing for a tie and
    an ungraded label), or no such column. 1 for much better, 0 for better and where there is no
    grade: a preference that says better trains as an ungraded one does.
    """
    if "grade" not in labels:
        return np.zeros(len(labels))
    return labels["grade"].fillna(BETTER).to_numpy(float) - BETTER


def said(answer: str, grade: float | None) -> str:
    """The word that is stored as this answer and grade; a missing grade: an ungraded word.

    A grade between 1 and 2 is a mean of several people's, and counts as the nearer one.
    """
    if grade is None or math.isnan(grade) or answer not in ("first", "second"):
        return answer
    nearer = MUCH_BETTER if grade >= (BETTER + MUCH_BETTER) / 2 else BETTER
    return next(word for word, stored in GRADED.items() if stored == (answer, nearer))


def _leaning(label: float) -> str:
    """The answer that a mean of labels comes nearest to."""
    if label > 0.5:
        return "first"
    return "second" if label < 0.5 else "tie"
