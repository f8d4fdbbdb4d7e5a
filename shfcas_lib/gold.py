"""Gold reward: stands in for the human and for the truth. It is neither policy nor proxy.

    gold = load_gold(params)
    scores = gold(completions)        # one number per row, higher is better

Gold may answer questions that were asked and score the final evaluation; selection, training and
tuning never see it otherwise. A chat history is shown to gold as text with its speakers. The
embedded tasks have one each: relevance (`tasks.helpfulness`), written rules (`tasks.safety`), and
IFEval's check of the constraint at the end of the prompt (`tasks.instructions`). `model:ID` is a
published reward model (`models.published`).

Where there is none (gold.kind: none), what would need it is None: `values` of a gold table,
tables made with them, figures of those."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from shfcas_lib.base.dialogues import plain
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.plugins import imported
from shfcas_lib.models import published
from shfcas_lib.params.schema import Params
from shfcas_lib.pool import with_facts
from shfcas_lib.tasks import instructions
from shfcas_lib.tasks.helpfulness import Relevance
from shfcas_lib.tasks.safety import safety_score

GoldReward = Callable[[pd.DataFrame], np.ndarray]


def load_gold(params: Params) -> GoldReward:
    """The gold reward of a run: a function from completions (prompt_id, index, prompt,
    completion, and for safety harmful) to scores, float64, one per row; its attribute at_once: is
    one call for many much cheaper than many calls? Raises InputError for `none`, an unknown kind,
    or a score that is not finite."""
    kind = params.gold.kind
    if kind == "task":
        kind = {"helpfulness": "relevance", "safety": "safety", "instructions": "instructions"}[
            params.task
        ]
    if kind == "none":
        raise InputError(
            "gold.kind: found 'none', but this step needs gold: set a gold reward, or skip it"
        )
    if kind == "relevance":
        score = Relevance()
    elif kind == "safety":
        score = lambda table: np.array(
            [safety_score(r.completion, plain(r.prompt), r.harmful) for r in table.itertuples()],
            float,
        )  # noqa: E731
    elif kind == "instructions":
        score = lambda table: np.array(
            [instructions.followed(r.prompt, r.completion) for r in table.itertuples()], float
        )  # noqa: E731
    elif kind.startswith("model:"):
        score = lambda table: published.score_published(
            table, params.gold.published, params.gold.model, params.model, "gold.kind"
        )  # noqa: E731
    elif ":" in kind:
        function = imported(kind, "gold.kind")
        score = lambda table: np.array(
            [function(plain(r.prompt), r.completion) for r in table.itertuples()], float
        )  # noqa: E731
    else:
        raise InputError(
            f"gold.kind: found {kind!r}, expected task, relevance, safety, instructions, model:ID,"
            " module:function or none"
        )

    def checked(table: pd.DataFrame) -> np.ndarray:
        scores = np.asarray(score(table), float)
        bad = np.flatnonzero(~np.isfinite(scores))
        if len(bad):
            row = table.iloc[bad[0]]
            raise InputError(
                f"gold of completion {row['index']} of prompt {row['prompt_id']} is"
                f" {scores[bad[0]]}"
            )
        return scores

    # a published model is loaded at each call: better one call for all
    checked.at_once = kind.startswith("model:")
    return checked


def values(table: pd.DataFrame) -> np.ndarray | None:
    """The column of a table that `training_data.gold_table` made, (rows,); None for a run without
    gold."""
    return table["gold"].to_numpy() if "gold" in table else None


def gold_scores(pool: pd.DataFrame, prompts: pd.DataFrame, params: Params) -> np.ndarray:
    """Gold of every completion of a pool, (rows,). For building the annotated data set and for
    evaluation prompts only."""
    return load_gold(params)(with_facts(pool, prompts))


def gold_table(pool: pd.DataFrame, prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """prompt_id, index and gold of every completion of a pool; without the column gold where the
    run has none."""
    ids = pool[["prompt_id", "index"]]
    return ids.assign(gold=gold_scores(pool, prompts, params)) if params.gold.known else ids
