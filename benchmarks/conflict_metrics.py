"""PACS and K for 100,000 prompts x 8, against scipy prompt by prompt and against plain numpy
broadcasting; growth; memory at 10 million completions.

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
    score = [stats.zscore(r) - stats.zscore(l) for r, l in zip(reward, logp)]
    return np.array(score), np.array(
        [(1 - stats.kendalltau(r, l).statistic) / 2 for r, l in zip(reward, logp)]
    )


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
    for other in (by_prompt, broadcast):
        for found, expected in zip(
            both(reward[:LOOPED], logp[:LOOPED]), other(reward[:LOOPED], logp[:LOOPED])
        ):
            np.testing.assert_allclose(found, expected, atol=1e-9)
    counted = {
        "ours": lambda: both(reward, logp) and PROMPTS,
        "scipy, prompt by prompt": lambda: by_prompt(reward[:LOOPED], logp[:LOOPED]) and LOOPED,
        "numpy, broadcast": lambda: broadcast(reward, logp) and PROMPTS,
    }
    release("conflict_metrics", ratios(race(counted), "ours"))
    sizes = [30_000, 100_000, 300_000, 1_000_000]
    release(
        "conflict_growth",
        growth(
            "PACS and K, prompts",
            sizes,
            grown(np.random.default_rng().normal(size=(2, sizes[-1], N))),
        ),
    )
    release("conflict_memory", memory(10_000_000))


def grown(values: np.ndarray):
    return lambda prompts: both(*values[:, :prompts])


def memory(completions: int) -> pd.DataFrame:
    """Peak memory of the conflict table of that many completions, as a multiple of the table
    itself.
    """
    prompts = completions // N
    table = pd.DataFrame(
        {"prompt_id": np.repeat(np.arange(prompts), N), "index": np.tile(np.arange(N), prompts)}
    )
    table["logp"], reward = np.random.default_rng().normal(size=(2, completions))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size = conflict_table(table, reward).memory_usage().sum()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return pd.DataFrame(
        [
            {
                "completions": completions,
                "table, MB": size / 1e6,
                "more memory at the peak, MB": peak / 1e6,
                "ratio": peak / size,
            }
        ]
    )


if __name__ == "__main__":
    main()
