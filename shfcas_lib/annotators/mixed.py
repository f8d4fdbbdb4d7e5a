"""A person and a judge who share the comparisons of a round, and how far the judge is to be
trusted.
"""

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
        """How the judge does on the labels that others gave: see `agreement`.

        Asks nothing. labels: those of a run, all rounds.
        """
        others = labels[~labels["annotator"].str.startswith("judge:")]
        judged = self.judge.recorded(
            others, completions.set_index(["prompt_id", "index"], drop=False)
        )
        return judge_agreement(list(others["answer"]), judged)

    def _persons(self, comparisons: pd.DataFrame) -> pd.Series:
        """Which rows are the person's: the first ranks of the round. The share rounds up."""
        return comparisons["rank"].rank(method="first") <= math.ceil(
            round(self.share * len(comparisons), 9)
        )


def judge_agreement(person: list[str | None], judge: list[str | None]) -> dict:
    """Two annotators on the same comparisons, those that both answered with first, second or tie:
    comparisons, same (share of equal answers), kappa (Cohen's, unweighted; None where it is
    undefined, as when both always say the same), and low and high, its 95% interval.
    """
    import numpy as np
    from statsmodels.stats.inter_rater import cohens_kappa, to_table

    scale = ["first", "second", "tie"]
    pairs = [
        (scale.index(a), scale.index(b))
        for a, b in zip(person, judge, strict=True)
        if a in scale and b in scale
    ]
    found = {"comparisons": len(pairs), "same": None, "kappa": None, "low": None, "high": None}
    if not pairs:
        return found
    found["same"] = float(np.mean([a == b for a, b in pairs]))
    table, _ = to_table(np.array(pairs), bins=np.arange(len(scale) + 1) - 0.5)
    with np.errstate(all="ignore"):
        result = cohens_kappa(table)
        values = {"kappa": result.kappa, "low": result.kappa_low, "high": result.kappa_upp}
    return found | {
        name: float(np.clip(value, -1, 1)) for name, value in values.items() if np.isfinite(value)
    }
