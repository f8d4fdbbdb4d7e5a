"""Questions without a run: comparisons become a file, answers come back as preferences.

    sheet = write_sheet(Path("questions.csv"), comparisons, completions)
    sheet = open_sheet(Path("questions.csv"))
    take_in(sheet, Path("filled.csv"))
    table, counts = preferences(sheet)          # TRL's prompt, chosen, rejected

Beside the file lies its store, `questions.sqlite`: what was asked, with its texts as they are, and
every answer that anybody gave (`storage.labels`). A file that travelled without its store gets
one where it is opened, from the texts that it holds.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shfcas_lib.annotators import exchange
from shfcas_lib.annotators.exports import as_preferences
from shfcas_lib.annotators.questions import KEY, parsed
from shfcas_lib.annotators.spreadsheet import csv_rows
from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.storage import files
from shfcas_lib.storage.labels import LabelStore
from shfcas_lib.storage.sqlite import open_store

_ASKED = [*KEY, "strategy", "reason", "prompt", "one", "other"]
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS asked (rank INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL,"
    " i INTEGER NOT NULL, j INTEGER NOT NULL, strategy TEXT NOT NULL, reason TEXT NOT NULL,"
    " prompt TEXT NOT NULL, one TEXT NOT NULL, other TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
)


@dataclass(frozen=True)
class Sheet:
    """Questions and where their answers are.

    path    the file that they were written to
    asked   prompt_id, i, j, strategy, reason, prompt, one, other, code; most wanted first
    graded  may an answer be much better?
    seed    of the order in which two completions are shown
    """

    path: Path
    asked: pd.DataFrame
    graded: bool
    seed: int

    @property
    def store(self) -> Path:
        """The label store beside the file."""
        return store_of(self.path)

    @property
    def completions(self) -> pd.DataFrame:
        """The completions that are compared: prompt_id, index, prompt, completion."""
        sides = []
        for index, text in (("i", "one"), ("j", "other")):
            side = self.asked[["prompt_id", index, "prompt", text]]
            sides.append(side.set_axis(["prompt_id", "index", "prompt", "completion"], axis=1))
        return pd.concat(sides).drop_duplicates(["prompt_id", "index"], ignore_index=True)


def store_of(path: Path) -> Path:
    """The store that belongs to a file of questions."""
    return path.with_suffix(".sqlite")


def write_sheet(
    path: Path,
    comparisons: pd.DataFrame,
    completions: pd.DataFrame,
    seed: int = 0,
    graded: bool = False,
) -> list[Path]:
    """Write comparisons as questions, .csv for a spreadsheet or .json for Label Studio, and their
    store; returns what was written.

    comparisons: prompt_id, i, j, strategy, reason, most wanted first. completions: prompt_id,
    index, prompt, completion. Nothing that holds an answer is written over. Raises InputError.
    """
    exchange.kind_of(path)
    _refuse_answered(path)
    asked = _with_texts(comparisons, completions)
    _keep(store_of(path), asked, seed, graded)
    written = exchange.write_questions(_questions(asked, seed), path, graded)
    return [*written, store_of(path)]


def _with_texts(comparisons: pd.DataFrame, completions: pd.DataFrame) -> pd.DataFrame:
    """Comparisons with the columns prompt, one and other."""
    texts = completions.set_index(["prompt_id", "index"])[["prompt", "completion"]]
    first, second = (
        texts.loc[pd.MultiIndex.from_frame(comparisons[["prompt_id", side]])] for side in ("i", "j")
    )
    return comparisons.assign(
        prompt=first["prompt"].to_numpy(),
        one=first["completion"].to_numpy(),
        other=second["completion"].to_numpy(),
    )[_ASKED]


def _questions(asked: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What is asked as questions of `exchange.as_questions`, prompts as text to read."""
    coded = _coded(asked)
    return exchange.as_questions(coded.assign(prompt=coded["prompt"].map(dialogues.plain)), seed)


def _coded(asked: pd.DataFrame) -> pd.DataFrame:
    texts = asked[["prompt", "one", "other"]].itertuples(index=False, name=None)
    return asked.assign(code=[exchange.code_of(*three) for three in texts])


def _refuse_answered(path: Path) -> None:
    """Raise InputError where a file or store that would be written over holds answers."""
    store = store_of(path)
    if store.exists():
        with LabelStore(store) as known:
            answers = len(known.rows())
        if answers:
            raise InputError(
                f"{store} holds {answers} answers to other questions: give these another name, or"
                " move those files away"
            )
    if path.exists() and _is_filled(path):
        raise InputError(
            f"{path} holds answers: give these questions another name, or move it away"
        )


def _is_filled(path: Path) -> bool:
    """Does a file of questions hold an answer? One that cannot be read counts as filled."""
    try:
        written = exchange.content(path)
        if exchange.kind_of(path) == "csv":
            return any(row.get("answer", "").strip() for row in csv_rows(written, str(path)))
        return any(task.get("annotations") for task in json.loads(written))
    except (InputError, ValueError, AttributeError, TypeError):
        return True


def _keep(store: Path, asked: pd.DataFrame, seed: int, graded: bool) -> None:
    """Write what is asked into the store, whole or not at all, in the place of what was."""
    rows = [(rank, *row) for rank, row in enumerate(asked[_ASKED].itertuples(index=False), 1)]
    marks = ", ".join("?" * (1 + len(_ASKED)))
    try:
        connection = open_store(store, *_SCHEMA)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("DELETE FROM asked")
            connection.executemany(f"INSERT INTO asked VALUES ({marks})", rows)  # noqa: S608
            facts = [("seed", seed), ("graded", int(graded))]
            connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", facts)
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            connection.close()
    except (sqlite3.Error, OSError) as error:
        raise InputError(f"cannot write {store}: {error}") from error


def open_sheet(path: Path) -> Sheet:
    """The questions of a file. Raises InputError where there are none."""
    exchange.kind_of(path)
    store = store_of(path)
    if not store.exists():
        if not path.exists():
            raise InputError(f"{path} does not exist: `shfcas choose` writes questions")
        _keep(store, _asked_in(path), 0, _is_graded(path))
    try:
        connection = open_store(store, *_SCHEMA)
        try:
            asked = pd.read_sql_query("SELECT * FROM asked ORDER BY rank", connection)
            facts = dict(connection.execute("SELECT name, value FROM facts").fetchall())
        finally:
            connection.close()
    except (sqlite3.Error, OSError, pd.errors.DatabaseError) as error:
        raise InputError(f"{store} cannot be read: {error}") from error
    if not len(asked):
        raise InputError(f"{store} holds no questions: is it the store of something else?")
    graded, seed = bool(facts.get("graded", 0)), int(facts.get("seed", 0))
    return Sheet(path, _coded(asked[_ASKED]), graded, seed)


def _asked_in(path: Path) -> pd.DataFrame:
    """What a file without its store asks, by the texts in it. Raises InputError where those are not
    the texts that were asked about, as where a spreadsheet cut one off."""
    rows = []
    for where, question in _written(path):
        prompt_id, left, right, code = parsed(question.get("question"), where)
        texts = [str(question.get(name) or "") for name in ("prompt", "left", "right")]
        i, j, one, other = left, right, texts[1], texts[2]
        if left > right:
            i, j, one, other = right, left, other, one
        if exchange.code_of(texts[0], one, other) != code:
            raise InputError(
                f"{where}: the texts are not those of {question['question']}, as they were asked"
                f" about (a spreadsheet may have changed them, or the prompt has several turns):"
                f" bring {store_of(path).name}, which was written with the questions, beside it"
            )
        rows.append((prompt_id, i, j, "unknown", "", texts[0], one, other))
    if not rows:
        raise InputError(f"{path} holds no questions")
    return pd.DataFrame(rows, columns=_ASKED)


def _written(path: Path) -> list[tuple[str, dict]]:
    """(place, question with its texts) of a file of questions."""
    written = exchange.content(path)
    if exchange.kind_of(path) == "csv":
        rows = enumerate(csv_rows(written, str(path)), 1)
        return [(f"{path}, row {number}", row) for number, row in rows if row.get("question")]
    try:
        tasks = json.loads(written)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    listed = isinstance(tasks, list) and all(isinstance(task, dict) for task in tasks)
    if not listed or not all(isinstance(task.get("data"), dict) for task in tasks):
        raise InputError(f"{path}: expected the tasks that `shfcas choose` writes")
    return [(f"{path}, task {number}", task["data"]) for number, task in enumerate(tasks, 1)]


def _is_graded(path: Path) -> bool:
    """Does a file without its store hold a graded answer?"""
    written = exchange.content(path).lower().replace(b"\0", b"")  # UTF-16, too
    return b"much_left" in written or b"much_right" in written


# --- answers


def take_in(sheet: Sheet, path: Path, annotator: str = "spreadsheet") -> dict[str, int]:
    """Put the answers of a filled-in csv, or of an export of Label Studio, into the sheet's store,
    all of them or none. Returns how many were added and how many known. Raises InputError."""
    chosen = {}
    for _, row in sheet.asked.assign(open=True).iterrows():
        row["prompt"] = dialogues.plain(row["prompt"])
        chosen[tuple(row[[*KEY, "code"]])] = row
    brought = exchange.read_answers(path, chosen, str(sheet.path), annotator, sheet.graded)
    answers, aliases = exchange.one_name_each(brought.answers, [sheet.store])
    with LabelStore(sheet.store) as store:
        for name, others in aliases.items():
            store.same_person(name, others)
        counts = exchange.add_answers(store, chosen, answers)
    return {"added": counts["added"], "known": counts["known"]}


def holds_answers(path: Path) -> bool:
    """Is there anything to take in from a file of questions?"""
    return path.exists() and _is_filled(path)


def preferences(sheet: Sheet) -> tuple[pd.DataFrame, dict[str, int]]:
    """What people decided as TRL preferences, and how many answers there are of each kind.

    Columns prompt, chosen, rejected, and where answers are graded margin (1 much better, 0
    better). Texts, or, where a prompt has several turns, messages. Raises InputError where no
    answer says which is better.
    """
    with LabelStore(sheet.store) as store:
        labels = store.labels()
    counts = Counter(questions=len(sheet.asked), answered=len(labels))
    counts["skipped"] = int(labels["label"].isna().sum())
    counts["ties"] = int((labels["label"] == 0.5).sum())
    decided = labels[labels["label"].notna() & (labels["label"] != 0.5)]
    if not len(decided):
        raise InputError(
            f"{sheet.path}: no answer says which is better yet ({counts['answered']} of"
            f" {counts['questions']} answered)"
        )
    table = as_preferences(decided, sheet.completions)
    return _as_messages(table), {**counts, "preferences": len(table)}


def _as_messages(table: pd.DataFrame) -> pd.DataFrame:
    """Texts stay; where one prompt has several turns, all become messages, as TRL wants them."""
    turns = table["prompt"].map(dialogues.messages)
    if (turns.map(len) == 1).all():
        return table.assign(prompt=table["prompt"].map(dialogues.plain))
    answers = {}
    for name in ("chosen", "rejected"):
        answers[name] = [[{"role": "assistant", "content": text}] for text in table[name]]
    return table.assign(prompt=turns, **answers)


def write_preferences(table: pd.DataFrame, path: Path) -> None:
    """Write preferences as .jsonl or .parquet. Raises InputError for another name."""
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: expected a name ending in .jsonl or .parquet")
    with files.atomic(path) as target:
        if kind == ".parquet":
            table.to_parquet(target, index=False)
        else:
            table.to_json(target, orient="records", lines=True, force_ascii=False)
