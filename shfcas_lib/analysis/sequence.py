"""Confidence sequences: draws without replacement go in, an interval that may be watched comes out.

    draws = Draws(value, decided, asked, ...)
    interval(draws)        # holds at every moment at once, so whoever looks may stop when they like

What is estimated is a share of a finite population: the sum of the values of its decided pairs
over their number. Every candidate share t is put to the test by betting (Waudby-Smith and Ramdas
2023, Estimating means of bounded random variables by betting, JRSS-B; their form without
replacement). If t is true, the numbers decided x (value - t) sum to 0 over the population, so that
what is known of it gives the mean of the next draw, and nobody can expect to win money by bets
around that mean. A share against which a bettor multiplies the stake by 20 is out: that happens to
the true one in at most 5% of all runs, over all draws together (Ville's inequality). The bettor
spreads the stake over fixed fractions of the largest safe bet, on both sides (their grid Kelly).

It is the draw that is random here; labels are fixed numbers, and that those of one prompt
resemble each other is no matter. A pair that is not decided stays in the population and weighs
nothing, so that ties need no rule of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from shfcas_lib.analysis.stats import Interval

_STAKES = (np.arange(10) + 0.5) / 10  # shares of the largest bet that cannot lose everything
_CANDIDATES = 401


@dataclass(frozen=True)
class Draws:
    """Uniform draws from what was unknown of a population of `size`, in their order.

    value          (draws,), within `bounds`; no matter where the pair is not decided
    decided        (draws,), 1 or 0
    before         (draws, 3): pairs known before each draw, how many of them decided, and the
                   sum of the values of those
    start          (draws, 3): the same before the first draw of its round
    now            (3,): the same at the end, whatever made them known
    """

    value: np.ndarray
    decided: np.ndarray
    before: np.ndarray
    start: np.ndarray
    now: np.ndarray
    size: int
    bounds: tuple[float, float] = (0.0, 1.0)

    def __len__(self) -> int:
        return len(self.value)


def estimate(draws: Draws) -> float:
    """The share, from an unbiased estimate of its numerator and one of its denominator; NaN where
    no draw is decided.

    Each draw estimates a sum over the population: what was known before its round, and the draw
    times the number of pairs that were not."""
    known, decided, total = draws.start.T
    left = draws.size - known
    weight = (decided + left * draws.decided).sum()
    if not draws.decided.any():
        return np.nan
    return float((total + left * draws.decided * draws.value).sum() / weight)


def interval(draws: Draws, level: float = 0.95) -> Interval:
    """The estimate and the confidence sequence's interval for it after these draws."""
    candidates = np.linspace(*draws.bounds, _CANDIDATES)
    kept = np.ones(_CANDIDATES, bool)
    if len(draws):
        kept = log_capital(draws, candidates).max(0) < -np.log(1 - level)
    places = np.flatnonzero(kept)
    if not len(places):  # what is left lies between two candidates
        places = np.abs(candidates - np.nan_to_num(estimate(draws))).argmin(keepdims=True)
    # as far as the next candidate that is out, because the edge lies somewhere before it
    first, last = max(places[0] - 1, 0), min(places[-1] + 1, _CANDIDATES - 1)
    least, most = certain(draws)
    low, high = max(float(candidates[first]), least), min(float(candidates[last]), most)
    if low > high:  # what is known for certain says that this is one run in twenty
        low, high = least, most
    return Interval(float(np.clip(estimate(draws), low, high)), low, high, level)


def log_capital(draws: Draws, candidates: np.ndarray) -> np.ndarray:
    """The logarithm of what the bettor against each candidate has after each draw, having started
    with 1: (draws, candidates)."""
    known, decided, total = draws.before.T[..., None]
    left = draws.size - known
    mean = (decided * candidates - total) / left
    won = draws.decided[:, None] * (draws.value[:, None] - candidates) - mean
    down = mean - (draws.bounds[0] - candidates)  # the most that a draw can lie below its mean
    up = (draws.bounds[1] - candidates) - mean
    impossible = np.minimum(down, up) < -1e-9
    down, up = np.maximum(down, 1e-9), np.maximum(up, 1e-9)
    bets = np.stack([won / down, -won / up], -1)[..., None] * _STAKES
    wealth = np.log1p(np.maximum(bets, -1 + 1e-12)).cumsum(0)
    capital = logsumexp(wealth, axis=(-2, -1)) - np.log(2 * len(_STAKES))
    return np.where(np.maximum.accumulate(impossible, 0), np.inf, capital)


def certain(draws: Draws) -> tuple[float, float]:
    """The least and the most that the share can be, whatever the unknown pairs turn out to be."""
    known, decided, total = draws.now.tolist()
    left, (low, high) = draws.size - known, draws.bounds
    if not decided + left:
        return low, high
    return (total + left * low) / (decided + left), (total + left * high) / (decided + left)


def forecast(draws: Draws, more: int, level: float = 0.95) -> Interval:
    """What `interval` is expected to be after `more` further draws that go on as these did."""
    share = draws.decided.mean()
    value = np.nan_to_num(np.average(draws.value, weights=draws.decided + 1e-12))
    decided = _spread(share, more)
    low, high = draws.bounds
    right = low + (high - low) * _spread((value - low) / (high - low), int(decided.sum()))
    values = np.zeros(more)
    values[decided > 0] = right
    steps = np.column_stack([np.ones(more), decided, decided * values])
    after = draws.now + steps.cumsum(0)
    fits = after[:, 0] <= draws.size
    longer = Draws(
        np.concatenate([draws.value, values[fits]]),
        np.concatenate([draws.decided, decided[fits]]),
        np.concatenate([draws.before, (after - steps)[fits]]),
        np.concatenate([draws.start, np.tile(draws.now, (int(fits.sum()), 1))]),
        after[fits][-1] if fits.any() else draws.now,
        draws.size,
        draws.bounds,
    )
    return interval(longer, level)


def _spread(share: float, count: int) -> np.ndarray:
    """`count` ones and zeros, evenly mixed, of which `share` are ones."""
    return np.diff(np.floor(share * np.arange(count + 1) + 0.5))
