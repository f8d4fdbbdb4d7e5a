"""Whoever answers in their own time: a person at a screen, a team elsewhere, a file of answers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from shfcas_lib.annotators.mixed import Mixed
from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError, Waiting
from shfcas_lib.data import formats
from shfcas_lib.feedback import KEY, Answered, SimulatedHuman, SimulatedHumanAtOnce
from shfcas_lib.gold import GoldReward
from shfcas_lib.params.schema import Feedback, Rows
from shfcas_lib.storage.labels import ANSWERS, BETTER, margin, said


class Team:
    """People elsewhere, who answer through files.

    Answers come into the label store by `import`, so whatever is asked of this annotator is still
    open, and the loop stops with a sentence that says how to go on.
    """

    name, by_people = "team", True

    def answer_all(self, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set) -> Answered:
        """Raises Waiting while any comparison is open."""
        waiting = _open(comparisons, known)
        if waiting:
            raise Waiting(
                f"{waiting} comparisons of this round wait for the team: `shfcas export PARAMS"
                " tasks.json` (Label Studio) or tasks.csv (spreadsheet), `shfcas import PARAMS"
                " FILE` with the answers, then the same command again"
            )
        yield from ()


def _open(comparisons: pd.DataFrame, known: set) -> int:
    """How many comparisons are not answered yet."""
    keys = comparisons[KEY].itertuples(index=False, name=None)
    return sum(key not in known for key in keys)


_ANSWER = ("prompt_id", "i", "j", "answer")


class Unanswered(Waiting):
    """Comparisons wait for a person. Nothing went wrong: answer them and call again.

    comparisons: all that were asked together, as `ask` got them; completions: what to show of
    them; missing: how many lack an answer.
    """

    def __init__(self, comparisons: pd.DataFrame, completions: pd.DataFrame, missing: int):
        super().__init__(
            f"{missing} of {len(comparisons)} comparisons ({comparisons['strategy'].iloc[0]}) wait"
            " for a person: open notebook 03 in JupyterLab, answer them on its screen, then run"
            " this cell and those below again"
        )
        self.comparisons, self.completions, self.missing = comparisons, completions, missing


class Person:
    """People who answer in their own time, on the screen of module widget.

    `ask` never waits for them: it raises Unanswered.

    people: how many must answer each comparison before the loop goes on.
    """

    name, by_people = "person", True

    def __init__(self, people: int = 1):
        self.people = people

    def answer_all(self, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set) -> Answered:
        """Nothing, where all is answered. Raises Unanswered otherwise."""
        missing = _open(comparisons, known)
        if missing:
            raise Unanswered(comparisons, shown.reset_index(drop=True), missing)
        yield from ()


class Replay:
    """Answers out of a table with prompt_id, i, j, answer.

    graded: its column grade counts (1 better, 2 much better, missing: better), where it has one.
    Raises InputError for a comparison it does not hold.
    """

    name = "replay"

    def __init__(self, table: pd.DataFrame, graded: bool = False):
        missing = {"prompt_id", "i", "j", "answer"} - set(table)
        if missing:
            raise InputError(
                f"feedback file has no column {sorted(missing)[0]!r} (columns found:"
                f" {', '.join(table)})"
            )
        bad = table[~table["answer"].isin(list(ANSWERS))]
        if len(bad):
            raise InputError(
                f"feedback file, row {bad.index[0] + 1}: answer {bad.iloc[0]['answer']!r}, expected"
                f" {', '.join(ANSWERS)}"
            )
        words = list(table["answer"])
        if graded:
            words = list(map(said, words, BETTER + margin(table)))
        keys = table[KEY].itertuples(index=False, name=None)
        self.answers = dict(zip(keys, words, strict=True))

    def answer(self, comparison: Mapping, shown: pd.DataFrame) -> str:
        key = (comparison["prompt_id"], comparison["i"], comparison["j"])
        if key not in self.answers:
            raise InputError(
                f"feedback file holds no answer for prompt {key[0]}, completions {key[1]} and"
                f" {key[2]}"
            )
        return self.answers[key]


def load_annotator(
    feedback: Feedback, gold: GoldReward | None, seed: int, folder: Path | None = None
) -> Any:
    """The annotator that the parameters ask for: whatever `feedback.answers_of` takes.

    folder: where a judge keeps its replies, the folder of the stage. Raises InputError.
    """
    if feedback.kind == "judge":
        from shfcas_lib.annotators.judge import load_judge

        return load_judge(feedback.judge, folder, unreadable="skip")
    if feedback.kind == "mixed":
        kinds = (feedback.person, "judge")
        halves = [feedback.model_copy(update={"kind": kind}) for kind in kinds]
        person, judge = (load_annotator(half, gold, seed, folder) for half in halves)
        return Mixed(person, judge, feedback.person_share)
    if feedback.kind == "team":
        return Team()
    if feedback.kind == "replay":
        return _replay(feedback.file, feedback.graded)
    if feedback.kind == "person":
        return Person(feedback.people)
    if gold is None:
        raise InputError("feedback.kind: found 'gold', but gold.kind is 'none'")
    human = SimulatedHumanAtOnce if getattr(gold, "at_once", False) else SimulatedHuman
    return human(gold, feedback.noise, feedback.tie_margin, seed, feedback.much_better)


def _replay(file: str | None, graded: bool) -> Replay:
    path = places.user_path(file or "")
    if not file or not path.is_file():
        raise InputError(
            f"feedback.file: found {file!r}, expected a parquet or csv table of answers"
        )
    return Replay(_table(path, graded), graded)


def _table(path: Path, graded: bool) -> pd.DataFrame:
    """A file of answers: prompt_id, i, j, answer, and grade where answers are graded; whatever
    else it holds left out.

    Raises InputError that names the row.
    """
    rows, wanted = [], (*_ANSWER, "grade") if graded else _ANSWER
    for where, values in formats.read_rows(Rows(file=str(path.absolute()))):
        row: dict[str, str | int | float] = {}
        for name, value in values.items():
            if name in ("prompt_id", "answer"):
                row[name] = str(value)
            elif name == "grade" and graded:
                row[name] = _grade(value, where)
            elif name in wanted:
                row[name] = _whole(value, name, where)
        rows.append(row)
    columns = [name for name in wanted if rows and name in rows[0]]
    return pd.DataFrame(rows, columns=columns)


def _grade(value, where: str) -> float:
    """A grade between 1 (better) and 2 (much better), which a csv holds as text; NaN for none."""
    if value is None or str(value).strip() in ("", "nan"):
        return math.nan
    if not re.fullmatch(r"1(\.[0-9]+)?|2(\.0+)?", str(value)):
        raise InputError(
            f"{where}: 'grade' is {str(value)[:60]!r}, expected 1 (better), 2 (much better) or"
            " nothing"
        )
    return float(value)


def _whole(value, name: str, where: str) -> int:
    """A completion's index, which a csv holds as text."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0)?", str(value)):
        raise InputError(
            f"{where}: {name!r} is {str(value)[:60]!r}, expected the index of a completion"
        )
    return int(float(value))
