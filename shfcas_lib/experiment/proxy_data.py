"""Where the proxy's training data comes from: the user's own pairs, or sampled completions that
gold compared. And what judges it.

    pool = training_pool(backbone, prompts, params)
    clean = clean_preferences(pool, prompts, params, stage)

Both ways end in the same two tables: a pool of completions, and clean preferences (prompt_id, i,
j, label) among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from shfcas_lib.data.preferences import as_completions, own_pairs, preferences_from_gold
from shfcas_lib.gold import gold_table
from shfcas_lib.params.schema import Params
from shfcas_lib.pool import sample, score
from shfcas_lib.rewards import locate
from shfcas_lib.storage import runs

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone
    from shfcas_lib.refine import RewardModel


def training_pool(backbone: Backbone, prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Completions of the training prompts: those of the user's preferences, or N samples per
    prompt from the policy."""
    train = prompts[prompts["split"] == "train"]
    if not params.preferences.given:
        return sample(backbone, train, params.sampling, params.seed, label="training prompts")
    completions, _ = as_completions(_own_pairs(params, train))
    backbone.check_prompts(list(train["prompt"]), room=1)
    return score(backbone, completions, label="completions of the preferences")


def clean_preferences(
    pool: pd.DataFrame, prompts: pd.DataFrame, params: Params, stage: runs.Stage | runs.Memory
) -> pd.DataFrame:
    """The annotated data set before bias: the data's own labels, or gold labels on random pairs
    of the pool. Gold's scores of the pool are kept in the stage's table `gold_train`: a published
    gold takes its time. Without either it is empty, and the proxy a published model."""
    if params.preferences.given:
        _, preferences = as_completions(_own_pairs(params, prompts[prompts["split"] == "train"]))
        return preferences.drop_duplicates(["prompt_id", "i", "j"], keep="last", ignore_index=True)
    if not params.gold.known:
        return pd.DataFrame(
            {
                "prompt_id": pd.Series(dtype="str"),
                **{
                    name: pd.Series(dtype=kind)
                    for name, kind in (("i", int), ("j", int), ("label", float))
                },
            }
        )
    scores = stage.table("gold_train", lambda: gold_table(pool, prompts, params))
    return preferences_from_gold(scores, params.preferences.per_prompt, params.seed)


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
    None where there is gold, or no such preference.

    They are those on prompts outside the training split; for a published proxy those on training
    prompts, none of which trained it. train, clean: training pool, and its preferences before
    bias."""
    if params.gold.known or not params.preferences.given:
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
    return preferences.assign(
        margin=reward[locate(pool, preferences, "i")] - reward[locate(pool, preferences, "j")]
    )


def _own_pairs(params: Params, train: pd.DataFrame) -> pd.DataFrame:
    pairs = own_pairs(params)
    return pairs[pairs["prompt_id"].isin(train["prompt_id"])]
