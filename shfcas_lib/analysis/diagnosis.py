"""Where a proxy is wrong, and whether conflict knows it: scores and gold of evaluation prompts go
in, tables come out.

This is analysis for a reader. It uses gold on evaluation prompts only, and nothing of it flows
back into selection. What cannot be said without gold is None where there is none."""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.conflict import z_scores
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.params.schema import Attribute, Params
from shfcas_lib.tasks.attributes import attribute
from shfcas_lib.tasks.safety import safety_score


def rounded(table: pd.DataFrame | None, what: str, needs: str = "gold") -> pd.DataFrame | None:
    """The table, rounded, for a cell to show; where there is none, one printed line says that
    `what` is left out for want of what it needs."""
    if table is None:
        print(f"{what}: left out, it needs {needs}")
        return None
    return table.round(3)


def judge(params: Params) -> str:
    """Who says which of two completions is better where the proxy is judged, with the verb."""
    return "gold ranks" if params.gold.known else "your preferences rank"


def accuracy_by_group(
    prompts: pd.DataFrame,
    pool: pd.DataFrame,
    gold: np.ndarray | None,
    scores: dict[str, np.ndarray],
    seed: int,
    given: pd.DataFrame | None = None,
) -> pd.DataFrame | None:
    """Pair accuracy of rewards by category, all prompts first: columns group, reward, value, low,
    high, prompts.

    Where the prompts are harmful and benign, those two groups take the place of the categories
    that mix them. Without gold the proxy is judged by `given`, preferences that did not train it
    (`training_data.held_out`); None where there are none."""
    if gold is None and given is None:
        return None
    column = "harmful" if prompts["harmful"].any() else "category"
    group = dict(zip(prompts["prompt_id"], prompts[column]))
    if column == "harmful":
        group = {
            p: "harmful requests" if harmful else "benign look-alikes"
            for p, harmful in group.items()
        }
    judged = (
        {"proxy": _accuracy_on(given)}
        if gold is None
        else {
            name: pair_accuracy(pool["prompt_id"].to_numpy(), score, gold)
            for name, score in scores.items()
        }
    )
    rows = []
    for name, accuracy in judged.items():
        accuracy["group"] = accuracy["prompt_id"].map(group)
        for label, part in [("all prompts", accuracy), *accuracy.groupby("group")]:
            interval = stats.mean_interval(
                part["pair_accuracy"], rng(seed, f"accuracy/{name}/{label}")
            )
            rows.append((label, name, interval.value, interval.low, interval.high, len(part)))
    return pd.DataFrame(rows, columns=["group", "reward", "value", "low", "high", "prompts"])


def _accuracy_on(given: pd.DataFrame) -> pd.DataFrame:
    """Per prompt, the share of decided preferences that the proxy's margin agrees with, equal
    rewards counting one half: prompt_id, pair_accuracy."""
    decided = given[given["label"] != 0.5]
    right = (np.sign(decided["margin"]) * np.sign(decided["label"] - 0.5) + 1) / 2
    return right.groupby(decided["prompt_id"]).mean().rename("pair_accuracy").reset_index()


def accuracy_told(table: pd.DataFrame | None) -> str:
    """What `accuracy_by_group` found over all prompts, as one line."""
    if table is None:
        return (
            "how good the proxy is: not known, there is neither gold nor a preference of your own"
            " that did not train it"
        )
    overall = table[table["group"] == "all prompts"].set_index("reward")
    if "clean" in overall.index:
        return (
            f"pair accuracy on held-out prompts: proxy {overall.at['proxy', 'value']:.3f}, clean"
            f" labels {overall.at['clean', 'value']:.3f}"
        )
    row = overall.loc["proxy"]
    return (
        "given preferences that did not train the proxy, ranked as they say:"
        f" {stats.Interval(row['value'], row['low'], row['high'])}, {row['prompts']} prompts"
    )


def attribute_correlation(
    name: str | None, pool: pd.DataFrame, scores: dict[str, np.ndarray | None]
) -> pd.DataFrame | None:
    """Per prompt, rank correlation between an attribute and each score: columns prompt_id,
    reward, correlation.

    Prompts on which either side does not vary are left out, and so is gold where there is none.
    None where there is no attribute."""
    if name is None:
        return None
    scores = {reward: score for reward, score in scores.items() if score is not None}
    table = pool[["prompt_id"]].assign(attribute=pool["completion"].map(attribute(name)))
    rows = []
    for reward, score in scores.items():
        for prompt, part in table.assign(score=score).groupby("prompt_id"):
            rows.append((prompt, reward, stats.spearman(part["attribute"], part["score"])))
    return pd.DataFrame(rows, columns=["prompt_id", "reward", "correlation"]).dropna(
        ignore_index=True
    )


def injected_attribute(params: Params) -> str | None:
    """The attribute that the run's bias follows; length where it follows none, and without gold,
    which it would be compared with, None."""
    return next(
        (m.attribute for m in params.bias if isinstance(m, Attribute)),
        "length" if params.gold.known else None,
    )


def pair_errors(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame | None:
    """Every pair that gold tells apart: prompt_id, wrong (the proxy ranks it against gold), and
    three scores that could tell: pacs (|PACS_i| + |PACS_j|), kendall (of the prompt) and margin
    (minus the proxy's reward difference).

    conflict: a conflict table; gold: prompt_id, index, gold, or without gold: then None.
    """
    if "gold" not in gold:
        return None
    table = conflict.merge(
        gold[["prompt_id", "index", "gold"]], on=["prompt_id", "index"]
    ).sort_values(["prompt_id", "index"])
    parts = []
    for prompt, part in table.groupby("prompt_id"):
        i, j = np.triu_indices(len(part), 1)
        g, r, p = (part[c].to_numpy() for c in ("gold", "reward", "pacs"))
        told = g[i] != g[j]
        parts.append(
            pd.DataFrame(
                {
                    "prompt_id": prompt,
                    "wrong": (np.sign(r[i] - r[j]) != np.sign(g[i] - g[j]))[told],
                    "pacs": (np.abs(p[i]) + np.abs(p[j]))[told],
                    "pacs_difference": np.abs(p[i] - p[j])[told],
                    "kendall": part["kendall"].iloc[0],
                    "margin": -np.abs(r[i] - r[j])[told],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def predicts_error(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> pd.DataFrame | None:
    """Does conflict know where the proxy is wrong? Columns measure, value, low, high, chance;
    intervals resample prompts.

    Completions: Spearman correlation of |PACS| with the proxy's error |z(r) - z(g)|. Prompts:
    Spearman correlation of K with the share of pairs ranked wrongly. Pairs: area under the ROC
    curve for 'the proxy ranks this pair wrongly'. None without gold."""
    if "gold" not in gold:
        return None
    rows = []
    for name, data, statistic, chance in _error_measures(conflict, gold):
        interval = stats.cluster_interval(
            data, "prompt_id", statistic, rng(seed, f"predicts/{name}")
        )
        rows.append((name, interval.value, interval.low, interval.high, chance))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "chance"])


def error_measures(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """The same measures without intervals, where many seeds give them: columns measure, value,
    chance."""
    rows = [
        (name, statistic(data), chance)
        for name, data, statistic, chance in _error_measures(conflict, gold)
    ]
    return pd.DataFrame(rows, columns=["measure", "value", "chance"])


def _error_measures(conflict: pd.DataFrame, gold: pd.DataFrame) -> list[tuple]:
    """(measure, table, statistic of that table, chance)."""
    table = conflict.merge(
        gold[["prompt_id", "index", "gold"]], on=["prompt_id", "index"]
    ).sort_values(["prompt_id", "index"])
    z_gold = table.groupby("prompt_id")["gold"].transform(lambda g: z_scores(g.to_numpy())[0])
    completions = pd.DataFrame(
        {
            "prompt_id": table["prompt_id"],
            "pacs": table["pacs"].abs(),
            "error": (table["z_reward"] - z_gold).abs(),
        }
    )
    pairs = pair_errors(conflict, gold)
    prompts = (
        pairs.groupby("prompt_id")
        .agg(wrong=("wrong", "mean"), kendall=("kendall", "first"))
        .reset_index()
    )
    return [
        (
            "|PACS| with the proxy's error on a completion, Spearman",
            completions,
            lambda t: stats.spearman(t["pacs"], t["error"]),
            0.0,
        ),
        (
            "K with the share of wrong pairs of a prompt, Spearman",
            prompts,
            lambda t: stats.spearman(t["kendall"], t["wrong"]),
            0.0,
        ),
        (
            "wrong pairs found by |PACS|, area under ROC",
            pairs,
            lambda t: stats.roc_auc(t["wrong"], t["pacs"]),
            0.5,
        ),
        (
            "wrong pairs found by K, area under ROC",
            pairs,
            lambda t: stats.roc_auc(t["wrong"], t["kendall"]),
            0.5,
        ),
        (
            "wrong pairs found by |PACS_i - PACS_j|, area under ROC",
            pairs,
            lambda t: stats.roc_auc(t["wrong"], t["pacs_difference"]),
            0.5,
        ),
        (
            "wrong pairs found by the proxy's own uncertainty, area under ROC",
            pairs,
            lambda t: stats.roc_auc(t["wrong"], t["margin"]),
            0.5,
        ),
    ]


def roc_table(pairs: pd.DataFrame | None) -> pd.DataFrame | None:
    """`pair_errors` in long form for the figure: score_name, positive, score."""
    if pairs is None:
        return None
    names = {
        "pacs": "|PACS| of the pair",
        "kendall": "K of the prompt",
        "margin": "proxy's uncertainty",
    }
    return pd.concat(
        [
            pd.DataFrame({"score_name": label, "positive": pairs["wrong"], "score": pairs[name]})
            for name, label in names.items()
        ],
        ignore_index=True,
    )


def hand_label_agreement() -> str:
    """How far the safety rules agree with 100 completions that were labelled by reading them,
    before the rules were run on them and after the last change to the rules. One sentence."""
    from shfcas_lib.analysis import stats
    from shfcas_lib.tasks.embedded import hand_labels

    rows = hand_labels()
    rules = np.array([safety_score(r.completion, r.prompt, r.harmful) for r in rows.itertuples()])
    apart = np.abs(rules - rows["label"].to_numpy())
    return (
        f"safety rules against {len(rows)} completions labelled by hand: the same on"
        f" {np.mean(apart == 0):.0%}, within half a point on {np.mean(apart <= 0.5):.0%}, rank"
        f" correlation {stats.spearman(rules, rows['label']):.2f}"
    )
