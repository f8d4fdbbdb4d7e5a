"""Is it better? Policies and gold go in, a per-prompt table and figures of merit come out.

    table = evaluate(pool, gold, {"proxy": proxy, "shf_cas": refined}, beta=0.5)

Everything here reads completions of evaluation prompts, which training, selection and feedback
never saw, and needs gold. What can be said without it is in module `analysis.without_gold`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import policies
from shfcas_lib.base.alignment import alike, beside
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.rewards import RewardModel, spread

MEASURES = {
    "gold": "gold reward of the optimised policy",
    "win": "win rate against the base policy",
    "pair_accuracy": "pairs the reward ranks as gold does",
    "gap": "reward gain minus gold gain, in standard deviations",
    "kl": "KL from the base policy, nats",
    "kendall": "Kendall-tau distance to the base policy",
    "mean_abs_pacs": "mean |PACS|",
}
_OF_A_REWARD = ["pair_accuracy", "gap", "kendall", "mean_abs_pacs"]  # the base policy has none


def evaluate(
    pool: pd.DataFrame, gold: np.ndarray, rewards: dict[str, RewardModel], beta: float
) -> pd.DataFrame:
    """`tilted` for rewards that have not scored the pool yet.

    pool: evaluation pool, sorted by id. gold: (rows,); a Series is taken by its index
    (`base.alignment.beside`). Returns one row per policy and prompt.
    """
    scores = {name: reward.score(pool) for name, reward in rewards.items()}
    return tilted(pool, gold, scores, beta)


def tilted(
    pool: pd.DataFrame,
    gold: np.ndarray,
    scores: dict[str, np.ndarray],
    beta: float,
    logp: pd.Series | None = None,
) -> pd.DataFrame:
    """One row per policy and prompt: policy, prompt_id, the MEASURES, reward_gain and gold_gain.

    pool: evaluation pool, sorted by id. gold: (rows,). scores: name of a reward to its (rows,)
    scores; the policy of that name is the base policy tilted by it at `beta`. The base policy
    itself is added as `base`; what needs a reward is NaN there. logp: (rows,), what conflict reads
    where it is not the pool's own (`conflict.log_probabilities`). Raises InputError for numbers
    that are not one for each row.
    """
    gold, scores = _beside(pool, gold, scores)
    ids = pool["prompt_id"].to_numpy()
    base = _optimised(ids, gold, np.zeros(len(pool)), beta)
    parts = [base.assign(policy="base", **dict.fromkeys(_OF_A_REWARD, np.nan))]
    for name, reward in scores.items():
        part = _optimised(ids, gold, reward, beta).assign(policy=name)
        conflict = by_prompt(conflict_table(pool, reward, logp))
        part = part.merge(pair_accuracy(ids, reward, gold), on="prompt_id", how="left")
        part = part.merge(conflict.drop(columns="degenerate"), on="prompt_id")
        parts.append(part)
    columns = ["policy", "prompt_id", *MEASURES, "reward_gain", "gold_gain"]
    return pd.concat(parts, ignore_index=True)[columns]


def _beside(
    pool: pd.DataFrame, gold: np.ndarray, scores: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Gold and scores in the order of the pool's rows."""
    ordered = {name: beside(pool, values, name) for name, values in scores.items()}
    return beside(pool, gold, "gold"), ordered


def _optimised(ids: np.ndarray, gold: np.ndarray, reward: np.ndarray, beta: float) -> pd.DataFrame:
    """What the policy tilted by `reward` gains, one row a prompt: prompt_id, gold, kl, win, and in
    standard deviations reward_gain, gold_gain and their gap."""
    weights = policies.tilt(ids, reward, beta)
    values = {"gold": gold, "reward": reward}
    table = policies.per_prompt(ids, weights, values)
    even = policies.per_prompt(ids, policies.tilt(ids, np.zeros(len(ids)), 1.0), values)
    table["reward_gain"] = (table["reward"] - even["reward"]) / spread(reward, ids)
    table["gold_gain"] = (table["gold"] - even["gold"]) / spread(gold, ids)
    table["gap"] = table["reward_gain"] - table["gold_gain"]
    return table.drop(columns="reward").merge(policies.win_rate(ids, weights, gold), on="prompt_id")


def sampled_policy(
    name: str, sampled: pd.DataFrame, gold: np.ndarray, base: pd.DataFrame, base_gold: np.ndarray
) -> pd.DataFrame:
    """The same for a trained policy, from its own samples: policy, prompt_id, gold, kl, win.

    sampled: a pool table with logp_reference; gold: (rows,). base, base_gold: the base policy's
    completions of the same prompts. kl is the sample mean of logp - logp_reference: at a sampling
    temperature other than 1 that is a log-ratio and no exact KL.
    """
    gold, base_gold = beside(sampled, gold, "gold"), beside(base, base_gold, "base_gold")
    kl = sampled["logp"] - sampled["logp_reference"]
    table = sampled[["prompt_id"]].assign(gold=gold, kl=kl)
    rows = table.groupby("prompt_id").mean().reset_index()
    before = pd.Series(base_gold).groupby(base["prompt_id"].to_numpy()).apply(np.asarray)
    after = table.groupby("prompt_id")["gold"].apply(np.asarray)
    win = {prompt: _beats(after[prompt], before[prompt]) for prompt in after.index}
    return rows.assign(policy=name, win=rows["prompt_id"].map(win))


def _beats(first: np.ndarray, second: np.ndarray) -> float:
    """The probability that one of the first is above one of the second, ties counting one half."""
    return ((np.sign(first[:, None] - second[None, :]) + 1) / 2).mean()


def pair_accuracy(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, the share of pairs that gold tells apart which the reward ranks as gold does,
    reward ties counting one half: columns prompt_id, pair_accuracy. Prompts without such pairs
    are left out."""
    rows = []
    table = _three(prompt_ids, reward, gold)
    for prompt, part in table.groupby("prompt_id"):
        i, j = np.triu_indices(len(part), 1)
        g, r = part["gold"].to_numpy(), part["reward"].to_numpy()
        truth, guess = np.sign(g[i] - g[j]), np.sign(r[i] - r[j])
        decided = truth != 0
        if decided.any():
            rows.append((prompt, float(((truth * guess)[decided] + 1).mean() / 2)))
    return pd.DataFrame(rows, columns=["prompt_id", "pair_accuracy"])


def _three(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Columns prompt_id, reward and gold, row by row."""
    values = alike(prompt_ids, {"reward": reward, "gold": gold})
    columns = {"prompt_id": prompt_ids, **values}
    return pd.DataFrame({name: np.asarray(column) for name, column in columns.items()})


def headroom_share(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, what best-of-N by the reward gains in gold and what best-of-N by gold would
    gain: columns prompt_id, gained, headroom. The share of headroom reached is sum(gained) /
    sum(headroom)."""
    table = _three(prompt_ids, reward, gold)
    favourite = table.loc[table.groupby("prompt_id")["reward"].idxmax()]
    best = favourite.set_index("prompt_id")["gold"]
    by = table.groupby("prompt_id")["gold"]
    gains = {"gained": best - by.mean(), "headroom": by.max() - by.mean()}
    return pd.DataFrame(gains).reset_index()


def curve(
    pool: pd.DataFrame, gold: np.ndarray, scores: dict[str, np.ndarray], betas: list[float]
) -> pd.DataFrame:
    """The over-optimisation curve in closed form, means over prompts.

    pool, gold, scores: as for `tilted`. Columns policy, beta, kl (nats), reward_gain and gold_gain
    (in standard deviations).
    """
    gold, scores = _beside(pool, gold, scores)
    ids = pool["prompt_id"].to_numpy()
    rows = []
    for name, reward in scores.items():
        gold_unit, reward_unit = gold / spread(gold, ids), reward / spread(reward, ids)
        values = {"gold_gain": gold_unit, "reward_gain": reward_unit}
        even = _means(ids, np.zeros(len(pool)), 1.0, values)
        for beta in sorted(betas, reverse=True):
            means = _means(ids, reward, beta, values)
            gains = means - even
            rows.append((name, beta, means["kl"], gains["reward_gain"], gains["gold_gain"]))
    return pd.DataFrame(rows, columns=["policy", "beta", "kl", "reward_gain", "gold_gain"])


def _means(ids: np.ndarray, reward: np.ndarray, beta: float, values: dict) -> pd.Series:
    """Means over prompts of `values` and of kl under the policy tilted by `reward`."""
    weights = policies.tilt(ids, reward, beta)
    return policies.per_prompt(ids, weights, values).mean(numeric_only=True)
