"""Refined policies in closed form: rewards and a pool go in, weights over each prompt's
completions come out.

KL-regularised RLHF, max E[r] - beta KL(pi' || pi), has the solution pi'(y|x) proportional to
pi(y|x) exp(r(x,y)/beta) (for example Rafailov et al. 2023, eq. 4). On N samples from pi it is a
reweighting of the samples: no training, and expected reward, gold and KL come from the table.
beta to 0 is best-of-N; beta to infinity is the base policy. Trained policies (every other
kind) are in training.policy."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.base.alignment import alike


def tilt(prompt_ids: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    """Weights proportional to exp(reward / beta), summing to 1 within each prompt. prompt_ids,
    reward: (rows,), of two Series by their index; beta > 0."""
    reward = alike(prompt_ids, {"reward": reward})["reward"]
    names, group = _groups(prompt_ids)
    reward = np.asarray(reward, float)
    highest = np.full(len(names), -np.inf)
    np.maximum.at(highest, group, reward)
    with np.errstate(over="ignore"):  # a difference too large for a float is a weight of zero
        raised = np.exp((reward - highest[group]) / beta)
    return raised / np.bincount(group, raised)[group]


def log_ratio(prompt_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """log pi'(y)/pi(y) of each completion under tilted weights: log(N w); (rows,)."""
    weights = alike(prompt_ids, {"weights": weights})["weights"]
    _, group = _groups(prompt_ids)
    return np.log(np.maximum(np.bincount(group)[group] * np.asarray(weights), 1e-300))


def per_prompt(
    prompt_ids: np.ndarray, weights: np.ndarray, values: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Expectations under weights, one row per prompt: prompt_id, kl (nats, from the uniform
    weights of the samples), and one column per entry of `values` (name to (rows,) array)."""
    names, group = _groups(prompt_ids)
    weights = np.asarray(alike(prompt_ids, {"weights": weights})["weights"])
    values = alike(prompt_ids, values)
    every = {name: np.asarray(value, float) for name, value in values.items()} | {
        "kl": log_ratio(prompt_ids, weights)
    }
    return pd.DataFrame(
        {"prompt_id": names}
        | {name: np.bincount(group, weights * value) for name, value in every.items()}
    )


def win_rate(prompt_ids: np.ndarray, weights: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, the probability that a draw from the weighted policy has higher gold than a
    draw from the base policy (equal weights), ties counting one half: columns prompt_id, win."""
    rows = []
    values = {"prompt_id": prompt_ids, **alike(prompt_ids, {"weight": weights, "gold": gold})}
    table = pd.DataFrame({name: np.asarray(column) for name, column in values.items()})
    for prompt, part in table.groupby("prompt_id"):
        g = part["gold"].to_numpy()
        beats = (np.sign(g[:, None] - g[None, :]) + 1) / 2
        rows.append((prompt, float(part["weight"].to_numpy() @ beats.mean(1))))
    return pd.DataFrame(rows, columns=["prompt_id", "win"])


def _groups(prompt_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The prompts, sorted, and the number among them of each row's prompt."""
    return np.unique(np.asarray(prompt_ids, object), return_inverse=True)
