"""PACS and Kendall-tau distance: rewards and log-probabilities go in, the conflict table comes out.

Per prompt, over its N completions, with the population standard deviation (arXiv:2512.09212,
proxy-policy alignment conflict score and Kendall-tau distance):

    PACS(x, y_i) = z(r)_i - z(l)_i            z(a)_i = (a_i - mean(a)) / std(a)
    K(x) = (discordant pairs + 1/2 tied pairs) / (N (N - 1) / 2)

PACS > 0: the proxy likes what the policy finds unlikely. K: 0 where proxy and policy rank alike,
1 where reversed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.base.alignment import alike, beside, need
from shfcas_lib.base.errors import InputError

COLUMNS = ["prompt_id", "index", "reward", "logp", "z_reward", "z_logp", "pacs"]
COLUMNS += ["kendall", "mean_abs_pacs", "degenerate"]
SMALLEST_STD = 1e-6
# prompts taken at a time: what they need stays in the processor's cache, and memory stays bounded
BLOCK = 16384


def z_scores(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """z-scores along the last axis with the population standard deviation, and where that is too
    small to divide by.

    values: (..., N). Returns (z of the same shape, 0 where degenerate; degenerate: (...) bool).
    """
    values = np.asarray(values, float)
    size = 1.0
    if np.abs(values).max(initial=0) > 1e100:  # squares of huge values would overflow
        size = np.maximum(np.abs(values).max(-1, keepdims=True, initial=0), 1.0)
        values = values / size
    centred = values - values.mean(-1, keepdims=True)
    std = np.sqrt((centred * centred).mean(-1, keepdims=True))
    small = (std < SMALLEST_STD / size) | (values == values[..., :1]).all(-1, keepdims=True)
    return np.where(small, 0.0, centred / np.where(small, 1.0, std)), small[..., 0]


def pacs(reward: np.ndarray, logp: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """PACS of completions. reward, logp: (..., N). Returns (PACS of the same shape, degenerate:
    (...) bool). Of two Series the index says which value belongs to which.

    Where std(r) or std(l) is under 1e-6, or N < 2, every PACS of that prompt is 0 and the prompt
    is degenerate."""
    reward, logp = _same_shape(reward, logp)
    return _pacs(*z_scores(reward), *z_scores(logp))


def kendall_distance(reward: np.ndarray, logp: np.ndarray) -> np.ndarray:
    """K per prompt, in [0, 1]; a pair tied in either ranking counts one half. reward, logp: (P,
    N) with N >= 2; returns (P,).

    Equals (1 - tau_a) / 2. Raises InputError for another shape.
    """
    reward, logp = _same_shape(reward, logp)
    n = reward.shape[-1]
    if reward.ndim != 2 or n < 2:
        raise InputError(
            f"kendall_distance: found shape {reward.shape}, expected (prompts, completions >= 2)"
        )
    out = np.empty(len(reward))
    for start in range(0, len(reward), BLOCK):
        # prompts side by side: long vectors
        block = slice(start, start + BLOCK)
        rewards, logps = (np.ascontiguousarray(values[block].T) for values in (reward, logp))
        agreement = np.zeros(rewards.shape[1], np.int32)
        for k in range(n - 1):
            same = _order(rewards, k) * _order(logps, k)
            agreement += same.sum(0, dtype=np.int32)
        out[start : start + BLOCK] = (1 - agreement / (n * (n - 1) / 2)) / 2
    return out


def _order(values: np.ndarray, k: int) -> np.ndarray:
    """+1 where row k is above a later row, -1 where below, 0 where tied. values: (N, P); returns
    (N - k - 1, P), int8."""
    return (values[k] > values[k + 1 :]).view(np.int8) - (values[k] < values[k + 1 :]).view(np.int8)


def log_probabilities(pool: pd.DataFrame, per: str) -> pd.Series:
    """Log-probability of each completion, (rows,), as conflict reads it: of the whole completion
    (per "sum"), or of its mean token ("mean"). pool: columns logp, n_tokens."""
    return pool["logp"] / pool["n_tokens"].clip(lower=1) if per == "mean" else pool["logp"]


def conflict_table(
    pool: pd.DataFrame,
    reward: np.ndarray | pd.Series | None = None,
    logp: np.ndarray | pd.Series | None = None,
) -> pd.DataFrame:
    """One row per completion: prompt_id, index, reward, logp, z_reward, z_logp, pacs, and the
    prompt's kendall, mean_abs_pacs and degenerate.

    pool: a table of completions (prompt_id, index, logp). reward: (rows,), the proxy's; None: the
    table's own column. logp: (rows,) where it is not the table's own (a refined policy's). A
    Series is taken by its index (`base.alignment.beside`). Prompts may differ in their number of
    completions; one with a single completion is degenerate, with K = 0. Raises InputError for a
    missing column, a Series of other rows, two rows of one completion, and, naming prompt and
    completion, a value that is not finite."""
    given = {"reward": reward, "logp": logp}
    own = [name for name, values in given.items() if values is None]
    need(pool, ["prompt_id", "index", *own], "the table of completions")
    for name, values in given.items():
        given[name] = beside(pool, pool[name] if values is None else values, name)
    table = pool[["prompt_id", "index"]].assign(**given)
    for column in ("reward", "logp"):
        bad = table[~np.isfinite(table[column])]
        if len(bad):
            row = bad.iloc[0]
            raise InputError(
                f"{column} of completion {row['index']} of prompt {row['prompt_id']} is"
                f" {row[column]}: expected a finite number"
            )
    table = table.sort_values(["prompt_id", "index"], ignore_index=True)
    _each_once(table)
    size = table.groupby("prompt_id")["index"].transform("size")
    return pd.concat([_same_size(part, n) for n, part in table.groupby(size)]).sort_values(
        ["prompt_id", "index"], ignore_index=True
    )


def _each_once(table: pd.DataFrame) -> None:
    """Raise InputError where a completion of a sorted table has two rows."""
    index, prompts = table["index"].to_numpy(), table["prompt_id"]
    near = np.flatnonzero(index[1:] == index[:-1])
    again = prompts.iloc[near].to_numpy() == prompts.iloc[near + 1].to_numpy()
    if again.any():
        row = table.iloc[near[again][0]]
        raise InputError(
            f"completion {row['index']} of prompt {row['prompt_id']} has more than one row in the"
            " table: expected each (prompt_id, index) once"
        )


def shuffled(conflict: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """The placebo of a conflict table: the same rewards, and the same log-probabilities dealt out
    anew among the completions of each prompt.

    Everything else is recomputed from them, so z(r) and z(l) keep their values within a prompt and
    nothing is left of what the policy knows. What this table still shows comes from extreme
    rewards: that is the chance level of conflict. Raises what `conflict_table` raises."""
    table = conflict.sort_values(["prompt_id", "index"], ignore_index=True)
    prompt = pd.factorize(table["prompt_id"])[0]
    dealt = np.lexsort((generator.random(len(table)), prompt))
    logp = table["logp"].to_numpy()[dealt]
    return conflict_table(table, table["reward"].to_numpy(), logp)


def means(conflict: pd.DataFrame) -> dict[str, float]:
    """kendall and mean_abs_pacs of a conflict table, means over its prompts that are not
    degenerate: in those there is nothing to compare. NaN where all are."""
    prompts = by_prompt(conflict)
    kept = prompts[~prompts["degenerate"]]
    return {name: float(kept[name].mean()) for name in ("kendall", "mean_abs_pacs")}


def by_prompt(conflict: pd.DataFrame) -> pd.DataFrame:
    """The prompt-level columns: prompt_id, kendall, mean_abs_pacs, degenerate."""
    return conflict.drop_duplicates("prompt_id")[
        ["prompt_id", "kendall", "mean_abs_pacs", "degenerate"]
    ].reset_index(drop=True)


def cannot_rank(conflict: pd.DataFrame) -> str | None:
    """One sentence where conflict ranks no pair above another, because prompts have two completions
    each; how many of the prompts that is, where it is some of them; None where it is none."""
    sizes = conflict.groupby("prompt_id").size()
    pairs = int((sizes == 2).sum())
    if not pairs:
        return None
    why = "with two completions PACS is 0 or 2 in size and K 0 or 1, whatever the difference"
    if pairs == len(sizes):
        return (
            f"conflict cannot rank here: {why}; among pairs that look alike the seed draws, and a"
            " strategy made of conflict is little better than random"
        )
    return (
        f"conflict cannot rank {pairs} of {len(sizes)} prompts among each other: {why}; they take"
        " their share of the questions, and the seed draws among them"
    )


def _same_size(part: pd.DataFrame, n: int) -> pd.DataFrame:
    reward, logp = (part[c].to_numpy().reshape(-1, n) for c in ("reward", "logp"))
    out = {name: np.empty_like(reward) for name in ("z_reward", "z_logp", "pacs")}
    degenerate = np.empty(len(reward), bool)
    for start in range(0, len(reward), BLOCK):
        rows = slice(start, start + BLOCK)
        (z_reward, flat_reward), (z_logp, flat_logp) = z_scores(reward[rows]), z_scores(logp[rows])
        out["z_reward"][rows], out["z_logp"][rows] = z_reward, z_logp
        out["pacs"][rows], degenerate[rows] = _pacs(z_reward, flat_reward, z_logp, flat_logp)
    distance = kendall_distance(reward, logp) if n > 1 else np.zeros(len(reward))
    return part.assign(
        **{name: values.ravel() for name, values in out.items()},
        kendall=np.repeat(distance, n),
        mean_abs_pacs=np.repeat(np.abs(out["pacs"]).mean(-1), n),
        degenerate=np.repeat(degenerate, n),
    )


def _pacs(
    z_reward: np.ndarray, flat_reward: np.ndarray, z_logp: np.ndarray, flat_logp: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    degenerate = flat_reward | flat_logp | (z_reward.shape[-1] < 2)
    return np.where(degenerate[..., None], 0.0, z_reward - z_logp), degenerate


def _same_shape(reward, logp) -> tuple[np.ndarray, np.ndarray]:
    logp = alike(reward, {"logp": logp})["logp"]
    reward, logp = np.asarray(reward, float), np.asarray(logp, float)
    if reward.shape != logp.shape:
        raise InputError(f"reward has shape {reward.shape}, logp {logp.shape}: expected the same")
    return reward, logp
