"""Rewards on a benchmark: scores of chosen and rejected answers go in, accuracies with intervals
and paired differences come out.

An answer is right where the chosen one scores strictly higher, as RewardBench and RM-Bench count.
RM-Bench (Liu et al. 2025) writes each answer in three styles, from plain to adorned, and compares
every chosen style with every rejected one: `hard` where the rejected answer is the more adorned,
`normal` where both are alike, `easy` where the chosen one is.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng

ALL = "all"
STYLES = 3  # of RM-Bench
_SHARES = ["value", "low", "high"]


def accuracies(table: pd.DataFrame, score: np.ndarray) -> pd.DataFrame:
    """One row per prompt_id and kind of comparison: prompt_id, prompt, subset, style, right.

    table: from `data.benchmarks`; score: (rows,). style: all, and easy, normal, hard where both
    sides have three styles. right: share of those comparisons in which chosen beats rejected.
    """
    rows = []
    for name, part in table.assign(score=score).groupby("prompt_id", sort=False):
        sides = [part[part["side"] == side] for side in ("chosen", "rejected")]
        chosen, rejected = (side.sort_values("style")["score"].to_numpy() for side in sides)
        beats = (chosen[:, None] > rejected[None, :]).astype(float)
        shares = {ALL: beats.mean()}
        if beats.shape == (STYLES, STYLES):
            shares |= _by_style(beats)
        where = (name, part["prompt"].iloc[0], part["subset"].iloc[0])
        rows += [(*where, style, share) for style, share in shares.items()]
    return pd.DataFrame(rows, columns=["prompt_id", "prompt", "subset", "style", "right"])


def _by_style(beats: np.ndarray) -> dict[str, float]:
    """beats: (chosen style, rejected style)."""
    chosen, rejected = np.indices(beats.shape)
    kinds = {"easy": chosen > rejected, "normal": chosen == rejected, "hard": chosen < rejected}
    return {kind: float(beats[cells].mean()) for kind, cells in kinds.items()}


def compare(table: pd.DataFrame, scores: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    """Every reward on every subset and style, and what it gains over the first one, with 95%
    bootstrap intervals over prompts.

    Columns subset (all first), style, prompts, reward, value, low, high; gain, gain_low,
    gain_high, p, p_holm and verdict (`stats.verdicts`), missing for the first reward.
    """
    right = {name: accuracies(table, score) for name, score in scores.items()}
    before = next(iter(scores))
    rows = []
    for subset, style, chosen in _parts(right[before]):
        for name, found in right.items():
            part = found[chosen]
            draw = rng(seed, f"benchmark/{name}/{subset}/{style}")
            share = stats.cluster_mean(part["right"], part["prompt"], draw)
            row = (
                subset,
                style,
                part["prompt"].nunique(),
                name,
                share.value,
                share.low,
                share.high,
            )
            gain = (np.nan,) * 4
            if name != before:
                difference = part["right"].to_numpy() - right[before].loc[chosen, "right"]
                found_gain = stats.cluster_mean(difference, part["prompt"], draw)
                gain = (found_gain.value, found_gain.low, found_gain.high, found_gain.p)
            rows.append((*row, *gain))
    columns = ["subset", "style", "prompts", "reward", *_SHARES]
    result = pd.DataFrame(rows, columns=[*columns, "gain", "gain_low", "gain_high", "p"])
    gains = stats.verdicts(result[result["reward"] != before], prefix="gain_")
    result = result.join(gains[["p_holm", "verdict"]])
    return result.fillna({"verdict": ""})


def _parts(right: pd.DataFrame) -> list[tuple[str, str, np.ndarray]]:
    """Subset, style and rows of every cell of the table; one subset alone is not said twice."""
    subsets = list(right["subset"].unique())
    named = [ALL, *subsets] if len(subsets) > 1 else subsets
    parts = []
    for subset in named:
        here = (right["subset"] == subset).to_numpy() | (subset == ALL)
        for style in right.loc[here, "style"].unique():
            parts.append((subset, style, here & (right["style"] == style).to_numpy()))
    return parts


def as_markdown(result: pd.DataFrame) -> str:
    """The table for a page or a terminal: one line a subset and style."""
    names = list(result["reward"].unique())
    head = ["subset", "style", "prompts", names[0]]
    for name in names[1:]:
        head += [name, f"{name} - {names[0]}"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (subset, style), part in result.groupby(["subset", "style"], sort=False):
        cells = [str(subset), str(style), str(part["prompts"].iloc[0])]
        for row in part.itertuples():
            cells.append(f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]")
            if row.reward != names[0]:
                gain = f"{row.gain:+.3f} [{row.gain_low:.3f}, {row.gain_high:.3f}]"
                cells.append(f"{gain} {row.verdict}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
