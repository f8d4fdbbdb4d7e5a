"""Is it better? Policies and gold go in, a per-prompt table and figures of merit come out.

Everything here reads completions of evaluation prompts, which training, selection and feedback
never saw. Where there is no gold (None), its measures are missing, and every policy is judged by
every reward instead (`BY`): what they claim, which is no evidence."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import policies
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.rewards import spread

MEASURES = {
    "gold": "gold reward of the optimised policy",
    "win": "win rate against the base policy",
    "pair_accuracy": "pairs the reward ranks as gold does",
    "gap": "reward gain minus gold gain, in standard deviations",
    "kl": "KL from the base policy, nats",
    "kendall": "Kendall-tau distance to the base policy",
    "mean_abs_pacs": "mean |PACS|",
}
# and the name of a reward: what that reward says a policy gained, in standard deviations over
# completions; only without gold
BY = "gain by "


def tilted(
    pool: pd.DataFrame, gold: np.ndarray | None, scores: dict[str, np.ndarray], beta: float
) -> pd.DataFrame:
    """One row per policy and prompt: policy, prompt_id, the MEASURES, reward_gain and gold_gain.

    pool: evaluation pool, sorted by id. gold: (rows,). scores: name of a reward to its (rows,)
    scores; the policy of that name is the base policy tilted by it at `beta`. The base policy
    itself is added as `base`; what needs a reward is NaN there. Without gold: policy, prompt_id,
    kl, kendall, mean_abs_pacs, and `BY` for every reward."""
    if gold is None:
        return _tilted_without_gold(pool, scores, beta)
    ids = pool["prompt_id"].to_numpy()
    gold_spread = spread(gold, ids)
    parts = []
    for name, reward in {"base": None, **scores}.items():
        flat = np.zeros(len(pool)) if reward is None else reward
        weights = policies.tilt(ids, flat, beta)
        unit = spread(flat, ids)
        part = policies.per_prompt(ids, weights, {"gold": gold, "reward": flat})
        even = policies.per_prompt(
            ids, policies.tilt(ids, np.zeros(len(pool)), 1.0), {"gold": gold, "reward": flat}
        )
        part = part.assign(
            policy=name,
            reward_gain=(part["reward"] - even["reward"]) / unit,
            gold_gain=(part["gold"] - even["gold"]) / gold_spread,
        )
        part["gap"] = part["reward_gain"] - part["gold_gain"]
        part = part.merge(policies.win_rate(ids, weights, gold), on="prompt_id")
        if reward is None:
            part = part.assign(
                pair_accuracy=np.nan, kendall=np.nan, mean_abs_pacs=np.nan, gap=np.nan
            )
        else:
            conflict = conflict_table(pool, reward).drop_duplicates("prompt_id")[
                ["prompt_id", "kendall", "mean_abs_pacs"]
            ]
            part = part.merge(pair_accuracy(ids, reward, gold), on="prompt_id", how="left").merge(
                conflict, on="prompt_id"
            )
        parts.append(part.drop(columns="reward"))
    return pd.concat(parts, ignore_index=True)[
        ["policy", "prompt_id", *MEASURES, "reward_gain", "gold_gain"]
    ]


def _tilted_without_gold(
    pool: pd.DataFrame, scores: dict[str, np.ndarray], beta: float
) -> pd.DataFrame:
    ids = pool["prompt_id"].to_numpy()
    gains = {BY + name: _centred(ids, score) / spread(score, ids) for name, score in scores.items()}
    parts = []
    for name, reward in {"base": None, **scores}.items():
        part = policies.per_prompt(
            ids, policies.tilt(ids, np.zeros(len(pool)) if reward is None else reward, beta), gains
        ).assign(policy=name)
        if reward is None:
            # not almost: the text would say -0.000
            part = part.assign(kendall=np.nan, mean_abs_pacs=np.nan, **dict.fromkeys(gains, 0.0))
        else:
            part = part.merge(by_prompt(conflict_table(pool, reward)), on="prompt_id")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[
        ["policy", "prompt_id", "kl", "kendall", "mean_abs_pacs", *gains]
    ]


def _centred(ids: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Scores above the mean of their prompt's completions."""
    return score - pd.Series(score).groupby(ids).transform("mean").to_numpy()


def sampled_policy(
    name: str, sampled: pd.DataFrame, gold: np.ndarray, base: pd.DataFrame, base_gold: np.ndarray
) -> pd.DataFrame:
    """The same table for a trained policy, from its own samples.

    kl is the sample mean of logp - logp_reference. At a sampling temperature other than 1 that is
    a log-ratio and no exact KL."""
    table = sampled[["prompt_id"]].assign(gold=gold, kl=sampled["logp"] - sampled["logp_reference"])
    rows = table.groupby("prompt_id").mean().reset_index()
    before = pd.Series(base_gold).groupby(base["prompt_id"].to_numpy()).apply(np.asarray)
    after = table.groupby("prompt_id")["gold"].apply(np.asarray)
    win = {
        p: ((np.sign(after[p][:, None] - before[p][None, :]) + 1) / 2).mean() for p in after.index
    }
    return rows.assign(policy=name, win=rows["prompt_id"].map(win))


def pair_accuracy(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, the share of pairs that gold tells apart which the reward ranks as gold does,
    reward ties counting one half: columns prompt_id, pair_accuracy. Prompts without such pairs
    are left out."""
    rows = []
    for prompt, part in pd.DataFrame({"p": prompt_ids, "r": reward, "g": gold}).groupby("p"):
        first, second = np.triu_indices(len(part), 1)
        g, r = part["g"].to_numpy(), part["r"].to_numpy()
        truth, guess = np.sign(g[first] - g[second]), np.sign(r[first] - r[second])
        told = truth != 0
        if told.any():
            rows.append((prompt, float(((truth * guess)[told] + 1).mean() / 2)))
    return pd.DataFrame(rows, columns=["prompt_id", "pair_accuracy"])


def headroom_share(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, what best-of-N by the reward gains in gold and what best-of-N by gold would
    gain: columns prompt_id, gained, headroom. The share of headroom reached is sum(gained) /
    sum(headroom)."""
    table = pd.DataFrame({"prompt_id": prompt_ids, "reward": reward, "gold": gold})
    best = table.loc[table.groupby("prompt_id")["reward"].idxmax()].set_index("prompt_id")["gold"]
    by = table.groupby("prompt_id")["gold"]
    return pd.DataFrame(
        {"gained": best - by.mean(), "headroom": by.max() - by.mean()}
    ).reset_index()


def curve(
    pool: pd.DataFrame,
    gold: np.ndarray | None,
    scores: dict[str, np.ndarray],
    betas: list[float],
    refined: str = "",
) -> pd.DataFrame:
    """The over-optimisation curve in closed form: policy, beta, kl, reward_gain and gold_gain (in
    standard deviations), means over prompts. Without gold the reward called `refined` stands in
    for it, and gold_gain is called refined_gain."""
    if gold is None:
        return curve(pool, scores[refined], scores, betas).rename(
            columns={"gold_gain": "refined_gain"}
        )
    ids = pool["prompt_id"].to_numpy()
    rows = []
    for name, reward in scores.items():
        values = {
            "gold_gain": gold / spread(gold, ids),
            "reward_gain": reward / spread(reward, ids),
        }
        even = policies.per_prompt(ids, policies.tilt(ids, np.zeros(len(pool)), 1.0), values).mean(
            numeric_only=True
        )
        for beta in sorted(betas, reverse=True):
            means = policies.per_prompt(ids, policies.tilt(ids, reward, beta), values).mean(
                numeric_only=True
            )
            rows.append(
                (
                    name,
                    beta,
                    means["kl"],
                    means["reward_gain"] - even["reward_gain"],
                    means["gold_gain"] - even["gold_gain"],
                )
            )
    return pd.DataFrame(rows, columns=["policy", "beta", "kl", "reward_gain", "gold_gain"])
