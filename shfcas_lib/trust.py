"""Whom to trust: biased preferences and human labels go in, a reward and a trust report come out.

    belief = believe(pool, observed, l2=300.0)      # once a run: what the biased pairs say
    trusted = fit(belief, pool, labels)             # after each round, a fraction of a second
    trusted.score(pool), str(trusted.report)

In the probe's design d the reward has weights w, and what the biased annotators share beyond it,
their *taste*, has weights v:

    biased pair   P(i > j) = sigmoid(d.(w + v))
    human label   P(i > j) = sigmoid(kappa d.w)

    minimise  - sum log P + l2 / (2 tau rho) |w|^2 + l2 / (2 tau (1 - rho)) |v|^2

which is convex. A tie counts as half a label for each side and weighs TIE in
all. rho is the share of what the biased pairs say that is quality: 1, there is no taste, and pairs
and labels speak of one thing
(`refine.merge`); towards 0, the pairs are forgotten. kappa says how much sharper than the
annotators the human is; below 1, blunter.

tau, the size of everything, is the one of TAUS under which the biased pairs are most probable
(Laplace's evidence: MacKay 1992). rho and kappa are not chosen but averaged: the scores of every
combination, of unit spread, weigh as much as the combination foretells the decided labels, each
from all the others (leave-one-out by the cavity of the Gaussian posterior: Rasmussen and Williams
2006, section 5.4.2). A human errs in a share e of the answers, so that no label is foretold with
more than 1 - e; e is averaged too, from a prior that repeated answers sharpen (`doubt`). So the
weights over rho are a finding: how much of what the biased annotators prefer the labels
contradict.

Neighbours: a power prior (Ibrahim and Chen 2000) lets new data choose how much old data count; a
cut model (Plummer 2015) keeps a doubtful part of a model from informing the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd

from shfcas_lib import pool as pools
from shfcas_lib.base.errors import InputError
from shfcas_lib.rewards import Probe, RewardModel, design, locate, spread, standardised, weights
from shfcas_lib.storage import files

TAUS = (0.03, 0.1, 0.3, 1.0)  # a larger one fits better and ranks no better (docs/log.md)
RHOS = {1.0: 0.0, 0.5: 0.0, 0.3: -0.5, 0.2: -1.0, 0.1: -1.5}  # each with its log prior
KAPPAS = (0.3, 1.0, 3.0)
ERRORS = {0.02: 0.3, 0.1: 0.4, 0.2: 0.2, 0.3: 0.1}  # each with its prior probability
START = (0.3, 3.0)  # rho and kappa while there is no label
TIE = 0.25
FEWEST = 5  # decided labels, about two prompts at least
LARGEST = 4096  # biased pairs: of more, so many evenly spaced ones are read


@dataclass(frozen=True)
class Belief:
    """What the biased pairs say, before any label, by Laplace's approximation at their mode.

    tau         size of all weights, in units of 1 / l2
    biased      the pairs: prompt_id, i, j, label
    mean, std   (2, 4 x hidden), of the probe's design on the completions that the pairs name
    difference  (pairs, 4 x hidden), d_i - d_j
    evidence    the log evidence of each value of TAUS
    covariance  (pairs, pairs), prior covariance of the pairs' margins
    gradient    (pairs,), label - p at the mode
    root        (pairs,), square root of p (1 - p) there
    factor      lower Cholesky factor of 1 + root covariance root
    """

    l2: float
    tau: float
    biased: pd.DataFrame
    mean: np.ndarray
    std: np.ndarray
    difference: np.ndarray
    evidence: dict[float, float]
    covariance: np.ndarray
    gradient: np.ndarray
    root: np.ndarray
    factor: np.ndarray

    @property
    def label(self) -> np.ndarray:
        """(pairs,), of the biased pairs."""
        return self.biased["label"].to_numpy(float)

    def solve(self, values: np.ndarray) -> np.ndarray:
        """(covariance + 1 / root^2)^-1 values; values: (pairs, columns)."""
        from scipy.linalg import cho_solve

        root = self.root[:, None]
        return root * cho_solve((self.factor, True), root * values, check_finite=False)

    def columns(self, pool: pd.DataFrame) -> np.ndarray:
        """The probe's design of a pool's completions, (rows, 4 x hidden)."""
        return design(pools.features(pool), self.mean, self.std)

    def covariances(self, columns: np.ndarray, rho: float) -> np.ndarray:
        """Covariance of the scores of completions after the biased pairs, (rows, rows)."""
        size = self.tau * rho / self.l2
        seen = self.whitened(self.difference @ columns.T)
        return size * columns @ columns.T - size**2 * seen.T @ seen

    def whitened(self, values: np.ndarray) -> np.ndarray:
        """factor^-1 root values; values: (pairs, ...). Its square is what the pairs take from a
        covariance."""
        from scipy.linalg import solve_triangular

        scaled = self.root[:, None] * values
        return solve_triangular(self.factor, scaled, lower=True, check_finite=False)


def believe(pool: pd.DataFrame, biased: pd.DataFrame, l2: float) -> Belief:
    """What biased preferences say. pool: holds every completion named; biased: prompt_id, i, j,
    label in [0, 1]. l2: how strongly weights are held small, `reward.l2`. Time grows with the
    cube of the pairs; of more than LARGEST, as many evenly spaced ones are read. Raises InputError
    for no preferences or a completion that is missing."""
    if not len(biased):
        raise InputError("no biased preferences: there is nothing to learn how far to trust")
    if len(biased) > LARGEST:
        biased = biased.iloc[np.linspace(0, len(biased) - 1, LARGEST).astype(int)]
    first, second = (locate(pool, biased, column) for column in ("i", "j"))
    used, rows = np.unique(np.concatenate([first, second]), return_inverse=True)
    columns, mean, std = standardised(pools.features(pool.iloc[used]))
    difference = columns[rows[: len(first)]] - columns[rows[len(first) :]]
    label = biased["label"].to_numpy(float)

    # each value of tau starts from the mode of the one before
    gram = difference @ difference.T / l2
    modes, start = {}, np.zeros(len(label))
    for tau in TAUS:
        modes[tau] = _mode(tau * gram, label, start)
        start = modes[tau].gradient
    evidence = {tau: mode.evidence for tau, mode in modes.items()}
    tau = max(evidence, key=evidence.__getitem__)
    best = modes[tau]
    known = (l2, tau, biased, mean, std, difference, evidence, tau * gram)
    return Belief(*known, best.gradient, best.root, best.factor)


@dataclass(frozen=True)
class _Mode:
    gradient: np.ndarray
    root: np.ndarray
    factor: np.ndarray
    evidence: float


def _mode(covariance: np.ndarray, label: np.ndarray, start: np.ndarray) -> _Mode:
    """The most probable margins of pairs under a Gaussian prior: Newton's method with halved
    steps (Rasmussen and Williams 2006, algorithm 3.1), margins = covariance @ gradient."""
    from scipy.linalg import cho_solve
    from scipy.special import expit

    def cost(a: np.ndarray, margin: np.ndarray) -> float:
        return (np.logaddexp(0, margin) - label * margin).sum() + a @ margin / 2

    a, margin = start, covariance @ start
    for _ in range(60):
        root, factor = _curvature(covariance, margin)
        push = root**2 * margin + label - expit(margin)
        inner = cho_solve((factor, True), root * (covariance @ push), check_finite=False)
        step = push - root * inner - a
        ahead = covariance @ step
        while cost(a + step, margin + ahead) > cost(a, margin) + 1e-12 * len(label):
            step, ahead = step / 2, ahead / 2
        a, margin = a + step, margin + ahead
        if np.abs(step).max() < 1e-10:
            break
    root, factor = _curvature(covariance, margin)
    evidence = -cost(a, margin) - np.log(np.diag(factor)).sum()
    return _Mode(label - expit(margin), root, factor, float(evidence))


def _curvature(covariance: np.ndarray, margin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """sqrt(p (1 - p)), and the lower Cholesky factor of 1 + root covariance root."""
    from scipy.linalg import cholesky
    from scipy.special import expit

    p = expit(margin)
    root = np.sqrt(np.maximum(p * (1 - p), 1e-12))
    return root, cholesky(_identity_plus(covariance, root), lower=True, check_finite=False)


# --- human labels


@dataclass(frozen=True)
class Report:
    """What the labels say about the biased pairs, or about a published proxy.

    tau         size of all weights (TAUS)
    decided     labels that are no tie
    candidates  rho, kappa, error, share: the posterior over combinations, shares summing to 1
    about       what the labels speak about
    """

    tau: float
    decided: int
    candidates: pd.DataFrame
    about: str = "the biased preferences say"

    def posterior(self, name: str) -> pd.Series:
        """The shares by the values of rho, kappa or error."""
        return self.candidates.groupby(name)["share"].sum()

    def mean(self, name: str) -> float:
        """The posterior mean of rho, kappa or error."""
        return float(self.candidates[name] @ self.candidates["share"])

    @property
    def lead(self) -> float:
        """The posterior mean of kappa rho: what a lead of 1 in the biased annotators' reward is
        worth in the human's."""
        worth = self.candidates["rho"] * self.candidates["kappa"]
        return float(worth @ self.candidates["share"])

    @property
    def disbelieved(self) -> float:
        """The share of what the biased pairs add that the labels contradict, 1 - E(rho)."""
        return 1 - self.mean("rho")

    @property
    def best(self) -> tuple[float, float]:
        """The most probable rho and kappa."""
        rho, kappa = self.candidates.groupby(["rho", "kappa"])["share"].sum().idxmax()
        return float(rho), float(kappa)

    def __str__(self) -> str:
        return (
            f"{self.decided} decided labels contradict {words(self.disbelieved)} of what"
            f" {self.about} ({self.disbelieved:.0%}); people are taken to err in"
            f" {self.mean('error'):.0%} of their answers"
        )


def words(share: float) -> str:
    """A share in words that claim no more than it knows."""
    steps = {0.1: "almost nothing", 0.3: "about a fifth", 0.45: "over a third", 0.55: "about half"}
    steps |= {0.62: "over half", 0.72: "about two thirds", 0.8: "about three quarters"}
    for most, words in steps.items():
        if share < most:
            return words
    return "most"


@dataclass(frozen=True)
class Trusted:
    """A reward that learnt from labels how far to trust the biased pairs, with what it learnt.

    quality  the reward
    taste    what the biased annotators share beyond it, in log odds of their answers; for a
             published proxy, what labels taught
    """

    MARKER: ClassVar[str] = "trust.json"

    quality: RewardModel
    taste: Probe
    report: Report

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,)."""
        return self.quality.score(pool)

    def save(self, folder: Path) -> None:
        """Write both into folders of their own, then trust.json."""
        self.quality.save(folder / "quality")
        self.taste.save(folder / "taste")
        facts = vars(self.report) | {"candidates": self.report.candidates.to_dict("list")}
        files.write_json(folder / self.MARKER, facts)

    @classmethod
    def load(cls, folder: Path, read: Callable[[Path], RewardModel]) -> Trusted:
        """Read what `save` wrote. read: gives the reward that a folder holds."""
        facts = files.read_json(folder / cls.MARKER)
        report = Report(**facts | {"candidates": pd.DataFrame(facts["candidates"])})
        return cls(read(folder / "quality"), Probe.load(folder / "taste"), report)


def inner(reward: RewardModel) -> RewardModel:
    """The reward proper, without the report of how it came about."""
    return reward.quality if isinstance(reward, Trusted) else reward


def enough(labels: pd.DataFrame) -> bool:
    """Can these labels (prompt_id, label) tell whom to trust? It takes FEWEST decided ones, about
    two prompts at least."""
    decided = labels[labels["label"].notna() & (labels["label"] != 0.5)]
    return len(decided) >= FEWEST and decided["prompt_id"].nunique() >= 2


def doubt(agreed: int, differed: int) -> np.ndarray:
    """The probability of each value of ERRORS, (errors,), where the same question was answered
    twice, by one person or by two, `agreed` times alike and `differed` times not: two answers that
    each err with probability e are alike with (1 - e)^2 + e^2."""
    error = np.array(list(ERRORS))
    alike = (1 - error) ** 2 + error**2
    probability = np.array(list(ERRORS.values())) * alike**agreed * (1 - alike) ** differed
    return probability / probability.sum()


def fit(
    belief: Belief, pool: pd.DataFrame, labels: pd.DataFrame, errs: np.ndarray | None = None
) -> Trusted:
    """The reward that labels and biased pairs give together, averaged over whom to trust.

    pool: holds every completion that labels and pairs name. labels: prompt_id, i, j, label in [0,
    1], optional weight; see `enough`. errs: the probability of each of ERRORS, from `doubt`.
    Raises InputError for a completion that is missing."""
    asked = _read(belief, pool, labels)
    fits = _joint(belief, asked, _GRID)
    report = _report(belief.tau, asked, fits, errs)
    share = report.candidates.groupby(["rho", "kappa"], sort=False)["share"].sum().to_numpy()

    # gradients become weights: of what pairs and labels say together, and of quality
    rho, kappa = _column("rho"), _column("kappa")
    size = belief.tau / belief.l2
    pairs = size * (belief.difference.T @ np.stack([found.pairs for found in fits], 1))
    answers = np.stack([found.labels for found in fits], 1) * kappa
    quality = rho * (pairs + size * (asked.difference.T @ answers))

    weight = quality @ (share / _units(asked.columns @ quality, asked.prompts))
    unit = spread(asked.columns @ weight, asked.prompts)
    return Trusted(
        Probe(belief.mean, belief.std, weight, unit),
        Probe(belief.mean, belief.std, pairs @ ((1 - rho) * share)),
        report,
    )


def correct(
    pool: pd.DataFrame,
    labels: pd.DataFrame,
    offset: np.ndarray,
    l2: float,
    errs: np.ndarray | None = None,
) -> tuple[float, Probe, Report]:
    """How far labels believe a reward that is given, and what they teach on top of it: o, a probe
    c and a report, for the reward o r + c. Here rho is o, and tau is 1.

    offset: (pool rows,), r, of unit spread. labels, errs: as for `fit`."""
    first, second = (locate(pool, labels, column) for column in ("i", "j"))
    used, rows = np.unique(np.concatenate([first, second]), return_inverse=True)
    columns, mean, std = standardised(pools.features(pool.iloc[used]))
    difference = columns[rows[: len(first)]] - columns[rows[len(first) :]]
    prompts = pool["prompt_id"].to_numpy()[used]
    gram = difference @ difference.T / l2
    none = np.zeros((0, len(labels)))
    asked = _Asked(difference, *_said(labels), columns, prompts, gram, none, none)

    lead = offset[first] - offset[second]
    fits = [_alone(asked, *candidate, lead) for candidate in _GRID]
    report = replace(_report(1.0, asked, fits, errs), about="the published proxy says")
    share = report.candidates.groupby(["rho", "kappa"], sort=False)["share"].sum().to_numpy()
    answers = np.stack([found.labels for found in fits], 1) * _column("kappa")
    taught = difference.T @ answers / l2
    scores = np.outer(offset[used], _column("rho")) + columns @ taught
    mixed = share / _units(scores, prompts)
    probe = Probe(mean, std, taught @ mixed)
    return float(_column("rho") @ mixed), probe, report


_GRID = list(product(RHOS, KAPPAS))


def _column(name: str) -> np.ndarray:
    """The values of rho or kappa over the grid, (combinations,)."""
    return np.array(_GRID)[:, ("rho", "kappa").index(name)]


def _units(scores: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """The spread of every column of scores, (columns,): none may count for more because its
    weights are large."""
    return np.array([spread(column, prompts) for column in scores.T])


def _report(tau: float, asked: _Asked, fits: list[_Fit], errs: np.ndarray | None) -> Report:
    """The posterior over rho, kappa and the error rate, by how the decided labels were foretold."""
    right = np.stack([found.foretold(asked) for found in fits])
    error, known = np.array(list(ERRORS)), doubt(0, 0) if errs is None else errs
    said = np.log((1 - 2 * error[:, None]) * right[:, None, :] + error[:, None]).sum(2)
    prior = np.array([RHOS[rho] for rho, _ in _GRID])
    weight = said + prior[:, None] + np.log(known)
    share = np.exp(weight - weight.max())
    rows = [(*candidate, e) for candidate in _GRID for e in ERRORS]
    table = pd.DataFrame(rows, columns=["rho", "kappa", "error"])
    return Report(tau, right.shape[1], table.assign(share=(share / share.sum()).ravel()))


def covariances(
    belief: Belief, pool: pd.DataFrame, known: pd.DataFrame, labels: pd.DataFrame, report: Report
) -> np.ndarray:
    """Covariance of the scores of a pool's completions after pairs and labels, (rows, rows), under
    the most probable rho and kappa of a report on them.

    known: holds every completion that labels and pairs name."""
    rho, kappa = report.best
    ends = [known.iloc[locate(known, labels, side)] for side in ("i", "j")]
    prior = belief.covariances(belief.columns(pd.concat([pool, *ends])), rho)

    rows, count = len(pool), len(labels)
    first, second = (slice(rows + k * count, rows + (k + 1) * count) for k in (0, 1))
    margins = kappa * (prior[:, first] - prior[:, second])
    within = kappa * (margins[first] - margins[second])
    (found,) = _joint(belief, _read(belief, known, labels), [(rho, kappa)])
    root = np.sqrt(found.curvature)
    seen = np.linalg.solve(_identity_plus(within, root), root[:, None] * margins[:rows].T)
    return prior[:rows, :rows] - (margins[:rows] * root) @ seen


@dataclass(frozen=True)
class _Asked:
    """Labels as the fits read them.

    difference  (labels, 4 x hidden), d_i - d_j
    label       (labels,), and weight
    columns     (completions, 4 x hidden), of all that labels and pairs name, and their prompts
    gram        (labels, labels), prior covariance of the margins at rho = kappa = 1
    cross       (pairs, labels), the same with the pairs' margins
    seen        cross, whitened by what the pairs say
    """

    difference: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    columns: np.ndarray
    prompts: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    seen: np.ndarray


def _read(belief: Belief, pool: pd.DataFrame, labels: pd.DataFrame) -> _Asked:
    """What does not depend on rho and kappa."""
    first, second = (locate(pool, labels, column) for column in ("i", "j"))
    pairs = [locate(pool, belief.biased, column) for column in ("i", "j")]
    used, rows = np.unique(np.concatenate([first, second, *pairs]), return_inverse=True)
    named = pool.iloc[used]
    columns = belief.columns(named)
    difference = columns[rows[: len(first)]] - columns[rows[len(first) : 2 * len(first)]]

    size = belief.tau / belief.l2
    cross = size * belief.difference @ difference.T
    gram = size * difference @ difference.T
    prompts = named["prompt_id"].to_numpy()
    seen = belief.whitened(cross)
    return _Asked(difference, *_said(labels), columns, prompts, gram, cross, seen)


def _said(labels: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Label and weight of each answer, (labels,) both."""
    label = labels["label"].to_numpy(float)
    return label, np.where(label == 0.5, TIE, 1.0) * weights(labels)


@dataclass(frozen=True)
class _Fit:
    """The most probable margins under one combination of rho and kappa.

    pairs, labels  gradients at the mode: margins are prior covariances times these
    margin         (labels,), of the labels
    curvature      (labels,), of the labels' log likelihood there
    covariance     (labels, labels), of the margins given the pairs, before the labels
    """

    pairs: np.ndarray
    labels: np.ndarray
    margin: np.ndarray
    curvature: np.ndarray
    covariance: np.ndarray

    def foretold(self, asked: _Asked) -> np.ndarray:
        """The probability of each decided label, given all the others, (decided,)."""
        from scipy.special import expit

        root = np.sqrt(self.curvature)
        scaled = root[:, None] * self.covariance
        inner = np.linalg.solve(_identity_plus(self.covariance, root), scaled)
        variance = np.maximum(np.diag(self.covariance) - (scaled * inner).sum(0), 1e-9)

        # the cavity: mean and variance of a margin as the other labels leave it
        without = variance / np.maximum(1 - self.curvature * variance, 1e-3)
        mean = self.margin - without * self.labels
        decided = asked.label != 0.5
        towards = np.where(asked.label > 0.5, 1.0, -1.0)
        return expit(towards * mean / np.sqrt(1 + np.pi / 8 * without))[decided]


def _joint(belief: Belief, asked: _Asked, grid: list[tuple[float, float]]) -> list[_Fit]:
    """The joint mode of pairs and labels under each rho and kappa of a grid.

    The labels move the pairs' margins little, so the pairs' curvature stays that of the belief
    while their gradient is exact: a Newton iteration with a fixed factor, which ends at the mode
    itself. Each step costs pairs squared; all combinations take it together, for reading the
    factor is most of it."""
    from scipy.special import expit

    rho, kappa = np.array(grid).T
    known = asked.seen.T @ asked.seen
    lead = rho * kappa  # what the pairs' margins are multiplied by in the labels'
    covariance = [r * k**2 * asked.gram - (r * k) ** 2 * known for r, k in grid]
    pairs = np.repeat(belief.gradient[:, None], len(grid), 1)
    labels = np.zeros((len(asked.label), len(grid)))
    given, curvature = np.empty_like(pairs), belief.root[:, None] ** 2

    moving = np.arange(len(grid))
    for _ in range(200):
        margin = belief.covariance @ pairs[:, moving]
        margin += asked.cross @ (lead[moving] * labels[:, moving])
        target = margin + (belief.label[:, None] - expit(margin)) / curvature
        given[:, moving] = belief.solve(target)
        mean = lead[moving] * (asked.cross.T @ given[:, moving])
        moved = np.empty_like(mean)
        for at, k in enumerate(moving.tolist()):
            moved[:, at] = _step(covariance[k], mean[:, at], asked, labels[:, k])
        ahead = given[:, moving] - belief.solve(asked.cross @ (lead[moving] * moved))
        change = np.abs(ahead - pairs[:, moving]).max(0)
        change = np.maximum(change, np.abs(moved - labels[:, moving]).max(0))
        pairs[:, moving], labels[:, moving] = ahead, moved
        moving = moving[change >= 1e-9]
        if not len(moving):
            break

    found = []
    mean = lead * (asked.cross.T @ given)
    for k in range(len(grid)):
        margin = mean[:, k] + covariance[k] @ labels[:, k]
        bend = _likelihood(margin, asked)[1]
        found.append(_Fit(pairs[:, k], labels[:, k], margin, bend, covariance[k]))
    return found


def _alone(asked: _Asked, rho: float, kappa: float, lead: np.ndarray) -> _Fit:
    """The mode of the labels alone, with a reward's lead, (labels,), believed to the share rho."""
    covariance, mean = kappa**2 * asked.gram, kappa * rho * lead
    labels = np.zeros(len(lead))
    for _ in range(200):
        moved = _step(covariance, mean, asked, labels)
        change = np.abs(moved - labels).max()
        labels = moved
        if change < 1e-9:
            break
    margin = mean + covariance @ labels
    curvature = _likelihood(margin, asked)[1]
    return _Fit(np.zeros(0), labels, margin, curvature, covariance)


def _step(
    covariance: np.ndarray, mean: np.ndarray, asked: _Asked, labels: np.ndarray
) -> np.ndarray:
    """A Newton step on the labels' gradients under a Gaussian prior of their margins, halved until
    it does not go uphill."""

    def cost(labels: np.ndarray) -> float:
        pull = covariance @ labels
        margin = mean + pull
        surprise = np.logaddexp(0, margin) - asked.label * margin
        return asked.weight @ surprise + labels @ pull / 2

    margin = mean + covariance @ labels
    slope, curvature = _likelihood(margin, asked)
    root = np.sqrt(curvature)
    push = curvature * (margin - mean) + slope
    inner = np.linalg.solve(_identity_plus(covariance, root), root * (covariance @ push))
    step, here = push - root * inner - labels, cost(labels)
    while cost(labels + step) > here + 1e-12 * len(labels):
        step = step / 2
    return labels + step


def _identity_plus(covariance: np.ndarray, root: np.ndarray) -> np.ndarray:
    inner = root[:, None] * covariance * root
    inner[np.diag_indices(len(root))] += 1
    return inner


def _likelihood(margin: np.ndarray, asked: _Asked) -> tuple[np.ndarray, np.ndarray]:
    """Slope of the labels' log likelihood in their margins, and its curvature, both (labels,)."""
    from scipy.special import expit

    p = expit(margin)
    return asked.weight * (asked.label - p), np.maximum(asked.weight * p * (1 - p), 1e-12)
