"""Where the proxy's training data comes from: the user's own pairs, or sampled completions that gold compared.

    pool = training_pool(backbone, prompts, params)
    clean = clean_preferences(pool, prompts, params, stage)

Both ways end in the same two tables: a pool of completions, and clean preferences (prompt_id, i, j, label) among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import data, gold, runs
from shfcas_lib.params import Params
from shfcas_lib.pool import sample, score

if TYPE_CHECKING:
    from shfcas_lib.models import Backbone


def training_pool(backbone: Backbone, prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Completions of the training prompts: those of the user's preferences, or N samples per prompt from the policy."""
    train = prompts[prompts["split"] == "train"]
    if not params.preferences.given:
        return sample(backbone, train, params.sampling, params.seed, label="training prompts")
    completions, _ = data.as_completions(_own_pairs(params, train))
    backbone.check_prompts(list(train["prompt"]), room=1)
    return score(backbone, completions, label="completions of the preferences")


def clean_preferences(pool: pd.DataFrame, prompts: pd.DataFrame, params: Params, stage: runs.Stage | runs.Memory) -> pd.DataFrame:
    """The annotated data set before bias: the data's own labels, or gold labels on random pairs of the pool. Gold's scores of the pool are kept
    in the stage's table `gold_train`: a published gold takes its time."""
    if params.preferences.given:
        _, preferences = data.as_completions(_own_pairs(params, prompts[prompts["split"] == "train"]))
        return preferences.drop_duplicates(["prompt_id", "i", "j"], keep="last", ignore_index=True)
    scores = stage.table("gold_train", lambda: pool[["prompt_id", "index"]].assign(gold=gold_scores(pool, prompts, params)))
    return data.preferences_from_gold(scores, params.preferences.per_prompt, params.seed)


def seen_by_proxy(clean: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The preferences, before bias, that train the proxy: all of them, or none where it is a published model. Its correction must not
    learn from gold labels that nobody paid for; they show the ceiling alone."""
    return clean.head(0) if params.reward.published else clean


def gold_scores(pool: pd.DataFrame, prompts: pd.DataFrame, params: Params) -> np.ndarray:
    """Gold of every completion of a pool, (rows,). For building the annotated data set and for evaluation prompts only."""
    return gold.load_gold(params)(with_facts(pool, prompts))


def with_facts(pool: pd.DataFrame, prompts: pd.DataFrame) -> pd.DataFrame:
    """The pool's texts with what gold may need to know of the prompt: columns prompt_id, index, prompt, completion, harmful."""
    harmful = dict(zip(prompts["prompt_id"], prompts["harmful"]))
    return pool[["prompt_id", "index", "prompt", "completion"]].assign(harmful=pool["prompt_id"].map(harmful))


def _own_pairs(params: Params, train: pd.DataFrame) -> pd.DataFrame:
    pairs = data.own_pairs(params)
    return pairs[pairs["prompt_id"].isin(train["prompt_id"])]
