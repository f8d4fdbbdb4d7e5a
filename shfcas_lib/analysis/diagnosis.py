"""Where a proxy is wrong, and whether conflict knows it: scores and gold of evaluation prompts go
in, tables come out.

This is analysis for a reader. It needs gold, on evaluation prompts only, and nothing of it flows
back into selection. Where there is none, `given_predicts_error` asks preferences that did not train
the proxy, and module audit says how many of them it ranks rightly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from shfcas_lib.analysis import resamples, stats
from shfcas_lib.analysis.resamples import Resamples
from shfcas_lib.base.randomness import rng
from shfcas_lib.conflict import shuffled, z_scores
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.params.schema import Attribute, Params
from shfcas_lib.rewards import locate
from shfcas_lib.selection import all_pairs
from shfcas_lib.tasks.attributes import attribute
from shfcas_lib.tasks.safety import safety_score

SHUFFLES = 20  # of log-probabilities, behind one chance level
RESAMPLES = 1000


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


def _by_group(prompts: pd.DataFrame, accuracy: dict[str, pd.DataFrame], seed: int) -> pd.DataFrame:
    """Means of pair accuracy with intervals over prompts, for all prompts and for each group."""
    group = groups(prompts)
    rows = []
    for name, table in accuracy.items():
        parts = table.groupby(table["prompt_id"].map(group))
        for label, part in [("all prompts", table), *parts]:
            draw = rng(seed, f"accuracy/{name}/{label}")
            interval = stats.mean_interval(part["pair_accuracy"], draw)
            rows.append((label, name, interval.value, interval.low, interval.high, len(part)))
    return pd.DataFrame(rows, columns=["group", "reward", "value", "low", "high", "prompts"])


def groups(prompts: pd.DataFrame) -> dict[str, str]:
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
    margin           minus the proxy's reward difference: large where the margin is small

    conflict: a conflict table; gold: prompt_id, index, gold.
    """
    table = _with_gold(conflict, gold)
    first, second = _told_apart(table)
    reward, truth = (table[name].to_numpy() for name in ("reward", "gold"))
    apart = reward[first] - reward[second]
    facts = {
        "prompt_id": table["prompt_id"].to_numpy()[first],
        "wrong": np.sign(apart) != np.sign(truth[first] - truth[second]),
    }
    return pd.DataFrame(facts | _pair_scores(table, first, second) | {"margin": -np.abs(apart)})


def _with_gold(conflict: pd.DataFrame, gold: pd.DataFrame) -> pd.DataFrame:
    """The conflict table with gold of each completion, sorted by id."""
    key = ["prompt_id", "index"]
    return conflict.merge(gold[[*key, "gold"]], on=key).sort_values(key, ignore_index=True)


def _told_apart(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The rows of both completions of every pair that gold tells apart, sorted by id."""
    pairs = all_pairs(table)
    first, second = (locate(table, pairs, side) for side in ("i", "j"))
    truth = table["gold"].to_numpy()
    apart = truth[first] != truth[second]
    return first[apart], second[apart]


def _pair_scores(
    conflict: pd.DataFrame, first: np.ndarray, second: np.ndarray
) -> dict[str, np.ndarray]:
    """The scores of pairs that look at the policy; first, second: rows of the conflict table."""
    pacs = conflict["pacs"].to_numpy()
    return {
        "pacs": np.abs(pacs[first]) + np.abs(pacs[second]),
        "pacs_difference": np.abs(pacs[first] - pacs[second]),
        "kendall": conflict["kendall"].to_numpy()[first],
    }


def predicts_error(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Does conflict know where the proxy is wrong, and better than its placebo?

    Completions: Spearman correlation of |PACS| with the proxy's error |z(r) - z(g)|. Prompts:
    Spearman correlation of K with the share of pairs ranked wrongly. Pairs: area under the ROC
    curve for 'the proxy ranks this pair wrongly'.

    |PACS| and the error both hold z(r), so that chance is neither 0 nor 1/2. It is measured: the
    same number with log-probabilities shuffled within the prompt (`conflict.shuffled`), the mean
    of SHUFFLES of them; 1/2 for the proxy's margin, which has no log-probability in it. Columns

        measure
        value, low, high                 intervals resample prompts
        chance, chance_low, chance_high  the placebo, in the same resamples
        above, above_low, above_high     value over the placebo, paired by resample
        p, p_holm, verdict               of `above`, see `stats.verdicts`; one family
    """
    return _against_chance(_error_measures(conflict, gold, seed), seed)


def _against_chance(measures: list[_Measure], seed: int) -> pd.DataFrame:
    """Measures with their intervals and placebos: the table of `predicts_error`."""
    rows = []
    for measure in measures:
        draw = rng(seed, f"predicts/{measure.name}")
        found, chance = measure.levels(resamples.draw(measure.prompt, draw, RESAMPLES))
        triples = [stats.from_draws(d[0], d[1:]) for d in (found, chance, found - chance)]
        numbers = [number for one in triples for number in (one.value, one.low, one.high)]
        rows.append((measure.name, *numbers, triples[-1].p))
    columns = [f"{name}{end}" for name in ("chance", "above") for end in ("", "_low", "_high")]
    columns = ["measure", "value", "low", "high", *columns, "p"]
    return stats.verdicts(pd.DataFrame(rows, columns=columns), prefix="above_")


def given_predicts_error(given: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same question of pairs that people labelled: does the policy know which of them the proxy
    ranks against the label?

    given: prompt_id, label, proxy (reward of i less that of j) and policy (log-probability of i
    less that of j), ties and equal rewards left out. With two completions PACS knows no more than
    whether proxy and policy order them alike. So the policy's doubt is read, too: how much more
    log-probability it gives the answer that the proxy rejects. The placebo deals a pair's two
    log-probabilities out anew, SHUFFLES times. Columns as in `predicts_error`.
    """
    given = given[(given["label"] != 0.5) & (given["proxy"] != 0)]
    side = np.sign(given["proxy"].to_numpy())
    wrong = side != np.sign(given["label"].to_numpy() - 0.5)
    doubt = -side * given["policy"].to_numpy()
    generator = rng(seed, "placebo/given")
    dealt = [doubt * generator.choice([-1.0, 1.0], len(doubt)) for _ in range(SHUFFLES)]
    prompt = given["prompt_id"].reset_index(drop=True)
    found = {
        "the policy's doubt": (doubt, dealt),
        "|PACS| (0 or 2 each)": (1.0 * (doubt > 0), [1.0 * (one > 0) for one in dealt]),
        "the proxy's margin (small first)": (-np.abs(given["proxy"].to_numpy()), []),
    }
    measures = []
    for words, (score, placebos) in found.items():
        name = f"wrong pairs found by {words}, area under ROC"
        measures.append(_Measure(name, Resamples.area, prompt, wrong, score, placebos))
    return _against_chance(measures, seed)


def error_measures(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The same measures and their placebos without intervals, where many seeds give them: columns
    measure, value, chance."""
    rows = []
    for measure in _error_measures(conflict, gold, seed):
        found, chance = measure.levels(resamples.draw(measure.prompt, rng(seed, "none"), 0))
        rows.append((measure.name, found[0], chance[0]))
    return pd.DataFrame(rows, columns=["measure", "value", "chance"])


def as_text(predicts: pd.DataFrame) -> pd.DataFrame:
    """`predicts_error` for people: value, placebo, above it and verdict, by measure (the index: a
    notebook would cut its words in a column)."""
    shown = {}
    for title, name in {"value": "value", "placebo": "chance", "above it": "above"}.items():
        ends = ("low", "high") if name == "value" else (f"{name}_low", f"{name}_high")
        limits = predicts[[name, *ends]].itertuples(index=False)
        shown[title] = [str(stats.Interval(*row)) for row in limits]
    shown["verdict"] = predicts["verdict"].to_list()
    return pd.DataFrame(shown, index=pd.Index(predicts["measure"]))


@dataclass(frozen=True)
class _Measure:
    """How well one score tells where the proxy is wrong.

    name       what is measured, in words
    statistic  Resamples.area or Resamples.correlation
    prompt     (rows,) each row's prompt
    error      (rows,) what is to be told
    score      (rows,) what may tell it
    placebos   the same score after each shuffle, (rows,) each; none where it holds no logp
    """

    name: str
    statistic: Callable[[Resamples, np.ndarray, list[np.ndarray]], np.ndarray]
    prompt: pd.Series
    error: np.ndarray
    score: np.ndarray
    placebos: list[np.ndarray]

    def levels(self, drawn: Resamples) -> tuple[np.ndarray, np.ndarray]:
        """The statistic and its chance level in every resample, (1 + resamples,) each."""
        found = self.statistic(drawn, self.error, [self.score])
        if not self.placebos:
            return found, np.full(len(found), 0.5)
        return found, self.statistic(drawn, self.error, self.placebos)


def _error_measures(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> list[_Measure]:
    """What `predicts_error` reports, in its order."""
    table, pairs = _with_gold(conflict, gold), pair_errors(conflict, gold)
    placebos = _placebos(table, seed)
    first, second = _told_apart(table)
    scores = [_pair_scores(one, first, second) for one in (table, *placebos)]
    area, correlation = Resamples.area, Resamples.correlation

    # completions: |PACS| and the proxy's error on each
    z_gold = table.groupby("prompt_id")["gold"].transform(lambda g: z_scores(g.to_numpy())[0])
    error = (table["z_reward"] - z_gold).abs().to_numpy()
    size, *sizes = [one["pacs"].abs().to_numpy() for one in (table, *placebos)]
    name = "|PACS| with the proxy's error on a completion, Spearman"
    measures = [_Measure(name, correlation, table["prompt_id"], error, size, sizes)]

    # prompts: K, which all pairs of one have in common, and their share of wrong pairs
    prompts, start = np.unique(pairs["prompt_id"], return_index=True)
    share = pairs.groupby("prompt_id")["wrong"].mean().to_numpy()
    rank, *ranks = [one["kendall"][start] for one in scores]
    name = "K with the share of wrong pairs of a prompt, Spearman"
    measures += [_Measure(name, correlation, pd.Series(prompts), share, rank, ranks)]

    # pairs: each score as a detector of wrong ones
    wrong = pairs["wrong"].to_numpy()
    for key, words in _DETECTORS.items():
        name = f"wrong pairs found by {words}, area under ROC"
        shuffles = [one[key] for one in scores[1:] if key in one]
        score = pairs[key].to_numpy()
        measures += [_Measure(name, area, pairs["prompt_id"], wrong, score, shuffles)]
    return measures


_DETECTORS = {
    "pacs": "|PACS|",
    "kendall": "K",
    "pacs_difference": "|PACS_i - PACS_j|",
    "margin": "the proxy's margin (small first)",
}


def _placebos(conflict: pd.DataFrame, seed: int) -> list[pd.DataFrame]:
    """Conflict tables with shuffled log-probabilities, the same ones for all that asks."""
    generator = rng(seed, "placebo")
    return [shuffled(conflict, generator) for _ in range(SHUFFLES)]


def roc_table(conflict: pd.DataFrame, gold: pd.DataFrame, seed: int) -> pd.DataFrame | None:
    """Points of the ROC curves of three scores of pairs, and of the placebos of two; None where
    gold tells no pair apart.

    Columns score_name, placebo (bool), false_positive_rate, true_positive_rate, area. A placebo's
    curve and area are means over its shuffles.
    """
    pairs = pair_errors(conflict, gold)
    if not len(pairs):
        return None
    table = _with_gold(conflict, gold)
    shuffles = [_pair_scores(one, *_told_apart(table)) for one in _placebos(table, seed)]
    names = {"pacs": "|PACS| of the pair", "kendall": "K of the prompt"}
    names["margin"] = "proxy's margin (small first)"
    parts = []
    for key, name in names.items():
        points = stats.roc_curve(pairs["wrong"], pairs[key])
        area = stats.roc_auc(pairs["wrong"], pairs[key])
        parts.append(points.assign(score_name=name, placebo=False, area=area))
        if key in shuffles[0]:
            mean = _mean_roc(pairs["wrong"], [one[key] for one in shuffles])
            parts.append(mean.assign(score_name=name, placebo=True))
    columns = ["score_name", "placebo", "false_positive_rate", "true_positive_rate", "area"]
    return pd.concat(parts, ignore_index=True)[columns]


def _mean_roc(positive: pd.Series, scores: list[np.ndarray]) -> pd.DataFrame:
    """The mean of several ROC curves, at a hundred and one false positive rates, and mean area."""
    grid = np.linspace(0, 1, 101)
    curves = []
    for score in scores:
        points = stats.roc_curve(positive, score)
        x, y = points["false_positive_rate"], points["true_positive_rate"]
        curves.append(np.interp(grid, x, y))
    heights = np.r_[0.0, np.mean(curves, 0)[1:]]  # from the corner
    area = np.mean([stats.roc_auc(positive, score) for score in scores])
    return pd.DataFrame({"false_positive_rate": grid, "true_positive_rate": heights, "area": area})


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
