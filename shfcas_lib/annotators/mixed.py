"""A person and a judge who share the comparisons of a round, and how far the judge agrees."""

from __future__ import annotations

import math

import pandas as pd

from shfcas_lib.feedback import Answered, answers_of


class Mixed:
    """A person for the most conflicted share of a round, a judge for the rest.

    The judge is asked about the person's comparisons too; those answers are no labels, they stay
    among the judge's replies and `agreement` compares them with the person's. The judge goes
    first: when the person's side stops the loop, because somebody has to sit down and answer,
    everything else is done by then.
    """

    def __init__(self, person, judge, share: float):
        self.person, self.judge, self.share = person, judge, share
        self.name = f"{person.name}+{judge.name}"
        self.by_people = getattr(person, "by_people", False)

    def answer_all(self, comparisons: pd.DataFrame, shown: pd.DataFrame, known: set) -> Answered:
        """The judge's answers, then the person's.

        Which comparisons are the person's does not depend on what is known.
        """
        mine = self._persons(comparisons)
        yield from self.judge.answer_all(comparisons[~mine], shown, known)
        for _ in self.judge.answer_all(comparisons[mine], shown, set()):
            pass  # for the check alone
        yield from answers_of(self.person, comparisons[mine], shown, known)

    def agreement(self, labels: pd.DataFrame, completions: pd.DataFrame) -> dict:
        """How the judge does on the labels that others gave: see `judge_agreement`.

        Asks nothing. labels: those of a run, all rounds.
        """
        others = labels[~labels["annotator"].str.startswith("judge:")]
        texts = completions.set_index(["prompt_id", "index"], drop=False)
        judged = self.judge.recorded(others, texts)
        return judge_agreement(list(others["answer"]), judged)

    def _persons(self, comparisons: pd.DataFrame) -> pd.Series:
        """Which rows are the person's: the first ranks of the round. The share rounds up."""
        # 0.1 * 30 is a little above 3, and would round up to 4
        size = math.ceil(round(self.share * len(comparisons), 9))
        return comparisons["rank"].rank(method="first") <= size


def judge_agreement(person: list[str | None], judge: list[str | None]) -> dict:
    """Two annotators on the same comparisons, those that both answered with first, second or tie.

    Returns:

        comparisons  how many
        same         share of equal answers
        kappa        Cohen's, unweighted; None where it is undefined, as when both always say the
                     same
        low, high    its 95% interval
    """
    import numpy as np
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    scale = ["first", "second", "tie"]
    answers = zip(person, judge, strict=True)
    pairs = [(scale.index(a), scale.index(b)) for a, b in answers if a in scale and b in scale]
    result: dict[str, float | None] = dict.fromkeys(["same", "kappa", "low", "high"])
    result = {"comparisons": len(pairs), **result}
    if not pairs:
        return result

    result["same"] = float(np.mean([a == b for a, b in pairs]))
    table, _ = to_table(np.array(pairs), bins=np.arange(len(scale) + 1) - 0.5)
    with np.errstate(all="ignore"):  # no chance agreement to divide by
        cohen = cohens_kappa(table)
        values = {"kappa": cohen.kappa, "low": cohen.kappa_low, "high": cohen.kappa_upp}
    for name, value in values.items():
        if np.isfinite(value):
            result[name] = float(np.clip(value, -1, 1))
    return result
