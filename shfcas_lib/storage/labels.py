"""The label store: answers go in, and none is ever lost; labels and ratings come out.

    with LabelStore(folder / "labels.sqlite") as store:
        store.add(comparison, "first", "anna")
        store.labels()                                  # one row a comparison

SQLite in WAL mode, append-only: a changed mind is a later row, an undo is a row that retracts an
earlier one. An answer is durable when `add` returns. Several processes and several people may
write to one store at once."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.storage.sqlite import write_ahead

# The label: probability that completion i is preferred. Nobody could tell after `skip`, so it
# gives none.
ANSWERS = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5, "skip": math.nan}
# ratings of one completion; `skip` joins both
SCALES = {
    "safety": ("safe", "unsafe", "unsure"),
    "five": ("1", "2", "3", "4", "5"),
}
RATINGS = (*SCALES["safety"], *SCALES["five"], "skip")
UNDO = "undo"
_KEY = ["prompt_id", "i", "j"]
_ANYTHING = object()
_WORDS = ", ".join(f"'{word}'" for word in dict.fromkeys((*ANSWERS, *RATINGS, UNDO)))
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    prompt_id TEXT NOT NULL, i INTEGER NOT NULL, j INTEGER,
    answer TEXT NOT NULL CHECK (answer IN ({_WORDS})),
    annotator TEXT NOT NULL, time REAL NOT NULL, strategy TEXT NOT NULL, reason TEXT NOT NULL,
    shown_left INTEGER, latency REAL, note TEXT NOT NULL DEFAULT '', repeat INTEGER NOT NULL DEFAULT 0,
    retracts INTEGER REFERENCES answers (id)
)"""  # j is NULL where a single completion was rated
# else every answer reads all earlier ones
_INDICES = (
    "CREATE INDEX IF NOT EXISTS questions ON answers (prompt_id, i, j, annotator, repeat)",
    "CREATE INDEX IF NOT EXISTS undone ON answers (retracts) WHERE retracts IS NOT NULL",
)
# all that the first version of the table had
_FIRST_COLUMNS = "id, prompt_id, i, j, answer, annotator, time, strategy, reason"
# The latest answer of each person to each question, without what was taken back.
_STANDING = """
SELECT * FROM answers WHERE id IN (
    SELECT max(id) FROM answers
    WHERE retracts IS NULL AND id NOT IN (SELECT retracts FROM answers WHERE retracts IS NOT NULL)
    GROUP BY prompt_id, i, j, annotator, repeat)
"""


class LabelStore:
    """Append-only answers in one SQLite file. Several processes and threads may write at once;
    none loses a row."""

    def __init__(self, path: Path):
        self.path, self._lock = path, threading.RLock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # A screen's messages may arrive on another thread than the cell that made it; our
            # lock serialises them.
            self.connection = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            write_ahead(self.connection)
            # an answer survives a power cut, not only a crash
            self.connection.execute("PRAGMA synchronous=FULL")
            self.connection.execute(_SCHEMA)
            _upgrade(self.connection)
            for index in _INDICES:
                self.connection.execute(index)
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

        comparison: prompt_id, i, j (missing or None: a rating of completion i), strategy, reason.
        shown_left: the completion that was on the left. latency: seconds on the screen. repeat:
        the question was put a second time, blindly. after: the id of this person's standing
        answer as the screen knew it (None: there was none); where another window has answered
        since, nothing is written and None returned."""
        j = comparison.get("j")
        valid = RATINGS if j is None else tuple(ANSWERS)
        if answer not in valid:
            raise InputError(f"answer {answer!r}: expected {', '.join(valid)}")
        with self._transaction():
            if after is _ANYTHING or self.standing_id(comparison, annotator, repeat) == after:
                return self._insert(
                    comparison, answer, annotator, shown_left, latency, note, repeat, None
                )
        return None

    def add_all(self, answers: list[tuple[Mapping, str, str, int]]) -> None:
        """Append several (comparison, answer, annotator, shown_left), all or, where one of them
        fails, none."""
        with self._transaction():
            for comparison, answer, annotator, shown_left in answers:
                self._insert(comparison, answer, annotator, shown_left, None, "", False, None)

    def retract(self, row: int) -> None:
        """Take the answer in row `row` back, by a row of its own. What the same person had
        answered before stands again."""
        with self._transaction():
            found = self.connection.execute(
                "SELECT prompt_id, i, j, annotator, strategy, reason, shown_left, repeat FROM"
                " answers WHERE id = ? AND retracts IS NULL",
                (row,),
            ).fetchone()
            if found is None:
                raise InputError(f"there is no answer {row} to take back")
            prompt_id, i, j, annotator, strategy, reason, shown_left, repeat = found
            comparison = {
                "prompt_id": prompt_id,
                "i": i,
                "j": j,
                "strategy": strategy,
                "reason": reason,
            }
            self._insert(comparison, UNDO, annotator, shown_left, None, "", bool(repeat), row)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """All that the block writes is on disk when it ends, or, where it fails or is
        interrupted, none of it."""
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
                if (
                    self.connection.in_transaction
                ):  # SQLite has rolled back by itself where the disk was full
                    self.connection.execute("ROLLBACK")

    def _insert(
        self, comparison, answer, annotator, shown_left, latency, note, repeat, retracts
    ) -> int:
        j = comparison.get("j")
        return self.connection.execute(
            "INSERT INTO answers (prompt_id, i, j, answer, annotator, time, strategy, reason,"
            " shown_left, latency, note, repeat, retracts) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,"
            " ?, ?)",
            (
                comparison["prompt_id"],
                int(comparison["i"]),
                None if j is None else int(j),
                answer,
                annotator,
                time.time(),
                comparison["strategy"],
                comparison["reason"],
                None if shown_left is None else int(shown_left),
                latency,
                note,
                int(repeat),
                retracts,
            ),
        ).lastrowid

    def standing_id(self, comparison: Mapping, annotator: str, repeat: bool = False) -> int | None:
        """The row of this person's standing answer to a question; None where there is none."""
        j = comparison.get("j")
        with self._lock:
            found = self.connection.execute(
                "SELECT max(id) FROM answers WHERE prompt_id = ? AND i = ? AND j IS ? AND annotator"
                " = ? AND repeat = ? AND retracts IS NULL AND id NOT IN (SELECT retracts FROM"
                " answers WHERE retracts IS NOT NULL)",
                (
                    comparison["prompt_id"],
                    int(comparison["i"]),
                    None if j is None else int(j),
                    annotator,
                    int(repeat),
                ),
            ).fetchone()
        return found[0]

    def rows(self) -> pd.DataFrame:
        """Every row ever written, undone and changed answers too, in the order of writing."""
        return self._read("SELECT * FROM answers ORDER BY id")

    def by_annotator(self) -> pd.DataFrame:
        """Who said what: the standing answer of each person to each question, blind repeats and
        ratings included.

        Columns id, prompt_id, i, j (missing for a rating), answer, label, annotator, time,
        strategy, reason, shown_left, latency (seconds), note, repeat."""
        table = self._read(_STANDING + " ORDER BY id").drop(columns="retracts")
        table["j"] = table["j"].astype("Int64")
        table["repeat"] = table["repeat"].astype(bool)
        table.insert(
            5, "label", table["answer"].map(ANSWERS).where(table["j"].notna()).astype(float)
        )
        return table

    def labels(self) -> pd.DataFrame:
        """One row a comparison: prompt_id, i, j, answer, label, annotator, time, strategy, reason.

        Where several people answered, the label is the mean of their labels (those who skipped
        have none), the answer is the one they share, or else the side that the mean leans to
        ('tie' at one half), and annotator names them all. Blind repeats and what was taken back
        do not count. The label of a comparison that everybody skipped is NaN."""
        columns = [*_KEY, "answer", "annotator", "time", "strategy", "reason"]
        table = self._read(
            f"SELECT {', '.join(columns)} FROM ({_STANDING}) WHERE j IS NOT NULL AND repeat = 0"
            " ORDER BY prompt_id, i, j, id"
        )
        table.insert(4, "label", table["answer"].map(ANSWERS).astype(float))
        shared = table.duplicated(_KEY, keep=False)
        if not shared.any():
            return table
        merged = [_together(part) for _, part in table[shared].groupby(_KEY)]
        return pd.concat([table[~shared], pd.DataFrame(merged, columns=list(table))]).sort_values(
            _KEY, ignore_index=True
        )

    def ratings(self) -> pd.DataFrame:
        """The standing ratings of single completions: prompt_id, index, rating, annotator, time,
        strategy, reason, note, repeat."""
        table = self.by_annotator()
        table = table[table["j"].isna()].rename(columns={"i": "index", "answer": "rating"})
        return table[
            [
                "prompt_id",
                "index",
                "rating",
                "annotator",
                "time",
                "strategy",
                "reason",
                "note",
                "repeat",
            ]
        ].reset_index(drop=True)

    def answered(self, people: int = 1) -> set[tuple[str, int, int]]:
        """The comparisons (prompt_id, i, j) that at least `people` persons have answered or
        skipped."""
        query = (
            f"SELECT prompt_id, i, j FROM ({_STANDING}) WHERE j IS NOT NULL AND repeat = 0 GROUP BY"
            " prompt_id, i, j HAVING count(*) >= ?"
        )
        with self._lock:
            return set(self.connection.execute(query, (people,)).fetchall())

    def _read(self, query: str) -> pd.DataFrame:
        with self._lock:
            return pd.read_sql_query(query, self.connection)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self.connection.close()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_) -> None:
        self.close()


def _together(part: pd.DataFrame) -> dict:
    """What several people said about one comparison, as one row."""
    given = part.dropna(subset=["label"])
    label = given["label"].mean()
    answers = sorted(given["answer"].unique()) or ["skip"]
    leaning = "first" if label > 0.5 else "second" if label < 0.5 else "tie"
    return part.iloc[-1].to_dict() | {
        "label": label,
        "answer": answers[0] if len(answers) == 1 else leaning,
        "time": part["time"].max(),
        "annotator": ", ".join(sorted(given["annotator"] if len(given) else part["annotator"])),
    }


def _upgrade(connection: sqlite3.Connection) -> None:
    """Give a store of the first version the columns and answers of this one. SQLite cannot loosen
    a CHECK, so the table is copied."""

    def old() -> bool:
        return "retracts" not in {
            row[1] for row in connection.execute("PRAGMA table_info(answers)")
        }

    if not old():
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if old():  # nobody else has done it while we waited
            connection.execute("ALTER TABLE answers RENAME TO answers_before")
            connection.execute(_SCHEMA)
            connection.execute(
                f"INSERT INTO answers ({_FIRST_COLUMNS}) SELECT {_FIRST_COLUMNS} FROM"
                " answers_before"
            )
            connection.execute("DROP TABLE answers_before")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
