"""Figures of merit for people: per-prompt tables go in, means, contrasts and headlines with
intervals come out.

Intervals resample prompts, or seeds where there are replicates.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd

from shfcas_lib import refine
from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.evaluation import MEASURES, headroom_share, pair_accuracy
from shfcas_lib.params.schema import Params

# A column's name goes on with that of a reward: what that reward says a policy gained, in standard
# deviations over completions (module without_gold).
BY = "gain by "
_BY_GOLD = ("gold", "win", "pair_accuracy", "gap")


def ceiling(
    params: Params,
    train: pd.DataFrame,
    clean: pd.DataFrame,
    evaluate: pd.DataFrame,
    gold: np.ndarray,
) -> pd.DataFrame:
    """Can the task show anything? Columns measure, value, low, high, needed: the share of prompts
    on which gold differs, and the best-of-N headroom that a reward trained on clean preferences
    (the user's own, before bias, where there are some) reaches on evaluation prompts."""
    whose = "your own" if params.preferences.given else "clean"
    ids = evaluate["prompt_id"].to_numpy()
    probe = params.reward.model_copy(update={"kind": "probe"})
    score = refine.fit(probe, train, clean, params.seed).score(evaluate)

    def draw(name: str) -> np.random.Generator:
        return rng(params.seed, f"ceiling/{name}")

    differs = (pd.Series(gold).groupby(ids).agg(np.ptp) > 1e-9).astype(float)
    head = headroom_share(ids, score, gold)
    accuracy = pair_accuracy(ids, score, gold)["pair_accuracy"]
    share = stats.cluster_interval(
        head, "prompt_id", lambda t: t["gained"].sum() / t["headroom"].sum(), draw("headroom")
    )
    intervals = {
        "prompts on which gold differs between completions": (
            stats.mean_interval(differs, draw("differs"))
        ),
        f"best-of-N headroom reached by a reward trained on {whose} labels": share,
        "pairs that reward ranks as gold does": stats.mean_interval(accuracy, draw("accuracy")),
    }
    needed = (0.5, 0.5, None)  # less shows nothing
    rows = []
    for (name, interval), least in zip(intervals.items(), needed, strict=True):
        rows.append((name, interval.value, interval.low, interval.high, least))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "needed"])


def summarise(table: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Mean of every measure for every policy with a bootstrap interval over prompts: policy,
    measure, value, low, high."""
    rows = []
    for policy, part in table.groupby("policy", sort=False):
        for measure in measures_of(table):
            values = part[measure].dropna()
            if len(values):
                draw = rng(params.seed, f"summary/{policy}/{measure}")
                interval = stats.mean_interval(values, draw, params.evaluation.bootstrap)
                rows.append((policy, measure, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["policy", "measure", "value", "low", "high"])


def measures_of(table: pd.DataFrame) -> list[str]:
    """The columns that measure a policy: MEASURES, and what each reward believes (without gold)."""
    claims = [column for column in table if column.startswith(BY)]
    return [measure for measure in MEASURES if measure in table] + claims


def as_text(summary: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """A summary for people: policies in this order down, measures across, a value with its
    interval in each cell. Policies that were not measured are left out."""
    text = summary.apply(lambda r: f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]", axis=1)
    table = summary.assign(text=text).pivot(index="policy", columns="measure", values="text")
    return table.reindex([policy for policy in order if policy in table.index])


def headline_contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """The contrasts to read first: those by gold, or without gold all of them."""
    chosen = table[table["measure"].isin(_BY_GOLD)]
    return chosen if len(chosen) else table


def without_labels(table: pd.DataFrame, params: Params) -> pd.DataFrame | None:
    """The contrasts that say whether labels are needed at all: the leading strategy over each
    remedy, and each remedy over the proxy; None where the run has no remedies."""
    named = params.evaluation.remedies
    chosen = table[table["better"].isin(named) | table["than"].isin(named)]
    return headline_contrasts(chosen) if named else None


def contrasts(table: pd.DataFrame, params: Params, unit: str = "prompt_id") -> pd.DataFrame:
    """Paired differences between policies, by `unit` (prompt_id, or seed for replicates), with
    bootstrap intervals.

    What a reward believes (`BY`) is not compared: a policy gains by the reward that it was
    optimised against, and a verdict on that would look like evidence.

    Columns: better (the policy named first), than, measure, difference, low, high, p (Wilcoxon,
    two-sided), units, p_holm and verdict (`stats.verdicts`, corrected over the contrasts of one
    measure)."""
    rows = []
    for measure in [measure for measure in measures_of(table) if not measure.startswith(BY)]:
        wide = table.pivot(index=unit, columns="policy", values=measure)
        for better, than in _comparable(params, wide):
            values = (wide[better] - wide[than]).dropna()
            if not len(values):
                continue
            draw = rng(params.seed, f"contrast/{unit}/{measure}/{better}/{than}")
            interval = stats.mean_interval(values, draw, params.evaluation.bootstrap)
            p = stats.wilcoxon_p(values)
            limits = (interval.value, interval.low, interval.high)
            rows.append((better, than, measure, *limits, p, len(values)))
    columns = ["better", "than", "measure", "difference", "low", "high", "p", "units"]
    return stats.verdicts(pd.DataFrame(rows, columns=columns), within="measure")


def _comparable(params: Params, policies) -> list[tuple[str, str]]:
    """The pairs of policies to compare, where there are both: strategies with each other and with
    the proxy, remedies with the leading strategy and the proxy, the proxy with the base policy."""
    strategies: list[str] = [name for name in params.selection.strategies if name in policies]
    pairs = list(combinations(strategies, 2))
    pairs += [(name, "proxy") for name in strategies]
    for remedy in params.evaluation.remedies:
        pairs += [(leading(params), remedy), (remedy, "proxy")]
    pairs += [("proxy", "base")]
    return [(better, than) for better, than in pairs if better in policies and than in policies]


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Pool tables of disjoint prompts as one, sorted by id."""
    return pd.concat(parts).sort_values(["prompt_id", "index"], ignore_index=True)


def leading(params: Params) -> str:
    """The strategy that the numbers are about: the first that is not the baseline."""
    return next((name for name in params.selection.strategies if name != "random"), "random")


def headline(
    per_prompt: pd.DataFrame, repeats: pd.DataFrame | None, predicts: pd.DataFrame, params: Params
) -> dict[str, str]:
    """The five numbers that matter, as text. Over seeds where there are replicates, over prompts
    otherwise."""
    # seeds vary more than prompts do: they are the honest unit where there are some
    table, unit, over = per_prompt, "prompt_id", "prompts"
    if repeats is not None:
        table, unit, over = repeats, "seed", "seeds"
    wide = table.pivot(index=unit, columns="policy", values="gold")

    def interval(values: pd.Series, name: str) -> str:
        draw = rng(params.seed, f"headline/{name}")
        return str(stats.mean_interval(values.dropna(), draw, params.evaluation.bootstrap))

    first = leading(params)
    count = wide.notna().all(axis=1).sum()
    gain = interval(wide["proxy"] - wide["base"], "proxy")
    numbers = {
        f"gold reward, base policy ({count} {over})": interval(wide["base"], "base"),
        "gain of the proxy over the base policy": gain,
        f"gain of {first} over the proxy": interval(wide[first] - wide["proxy"], "first"),
    }
    if "random" in params.selection.strategies and first != "random":
        gain = interval(wide[first] - wide["random"], "other")
        numbers[f"gain of {first} over random at the same budget"] = gain

    by_pacs = predicts["measure"].str.startswith("wrong pairs found by |PACS|")
    area = predicts[by_pacs].iloc[0]
    found = stats.Interval(area["value"], area["low"], area["high"])
    chance = stats.Interval(area["chance"], area["chance_low"], area["chance_high"])
    text = f"{found}; placebo {chance}: {area['verdict']}"
    numbers["wrong pairs found by |PACS|, area under ROC"] = text
    return numbers
