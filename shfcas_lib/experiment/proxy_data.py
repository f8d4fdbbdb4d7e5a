"""Where the proxy's training data comes from: the user's own pairs, or sampled completions that
gold compared. And what judges it where there is no gold.

    pool = training_pool(backbone, prompts, params)
    clean = clean_preferences(pool, prompts, params, stage)

Both ways end in the same two tables: a pool of completions, and clean preferences (prompt_id, i,
j, label) among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from shfcas_lib.bias import inject
from shfcas_lib.data.preferences import as_completions, own_pairs, preferences_from_gold
from shfcas_lib.experiment.checks import readable
from shfcas_lib.gold import gold_table
from shfcas_lib.models import published
from shfcas_lib.params.schema import Params
from shfcas_lib.pool import sample, score
from shfcas_lib.rewards import RewardModel, locate
from shfcas_lib.storage import runs

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


def training_pool(backbone: Backbone, prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Completions of the training prompts: those of the user's preferences, or N samples per
    prompt from the policy."""
    train = prompts[prompts["split"] == "train"]
    scorer = published.scorer(params)
    if not params.preferences.given:
        label = "training prompts"
        return sample(backbone, train, params.sampling, params.seed, label, scorer)
    completions, _ = as_completions(_own_pairs(params, train))
    backbone.check_prompts(list(train["prompt"]), room=1)
    return score(backbone, completions, label="completions of the preferences", scorer=scorer)


def clean_preferences(
    pool: pd.DataFrame, prompts: pd.DataFrame, params: Params, stage: runs.Stage | runs.Memory
) -> pd.DataFrame:
    """The annotated data set before bias: the data's own labels, or gold labels on random pairs
    of the pool. Gold's scores of the pool are kept in the stage's table `gold_train`: a published
    gold takes its time. Without either it is empty, and the proxy a published model."""
    if params.preferences.given:
        train = prompts[prompts["split"] == "train"]
        _, preferences = as_completions(_own_pairs(params, train))
        return preferences.drop_duplicates(["prompt_id", "i", "j"], keep="last", ignore_index=True)
    if not params.gold.known:
        types = {"prompt_id": "str", "i": int, "j": int, "label": float}
        return pd.DataFrame({name: pd.Series(dtype=kind) for name, kind in types.items()})
    scores = stage.table("gold_train", lambda: gold_table(pool, prompts, params))
    return preferences_from_gold(scores, params.preferences.per_prompt, params.seed)


def spoilt_preferences(
    clean: pd.DataFrame, pool: pd.DataFrame, prompts: pd.DataFrame, params: Params, seed: int
) -> pd.DataFrame:
    """The preferences with the run's bias injected, row by row (`bias.inject`)."""
    category = dict(zip(prompts["prompt_id"], prompts["category"], strict=True))
    return inject(seen_by_proxy(clean, params), pool, category, params.bias, seed)


def seen_by_proxy(clean: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The preferences, before bias, that train the proxy: all of them, or none where it is a
    published model. Its correction must not learn from gold labels that nobody paid for; they
    show the ceiling alone."""
    return clean.head(0) if params.reward.published else clean


def held_out(
    backbone: Backbone,
    train: pd.DataFrame,
    clean: pd.DataFrame,
    prompts: pd.DataFrame,
    proxy: RewardModel,
    params: Params,
) -> pd.DataFrame | None:
    """What judges the proxy where there is no gold: preferences of the user's own that did not
    train it. Columns prompt_id, i, j, label, margin (the proxy's reward of i minus that of j).
    None where there is no such preference.

    They are those on prompts outside the training split; for a published proxy those on training
    prompts, none of which trained it. train, clean: training pool, and its preferences before
    bias.
    """
    if not params.preferences.given:
        return None
    pool, preferences = train, clean
    if not params.reward.published:
        others = prompts[prompts["split"] != "train"]
        completions, preferences = as_completions(_own_pairs(params, others))
        if not len(preferences):
            return None
        backbone.check_prompts(list(completions["prompt"].unique()), room=1)
        pool = score(backbone, completions, label="held-out preferences")
    reward = proxy.score(pool)
    first, second = (reward[locate(pool, preferences, side)] for side in ("i", "j"))
    return preferences.assign(margin=first - second)


def _own_pairs(params: Params, train: pd.DataFrame) -> pd.DataFrame:
    pairs = own_pairs(params)
    return readable(params, pairs[pairs["prompt_id"].isin(train["prompt_id"])])
