"""Figures of merit for people: per-prompt tables go in, means, contrasts and headlines with
intervals come out.

Intervals resample prompts, or seeds where there are replicates. What a run without gold may say
is said here too."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import refine
from shfcas_lib.analysis import stats
from shfcas_lib.analysis.agreement import NEEDS
from shfcas_lib.base.randomness import rng
from shfcas_lib.evaluation import BY, MEASURES, headroom_share, pair_accuracy
from shfcas_lib.params.schema import Params

_TOLD = ("gold", "win", "pair_accuracy", "gap")


def rewards_of(params: Params) -> list[str]:
    """The rewards that are compared, in the figures' order: the proxy, one refined with the
    labels of each strategy, and with gold the ceiling."""
    return [
        "proxy",
        *reversed(params.selection.strategies),
        *(["clean"] if params.gold.known else []),
    ]


def changes(pool: pd.DataFrame, scores: dict[str, np.ndarray], params: Params) -> pd.DataFrame:
    """What labels changed in the proxy's ranking of the evaluation completions; no gold takes
    part. Columns reward, measure, value, low, high: the share of pairs of a prompt's completions
    that a refined reward ranks as the proxy does, and the share of prompts whose best completion
    is still the same."""
    ids = pool["prompt_id"].to_numpy()
    before = _favourites(ids, scores["proxy"])
    rows = []
    for name in [name for name in scores if name in params.selection.strategies]:
        measures = {
            "pairs ranked as the proxy ranks them": pair_accuracy(
                ids, scores[name], scores["proxy"]
            )["pair_accuracy"],
            "prompts with the same favourite": (
                (_favourites(ids, scores[name]) == before).astype(float)
            ),
        }
        for measure, values in measures.items():
            interval = stats.mean_interval(
                values, rng(params.seed, f"changes/{name}/{measure}"), params.evaluation.bootstrap
            )
            rows.append((name, measure, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["reward", "measure", "value", "low", "high"])


def _favourites(ids: np.ndarray, score: np.ndarray) -> pd.Series:
    """The row of each prompt's best completion."""
    return pd.Series(score).groupby(ids).idxmax()


def ceiling(
    params: Params,
    train: pd.DataFrame,
    clean: pd.DataFrame,
    evaluate: pd.DataFrame,
    gold: np.ndarray | None,
) -> pd.DataFrame | None:
    """Can the task show anything? Columns measure, value, low, high, needed: the share of prompts
    on which gold differs, and the best-of-N headroom that a reward trained on clean preferences
    reaches on evaluation prompts. None without gold."""
    if gold is None:
        return None
    ids = evaluate["prompt_id"].to_numpy()
    score = refine.fit(
        params.reward.model_copy(update={"kind": "probe"}), train, clean, params.seed
    ).score(evaluate)
    differs = (pd.Series(gold).groupby(ids).agg(np.ptp) > 1e-9).astype(float)
    head = headroom_share(ids, score, gold)
    accuracy = pair_accuracy(ids, score, gold)["pair_accuracy"]
    draw = lambda name: rng(params.seed, f"ceiling/{name}")  # noqa: E731
    share = stats.cluster_interval(
        head, "prompt_id", lambda t: t["gained"].sum() / t["headroom"].sum(), draw("headroom")
    )
    rows = [
        (
            "prompts on which gold differs between completions",
            stats.mean_interval(differs, draw("differs")),
            0.5,
        ),
        ("best-of-N headroom reached by a reward trained on clean labels", share, 0.5),
        (
            "pairs that reward ranks as gold does",
            stats.mean_interval(accuracy, draw("accuracy")),
            None,
        ),
    ]
    return pd.DataFrame(
        [(name, i.value, i.low, i.high, needed) for name, i, needed in rows],
        columns=["measure", "value", "low", "high", "needed"],
    )


def summarise(table: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Mean of every measure for every policy with a bootstrap interval over prompts: policy,
    measure, value, low, high."""
    rows = []
    for policy, part in table.groupby("policy", sort=False):
        for measure in [*MEASURES, *_by(table)]:
            values = part[measure].dropna() if measure in part else []
            if len(values):
                interval = stats.mean_interval(
                    values,
                    rng(params.seed, f"summary/{policy}/{measure}"),
                    params.evaluation.bootstrap,
                )
                rows.append((policy, measure, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["policy", "measure", "value", "low", "high"])


def _by(table: pd.DataFrame) -> list[str]:
    return [column for column in table if column.startswith(BY)]


def as_text(summary: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """A summary for people: policies in this order down, measures across, a value with its
    interval in each cell."""
    text = summary.apply(lambda r: f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]", axis=1)
    return (
        summary.assign(text=text)
        .pivot(index="policy", columns="measure", values="text")
        .reindex(order)
    )


def headline_contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """The contrasts to read first: those by gold, or without gold all of them."""
    chosen = table[table["measure"].isin(_TOLD)]
    return chosen if len(chosen) else table


def contrasts(table: pd.DataFrame, params: Params, unit: str = "prompt_id") -> pd.DataFrame:
    """Paired differences between policies, by `unit` (prompt_id, or seed for replicates), with
    bootstrap intervals.

    Columns: better (the policy named first), than, measure, difference, low, high, p (Wilcoxon,
    two-sided, uncorrected), units, verdict: 'higher', 'lower' or 'not significant', by whether
    the interval holds 0."""
    wanted = [m for m in MEASURES if m in table] + _by(table)
    strategies = [name for name in params.selection.strategies if name in set(table["policy"])]
    pairs = (
        [(a, b) for k, a in enumerate(strategies) for b in strategies[k + 1 :]]
        + [(a, "proxy") for a in strategies]
        + [("proxy", "base")]
    )
    rows = []
    for measure in wanted:
        wide = table.pivot(index=unit, columns="policy", values=measure)
        for first, second in pairs:
            if (
                first in wide
                and second in wide
                and len(values := (wide[first] - wide[second]).dropna())
            ):
                i = stats.mean_interval(
                    values,
                    rng(params.seed, f"contrast/{unit}/{measure}/{first}/{second}"),
                    params.evaluation.bootstrap,
                )
                verdict = "higher" if i.low > 0 else "lower" if i.high < 0 else "not significant"
                rows.append(
                    (
                        first,
                        second,
                        measure,
                        i.value,
                        i.low,
                        i.high,
                        stats.wilcoxon_p(values),
                        len(values),
                        verdict,
                    )
                )
    return pd.DataFrame(
        rows,
        columns=["better", "than", "measure", "difference", "low", "high", "p", "units", "verdict"],
    )


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Pool tables of disjoint prompts as one, sorted by id."""
    return pd.concat(parts).sort_values(["prompt_id", "index"], ignore_index=True)


def leading(params: Params) -> str:
    """The strategy that the numbers are about: the first that is not the baseline."""
    return next((name for name in params.selection.strategies if name != "random"), "random")


def headline_without_gold(
    summary: pd.DataFrame, changed: pd.DataFrame, agreement: pd.DataFrame | None, params: Params
) -> dict[str, str]:
    """The numbers that matter where there is no gold, as text. agreement: from module agreement,
    the only one that is evidence; the rest says what changed."""
    first = leading(params)
    number = lambda row: str(stats.Interval(row["value"], row["low"], row["high"]))  # noqa: E731
    numbers = (
        {}
        if agreement is not None
        else {"agreement with the labels": f"not known, it needs {NEEDS}"}
    )
    for asked, part in agreement.groupby("asked", sort=False) if agreement is not None else []:
        rows = part.set_index("reward")
        pairs = "random pairs" if asked == "random" else f"pairs that {asked} chose"
        numbers[f"{rows['labels'].iloc[0]} labels on {pairs}: the proxy agrees"] = number(
            rows.loc["proxy"]
        )
        for name in [
            name for name in rows.index if name != "proxy" and (asked == "random" or name == asked)
        ]:
            gain = stats.Interval(*rows.loc[name, ["gain", "gain_low", "gain_high"]])
            numbers[f"  gain with {name} labels on {pairs}, cross-validated"] = (
                f"{gain}, {rows.at[name, 'verdict']}"
            )
    numbers["evidence that it is better"] = (
        "the agreement above, and nothing else; what follows says what changed"
    )
    for row in changed[changed["reward"] == first].to_dict("records"):
        numbers[f"{row['measure']}, {first}"] = number(row)
    for name in ("proxy", first):
        for measure, what in (
            ("kendall", "conflict K with the base policy"),
            ("kl", "KL of the tilted policy, nats"),
        ):
            found = summary[(summary["policy"] == name) & (summary["measure"] == measure)]
            numbers[f"{what}, {name}"] = number(found.iloc[0])
    return numbers


def headline(
    per_prompt: pd.DataFrame, repeats: pd.DataFrame | None, predicts: pd.DataFrame, params: Params
) -> dict[str, str]:
    """The five numbers that matter, as text. Over seeds where there are replicates, over prompts
    otherwise."""
    table, unit, over = (
        (per_prompt, "prompt_id", "prompts") if repeats is None else (repeats, "seed", "seeds")
    )
    wide = table.pivot(index=unit, columns="policy", values="gold")
    first = leading(params)
    other = next((name for name in params.selection.strategies if name == "random"), None)

    def interval(values: pd.Series, name: str) -> str:
        return str(
            stats.mean_interval(
                values.dropna(), rng(params.seed, f"headline/{name}"), params.evaluation.bootstrap
            )
        )

    count = wide.notna().all(axis=1).sum()
    numbers = {
        f"gold reward, base policy ({count} {over})": interval(wide["base"], "base"),
        "gain of the biased proxy over the base policy": interval(
            wide["proxy"] - wide["base"], "proxy"
        ),
        f"gain of {first} over the proxy": interval(wide[first] - wide["proxy"], "first"),
    }
    if other and other != first:
        numbers[f"gain of {first} over {other} at the same budget"] = interval(
            wide[first] - wide[other], "other"
        )
    area = predicts[predicts["measure"].str.startswith("wrong pairs found by |PACS|")].iloc[0]
    numbers["wrong pairs found by |PACS|, area under ROC (0.5: chance)"] = str(
        stats.Interval(area["value"], area["low"], area["high"])
    )
    return numbers
