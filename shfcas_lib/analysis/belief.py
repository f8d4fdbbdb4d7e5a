"""The trust report: rewards that learnt whom to trust go in, tables for people come out.

    table = report({"targeted": outcome.reward}, completions)
    sentences(rewards)       # one for each strategy

What a taste follows is told by surface attributes (length, compliance, markdown, flattery): the
rank correlation with them within prompts, of the taste and beside it of the refined reward. It
says what goes with the taste, not what the annotators meant.
"""

from __future__ import annotations

import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.analysis.diagnosis import attribute_correlation
from shfcas_lib.base.randomness import rng
from shfcas_lib.rewards import Corrected, RewardModel
from shfcas_lib.trust import FEWEST, Trusted

ATTRIBUTES = ("length", "compliance", "markdown", "flattery")


def sentences(rewards: dict[str, RewardModel]) -> dict[str, str]:
    """What the labels of each strategy say about the biased preferences, in words."""
    said = {}
    for name, reward in rewards.items():
        said[name] = (
            f"fewer than {FEWEST} decided labels, or all about one prompt: they cannot tell whom to"
            " trust, and are merged with the biased preferences"
        )
        if isinstance(reward, Trusted):
            said[name] = str(reward.report)
    return said


def facts(rewards: dict[str, RewardModel]) -> dict[str, dict]:
    """The same as numbers: by strategy decided labels, disbelieved, tau, kappa, error, and the
    posterior of rho. A strategy whose labels were merged has none."""
    numbers = {}
    for name, reward in rewards.items():
        if not isinstance(reward, Trusted):
            continue
        found = reward.report
        means = {"kappa": found.mean("kappa"), "error": found.mean("error")}
        rho = {str(value): share for value, share in found.posterior("rho").items()}
        known = {"decided": found.decided, "disbelieved": found.disbelieved, "tau": found.tau}
        numbers[name] = known | means | {"rho": rho}
    return numbers


def report(
    rewards: dict[str, RewardModel], pool: pd.DataFrame, seed: int, resamples: int
) -> pd.DataFrame | None:
    """The posterior of rho, and what taste and reward follow: columns strategy, part (rho, taste,
    reward; for a published proxy `taught`, what labels taught, in taste's place), name (a value of
    rho, or an attribute), value, low, high.

    pool: completions on which taste and reward are compared with attributes; one that does not
    vary is left out. None where no reward learnt whom to trust."""
    rows = []
    for strategy, reward in rewards.items():
        if not isinstance(reward, Trusted):
            continue
        for rho, share in reward.report.posterior("rho").items():
            rows.append((strategy, "rho", f"{rho:g}", share, share, share))
        other = "taught" if isinstance(reward.quality, Corrected) else "taste"
        scores = {other: reward.taste.score(pool), "reward": reward.score(pool)}
        for attribute in ATTRIBUTES:
            table = attribute_correlation(attribute, pool, scores)
            for part, rest in table.groupby("reward", sort=False):
                draw = rng(seed, f"belief/{strategy}/{attribute}/{part}")
                mean = stats.mean_interval(rest["correlation"], draw, resamples)
                rows.append((strategy, part, attribute, mean.value, mean.low, mean.high))
    columns = ["strategy", "part", "name", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns) if rows else None
