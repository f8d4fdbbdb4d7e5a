"""Who answers: comparisons go in, labels come out.

    with LabelStore(folder / "labels.sqlite") as store:
        labels = ask(comparisons, completions, annotator, store)

An answer is durable in the store before the next comparison is asked, and one that is already
there is not asked again. An annotator is anything that turns one comparison into one of the
ANSWERS or, where answers are graded, of the GRADED ones: the simulated human, a file of answers,
a person at a screen. One with `answer_all(comparisons, shown, known)` takes many at once and
yields its answers as they arrive; any other is asked in turn. The loop does not know which. One
whose `by_people` is true stands for people, whom nobody asks the same twice: what they said for
another strategy counts (`LabelStore.adopt`).

comparisons: those of a round, known or not; shown: completions indexed by (prompt_id, index);
known: the (prompt_id, i, j) that are answered already."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
import pandas as pd

from shfcas_lib.base.randomness import rng
from shfcas_lib.gold import Scores
from shfcas_lib.storage.labels import BETTER, MUCH_BETTER, LabelStore, said

KEY = ["prompt_id", "i", "j"]
Answered = Iterator[tuple[Mapping, str, str]]


class Annotator(Protocol):
    """Whoever compares two completions."""

    name: str

    def answer(self, comparison: Mapping, shown: pd.DataFrame) -> str:
        """'first' where completion i is better, 'second' where j is, 'tie' where neither; or
        'both_bad', or 'skip' for no label; or a graded word. shown: the two rows, i then j."""


def answers_of(
    annotator: Any, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set
) -> Answered:
    """(comparison, answer, name of who gave it) for every comparison that is not known. The next
    question is put only when the answer before it was taken."""
    if hasattr(annotator, "answer_all"):
        yield from annotator.answer_all(comparisons, shown, known)
        return
    texts = _by_id(shown)
    for comparison in comparisons.to_dict("records"):
        prompt, i, j = (comparison[name] for name in KEY)
        if (prompt, i, j) not in known:
            both = pd.DataFrame([texts[prompt, i], texts[prompt, j]])
            yield comparison, annotator.answer(comparison, both), annotator.name


def _by_id(shown: pd.DataFrame) -> dict:
    """(prompt_id, index) to the row: a millisecond a comparison less than a look into the table."""
    return dict(zip(shown.index, shown.to_dict("records"), strict=True))


class SimulatedHuman:
    """Answers with the gold reward of the two completions asked about, of no others.

    noise: probability of the opposite answer; tie_margin: gold differences up to this are ties;
    much: larger differences are much better, whichever way round the answer is; None: answers are
    not graded. Each comparison has its own generator, so answers do not depend on the order of
    asking or on an interruption."""

    name = "gold"

    def __init__(
        self,
        gold: Scores,
        noise: float = 0.0,
        tie_margin: float = 0.0,
        seed: int = 0,
        much: float | None = None,
    ):
        self.gold, self.noise, self.tie_margin, self.seed = gold, noise, tie_margin, seed
        self.much = much

    def answer(self, comparison: Mapping, shown: pd.DataFrame) -> str:
        return self._word(comparison, *self.gold(shown))

    def _word(self, comparison: Mapping, first: float, second: float) -> str:
        if abs(first - second) <= self.tie_margin:
            return "tie"
        name = "/".join(str(comparison[column]) for column in KEY)
        wrong = rng(self.seed, f"feedback/{name}").random() < self.noise
        side = "first" if (first > second) != wrong else "second"
        if self.much is None:
            return side
        return said(side, MUCH_BETTER if abs(first - second) > self.much else BETTER)


class SimulatedHumanAtOnce(SimulatedHuman):
    """The same answers from a gold that is dear to call, because it loads a model each time: one
    call for all comparisons of a round."""

    def answer_all(self, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set) -> Answered:
        """(comparison, answer, name) for every comparison that is not known."""
        records = comparisons.to_dict("records")
        key = itemgetter(*KEY)
        open_ones = [c for c in records if key(c) not in known]
        if not open_ones:
            return
        texts, both = _by_id(shown), []
        for comparison in open_ones:
            both += [texts[comparison["prompt_id"], comparison[side]] for side in ("i", "j")]
        scores = np.asarray(self.gold(pd.DataFrame(both))).reshape(-1, 2)
        for comparison, (first, second) in zip(open_ones, scores, strict=True):
            yield comparison, self._word(comparison, first, second), self.name


def ask(
    comparisons: pd.DataFrame, completions: pd.DataFrame, annotator: Annotator, store: LabelStore
) -> pd.DataFrame:
    """Have every comparison answered that the store does not hold yet; return the labels of all
    of them.

    comparisons: prompt_id, i, j, strategy, reason. completions: prompt_id, index, and what the
    annotator reads. Returns those columns with answer, label (NaN where it was skipped), grade
    (where answers are graded), annotator and time, in the order of the comparisons. Raises
    Unanswered where people have not answered all of them yet."""
    shown = completions.set_index(["prompt_id", "index"], drop=False)
    known = store.answered(getattr(annotator, "people", 1))
    for comparison, answer, name in answers_of(annotator, comparisons, shown, known):
        # two runs in one folder ask the same: one of the two answers is kept
        store.add(comparison, answer, name, after=None)
    labels = store.labels().drop(columns=["strategy", "reason"])
    return comparisons.merge(labels, on=KEY, how="left")


def answered_twice(store: LabelStore) -> tuple[int, int]:
    """Of all pairs of decided answers to one question, by one person or by two: how many say the
    same, and how many do not."""
    table = store.by_annotator()
    decided = table[table["answer"].isin(["first", "second"])]
    counts = decided.assign(first=decided["answer"] == "first").groupby(KEY)["first"]
    first, answers = counts.sum(), counts.size()
    differed = first * (answers - first)
    every = answers * (answers - 1) // 2
    return int((every - differed).sum()), int(differed.sum())
