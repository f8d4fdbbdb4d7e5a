"""Who answers: comparisons go in, labels come out.

    with LabelStore(folder / "labels.sqlite") as store:
        labels = ask(comparisons, completions, annotator, store)

An answer is durable in the store (module labels) before the next comparison is asked, and one that is already there is not asked
again. An annotator is anything that turns one comparison into one of the ANSWERS: the simulated human, a file of
answers, a person at a screen. The loop does not know which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from shfcas_lib import formats, runs
from shfcas_lib.asking import KEY, Answered, Mixed, Team, answers_of
from shfcas_lib.gold import Gold
from shfcas_lib.labels import ANSWERS, LabelStore
from shfcas_lib.params import Feedback, InputError, Rows

_ANSWER = ("prompt_id", "i", "j", "answer")


class Annotator(Protocol):
    """Whoever compares two completions."""

    name: str

    def answer(self, comparison: Mapping, shown: pd.DataFrame) -> str:
        """'first' where completion i is better, 'second' where j is, 'tie' where neither; or 'both_bad', or 'skip' for no label. shown: the two rows, i then j."""


class Unanswered(InputError):
    """Comparisons wait for a person. Nothing went wrong: answer them and call again.

    comparisons: all that were asked together, as `ask` got them; completions: what to show of them; missing: how many lack an answer.
    """

    def __init__(self, comparisons: pd.DataFrame, completions: pd.DataFrame, missing: int):
        super().__init__(f"{missing} of {len(comparisons)} comparisons ({comparisons['strategy'].iloc[0]}) wait for a person: open notebook 03 in "
                         "JupyterLab, answer them on its screen, then run this cell and those below again")
        self.comparisons, self.completions, self.missing = comparisons, completions, missing

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of this: the sentence. A traceback would look like a fault."""
        return [str(self)]


class Person:
    """People who answer in their own time, on the screen of module widget. `ask` never waits for them: it raises Unanswered.

    people: how many must answer each comparison before the loop goes on.
    """

    name = "person"

    def __init__(self, people: int = 1):
        self.people = people

    def answer_all(self, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set) -> Answered:
        """Nothing, where all is answered. Raises Unanswered otherwise."""
        missing = sum(key not in known for key in comparisons[KEY].itertuples(index=False, name=None))
        if missing:
            raise Unanswered(comparisons, shown.reset_index(drop=True), missing)
        yield from ()


class SimulatedHuman:
    """Answers with the gold reward of the two completions asked about, of no others.

    noise: probability of the opposite answer; tie_margin: gold differences up to this are ties. Each comparison has its own
    generator, so answers do not depend on the order of asking or on an interruption.
    """

    name = "gold"

    def __init__(self, gold: Gold, noise: float = 0.0, tie_margin: float = 0.0, seed: int = 0):
        self.gold, self.noise, self.tie_margin, self.seed = gold, noise, tie_margin, seed

    def answer(self, comparison: Mapping, shown: pd.DataFrame) -> str:
        return self._word(comparison, *self.gold(shown))

    def _word(self, comparison: Mapping, first: float, second: float) -> str:
        if abs(first - second) <= self.tie_margin:
            return "tie"
        wrong = runs.rng(self.seed, f"feedback/{comparison['prompt_id']}/{comparison['i']}/{comparison['j']}").random() < self.noise
        return "first" if (first > second) != wrong else "second"


class SimulatedHumanAtOnce(SimulatedHuman):
    """The same answers from a gold that is dear to call, because it loads a model each time: one call for all comparisons of a round."""

    def answer_all(self, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set) -> Answered:
        """(comparison, answer, name) for every comparison that is not known."""
        asked = [c for c in comparisons.to_dict("records") if tuple(c[name] for name in KEY) not in known]
        if not asked:
            return
        row = dict(zip(shown.index, shown.to_dict("records")))
        scores = self.gold(pd.DataFrame([row[c["prompt_id"], c[side]] for c in asked for side in ("i", "j")]))
        for comparison, (first, second) in zip(asked, np.asarray(scores).reshape(-1, 2)):
            yield comparison, self._word(comparison, first, second), self.name


class Replay:
    """Answers out of a table with prompt_id, i, j, answer. Raises InputError for a comparison it does not hold."""

    name = "replay"

    def __init__(self, table: pd.DataFrame):
        missing = {"prompt_id", "i", "j", "answer"} - set(table)
        if missing:
            raise InputError(f"feedback file has no column {sorted(missing)[0]!r} (columns found: {', '.join(table)})")
        bad = table[~table["answer"].isin(list(ANSWERS))]
        if len(bad):
            raise InputError(f"feedback file, row {bad.index[0] + 1}: answer {bad.iloc[0]['answer']!r}, expected {', '.join(ANSWERS)}")
        self.answers = {(r.prompt_id, r.i, r.j): r.answer for r in table.itertuples()}

    def answer(self, comparison: Mapping, shown: pd.DataFrame) -> str:
        key = (comparison["prompt_id"], comparison["i"], comparison["j"])
        if key not in self.answers:
            raise InputError(f"feedback file holds no answer for prompt {key[0]}, completions {key[1]} and {key[2]}")
        return self.answers[key]


def load_annotator(feedback: Feedback, gold: Gold | None, seed: int, folder: Path | None = None) -> Annotator:
    """The annotator that the parameters ask for. folder: where a judge keeps its replies, the folder of the stage."""
    if feedback.kind == "judge":
        from shfcas_lib.judge import load_judge

        return load_judge(feedback.judge, folder, unreadable="skip")
    if feedback.kind == "mixed":
        person, judge = (load_annotator(feedback.model_copy(update={"kind": kind}), gold, seed, folder) for kind in (feedback.person, "judge"))
        return Mixed(person, judge, feedback.person_share)
    if feedback.kind == "team":
        return Team()
    if feedback.kind == "replay":
        path = runs.found(feedback.file or "")
        if not feedback.file or not path.is_file():
            raise InputError(f"feedback.file: found {feedback.file!r}, expected a parquet or csv table of answers")
        return Replay(_table(path))
    if feedback.kind == "person":
        return Person(feedback.people)
    if gold is None:
        raise InputError("feedback.kind: found 'gold', but gold.kind is 'none'")
    human = SimulatedHumanAtOnce if getattr(gold, "at_once", False) else SimulatedHuman
    return human(gold, feedback.noise, feedback.tie_margin, seed)


def _table(path: Path) -> pd.DataFrame:
    """A file of answers: prompt_id, i, j, answer, whatever else it holds left out. Raises InputError that names the row."""
    rows = []
    for where, row in formats.rows(Rows(file=str(path.absolute()))):
        rows.append({name: str(value) if name in ("prompt_id", "answer") else _whole(value, name, where) for name, value in row.items() if name in _ANSWER})
    return pd.DataFrame(rows, columns=[name for name in _ANSWER if rows and name in rows[0]])


def _whole(value, name: str, where: str) -> int:
    """A completion's index, which a csv holds as text."""
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,9}(\.0)?", str(value)):
        raise InputError(f"{where}: {name!r} is {str(value)[:60]!r}, expected the index of a completion")
    return int(float(value))


def ask(comparisons: pd.DataFrame, completions: pd.DataFrame, annotator: Annotator, store: LabelStore) -> pd.DataFrame:
    """Have every comparison answered that the store does not hold yet; return the labels of all of them.

    comparisons: prompt_id, i, j, strategy, reason. completions: prompt_id, index, and what the annotator reads. Returns those
    columns with answer, label (NaN where it was skipped), annotator and time, in the order of the comparisons. Raises Unanswered
    where people have not answered all of them yet.
    """
    shown = completions.set_index(["prompt_id", "index"], drop=False)
    known = store.answered(getattr(annotator, "people", 1))
    for comparison, answer, name in answers_of(annotator, comparisons, shown, known):
        store.add(comparison, answer, name, after=None)  # two runs in one folder ask the same: one of the two answers is kept
    return comparisons.merge(store.labels()[[*KEY, "answer", "label", "annotator", "time"]], on=KEY, how="left")
