"""Where a proxy is wrong, and whether conflict knows it: scores and gold of evaluation prompts go in, tables come out.

This is analysis for a reader. It uses gold on evaluation prompts only, and nothing of it flows back into selection. What cannot be said without
gold is None where there is none.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from shfcas_lib import runs, stats
from shfcas_lib.attributes import attribute
from shfcas_lib.conflict import z_scores
from shfcas_lib.dialogues import plain
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.params import Attribute, Params
from shfcas_lib.texts import printable


def shown(table: pd.DataFrame | None, what: str, needs: str = "gold") -> pd.DataFrame | None:
    """The table, rounded, for a cell to show; where there is none, one printed line says that `what` is left out for want of what it needs."""
    if table is None:
        print(f"{what}: left out, it needs {needs}")
        return None
    return table.round(3)


def judge(params: Params) -> str:
    """Who says which of two completions is better where the proxy is judged, with the verb."""
    return "gold ranks" if params.gold.known else "your preferences rank"


def accuracy_by_group(prompts: pd.DataFrame, pool: pd.DataFrame, gold: np.ndarray | None, scores: dict[str, np.ndarray], seed: int,
                      given: pd.DataFrame | None = None) -> pd.DataFrame | None:
    """Pair accuracy of rewards by category, all prompts first: columns group, reward, value, low, high, prompts.

    Where the prompts are harmful and benign, those two groups take the place of the categories that mix them. Without gold the proxy is judged by
    `given`, preferences that did not train it (`training_data.held_out`); None where there are none.
    """
    if gold is None and given is None:
        return None
    column = "harmful" if prompts["harmful"].any() else "category"
    group = dict(zip(prompts["prompt_id"], prompts[column]))
    if column == "harmful":
        group = {p: "harmful requests" if harmful else "benign look-alikes" for p, harmful in group.items()}
    judged = {"proxy": _accuracy_on(given)} if gold is None else {
        name: pair_accuracy(pool["prompt_id"].to_numpy(), score, gold) for name, score in scores.items()}
    rows = []
    for name, accuracy in judged.items():
        accuracy["group"] = accuracy["prompt_id"].map(group)
        for label, part in [("all prompts", accuracy), *accuracy.groupby("group")]:
            interval = stats.mean_interval(part["pair_accuracy"], runs.rng(seed, f"accuracy/{name}/{label}"))
            rows.append((label, name, interval.value, interval.low, interval.high, len(part)))
    return pd.DataFrame(rows, columns=["group", "reward", "value", "low", "high", "prompts"])


def _accuracy_on(given: pd.DataFrame) -> pd.DataFrame:
    """Per prompt, the share of decided preferences that the proxy's margin agrees with, equal rewards counting one half: prompt_id, pair_accuracy."""
    decided = given[given["label"] != 0.5]
    right = (np.sign(decided["margin"]) * np.sign(decided["label"] - 0.5) + 1) / 2
    return right.groupby(decided["prompt_id"]).mean().rename("pair_accuracy").reset_index()


def accuracy_told(table: pd.DataFrame | None) -> str:
    """What `accuracy_by_group` found over all prompts, as one line."""
    if table is None:
        return "how good the proxy is: not known, there is neither gold nor a preference of your own that did not train it"
    overall = table[table["group"] == "all prompts"].set_index("reward")
    if "clean" in overall.index:
        return f"pair accuracy on held-out prompts: proxy {overall.at['proxy', 'value']:.3f}, clean labels {overall.at['clean', 'value']:.3f}"
    row = overall.loc["proxy"]
    return f"given preferences that did not train the proxy, ranked as they say: {stats.Interval(row['value'], row['low'], row['high'])}, {row['prompts']} prompts"


def attribute_correlation(name: str | None, pool: pd.DataFrame, scores: dict[str, np.ndarray | None]) -> pd.DataFrame | None:
    """Per prompt, rank correlation between an attribute and each score: columns prompt_id, reward, correlation.

    Prompts on which either side does not vary are left out, and so is gold where there is none. None where there is no attribute.
    """
    if name is None:
        return None
    scores = {reward: score for reward, score in scores.items() if score is not None}
    table = pool[["prompt_id"]].assign(attribute=pool["completion"].map(attribute(name)))
    rows = []
    for reward, score in scores.items():
        for prompt, part in table.assign(score=score).groupby("prompt_id"):
            rows.append((prompt, reward, stats.spearman(part["attribute"], part["score"])))
    return pd.DataFrame(rows, columns=["prompt_id", "reward", "correlation"]).dropna(ignore_index=True)


def injected_attribute(params: Params) -> str | None:
    """The attribute that the run's bias follows; length where it follows none, and without gold, which it would be compared with, None."""
    return next((m.attribute for m in params.bias if isinstance(m, Attribute)), "length" if params.gold.known else None)


def pair_errors(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame | None:
    """Every pair that gold tells apart: prompt_id, wrong (the proxy ranks it against gold), and three scores that could tell:
    pacs (|PACS_i| + |PACS_j|), kendall (of the prompt) and margin (minus the proxy's reward difference).

    conflict: a conflict table; gold: prompt_id, index, gold, or without gold: then None.
    """
    if "gold" not in gold:
        return None
    table = conflict.merge(gold[["prompt_id", "index", "gold"]], on=["prompt_id", "index"]).sort_values(["prompt_id", "index"])
    parts = []
    for prompt, part in table.groupby("prompt_id"):
        i, j = np.triu_indices(len(part), 1)
        g, r, p = (part[c].to_numpy() for c in ("gold", "reward", "pacs"))
        told = g[i] != g[j]
        parts.append(pd.DataFrame({
            "prompt_id": prompt, "wrong": (np.sign(r[i] - r[j]) != np.sign(g[i] - g[j]))[told], "pacs": (np.abs(p[i]) + np.abs(p[j]))[told],
            "pacs_difference": np.abs(p[i] - p[j])[told],
            "kendall": part["kendall"].iloc[0], "margin": -np.abs(r[i] - r[j])[told]}))
    return pd.concat(parts, ignore_index=True)


def predicts_error(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> pd.DataFrame | None:
    """Does conflict know where the proxy is wrong? Columns measure, value, low, high, chance; intervals resample prompts.

    Completions: Spearman correlation of |PACS| with the proxy's error |z(r) - z(g)|. Prompts: Spearman correlation of K with
    the share of pairs ranked wrongly. Pairs: area under the ROC curve for 'the proxy ranks this pair wrongly'. None without gold.
    """
    if "gold" not in gold:
        return None
    rows = []
    for name, data, statistic, chance in _error_measures(conflict, gold):
        interval = stats.cluster_interval(data, "prompt_id", statistic, runs.rng(seed, f"predicts/{name}"))
        rows.append((name, interval.value, interval.low, interval.high, chance))
    return pd.DataFrame(rows, columns=["measure", "value", "low", "high", "chance"])


def error_measures(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """The same measures without intervals, where many seeds give them: columns measure, value, chance."""
    rows = [(name, statistic(data), chance) for name, data, statistic, chance in _error_measures(conflict, gold)]
    return pd.DataFrame(rows, columns=["measure", "value", "chance"])


def _error_measures(conflict: pd.DataFrame, gold: pd.DataFrame) -> list[tuple]:
    """(measure, table, statistic of that table, chance)."""
    table = conflict.merge(gold[["prompt_id", "index", "gold"]], on=["prompt_id", "index"]).sort_values(["prompt_id", "index"])
    z_gold = table.groupby("prompt_id")["gold"].transform(lambda g: z_scores(g.to_numpy())[0])
    completions = pd.DataFrame({"prompt_id": table["prompt_id"], "pacs": table["pacs"].abs(), "error": (table["z_reward"] - z_gold).abs()})
    pairs = pair_errors(conflict, gold)
    prompts = pairs.groupby("prompt_id").agg(wrong=("wrong", "mean"), kendall=("kendall", "first")).reset_index()
    return [
        ("|PACS| with the proxy's error on a completion, Spearman", completions, lambda t: stats.spearman(t["pacs"], t["error"]), 0.0),
        ("K with the share of wrong pairs of a prompt, Spearman", prompts, lambda t: stats.spearman(t["kendall"], t["wrong"]), 0.0),
        ("wrong pairs found by |PACS|, area under ROC", pairs, lambda t: stats.roc_auc(t["wrong"], t["pacs"]), 0.5),
        ("wrong pairs found by K, area under ROC", pairs, lambda t: stats.roc_auc(t["wrong"], t["kendall"]), 0.5),
        ("wrong pairs found by |PACS_i - PACS_j|, area under ROC", pairs, lambda t: stats.roc_auc(t["wrong"], t["pacs_difference"]), 0.5),
        ("wrong pairs found by the proxy's own uncertainty, area under ROC", pairs, lambda t: stats.roc_auc(t["wrong"], t["margin"]), 0.5),
    ]


def roc_table(pairs: pd.DataFrame | None) -> pd.DataFrame | None:
    """`pair_errors` in long form for the figure: score_name, positive, score."""
    if pairs is None:
        return None
    names = {"pacs": "|PACS| of the pair", "kendall": "K of the prompt", "margin": "proxy's uncertainty"}
    return pd.concat([pd.DataFrame({"score_name": label, "positive": pairs["wrong"], "score": pairs[name]}) for name, label in names.items()], ignore_index=True)


def changed_labels(biased: pd.DataFrame, pool: pd.DataFrame, count: int) -> str:
    """`count` preferences whose label the bias turned round, one a prompt, as plain text."""
    turned = biased[(biased["label"] != biased["label_clean"]) & ~biased["absent"]].drop_duplicates("prompt_id").head(count)
    text = pool.set_index(["prompt_id", "index"])
    blocks = []
    for row in turned.itertuples():
        chosen, rejected = (row.i, row.j) if row.label > 0.5 else (row.j, row.i)
        what = ", ".join(c.removeprefix("done_") for c in biased if c.startswith("done_") and getattr(row, c))
        blocks.append(f"PROMPT    {_read(text.loc[(row.prompt_id, row.i), 'prompt'])}\n"
                      f"  chosen now ({what})   {_line(text.loc[(row.prompt_id, chosen), 'completion'])}\n"
                      f"  chosen before   {_line(text.loc[(row.prompt_id, rejected), 'completion'])}")
    return "\n\n".join(blocks) or "no label was changed"


def worst_conflicts(conflict: pd.DataFrame, pool: pd.DataFrame, count: int = 10) -> str:
    """The completions with the largest |PACS|, as plain text: who likes what."""
    table = conflict.merge(pool[["prompt_id", "index", "prompt", "completion"]], on=["prompt_id", "index"])
    table = table.assign(size=table["pacs"].abs()).sort_values(["size", "prompt_id", "index"], ascending=[False, True, True])
    blocks = []
    for place, row in enumerate(table.head(count).itertuples(), 1):
        side = "the proxy likes it, the policy does not" if row.pacs > 0 else "the policy likes it, the proxy does not"
        blocks.append(f"{place:>2}. PACS {row.pacs:+.2f}, K {row.kendall:.2f}: {side}\n    PROMPT      {_read(row.prompt)}\n    COMPLETION  {_line(row.completion)}")
    return "\n\n".join(blocks)


def answers(labels: pd.DataFrame, pool: pd.DataFrame, count: int = 5) -> str:
    """The first comparisons that were asked and what was answered, as plain text."""
    text = pool.set_index(["prompt_id", "index"])
    blocks = []
    for row in labels.sort_values("rank").head(count).itertuples():
        marks = {"first": (">", " "), "second": (" ", ">"), "tie": ("=", "="), "both_bad": ("x", "x"), "skip": ("?", "?")}[row.answer]
        blocks.append(f"PROMPT {_read(text.loc[(row.prompt_id, row.i), 'prompt'])}   ({row.reason}; answered by {printable(row.annotator)})\n"
                      + "\n".join(f"  {mark} {_line(text.loc[(row.prompt_id, index), 'completion'])}" for mark, index in zip(marks, (row.i, row.j))))
    return "\n\n".join(blocks)


def side_by_side(pool: pd.DataFrame, gold: np.ndarray | None, scores: dict[str, np.ndarray], before: str, after: str, count: int = 3) -> str:
    """Favourite completions of two rewards on the prompts where gold differs most, the largest gains and the largest losses. Without gold: where their
    rankings differ most."""
    if gold is None:
        return rank_changes(pool, scores, before, after, 2 * count)
    table = pool[["prompt_id", "prompt", "completion"]].assign(gold=gold, **{"before": scores[before], "after": scores[after]})
    pick = {name: table.loc[table.groupby("prompt_id")[name].idxmax()].set_index("prompt_id") for name in ("before", "after")}
    change = (pick["after"]["gold"] - pick["before"]["gold"]).sort_values(kind="stable")
    blocks = [f"{int((change > 1e-9).sum())} of {len(change)} favourites got better, {int((change < -1e-9).sum())} got worse."]
    for title, prompts in (("GAIN", change.index[::-1][:count]), ("LOSS", change.index[:count])):
        for prompt in prompts:
            if (change[prompt] > 0) == (title == "GAIN") and change[prompt] != 0:
                old, new = pick["before"].loc[prompt], pick["after"].loc[prompt]
                blocks.append(f"{title}  PROMPT {_read(old['prompt'])}\n  {before:>8}, gold {old['gold']:.2f}: {_line(old['completion'])}\n"
                              f"  {after:>8}, gold {new['gold']:.2f}: {_line(new['completion'])}")
    return "\n\n".join(blocks)


def rank_changes(pool: pd.DataFrame, scores: dict[str, np.ndarray], before: str, after: str, count: int = 6) -> str:
    """On the `count` prompts where two rewards differ most, the completion that rose and the one that fell furthest, as plain text. Which of them is better
    is for the reader to say."""
    table = pool[["prompt_id", "prompt", "completion"]].assign(
        **{name: pd.Series(scores[name], index=pool.index).groupby(pool["prompt_id"]).rank(ascending=False, method="first") for name in (before, after)})
    table["rise"] = table[before] - table[after]
    by = table.groupby("prompt_id")["rise"]
    span = (by.max() - by.min()).sort_values(ascending=False, kind="stable")
    same = int((table.loc[table[before] == 1].set_index("prompt_id")[after] == 1).sum())
    blocks = [f"{same} of {len(span)} prompts keep their favourite; the rankings of {int((span > 0).sum())} differ."]
    for prompt in span.index[:count][span[:count] > 0]:
        part = table[table["prompt_id"] == prompt]
        lines = [f"PROMPT {_read(part['prompt'].iloc[0])}"]
        for title, row in (("ROSE", part.loc[part["rise"].idxmax()]), ("FELL", part.loc[part["rise"].idxmin()])):
            lines.append(f"  {title} from {row[before]:.0f} to {row[after]:.0f} of {len(part)}: {_line(row['completion'])}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _read(prompt: str) -> str:
    """A prompt as people read it."""
    return printable(plain(prompt))


def _line(text: str) -> str:
    """A completion on one line, control characters made visible: model output is data, whatever it holds."""
    return printable(" / ".join(part.strip() for part in text.splitlines() if part.strip()))
