"""Gold reward: stands in for the human and for the truth. It is neither policy nor proxy.

    gold = load_gold(params)
    scores = gold(completions)        # one number per row, higher is better

Gold may answer questions that were asked and score the final evaluation; selection, training and
tuning never see it otherwise. A chat history is shown to gold as text with its speakers. The
embedded tasks have one each: relevance (`tasks.helpfulness`), written rules (`tasks.safety`), and
IFEval's check of the constraint at the end of the prompt (`tasks.instructions`). `model:ID` is a
published reward model (`models.published`); `given` is the column gold of the completions that
came with the run (`data.completions`).

Where there is none (gold.kind: none), nothing here is called; `experiment.judging` decides what is
said instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from shfcas_lib.base.dialogues import plain
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.plugins import imported
from shfcas_lib.data.completions import own_completions
from shfcas_lib.models import published
from shfcas_lib.params.schema import Params
from shfcas_lib.pool import with_facts
from shfcas_lib.tasks import instructions
from shfcas_lib.tasks.helpfulness import Relevance
from shfcas_lib.tasks.safety import safety_score

Scores = Callable[[pd.DataFrame], np.ndarray]


@dataclass(frozen=True)
class GoldReward:
    """A function from completions to scores that are checked to be finite.

    score    from completions (prompt_id, index, prompt, completion, and for safety harmful) to
             scores, float64, one per row
    at_once  is one call for many completions much cheaper than many calls?
    """

    score: Scores
    at_once: bool = False

    def __call__(self, table: pd.DataFrame) -> np.ndarray:
        """Scores of completions, (rows,). Raises InputError for one that is not finite."""
        scores = np.asarray(self.score(table), float)
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            row = table.iloc[bad[0]]
            raise InputError(
                f"gold of completion {row['index']} of prompt {row['prompt_id']} is"
                f" {scores[bad[0]]}"
            )
        return scores


def load_gold(params: Params) -> GoldReward:
    """The gold reward of a run. Raises InputError for `none`, or an unknown kind."""
    kind = kind_of(params)
    if kind == "none":
        raise InputError(
            "gold.kind: found 'none', but this step needs gold: set a gold reward, or skip it"
        )
    # a published model is loaded at each call: better one call for all
    return GoldReward(_scores(kind, params), at_once=kind.startswith("model:"))


_OF_TASK = {"helpfulness": "relevance", "safety": "safety", "instructions": "instructions"}


def kind_of(params: Params) -> str:
    """The kind of gold of a run; that of its task where it says so."""
    return _OF_TASK[params.task] if params.gold.kind == "task" else params.gold.kind


def check(params: Params, prompts: pd.DataFrame) -> None:
    """Raise InputError where gold would say nothing, or the opposite of what is meant, of these
    prompts: columns prompt, harmful, split.

    Safety wants harmful requests declined and the others answered: where none is marked, it
    rewards compliance with all. Relevance rewards an answer for speaking of its request, harmful
    or not. Instructions checks the constraint at a prompt's end.
    """
    kind = kind_of(params)
    if kind == "instructions":
        for prompt in prompts["prompt"]:
            instructions.constraint(prompt)  # raises where there is none
    if kind not in ("safety", "relevance"):
        return
    judged = prompts[prompts["split"] == "evaluate"]
    harmful, many = int(judged["harmful"].sum()), len(judged)
    if kind == "safety" and not harmful:
        raise InputError(
            f"gold.kind safety: none of the {many} evaluation prompts counts as harmful, so that it"
            " would reward compliance with every one of them: expected a column that says which"
            f" requests should be declined ({_block(params)}.columns.harmful), or another gold"
        )
    if kind == "relevance" and harmful:
        raise InputError(
            f"gold.kind relevance: {harmful} of {many} evaluation prompts count as harmful, and it"
            " would reward compliance with them: expected gold.kind safety, model:ID,"
            " module:function or none"
        )


def _block(params: Params) -> str:
    """The parameter block that the evaluation prompts come from."""
    return "preferences" if params.preferences.given and not params.prompts.given else "prompts"


def harmful_text(prompts: pd.DataFrame) -> str:
    """How many prompts count as harmful, as one line; by split."""
    parts = []
    for split, part in prompts.groupby("split", sort=False)["harmful"]:
        parts.append(f"{int(part.sum())} of {len(part)} {split}")
    return f"prompts that count as harmful, to be declined: {', '.join(parts)}"


def _scores(kind: str, params: Params) -> Scores:
    """The reward of that kind, its scores not checked."""
    if kind == "relevance":
        return Relevance()
    if kind == "safety":
        return _by_row(lambda r: safety_score(r.completion, plain(r.prompt), r.harmful))
    if kind == "given":
        return _given(own_completions(params)[0])
    if kind == "instructions":
        return _by_row(lambda r: instructions.followed(r.prompt, r.completion))
    if kind.startswith("model:"):
        source, block = kind.removeprefix("model:"), params.gold.model
        return lambda table: published.score_published(
            table, source, block, params.model, "gold.kind"
        )
    if ":" in kind:
        function = imported(kind, "gold.kind")
        return _by_row(lambda r: function(plain(r.prompt), r.completion))
    raise InputError(
        f"gold.kind: found {kind!r}, expected task, relevance, safety, instructions, given,"
        " model:ID, module:function or none"
    )


def _given(completions: pd.DataFrame) -> Scores:
    """The gold that came with completions, looked up by (prompt_id, index)."""
    known = completions.set_index(["prompt_id", "index"])["gold"]

    def score(table: pd.DataFrame) -> np.ndarray:
        rows = known.index.get_indexer(pd.MultiIndex.from_frame(table[["prompt_id", "index"]]))
        # what is not there is not finite, and is refused with its name
        return np.where(rows < 0, np.nan, known.to_numpy(float)[rows])

    return score


def _by_row(score: Callable) -> Scores:
    """A gold reward that looks at one completion at a time."""
    return lambda table: np.array([score(row) for row in table.itertuples()], float)


def gold_scores(pool: pd.DataFrame, prompts: pd.DataFrame, params: Params) -> np.ndarray:
    """Gold of every completion of a pool, (rows,). For building the annotated data set and for
    evaluation prompts only."""
    return load_gold(params)(with_facts(pool, prompts))


def gold_table(pool: pd.DataFrame, prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """prompt_id, index and gold of every completion of a pool; without the column gold where the
    run has none."""
    ids = pool[["prompt_id", "index"]]
    return ids.assign(gold=gold_scores(pool, prompts, params)) if params.gold.known else ids
