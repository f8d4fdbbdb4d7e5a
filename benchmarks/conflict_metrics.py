"""PACS and K for 100,000 prompts x 8; growth; memory at 10 million completions.

They race against scipy prompt by prompt and against plain numpy broadcasting.

    python benchmarks/conflict_metrics.py
"""

from __future__ import annotations

import resource

import numpy as np
import pandas as pd
from race import growth, race, ratios, release
from scipy import stats

from shfcas_lib.conflict import conflict_table, kendall_distance, pacs

PROMPTS, N, LOOPED = 100_000, 8, 2_000


def both(reward: np.ndarray, logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return pacs(reward, logp)[0], kendall_distance(reward, logp)


def by_prompt(reward: np.ndarray, logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The way one writes it first."""
    prompts = list(zip(reward, logp, strict=True))
    score = [stats.zscore(r) - stats.zscore(l) for r, l in prompts]
    tau = [stats.kendalltau(r, l).statistic for r, l in prompts]
    return np.array(score), (1 - np.array(tau)) / 2


def broadcast(reward: np.ndarray, logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The way one writes it next: an N x N table of signs for each prompt."""
    score = stats.zscore(reward, axis=1) - stats.zscore(logp, axis=1)
    upper = np.triu_indices(N, 1)
    sign_r, sign_l = (
        np.sign(v[:, :, None] - v[:, None, :])[:, upper[0], upper[1]] for v in (reward, logp)
    )
    return score, (1 - (sign_r * sign_l).mean(1)) / 2


def main() -> None:
    # fresh every time: agreement must not hang on a seed
    reward, logp = np.random.default_rng().normal(size=(2, PROMPTS, N))
    few = reward[:LOOPED], logp[:LOOPED]
    for other in (by_prompt, broadcast):
        for ours, expected in zip(both(*few), other(*few), strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-9)
    counted = {
        "ours": lambda: both(reward, logp) and PROMPTS,
        "scipy, prompt by prompt": lambda: by_prompt(*few) and LOOPED,
        "numpy, broadcast": lambda: broadcast(reward, logp) and PROMPTS,
    }
    release("conflict_metrics", ratios(race(counted), "ours"))
    sizes = [30_000, 100_000, 300_000, 1_000_000]
    values = np.random.default_rng().normal(size=(2, sizes[-1], N))
    release("conflict_growth", growth("PACS and K, prompts", sizes, grown(values)))
    release("conflict_memory", memory(10_000_000))


def grown(values: np.ndarray):
    return lambda prompts: both(*values[:, :prompts])


def memory(completions: int) -> pd.DataFrame:
    """Peak memory of the conflict table of that many completions, as a multiple of its size."""
    prompts = completions // N
    table = pd.DataFrame(
        {"prompt_id": np.repeat(np.arange(prompts), N), "index": np.tile(np.arange(N), prompts)}
    )
    table["logp"], reward = np.random.default_rng().normal(size=(2, completions))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = conflict_table(table, reward).memory_usage().sum()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    row = {
        "completions": completions,
        "table, MB": size / 1e6,
        "more memory at the peak, MB": peak / 1e6,
        "ratio": peak / size,
    }
    return pd.DataFrame([row])


if __name__ == "__main__":
    main()
