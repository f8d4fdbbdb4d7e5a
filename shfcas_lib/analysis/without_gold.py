"""What can be said where nobody knows the truth: what each reward claims, and what labels changed.

None of it is evidence that anything improved; that is how far the rewards agree with the labels
that were collected (module `agreement`).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import evaluation, policies
from shfcas_lib.analysis import stats
from shfcas_lib.analysis.agreement import NEEDS
from shfcas_lib.analysis.summary import BY, leading
from shfcas_lib.base.randomness import rng
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.params.schema import Params
from shfcas_lib.rewards import RewardModel, spread


def claims(
    pool: pd.DataFrame,
    scores: dict[str, np.ndarray],
    beta: float,
    logp: pd.Series | None = None,
) -> pd.DataFrame:
    """One row per policy and prompt: policy, prompt_id, kl, kendall, mean_abs_pacs, and `BY` for
    every reward. pool, scores, beta, logp: as for `evaluation.tilted`."""
    ids = pool["prompt_id"].to_numpy()
    gains = {}
    for name, score in scores.items():
        gains[BY + name] = _centred(ids, score) / spread(score, ids)

    even = policies.per_prompt(ids, policies.tilt(ids, np.zeros(len(pool)), beta), gains)
    # not almost: the text would say -0.000
    nothing = dict.fromkeys(gains, 0.0)
    parts = [even.assign(policy="base", kendall=np.nan, mean_abs_pacs=np.nan, **nothing)]
    for name, reward in scores.items():
        part = policies.per_prompt(ids, policies.tilt(ids, reward, beta), gains)
        conflict = by_prompt(conflict_table(pool, reward, logp))
        parts.append(part.assign(policy=name).merge(conflict, on="prompt_id"))
    columns = ["policy", "prompt_id", "kl", "kendall", "mean_abs_pacs", *gains]
    return pd.concat(parts, ignore_index=True)[columns]


def _centred(ids: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Scores above the mean of their prompt's completions."""
    return score - pd.Series(score).groupby(ids).transform("mean").to_numpy()


def curve(
    pool: pd.DataFrame, judge: np.ndarray, scores: dict[str, np.ndarray], betas: list[float]
) -> pd.DataFrame:
    """`evaluation.curve` with another reward's scores, `judge`, (rows,), in gold's place:
    refined_gain stands for gold_gain."""
    table = evaluation.curve(pool, judge, scores, betas)
    return table.rename(columns={"gold_gain": "refined_gain"})


def sampled_claims(
    name: str,
    sampled: pd.DataFrame,
    base: pd.DataFrame,
    rewards: dict[str, RewardModel],
    before: dict[str, np.ndarray],
) -> pd.DataFrame:
    """What every reward believes a trained policy gained over the base policy's completions of a
    prompt, from the policy's own samples: policy, prompt_id, kl, and `BY` for each reward.

    sampled, base: pool tables; before: the rewards' scores of `base`.
    """
    kl = sampled["logp"] - sampled["logp_reference"] if "logp_reference" in sampled else 0.0
    table = sampled[["prompt_id"]].assign(kl=kl)
    ids = base["prompt_id"].to_numpy()
    for reward_name, reward in rewards.items():
        mean = pd.Series(before[reward_name]).groupby(ids).mean()
        gain = reward.score(sampled) - sampled["prompt_id"].map(mean).to_numpy()
        table[BY + reward_name] = gain / spread(before[reward_name], ids)
    return table.groupby("prompt_id").mean().reset_index().assign(policy=name)


def changes(pool: pd.DataFrame, scores: dict[str, np.ndarray], params: Params) -> pd.DataFrame:
    """What labels changed in the proxy's ranking of the evaluation completions; no gold takes
    part.

    Columns reward, measure, value, low, high: the share of pairs of a prompt's completions that a
    refined reward ranks as the proxy does, and the share of prompts whose best completion is still
    the same.
    """
    ids = pool["prompt_id"].to_numpy()
    before = _favourites(ids, scores["proxy"])
    rows = []
    for name in scores:
        if name not in params.selection.strategies:
            continue
        same = (_favourites(ids, scores[name]) == before).astype(float)
        ranked = pair_accuracy(ids, scores[name], scores["proxy"])["pair_accuracy"]
        measures = {
            "pairs ranked as the proxy ranks them": ranked,
            "prompts with the same favourite": same,
        }
        for measure, values in measures.items():
            draw = rng(params.seed, f"changes/{name}/{measure}")
            interval = stats.mean_interval(values, draw, params.evaluation.bootstrap)
            rows.append((name, measure, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["reward", "measure", "value", "low", "high"])


def _favourites(ids: np.ndarray, score: np.ndarray) -> pd.Series:
    """The row of each prompt's best completion."""
    return pd.Series(score).groupby(ids).idxmax()


def headline(
    summary: pd.DataFrame, changed: pd.DataFrame, agreement: pd.DataFrame | None, params: Params
) -> dict[str, str]:
    """The numbers that matter where there is no gold, as text. agreement: from module agreement,
    the only one that is evidence; the rest says what changed."""
    numbers = _evidence(agreement)
    text = "the agreement above, and nothing else; what follows says what changed"
    numbers["evidence that it is better"] = text

    first = leading(params)
    for row in changed[changed["reward"] == first].to_dict("records"):
        numbers[f"{row['measure']}, {first}"] = _number(row)
    measures = {
        "kendall": "conflict K with the base policy",
        "kl": "KL of the tilted policy, nats",
    }
    for name in ("proxy", first):
        for measure, title in measures.items():
            chosen = (summary["policy"] == name) & (summary["measure"] == measure)
            numbers[f"{title}, {name}"] = _number(summary[chosen].iloc[0])
    return numbers


def _evidence(agreement: pd.DataFrame | None) -> dict[str, str]:
    """How far rewards agree with the labels, as text: the proxy, and what each refined reward
    gains on random pairs and on those of its own strategy."""
    if agreement is None:
        return {"agreement with the labels": f"not known, it needs {NEEDS}"}
    numbers = {}
    for asked, part in agreement.groupby("asked", sort=False):
        rows = part.set_index("reward")
        pairs = "random pairs" if asked == "random" else f"pairs that {asked} chose"
        title = f"{rows['labels'].iloc[0]} labels on {pairs}: the proxy agrees"
        numbers[title] = _number(rows.loc["proxy"])
        for name in rows.index:
            if name != "proxy" and asked in ("random", name):
                gain = stats.Interval(*rows.loc[name, ["gain", "gain_low", "gain_high"]])
                title = f"  gain with {name} labels on {pairs}, cross-validated"
                numbers[title] = f"{gain}, {rows.at[name, 'verdict']}"
    return numbers


def _number(row) -> str:
    """The interval of a row with value, low and high, as text."""
    return str(stats.Interval(row["value"], row["low"], row["high"]))
