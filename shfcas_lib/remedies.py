"""Rival remedies: the proxy and what trained it go in, a mended reward comes out; nobody is asked.

    reward = remedies.apply("attribute_out", Given(proxy, train, observed, l2, seed))

They answer "do I need labels at all?". Each is one small function (given) -> reward, listed in
REMEDIES. None of them sees gold or a label; conservative_kl is told one number of a reward that
labels refined, how far its policy goes. They need a probe that was trained here: its data is drawn
again, or its weights are changed.

What it likes too much    attribute_out, projection
What it is unsure of      ensemble_mean, ensemble_min
How far it is followed    conservative_kl
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, TypeAlias

import numpy as np
import pandas as pd

from shfcas_lib import policies, rewards
from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.bias import attribute_values
from shfcas_lib.rewards import Probe, RewardModel
from shfcas_lib.storage import files
from shfcas_lib.strategies import MEMBERS

DIRECTIONS = 4  # that `projection` takes out; later ones follow noise


@dataclass(frozen=True)
class Target:
    """A policy whose distance from the base policy is to be met: the one that `reward` tilts at
    `beta` on a pool of completions."""

    reward: RewardModel
    pool: pd.DataFrame
    beta: float


@dataclass(frozen=True)
class Given:
    """What a remedy may look at.

    proxy      the probe that is to be mended
    pool       completions of the training prompts, a pool table
    observed   the biased preferences that trained it: prompt_id, i, j, label
    l2         of its fit
    seed       decides every draw
    attribute  what `attribute_out` and `projection` take out (tasks.attributes)
    target     whose KL `conservative_kl` meets
    """

    proxy: Probe
    pool: pd.DataFrame
    observed: pd.DataFrame
    l2: float
    seed: int
    attribute: str = "length"
    target: Target | None = None

    @cached_property
    def members(self) -> Probe:
        """MEMBERS probes in one, fitted on bootstrap samples of the preferences: weight (4 x
        hidden, members), each of unit spread. A sample says how often a pair counts, so that all
        members share one design."""
        generator = rng(self.seed, "remedies/ensemble")
        count = len(self.observed)
        fitted = []
        for _ in range(MEMBERS):
            drawn = np.bincount(generator.integers(0, count, count), minlength=count)
            sample = self.observed.assign(weight=drawn.astype(float))
            fitted.append(rewards.fit_probe(self.pool, sample, self.l2))
        weight = np.column_stack([member.weight / member.spread for member in fitted])
        return replace(fitted[0], weight=weight, spread=1.0)


Remedy: TypeAlias = Callable[[Given], RewardModel]


# --- rewards that are more than a probe


@dataclass(frozen=True)
class _Mended:
    """A probe and a few facts that change its scores; kept as a folder with both."""

    MARKER: ClassVar[str] = "remedy.json"
    PART: ClassVar[str] = "probe"  # the folder of the probe

    probe: Probe

    def save(self, folder: Path) -> None:
        """Write the probe into a folder of its own, then remedy.json."""
        self.probe.save(folder / self.PART)
        facts = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        files.write_json(folder / self.MARKER, {"kind": type(self).__name__, **facts})


@dataclass(frozen=True)
class Regressed(_Mended):
    """A probe's score without what an attribute explains of it: (score - slope x attribute) /
    spread. It is right up to a constant of the prompt, as every reward is."""

    attribute: str
    slope: float
    spread: float = 1.0

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,)."""
        explained = self.slope * attribute_values(pool, self.attribute)
        return (self.probe.score(pool) - explained) / self.spread


@dataclass(frozen=True)
class Pessimistic(_Mended):
    """The lowest of several scores, each centred within its prompt, over `spread`. probe.weight:
    (4 x hidden, members)."""

    spread: float = 1.0

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,); all completions of a prompt belong into
        one table."""
        return self.each(pool).min(1) / self.spread

    def each(self, pool: pd.DataFrame) -> np.ndarray:
        """Every member's scores, (rows, members). A member says nothing about a prompt as a whole:
        uncentred, the one that happens to like it least would decide alone."""
        return _centred(self.probe.score(pool), pool)


@dataclass(frozen=True)
class Scaled(_Mended):
    """A probe's score times a factor: tilting by it at beta is tilting by the probe at beta /
    factor. It alone has no unit spread."""

    factor: float

    def score(self, pool: pd.DataFrame) -> np.ndarray:
        """Rewards of a pool table's completions, (rows,)."""
        return self.factor * self.probe.score(pool)


_KINDS = {kind.__name__: kind for kind in (Regressed, Pessimistic, Scaled)}


# --- the remedies


def attribute_out(given: Given) -> Regressed:
    """The attribute regressed out of the reward within prompts, by least squares on the training
    completions: length-controlled AlpacaEval does so with a judge's preferences (Dubois et al.
    2024, arXiv:2404.04475); that length is much of what rewards follow: Singhal et al. 2023."""
    value = _centred(attribute_values(given.pool, given.attribute), given.pool)
    score = _centred(given.proxy.score(given.pool), given.pool)
    varies = value @ value
    slope = float(value @ score / varies) if varies > 0 else 0.0
    reward = Regressed(given.proxy, given.attribute, slope)
    return replace(reward, spread=_spread(reward, given))


def projection(given: Given) -> Probe:
    """The attribute's direction projected out of the probe's weights (iterative null-space
    projection, Ravfogel et al. 2020, arXiv:2004.07667): a ridge regression, with the penalty of
    the probe's own fit, of the attribute on the design, both centred within prompts. What it finds
    is taken out of both, and it looks again, DIRECTIONS times."""
    columns = _centred(given.proxy.columns(given.pool), given.pool)
    value = _centred(attribute_values(given.pool, given.attribute), given.pool)
    if not value.any():
        return given.proxy
    weight = given.proxy.weight
    for _ in range(DIRECTIONS):
        direction = _direction(columns, value / value.std(), given.l2)
        columns = columns - np.outer(columns @ direction, direction)
        weight = weight - direction * (direction @ weight)
    reward = replace(given.proxy, weight=weight)
    return replace(reward, spread=reward.spread * _spread(reward, given))


def ensemble_mean(given: Given) -> Probe:
    """The mean of probes fitted on bootstrap samples of the preferences. Their weights are
    averaged, as in WARM (Rame et al. 2024, arXiv:2401.12187); for a linear reward that is the
    average of their scores."""
    reward = replace(given.members, weight=given.members.weight.mean(1))
    return replace(reward, spread=_spread(reward, given))


def ensemble_min(given: Given) -> Pessimistic:
    """The lowest score that one of the same probes gives a completion: worst-case optimisation
    (Coste et al. 2023, arXiv:2310.02743)."""
    reward = Pessimistic(given.members)
    return replace(reward, spread=_spread(reward, given))


def conservative_kl(given: Given) -> Scaled:
    """The proxy as it is, followed no further than the target policy goes: beta is raised until
    the mean KL from the base policy is the target's, and left where it is below already. KL is
    what over-optimisation is measured against (Gao et al. 2022, arXiv:2210.10760)."""
    from scipy.optimize import brentq

    if given.target is None:
        raise InputError("remedy conservative_kl meets the KL of a target policy: none was given")
    pool, beta = given.target.pool, given.target.beta
    score = given.proxy.score(pool)
    wanted = _kl(given.target.reward.score(pool), pool, beta)

    def excess(factor: float) -> float:
        return _kl(factor * score, pool, beta) - wanted

    factor = brentq(excess, 0.0, 1.0, xtol=1e-13) if excess(1.0) > 0 else 1.0
    return Scaled(given.proxy, float(factor))


REMEDIES: dict[str, Remedy] = {
    "attribute_out": attribute_out,
    "projection": projection,
    "ensemble_mean": ensemble_mean,
    "ensemble_min": ensemble_min,
    "conservative_kl": conservative_kl,
}


def apply(name: str, given: Given) -> RewardModel:
    """The reward that the remedy called `name` makes of the proxy. Of unit spread on the
    completions that `observed` names, but for conservative_kl. Raises InputError for an unknown
    name, and for an attribute that leads nowhere or gives no finite number."""
    if name not in REMEDIES:
        raise InputError(f"unknown remedy {name!r}: choose {', '.join(REMEDIES)}")
    return REMEDIES[name](given)


def read(folder: Path) -> RewardModel | None:
    """The reward that a remedy left whole in a folder; None where there is none."""
    if processes.agreed((folder / _Mended.MARKER).exists()):
        facts = files.read_json(folder / _Mended.MARKER)
        return _KINDS[facts.pop("kind")](Probe.load(folder / _Mended.PART), **facts)
    return Probe.load(folder) if processes.agreed((folder / Probe.MARKER).exists()) else None


def _direction(columns: np.ndarray, value: np.ndarray, l2: float) -> np.ndarray:
    """The unit vector along the ridge regression of value (rows,) on columns (rows, 4 x hidden);
    zeros where they have nothing to do with each other. The smaller of the two systems is
    solved: as many equations as rows, or as columns."""
    rows, width = columns.shape
    if rows < width:
        found = columns.T @ np.linalg.solve(columns @ columns.T + l2 * np.eye(rows), value)
    else:
        found = np.linalg.solve(columns.T @ columns + l2 * np.eye(width), columns.T @ value)
    length = np.linalg.norm(found)
    return found / length if length > 1e-12 else np.zeros(width)


def _centred(values: np.ndarray, pool: pd.DataFrame) -> np.ndarray:
    """values (rows,) or (rows, columns) of a pool's completions minus their prompt's mean."""
    _, prompt = np.unique(pool["prompt_id"].to_numpy(object), return_inverse=True)
    sums = np.zeros((prompt.max() + 1, *values.shape[1:]))
    np.add.at(sums, prompt, values)
    count = np.bincount(prompt).reshape(-1, *[1] * (values.ndim - 1))
    return values - (sums / count)[prompt]


def _spread(reward: RewardModel, given: Given) -> float:
    """The reward's spread on the completions that the preferences name, as of a probe."""
    used = given.pool.merge(rewards.named(given.observed), on=["prompt_id", "index"])
    return rewards.spread(reward.score(used), used["prompt_id"].to_numpy())


def _kl(score: np.ndarray, pool: pd.DataFrame, beta: float) -> float:
    """Mean KL over prompts, in nats, of the policy that a score tilts."""
    ids = pool["prompt_id"].to_numpy()
    return float(policies.per_prompt(ids, policies.tilt(ids, score, beta), {})["kl"].mean())
