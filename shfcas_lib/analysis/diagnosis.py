"""Where a proxy is wrong, and whether conflict knows it: scores and gold of evaluation prompts go
in, tables come out.

This is analysis for a reader. It needs gold, on evaluation prompts only, and nothing of it flows
back into selection. Where there is none, `accuracy_on_given` asks preferences that did not train
the proxy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.conflict import z_scores
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.params.schema import Attribute, Params
from shfcas_lib.tasks.attributes import attribute
from shfcas_lib.tasks.safety import safety_score


def accuracy_by_group(
    prompts: pd.DataFrame,
    pool: pd.DataFrame,
    gold: np.ndarray,
    scores: dict[str, np.ndarray],
    seed: int,
) -> pd.DataFrame:
    """Pair accuracy of rewards by category, all prompts first: columns group, reward, value, low,
    high, prompts.

    pool: evaluation pool; gold and each of scores: (rows,). Where the prompts are harmful and
    benign, those two groups take the place of the categories that mix them.
    """
    ids = pool["prompt_id"].to_numpy()
    accuracy = {name: pair_accuracy(ids, score, gold) for name, score in scores.items()}
    return _by_group(prompts, accuracy, seed)


def accuracy_on_given(prompts: pd.DataFrame, given: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same of the proxy alone, judged by preferences that did not train it.

    given: from `proxy_data.held_out`, prompt_id, label, and the proxy's margin.
    """
    decided = given[given["label"] != 0.5]
    right = (np.sign(decided["margin"]) * np.sign(decided["label"] - 0.5) + 1) / 2
    accuracy = right.groupby(decided["prompt_id"]).mean().rename("pair_accuracy").reset_index()
    return _by_group(prompts, {"proxy": accuracy}, seed)


def _by_group(prompts: pd.DataFrame, accuracy: dict[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Means of pair accuracy with intervals over prompts, for all prompts and for each group."""
    group = _groups(prompts)
    rows = []
    for name, table in accuracy.items():
        parts = table.groupby(table["prompt_id"].map(group))
        for label, part in [("all prompts", table), *parts]:
            draw = rng(seed, f"accuracy/{name}/{label}")
            interval = stats.mean_interval(part["pair_accuracy"], draw)
            rows.append((label, name, interval.value, interval.low, interval.high, len(part)))
    return pd.DataFrame(rows, columns=["group", "reward", "value", "low", "high", "prompts"])


def _groups(prompts: pd.DataFrame) -> dict[str, str]:
    """prompt_id to its group: harmful or benign where some are harmful, else the category."""
    group = prompts["category"]
    if prompts["harmful"].any():
        group = prompts["harmful"].map({True: "harmful requests", False: "benign look-alikes"})
    return dict(zip(prompts["prompt_id"], group, strict=True))


def attribute_correlation(
    name: str, pool: pd.DataFrame, scores: dict[str, np.ndarray]
) -> pd.DataFrame:
    """Per prompt, rank correlation between an attribute and each score: columns prompt_id,
    reward, correlation. Prompts on which either side does not vary are left out."""
    table = pool[["prompt_id"]].assign(attribute=pool["completion"].map(attribute(name)))
    rows = []
    for reward, score in scores.items():
        for prompt, part in table.assign(score=score).groupby("prompt_id"):
            rows.append((prompt, reward, stats.spearman(part["attribute"], part["score"])))
    correlations = pd.DataFrame(rows, columns=["prompt_id", "reward", "correlation"])
    return correlations.dropna(ignore_index=True)


def injected_attribute(params: Params) -> str | None:
    """The attribute that the run's bias follows; length where it follows none, and without gold,
    which it would be compared with, None."""
    followed = [m.attribute for m in params.bias if isinstance(m, Attribute)]
    if followed:
        return followed[0]
    return "length" if params.gold.known else None


def pair_errors(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """Every pair that gold tells apart, and the scores that could tell where the proxy is wrong.

    prompt_id        the pair's prompt
    wrong            the proxy ranks it against gold
    pacs             |PACS_i| + |PACS_j|
    pacs_difference  |PACS_i - PACS_j|
    kendall          K of the prompt
    margin           minus the proxy's reward difference

    conflict: a conflict table; gold: prompt_id, index, gold.
    """
    table = _with_gold(conflict, gold)
    parts = []
    for prompt, part in table.groupby("prompt_id"):
        i, j = np.triu_indices(len(part), 1)
        g, r, p = (part[c].to_numpy() for c in ("gold", "reward", "pacs"))
        pairs = pd.DataFrame(
            {
                "prompt_id": prompt,
                "wrong": np.sign(r[i] - r[j]) != np.sign(g[i] - g[j]),
                "pacs": np.abs(p[i]) + np.abs(p[j]),
                "pacs_difference": np.abs(p[i] - p[j]),
                "kendall": part["kendall"].iloc[0],
                "margin": -np.abs(r[i] - r[j]),
            }
        )
        parts.append(pairs[g[i] != g[j]])
    return pd.concat(parts, ignore_index=True)


def _with_gold(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """The conflict table with gold of each completion, sorted by id."""
    key = ["prompt_id", "index"]
    return conflict.merge(gold[[*key, "gold"]], on=key).sort_values(key)


def predicts_error(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Does conflict know where the proxy is wrong? Columns measure, value, low, high, chance;
    intervals resample prompts.

    Completions: Spearman correlation of |PACS| with the proxy's error |z(r) - z(g)|. Prompts:
    Spearman correlation of K with the share of pairs ranked wrongly. Pairs: area under the ROC
    curve for 'the proxy ranks this pair wrongly'.
    """
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
    rows = []
    for name, data, statistic, chance in _error_measures(conflict, gold):
        rows.append((name, statistic(data), chance))
    return pd.DataFrame(rows, columns=["measure", "value", "chance"])


def _error_measures(conflict: pd.DataFrame, gold: pd.DataFrame) -> list[tuple]:
    """(measure, table, statistic of that table, chance)."""
    table = _with_gold(conflict, gold)
    z_gold = table.groupby("prompt_id")["gold"].transform(lambda g: z_scores(g.to_numpy())[0])
    completions = pd.DataFrame(
        {
            "prompt_id": table["prompt_id"],
            "pacs": table["pacs"].abs(),
            "error": (table["z_reward"] - z_gold).abs(),
        }
    )
    pairs = pair_errors(conflict, gold)
    by_prompt = pairs.groupby("prompt_id")
    prompts = by_prompt.agg(wrong=("wrong", "mean"), kendall=("kendall", "first")).reset_index()
    # text of the measure, what it is read off, how, and what chance gives
    found, area = "wrong pairs found by", "area under ROC"
    own = "the proxy's own uncertainty"
    error, share = "the proxy's error on a completion", "the share of wrong pairs of a prompt"
    return [
        (f"|PACS| with {error}, Spearman", completions, _rank("pacs", "error"), 0.0),
        (f"K with {share}, Spearman", prompts, _rank("kendall", "wrong"), 0.0),
        (f"{found} |PACS|, {area}", pairs, _area("pacs"), 0.5),
        (f"{found} K, {area}", pairs, _area("kendall"), 0.5),
        (f"{found} |PACS_i - PACS_j|, {area}", pairs, _area("pacs_difference"), 0.5),
        (f"{found} {own}, {area}", pairs, _area("margin"), 0.5),
    ]


def _rank(first: str, second: str) -> Callable[[pd.DataFrame], float]:
    return lambda table: stats.spearman(table[first], table[second])


def _area(column: str) -> Callable[[pd.DataFrame], float]:
    return lambda pairs: stats.roc_auc(pairs["wrong"], pairs[column])


def roc_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """`pair_errors` in long form for the figure: score_name, positive, score."""
    names = {
        "pacs": "|PACS| of the pair",
        "kendall": "K of the prompt",
        "margin": "proxy's uncertainty",
    }
    parts = []
    for name, label in names.items():
        scores = {"score_name": label, "positive": pairs["wrong"], "score": pairs[name]}
        parts.append(pd.DataFrame(scores))
    return pd.concat(parts, ignore_index=True)


def hand_label_agreement() -> str:
    """How far the safety rules agree with 100 completions that were labelled by reading them,
    before the rules were run on them and after the last change to the rules. One sentence."""
    from shfcas_lib.tasks.embedded import hand_labels

    rows = hand_labels()
    rules = np.array([safety_score(r.completion, r.prompt, r.harmful) for r in rows.itertuples()])
    apart = np.abs(rules - rows["label"].to_numpy())
    return (
        f"safety rules against {len(rows)} completions labelled by hand: the same on"
        f" {np.mean(apart == 0):.0%}, within half a point on {np.mean(apart <= 0.5):.0%}, rank"
        f" correlation {stats.spearman(rules, rows['label']):.2f}"
    )
