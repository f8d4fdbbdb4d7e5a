"""Where the proxy's training data comes from: the user's own pairs, or sampled completions that
gold compared. And what judges it where there is no gold.

    pool = training_pool(backbone, prompts, params)
    clean = clean_preferences(pool, prompts, params, stage)

Both ways end in the same two tables: a pool of completions, and clean preferences (prompt_id, i,
j, label) among them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.analysis import audit
from shfcas_lib.bias import inject
from shfcas_lib.data.completions import own_completions
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
    """Completions of the training prompts: those of the user's preferences, those that came with
    the prompts, or N samples per prompt from the policy."""
    train = prompts[prompts["split"] == "train"]
    scorer = published.scorer(params)
    if not params.preferences.given:
        return first_pool(backbone, train, params, "training prompts")
    completions, _ = as_completions(_own_pairs(params, train))
    backbone.check_prompts(list(train["prompt"]), room=1)
    return score(backbone, completions, label="completions of the preferences", scorer=scorer)


def first_pool(
    backbone: Backbone, prompts: pd.DataFrame, params: Params, label: str
) -> pd.DataFrame:
    """Completions of these prompts before anything is trained: the user's own, or N samples per
    prompt from the policy."""
    scorer = published.scorer(params)
    if not params.completions.given:
        return sample(backbone, prompts, params.sampling, params.seed, label, scorer)
    return scorer(_given_pool(backbone, prompts, params, label))


def _given_pool(
    backbone: Backbone, prompts: pd.DataFrame, params: Params, label: str
) -> pd.DataFrame:
    """The user's own completions of these prompts as a pool table: features, and what else is
    missing, by one pass of the backbone; what came with them stays, whatever policy it is of.

    Extra columns: reward, model and logp_of, where they are known. Gold stays outside: whatever
    chooses or learns reads this table.
    """
    completions = own_completions(params)[0]
    mine = completions[completions["prompt_id"].isin(prompts["prompt_id"])].reset_index(drop=True)
    backbone.check_prompts(list(prompts["prompt"]), room=1)
    scored = score(backbone, mine, label=f"completions of {label}")
    kept = [name for name in ("reward", "model", "logp_of") if name in mine]
    if params.completions.logp == "given" and "logp" in mine:
        kept.append("logp")
        # per token: of the policy that the log-probability is of
        kept += [name for name in ("n_tokens", "logp_mean") if name in mine]
    return scored.assign(**{name: mine[name] for name in kept})


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
    published model or came with the completions. Its correction must not learn from gold labels
    that nobody paid for; they show the ceiling alone."""
    return clean.head(0) if params.reward.fixed else clean


def judged_pairs(
    backbone: Backbone,
    train: pd.DataFrame,
    observed: pd.DataFrame,
    prompts: pd.DataFrame,
    proxy: RewardModel,
    params: Params,
) -> pd.DataFrame | None:
    """Pairs of the user's own, and what the proxy says of them; None where there are none.

    train: training pool; observed: the preferences that trained the proxy, as it saw them, or for
    a published proxy those among the training completions, none of which trained it. Pairs on
    other prompts trained no proxy. Columns prompt_id, i, j, label, policy, longer and length as in
    `audit.cross_fitted`, and the proxy's reward of i less that of j: as proxy where the pair did
    not train it, as learnt where it did (the other is NaN).
    """
    if not params.preferences.given:
        return None
    trained = audit.with_facts(train, observed)
    if params.reward.fixed:
        return _judged(trained, train, proxy, "proxy", trained)
    parts = [_judged(trained, train, proxy, "learnt", trained)]

    others = prompts[prompts["split"] != "train"]
    completions, preferences = as_completions(_own_pairs(params, others))
    if len(preferences):
        backbone.check_prompts(list(completions["prompt"].unique()), room=1)
        pool = score(backbone, completions, label="held-out preferences")
        fresh = audit.with_facts(pool, preferences)
        parts.append(_judged(fresh, pool, proxy, "proxy", trained))
    return pd.concat(parts, ignore_index=True)


def _judged(
    pairs: pd.DataFrame, pool: pd.DataFrame, proxy: RewardModel, name: str, rule: pd.DataFrame
) -> pd.DataFrame:
    """The pairs with the proxy's margin under `name`, and the rule of length that `rule` gives."""
    reward = proxy.score(pool)
    first, second = (reward[locate(pool, pairs, side)] for side in ("i", "j"))
    unknown = dict.fromkeys(("proxy", "learnt"), np.nan)
    length = audit.by_length(pairs, rule) if name == "proxy" else np.nan
    columns = ["prompt_id", "i", "j", "label", "policy", "longer"]
    known = unknown | {name: first - second, "length": length}
    return pairs[columns].assign(**known)


def _own_pairs(params: Params, train: pd.DataFrame) -> pd.DataFrame:
    pairs = own_pairs(params)
    return readable(params, pairs[pairs["prompt_id"].isin(train["prompt_id"])])
