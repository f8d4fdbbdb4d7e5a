"""How far rewards agree with the labels that were collected: labels and pools go in, shares with
intervals come out.

    table(params, pool, biased, {"random": labels}, proxy)    # what notebook 04 shows

A refined reward is cross-validated: a pair is judged by a reward that was trained without the
labels of the pair's prompt. Labels of `random` are a fair sample of the pairs of feedback
prompts, as long as only those are asked about and policies are not trained between rounds. Those
that a strategy chose are not: it looks for pairs on which the proxy may be wrong. Without gold
this is the evidence there is that labels improved the reward; it says nothing about prompts of
another kind.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import refine, trust
from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.params.schema import Params, Reward
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage import runs

# decided ones: a share of fewer says nothing, and neither does an interval over fewer prompts
FEWEST = {
    "labels": 10,
    "prompts": 5,
}
_APART = 10**6  # more completions than a prompt has in any round
NEEDS = "reward.kind probe, and ten decided labels on five prompts"


def cross_validated(
    settings: Reward,
    pool: pd.DataFrame,
    biased: pd.DataFrame,
    labels: pd.DataFrame,
    judged: dict[str, pd.DataFrame],
    before: RewardModel,
    folds: int = 5,
) -> dict[str, np.ndarray]:
    """For each table of decided labels in `judged`, (rows,): 1 where a reward refined with
    `labels` of other prompts ranks the pair as its label does.

    pool: holds every completion named. biased: observed preferences (prompt_id, i, j, label).
    before: the proxy, which also judges where no label is left."""
    # whole prompts are held out, in turn
    named = [table["prompt_id"] for table in (labels, *judged.values())]
    prompts = np.sort(pd.concat(named).unique())
    fold = {prompt: k % min(folds, len(prompts)) for k, prompt in enumerate(prompts)}
    completions = pool[pool["prompt_id"].isin(prompts)]

    belief = None
    if settings.refinement == "trust" and not settings.fixed:
        belief = trust.believe(pool, biased, settings.l2)
    right = {name: np.full(len(table), np.nan) for name, table in judged.items()}
    for k in sorted(set(fold.values())):
        rest, reward = labels[labels["prompt_id"].map(fold) != k], before
        if len(rest):
            reward = refine.update(settings, refine.Data(pool, biased, rest, belief), 0, before)
        for name, table in judged.items():
            here = (table["prompt_id"].map(fold) == k).to_numpy()
            if here.any():
                right[name][here] = agrees(reward, completions, table[here])
    return right


def table(
    params: Params,
    pool: pd.DataFrame,
    biased: pd.DataFrame,
    labels: dict[str, pd.DataFrame],
    before: RewardModel,
) -> pd.DataFrame | None:
    """How often each reward ranks a labelled pair as its label does, with 95% bootstrap intervals
    over prompts.

    labels: strategy to its labels. Columns

        asked                      the strategy that chose the pairs
        reward                     proxy, or refined with the labels of a strategy
        labels                     decided ones
        value, low, high           share of pairs ranked as labelled
        gain, gain_low, gain_high  over the proxy; missing for the proxy itself
        p, p_holm                  bootstrap, of the gain; corrected over all gains of the table
        verdict                    of the gain, see `stats.verdicts`; nothing for the proxy

    None where the reward is no probe (cross-validation would train it anew in each of five folds),
    or no strategy has ten decided labels on five prompts.
    """
    # ties have a place in the fit, and none in a share that is right or wrong
    usable = {name: _usable(part, pool) for name, part in labels.items()}
    judged = {}
    for name, part in usable.items():
        if _enough(params.reward, part):
            judged[name] = part[part["label"] != 0.5]
    if not judged:
        return None

    right = {"proxy": {name: agrees(before, pool, part) for name, part in judged.items()}}
    for name, part in usable.items():
        right[name] = cross_validated(params.reward, pool, biased, part, judged, before)

    # every reward on every strategy's pairs: a gain compares the two on the same ones
    rows = []
    for asked, part in judged.items():
        for reward, agreed in right.items():
            share = _interval(agreed[asked], part, params, f"{asked}/{reward}")
            row = (asked, reward, len(part), share.value, share.low, share.high)
            if reward == "proxy":
                rows.append((*row, np.nan, np.nan, np.nan, np.nan))
                continue
            difference = agreed[asked] - right["proxy"][asked]
            gain = _interval(difference, part, params, f"{asked}/{reward}/gain")
            rows.append((*row, gain.value, gain.low, gain.high, gain.p))
    columns = ["asked", "reward", "labels", "value", "low", "high"]
    found = pd.DataFrame(rows, columns=[*columns, "gain", "gain_low", "gain_high", "p"])
    gains = stats.verdicts(found[found["reward"] != "proxy"], prefix="gain_")
    found = found.join(gains[["p_holm", "verdict"]])
    return found.fillna({"verdict": ""})


def agrees(reward: RewardModel, pool: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray:
    """(rows,): 1 where the reward ranks the pair as its decided label does, ½ where it gives both
    the same, else 0. labels: prompt_id, i, j, label."""
    return ordered_as(pool[["prompt_id", "index"]].assign(reward=reward.score(pool)), labels)


def ordered_as(scored: pd.DataFrame, labels: pd.DataFrame) -> np.ndarray:
    """The same for a table of scores: prompt_id, index, reward. NaN without a label."""
    score = scored.set_index(["prompt_id", "index"])["reward"]
    first, second = (
        score.reindex(pd.MultiIndex.from_frame(labels[["prompt_id", side]])).to_numpy()
        for side in ("i", "j")
    )
    return (np.sign(first - second) * np.sign(labels["label"].to_numpy() - 0.5) + 1) / 2


def _usable(labels: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """The labels that say something about two completions of the pool; a skipped comparison has
    none."""
    named = pd.MultiIndex.from_frame(pool[["prompt_id", "index"]])
    both = [
        pd.MultiIndex.from_frame(labels[["prompt_id", side]]).isin(named) for side in ("i", "j")
    ]
    return labels[both[0] & both[1] & labels["label"].notna()].reset_index(drop=True)


def _enough(settings: Reward, labels: pd.DataFrame) -> bool:
    decided = labels[labels["label"] != 0.5]
    return (
        settings.kind == "probe"
        and len(decided) >= FEWEST["labels"]
        and decided["prompt_id"].nunique() >= FEWEST["prompts"]
    )


def _interval(
    values: np.ndarray, labels: pd.DataFrame, params: Params, name: str
) -> stats.Interval:
    """Mean over labels; prompts are resampled, because labels about one prompt are not
    independent."""
    return stats.cluster_mean(
        values,
        labels["prompt_id"],
        rng(params.seed, f"agreement/{name}"),
        params.evaluation.bootstrap,
    )


def collected(
    run: runs.Run, train: pd.DataFrame, feedback: pd.DataFrame
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The labels of every strategy of a finished run, and a pool of all completions that they and
    the preferences name.

    train, feedback: the run's pools. Completions that trained policies wrote for a later round
    get an index of their own, because those of two strategies have the same; so do the labels
    about them. Raises InputError where a round is missing.
    """
    labels: dict[str, pd.DataFrame] = {}
    pools = [train, feedback]
    for place, strategy in enumerate(run.params.selection.strategies, 1):
        parts, far = [], place * _APART
        for number in range(1, run.params.selection.rounds + 1):
            part = run.require("03_feedback", f"{strategy}/round_{number}/labels")
            fresh = f"{strategy}/round_{number - 1}/next_pool"
            if (run.folder / "03_feedback" / f"{fresh}.parquet").exists():
                part = part.assign(i=part["i"] + far, j=part["j"] + far)
                pool = run.require("03_feedback", fresh)
                pools.append(pool.assign(index=pool["index"] + far))
            parts.append(part)
        labels[strategy] = pd.concat(parts, ignore_index=True)
    return labels, pd.concat(pools, ignore_index=True)
