"""How wrong is the proxy, and is it time to stop? Labels go in, shares with intervals and one
sentence come out.

    table = asked(stage.folder / "shf_cas", store.labels())    # all rounds, in the order of asking
    found = report(setting, "shf_cas", stage.folder / "shf_cas", table)
    suggestion(found)                                          # what the annotation screen says

What is estimated is the pair accuracy of a reward on the whole pool: of all pairs that may be
asked about and that the annotator would decide, the share that the reward orders as the
annotator does. A pair that chance drew (column `drawn`: strategy `random`, or
`selection.random_share`) had the same chance as any other that was not asked in an earlier round,
so these labels speak for the pool. Those that a strategy chose speak for themselves alone: once
their round is complete they are known pairs of the pool, and chance draws from the rest.

The interval is a confidence sequence (module sequence): it holds at all times together, however
pairs were chosen beside the drawn ones, and whoever looks at it may stop when they like. The
labels of one prompt need not be independent, because only the draw is random. It takes the
annotator's answer to a pair as given: noise in answers counts as disagreement.

A reward that labels refined is judged only by labels drawn after it was trained, on the pairs not
asked before: that of the round before by those of the current round. Cross-validation would use
all labels, but each of its rewards learns from the labels that judge the others, and an interval
around their mean holds neither at one time nor at all times. Over several rounds the intervals of
refined rewards share the 5%.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib import loop, refine, trust
from shfcas_lib.analysis import sequence
from shfcas_lib.analysis.agreement import ordered_as
from shfcas_lib.analysis.stats import Interval
from shfcas_lib.evaluation import pair_accuracy
from shfcas_lib.selection import all_pairs
from shfcas_lib.storage.runs import read_table

MORE = 20  # labels that the forecast is about, and that the trend compares
_ENOUGH = 10  # labels that a reward is refined with before a trend means anything
_FEWEST = 5  # decided labels drawn by chance; an interval around fewer says nothing
_LITTLE = 0.02  # a change of the order, or of the interval's half, that is not worth 20 labels
_TOO_FEW = (
    f"The estimate of how wrong the proxy is starts at {_FEWEST} decided labels drawn by chance;"
    " so far there are {count}."
)
_KEY = ["prompt_id", "i", "j"]


def asked(folder: Path, labels: pd.DataFrame) -> pd.DataFrame:
    """What a strategy asked so far, in the order of asking.

    folder: the strategy's, which holds a folder for each round. labels: prompt_id, i, j, answer,
    label of those that are answered. Columns prompt_id, i, j, round, drawn, answered (bool), label
    (NaN where it was skipped or is not answered).
    """
    parts = []
    for number in itertools.count(1):
        path = folder / f"round_{number}" / "comparisons.parquet"
        if not path.exists():
            break
        parts.append(read_table(path).assign(round=number))
    if not parts:
        return pd.DataFrame(columns=[*_KEY, "round", "drawn", "answered", "label"])
    table = pd.concat(parts).sort_values(["round", "rank"])
    table = table.merge(labels[[*_KEY, "answer", "label"]], on=_KEY, how="left")
    table = table.assign(answered=table["answer"].notna())
    return table[[*_KEY, "round", "drawn", "answered", "label"]]


def report(setting: loop.Setting, strategy: str, folder: Path, table: pd.DataFrame) -> dict | None:
    """What labels say about the proxy and the refined reward; None before anything is asked.

    folder: the strategy's, as for `asked`, which made `table`. Keys

        strategy
        needs           why there is no estimate; the only other key where it is there
        pairs, drawn    pairs of the pool; decided labels of pairs drawn by chance
        proxy           value, low, high: its accuracy on the pool
        refined         the same of the reward that the last round started from, on the pairs not
                        asked before; None in the first round, and before five decided labels drawn
                        in this one; so are the next two
        differs         share of the pool's pairs that it orders otherwise than the proxy
        gain            value, low, high: on how many more of the pairs not asked before it is
                        right than the proxy, as a share of all of these, undecided ones too
        narrower        half of the proxy's interval now, and expected after 20 more labels
        changed         share of the pool's pairs that the last 20 labels made the refined reward
                        order differently; None before 30, and for a reward that is no probe
    """
    needs = _needs(setting, strategy)
    if needs:
        return {"strategy": strategy, "needs": needs}
    first = _scored(folder, 1)  # the pool of the first round, with the proxy's rewards
    if first is None:
        return None
    table = _within(table, first)
    right = _right(first, table)
    draws = drawn(_pairs(first), table, right)
    count = int(draws.decided.sum())
    if count < _FEWEST:
        return {"strategy": strategy, "needs": _TOO_FEW.format(count=count)}
    now = sequence.interval(draws)
    later = sequence.forecast(draws, _more_drawn(setting, strategy))
    return {
        "strategy": strategy,
        "pairs": draws.size,
        "drawn": count,
        "proxy": _numbers(now),
        **_refined(setting, folder, table, right),
        "narrower": [(now.high - now.low) / 2, (later.high - later.low) / 2],
        "changed": changed(setting, table),
    }


def suggestion(found: dict | None) -> str:
    """A report in words: how wrong the proxy is, and what another 20 labels are expected to
    change; nothing where there is nothing to say yet."""
    if not found:
        return ""
    if "needs" in found:
        return found["needs"]
    words = [
        f"The proxy is right on {_share(found['proxy'])} of the pool's pairs that labels would"
        f" decide, by {found['drawn']} labels drawn by chance"
    ]
    if found["refined"]:
        words.append(
            f"; the refined reward, which orders {found['differs']:.0%} otherwise, on"
            f" {_share(found['refined'])} of those not asked before, which changes"
            f" {_points(found['gain'])} points of all"
        )
    before, after = (100 * half for half in found["narrower"])
    words.append(
        f". Another {MORE} labels are expected to narrow ±{before:.1f} points to"
        f" ±{min(before, after):.1f}"
    )
    if found["changed"] is not None:
        words.append(f"; the last {MORE} changed the order of {found['changed']:.0%} of the pairs")
        if found["changed"] < _LITTLE and before - after < 100 * _LITTLE:
            words.append(": more of the same will change little, you may stop")
    return "".join(words) + "."


def drawn(
    pairs: int,
    table: pd.DataFrame,
    value: np.ndarray,
    since: int = 1,
    bounds: tuple[float, float] = (0.0, 1.0),
) -> sequence.Draws:
    """The pairs of `table` that chance drew in round `since` and later, as draws from those of
    `pairs` in all that were not asked before that round.

    value: (rows,), within the bounds. Draws count up to the first that is not answered, because a
    hard one may be left for later; pairs of a round before count as known.
    """
    decided = _decided(table)
    steps = np.column_stack([np.ones(len(table)), decided, decided * value])
    number, answered = table["round"].to_numpy(int), table["answered"].to_numpy(bool)
    chance = table["drawn"].to_numpy(bool)
    rows, before, start = [np.zeros(0, int)], [np.zeros((0, 3))], [np.zeros((0, 3))]
    for k in range(since, int(number.max(initial=0)) + 1):
        here = np.flatnonzero((number == k) & chance)
        here = here[np.logical_and.accumulate(answered[here])]
        earlier = steps[(number >= since) & (number < k)].sum(0)
        rows.append(here)
        before.append(earlier + steps[here].cumsum(0) - steps[here])
        start.append(np.tile(earlier, (len(here), 1)))
        if not answered[number == k].all():
            break
    place = np.concatenate(rows)
    return sequence.Draws(
        value[place],
        decided[place],
        np.concatenate(before),
        np.concatenate(start),
        steps[(number >= since) & answered].sum(0),
        pairs - int((number < since).sum()),
        bounds,
    )


def changed(setting: loop.Setting, table: pd.DataFrame) -> float | None:
    """The share of the pool's pairs that a reward refined with all labels of `table` orders
    otherwise than one without the last 20; None before 30 labels, and for a reward that is no
    probe (it would be trained twice)."""
    labels = table.dropna(subset=["label"])
    if setting.params.reward.kind != "probe" or len(labels) < MORE + _ENOUGH:
        return None
    pool, scores = setting.askable, []
    for part in (labels.head(len(labels) - MORE), labels):
        data = refine.Data(setting.known, setting.observed, part, setting.belief)
        reward = refine.update(setting.params.reward, data, 0, setting.proxy)
        scores.append(reward.score(pool))
    same = pair_accuracy(pool["prompt_id"].to_numpy(), *scores)["pair_accuracy"]
    return float(1 - same.mean()) if len(same) else None


def believed(setting: loop.Setting, table: pd.DataFrame, errs: np.ndarray) -> str:
    """What the labels say about the biased preferences, or about a published proxy, one sentence;
    nothing where the run's refinement does not ask, and while there are too few of them. errs:
    from `trust.doubt`."""
    settings, belief = setting.params.reward, setting.belief
    labels = _within(table.dropna(subset=["label"]), setting.known)
    if settings.refinement != "trust" or not trust.enough(labels):
        return ""
    labels = refine.weighed(labels, settings)
    if settings.fixed:
        given = setting.proxy.score(setting.known)
        return f"{trust.correct(setting.known, labels, given, settings.l2, errs)[2]}."
    return f"{trust.fit(belief, setting.known, labels, errs).report}." if belief else ""


def _needs(setting: loop.Setting, strategy: str) -> str | None:
    """Why these labels cannot say how wrong the proxy is."""
    if setting.params.feedback.kind == "mixed":
        return (
            "How wrong the proxy is cannot be told where a person and a judge share the"
            " comparisons: who answers hangs on the place in the list."
        )
    if strategy != "random" and not setting.params.selection.random_share:
        return (
            f"How wrong the proxy is on the whole pool cannot be told from pairs that {strategy}"
            " chose: the estimate needs selection.random_share (0.2, say)."
        )
    return None


def _refined(setting: loop.Setting, folder: Path, table: pd.DataFrame, right: np.ndarray) -> dict:
    """`refined`, `differs` and `gain` of a report. right: (rows,), where the proxy is."""
    last = int(table["round"].max())
    scored = _scored(folder, last) if last > 1 else None
    nothing = {"refined": None, "differs": None, "gain": None}
    if scored is None:
        return nothing
    value = _right(scored, table)
    pairs = _orders(folder, last)
    judged = drawn(len(pairs), table, value, last)
    if judged.decided.sum() < _FEWEST:
        return nothing
    level = 1 - 0.05 / (setting.params.selection.rounds - 1)  # one interval for each round
    other = pd.MultiIndex.from_frame(pairs.loc[pairs["differ"], _KEY])
    differ = pd.MultiIndex.from_frame(table[_KEY]).isin(other)
    found = gain(len(pairs), len(other), table, value - right, differ, last, level)
    return {
        "refined": _numbers(sequence.interval(judged, level)),
        "differs": len(other) / len(pairs),
        "gain": _numbers(found),
    }


def gain(
    pairs: int,
    differing: int,
    table: pd.DataFrame,
    change: np.ndarray,
    differ: np.ndarray,
    since: int,
    level: float = 0.95,
) -> Interval:
    """On how many more of the pairs not asked before round `since` one reward is right than
    another, as a share of all of these, undecided ones too.

    pairs, differing: how many the pool has, and on how many the two give different orders. change:
    (rows,), right of the one less right of the other, -1 to 1, on a pair of `table`; differ:
    (rows,) bool. Pairs that both order alike change nothing whatever their labels, so that only
    the differing ones are in doubt.
    """
    every = table.assign(label=1.0)  # an undecided pair counts, with a change of 0
    draws = drawn(differing, every[differ], (_decided(table) * change)[differ], since, (-1.0, 1.0))
    found = sequence.interval(draws, level)
    share = draws.size / (pairs - int((table["round"] < since).sum()))
    # where no draw is among them nothing speaks for a change but what is known already
    value = float(np.clip(np.nan_to_num(found.value), found.low, found.high))
    return Interval(share * value, share * found.low, share * found.high, level)


def _orders(folder: Path, number: int) -> pd.DataFrame:
    """All pairs of the pool, prompt_id, i, j, and differ: does the reward that a round started from
    order the pair otherwise than the proxy?"""
    signs = []
    for k in (1, number):
        pairs = all_pairs(read_table(folder / f"round_{k}" / "conflict.parquet"))
        signs.append(np.sign(pairs["reward_i"] - pairs["reward_j"]))
    return pairs[_KEY].assign(differ=signs[0] != signs[1])


def _decided(table: pd.DataFrame) -> np.ndarray:
    """(rows,): 1 where the label says which completion is better."""
    return (table["label"].notna() & (table["label"] != 0.5)).to_numpy(float)


def _scored(folder: Path, number: int) -> pd.DataFrame | None:
    """The completions that a round asked about: prompt_id, index, reward of what it started from;
    None before the round."""
    path = folder / f"round_{number}" / "conflict.parquet"
    if not path.exists():
        return None
    return pd.read_parquet(path, columns=["prompt_id", "index", "reward"])


def _within(table: pd.DataFrame, pool: pd.DataFrame) -> pd.DataFrame:
    """The rows about the pool; a trained policy's completions of later rounds are not of it."""
    named = pd.MultiIndex.from_frame(pool[["prompt_id", "index"]])
    both = [pd.MultiIndex.from_frame(table[["prompt_id", side]]).isin(named) for side in ("i", "j")]
    return table[both[0] & both[1]]


def _right(scored: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """(rows,): does the reward order the pair as labelled? Anything where it is not decided."""
    return np.nan_to_num(ordered_as(scored, table))


def _pairs(pool: pd.DataFrame) -> int:
    size = pool.groupby("prompt_id").size()
    return int((size * (size - 1) // 2).sum())


def _more_drawn(setting: loop.Setting, strategy: str) -> int:
    """How many of the next 20 labels chance will draw."""
    share = 1.0 if strategy == "random" else setting.params.selection.random_share
    return max(1, round(MORE * share))


def _numbers(interval: Interval) -> dict:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _share(numbers: dict) -> str:
    return f"{numbers['value']:.0%} [{numbers['low']:.0%}, {numbers['high']:.0%}]"


def _points(numbers: dict) -> str:
    value, low, high = (100 * numbers[name] for name in ("value", "low", "high"))
    return f"{value:+.0f} [{low:+.0f}, {high:+.0f}]"
