"""Strategies: pairs and a budget go in, the pairs worth asking about come out.

Every strategy is one small function (pairs, budget, generator, view) -> chosen pairs, most wanted
first, listed in STRATEGIES. `pairs` is what selection.all_pairs makes, with a column `turn`: pairs
that were not asked before, sorted by id. None of them sees gold. Ties are broken by `turn`, a
random order.

With two completions every z-score is 1 or -1, whatever the difference: PACS is 0 or 2 and ranks
nothing. Where such prompts (pairs of the user's own) stand beside larger ones, conflict is brought
onto one scale (`_on_one_scale`).

Ours                        targeted
SHF-CAS and its parts       shf_cas, shf_cas_threshold, pacs, kendall, pacs_difference
Luck instead of knowledge   placebo, extreme_reward
Chance                      random, random_prompts
What the proxy doubts       margin, uncertainty, bald, d_optimal
Its favourites              best_of
Negative control            low_conflict
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.random import Generator
from scipy.special import entr, expit

from shfcas_lib import conflict, policies, rewards, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Selection
from shfcas_lib.trust import Belief, Report

MEMBERS = 8  # bootstrap probes behind `uncertainty`
MOST_PAIRS = 5_000  # that `targeted` weighs against each other


@dataclass(frozen=True)
class Fitted:
    """The current reward and what it came from.

    probe     the reward
    known     pool table of every completion that took part
    training  biased pairs and labels, merged: prompt_id, i, j, label, weight
    l2        of the fit
    pool      the completions that may be asked about
    labels    those that say something: prompt_id, i, j, label
    belief    what the biased pairs say
    report    what the labels say of them; None where there are too few labels
    beta      of the tilted policy
    """

    probe: rewards.Probe
    known: pd.DataFrame
    training: pd.DataFrame
    l2: float
    pool: pd.DataFrame
    labels: pd.DataFrame
    belief: Belief
    report: Report | None
    beta: float


@dataclass(frozen=True)
class View:
    """What a strategy may look at beside the pairs."""

    settings: Selection
    strategy: str
    fitted: Fitted | None = None
    # the conflict table of every completion, whether its pairs were asked about or not
    scores: pd.DataFrame = field(default_factory=pd.DataFrame)

    def need_fitted(self) -> Fitted:
        """The fitted probe. Raises InputError where the reward is no probe."""
        if self.fitted is None:
            raise InputError(
                f"strategy {self.strategy} weighs the uncertainty of a probe: set reward.kind to"
                " probe"
            )
        return self.fitted


Pairs: TypeAlias = "pd.DataFrame"  # what selection.all_pairs makes, and `turn`
StrategyFunction = Callable[[Pairs, int, Generator, View], Pairs]


def shf_cas(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """SHF-CAS, budget form (arXiv:2512.09212 with a budget): the top share of prompts by K, then
    the pairs whose completions carry the largest |PACS|."""
    return _most_conflicted(_top_prompts(pairs, budget, view.settings), _weight, budget)


def shf_cas_threshold(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """SHF-CAS, the paper's form: all pairs of the prompts with mean |PACS| > delta and K >= tau,
    most conflicted prompts first."""
    kept = pairs[
        (pairs["mean_abs_pacs"] > view.settings.delta) & (pairs["kendall"] >= view.settings.tau)
    ]
    return _most_conflicted(kept, lambda p: p["mean_abs_pacs"], budget)


def pacs(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Ablation: the largest |PACS| anywhere, K unused."""
    return _most_conflicted(pairs, _weight, budget)


def kendall(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Ablation: random pairs of the top share of prompts by K, PACS unused."""
    return random(_top_prompts(pairs, budget, view.settings), budget, generator, view)


def pacs_difference(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Variation of ours: the largest |PACS_i - PACS_j|, the pairs on whose order and distance
    proxy and policy differ most. The sum of |PACS| is large, too, where both completions are
    misjudged alike, and then the proxy may still order them rightly."""
    return _most_conflicted(pairs, _difference, budget)


def placebo(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """SHF-CAS with the policy's log-probabilities shuffled within each prompt: the chance level of
    conflict. What it gains over `random`, SHF-CAS owes to extreme rewards."""
    table = conflict.shuffled(view.scores, generator)
    first, second = (table.iloc[rewards.locate(table, pairs, side)] for side in ("i", "j"))
    of_prompt = {name: first[name].to_numpy() for name in ("kendall", "mean_abs_pacs")}
    of_pair = {"pacs_i": first["pacs"].to_numpy(), "pacs_j": second["pacs"].to_numpy()}
    return shf_cas(pairs.assign(**of_prompt, **of_pair), budget, generator, view)


def extreme_reward(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """The largest |z(r)_i| + |z(r)_j|: half of |PACS|, without the policy."""
    return _most_conflicted(pairs, lambda p: p["z_reward_i"].abs() + p["z_reward_j"].abs(), budget)


def random(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """The first baseline: pairs drawn uniformly."""
    return pairs.iloc[generator.permutation(len(pairs))[:budget]]


def random_prompts(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """The paper's baseline: prompts drawn uniformly, all pairs of each until the budget is spent.
    Against `random` it shows what spending labels in few prompts costs."""
    prompts = pairs["prompt_id"].drop_duplicates().to_numpy()
    place = pd.Series(generator.permutation(len(prompts)), index=prompts)
    return _largest(pairs, lambda p: -p["prompt_id"].map(place), budget)


def margin(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Margin sampling (Lewis and Gale 1994): the pairs whose rewards differ least."""
    return _largest(pairs, lambda p: -(p["reward_i"] - p["reward_j"]).abs(), budget)


def uncertainty(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Disagreement of an ensemble (query by bagging, Abe and Mamitsuka 1998; for rewards
    Christiano et al. 2017): the largest variance of the preference probability over probes fitted
    on bootstrap samples of the training pairs."""
    fitted = view.need_fitted()
    difference = []
    for _ in range(MEMBERS):
        rows = generator.integers(0, len(fitted.training), len(fitted.training))
        member = rewards.fit_probe(fitted.known, fitted.training.iloc[rows], fitted.l2)
        scores = member.columns(fitted.pool) @ member.weight
        difference.append(_differences(scores, fitted.pool, pairs))
    variance = np.var(expit(np.array(difference)), 0)
    return _largest(pairs, lambda p: pd.Series(variance, p.index), budget)


def bald(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Expected information gain about the probe's weights (BALD, Houlsby et al. 2011), H(E p) - E
    H(p) under the Laplace posterior."""
    mean, variance, _ = _posterior(pairs, view.need_fitted())
    node, weight = np.polynomial.hermite_e.hermegauss(16)  # E over a standard normal
    p = expit(mean[:, None] + np.sqrt(variance)[:, None] * node)
    weight = weight / weight.sum()
    gain = _entropy(p @ weight) - _entropy(p) @ weight
    return _largest(pairs, lambda t: pd.Series(gain, t.index), budget)


def d_optimal(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Greedy D-optimal design for the probe (Chaloner and Verdinelli 1995; for preferences
    Mukherjee et al. 2024): each pair in turn raises the log determinant of the Fisher information
    most. Time grows with pairs times budget squared."""
    pairs = pairs.sort_values("turn")  # of equals the first is taken
    mean, variance, covariance = _posterior(pairs, view.need_fitted())
    information = expit(mean) * expit(-mean)
    taken: list[int] = []
    columns = np.zeros((len(pairs), 0))
    for _ in range(budget):
        gain = information * variance
        gain[taken] = -1
        k = int(np.argmax(gain))
        taken.append(k)
        column = (covariance(k) - columns @ columns[k]) / np.sqrt(1 / information[k] + variance[k])
        columns = np.column_stack([columns, column])
        variance = np.maximum(variance - column**2, 0)
    return pairs.iloc[taken]


def targeted(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """The pairs that teach most about where the optimised policy will go: greedy I-optimal design
    (Chaloner and Verdinelli 1995), each pair in turn lowering most

        sum_t u_t cov(t, pair)^2 / (var(pair) + noise)  x  (|PACS_i - PACS_j| + 0.1)^gamma

    over the completions t above their prompt's mean, u_t: the weights of the policy tilted by the
    current reward. Variances are those of quality given pairs and labels (`trust.covariances`).
    Of more than MOST_PAIRS pairs, those of prompts drawn at random are looked at: memory grows
    with the square of the completions kept, time with that times the budget."""
    fitted = view.need_fitted()
    pairs = _few_enough(pairs, budget, generator).sort_values("turn", ignore_index=True)
    pool = fitted.pool[fitted.pool["prompt_id"].isin(pairs["prompt_id"])].reset_index(drop=True)
    ids = pool["prompt_id"].to_numpy()
    covariance, kappa = _knowledge(fitted, pool)
    value = Value(covariance, ids, policies.tilt(ids, fitted.probe.score(pool), fitted.beta))
    first, second = (rewards.locate(pool, pairs, side) for side in ("i", "j"))
    wanted = (_on_one_scale(_difference(pairs), pairs) + 0.1) ** view.settings.gamma

    # a label is as noisy as a coin that kappa sharpens
    noise = 4 / kappa**2
    taken: list[int] = []
    for _ in range(budget):
        gain = value.gain(first, second, noise) * wanted.to_numpy()
        gain[taken] = -1
        k = int(np.argmax(gain))
        taken.append(k)
        value.learn(first[k], second[k], noise)
    return pairs.iloc[taken]


def best_of(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """The proxy's favourites, as in RSO (Liu et al. 2023, arXiv:2309.06657): both completions
    drawn from the policy that the proxy prefers, weights exp(z(r)), without replacement (Gumbel's
    top-k)."""
    noise = generator.gumbel(size=len(pairs))
    return _largest(pairs, lambda p: p["z_reward_i"] + p["z_reward_j"] + noise, budget)


def low_conflict(pairs: Pairs, budget: int, generator: Generator, view: View) -> Pairs:
    """Negative control: the smallest |PACS|, where proxy and policy agree."""
    return _most_conflicted(pairs, lambda p: -_weight(p), budget)


STRATEGIES: dict[str, StrategyFunction] = {
    "targeted": targeted,
    "shf_cas": shf_cas,
    "shf_cas_threshold": shf_cas_threshold,
    "pacs": pacs,
    "kendall": kendall,
    "pacs_difference": pacs_difference,
    "placebo": placebo,
    "extreme_reward": extreme_reward,
    "random": random,
    "random_prompts": random_prompts,
    "margin": margin,
    "uncertainty": uncertainty,
    "bald": bald,
    "d_optimal": d_optimal,
    "best_of": best_of,
    "low_conflict": low_conflict,
}
# these weigh a probe's uncertainty (View.fitted)
SIGHTED = ("targeted", "uncertainty", "bald", "d_optimal")


class Value:
    """What labels are worth: covariance of the completions' scores, and sum_t u_t cov(r, t)
    cov(s, t) of completions r and s, t above their prompt's mean; both (rows, rows).

    ids: (rows,), the prompt of each completion; weight: (rows,), u."""

    def __init__(self, covariance: np.ndarray, ids: np.ndarray, weight: np.ndarray):
        self.covariance, self.weight = covariance.copy(), weight
        self._prompt = np.unique(ids, return_inverse=True)[1]
        self._size = np.bincount(self._prompt)
        above = np.stack([self._above(row) for row in covariance])
        self.use = (above * weight) @ above.T

    def _above(self, values: np.ndarray) -> np.ndarray:
        """values, (rows,), less the mean of their prompt."""
        return values - (np.bincount(self._prompt, values) / self._size)[self._prompt]

    def gain(self, first: np.ndarray, second: np.ndarray, noise: float) -> np.ndarray:
        """What a label of each pair of completions is worth, (pairs,)."""
        useful, variance = (_of_difference(m, first, second) for m in (self.use, self.covariance))
        return np.maximum(useful, 0) / (np.maximum(variance, 0) + noise)

    def learn(self, first: int, second: int, noise: float) -> None:
        """Take a label of the pair (first, second) as given."""
        shared = self.covariance[:, first] - self.covariance[:, second]
        left = shared[first] - shared[second] + noise
        above = self._above(shared)
        towards = self.covariance @ self._above(self.weight * above)
        less = towards / left - shared * (self.weight @ above**2 / (2 * left**2))
        self.use -= np.outer(shared, less)
        self.use -= np.outer(less, shared)
        self.covariance -= np.outer(shared, shared / left)


def _of_difference(form: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A quadratic form, (rows, rows), of the differences between completions, (pairs,)."""
    return form[first, first] + form[second, second] - 2 * form[first, second]


def _knowledge(fitted: Fitted, pool: pd.DataFrame) -> tuple[np.ndarray, float]:
    """The covariance of the scores of a pool's completions after all labels, and kappa."""
    belief, report = fitted.belief, fitted.report
    if report is None:
        rho, kappa = trust.START
        return belief.covariances(belief.columns(pool), rho), kappa
    kappa = report.best[1]
    return trust.covariances(belief, pool, fitted.known, fitted.labels, report), kappa


def _few_enough(pairs: Pairs, budget: int, generator: Generator) -> Pairs:
    """Pairs of prompts drawn at random, as many as MOST_PAIRS (or the budget) need."""
    if len(pairs) <= MOST_PAIRS:
        return pairs
    sizes = pairs.groupby("prompt_id").size()
    drawn = sizes.iloc[generator.permutation(len(sizes))]
    enough = int(np.searchsorted(drawn.cumsum(), max(MOST_PAIRS, budget))) + 1
    kept = drawn.index[:enough]
    return pairs[pairs["prompt_id"].isin(kept)].reset_index(drop=True)


def _top_prompts(pairs: pd.DataFrame, budget: int, settings: Selection) -> pd.DataFrame:
    """The pairs of `top_prompts`."""
    groups = pairs.groupby("prompt_id")
    first = groups[["degenerate", "kendall", "size", "prompt_turn"]].first()
    prompts = first.assign(pairs=groups.size()).reset_index()
    kept = top_prompts(prompts, budget, settings.top_share)
    return pairs[pairs["prompt_id"].isin(kept)]


def top_prompts(prompts: pd.DataFrame, budget: int, top_share: float) -> pd.Series:
    """The ids of the top share of prompts by K, ties broken by turn; of more prompts where these
    hold fewer pairs than the budget. prompts: prompt_id, degenerate, kendall, size, prompt_turn,
    pairs.

    In a degenerate prompt there is no ranking to reverse, though ties give it K 1/2: the share is
    one of the others, and degenerate prompts come last."""
    prompts = prompts.assign(turn=prompts["prompt_turn"])
    prompts["kendall"] = _on_one_scale(prompts["kendall"], prompts)
    order = ["degenerate", "kendall", "turn"]
    prompts = prompts.sort_values(order, ascending=[True, False, True])
    enough = int(np.searchsorted(prompts["pairs"].cumsum(), budget)) + 1
    share = int(np.ceil(top_share * (~prompts["degenerate"]).sum()))
    return prompts["prompt_id"].head(max(enough, share))


def _weight(pairs: pd.DataFrame) -> pd.Series:
    return pairs["pacs_i"].abs() + pairs["pacs_j"].abs()


def _difference(pairs: pd.DataFrame) -> pd.Series:
    return (pairs["pacs_i"] - pairs["pacs_j"]).abs()


def _most_conflicted(
    pairs: pd.DataFrame, key: Callable[[pd.DataFrame], pd.Series], budget: int
) -> pd.DataFrame:
    """`_largest` by a number made of z-scores or K, of prompts of whatever size."""
    return _largest(pairs, lambda p: _on_one_scale(key(p), p), budget)


def _on_one_scale(values: pd.Series, rows: pd.DataFrame) -> pd.Series:
    """values, (rows,), of pairs or prompts, in one unit: where some prompts have two completions
    and others more, each value of the two becomes the one that stands at the same place among the
    others' (the same quantile), ties in the order of `turn`. rows: columns size, turn."""
    values = values.round(12)  # z-scores of 1 and 1 + 2e-16 are a tie
    few = (rows["size"] == 2).to_numpy()
    if few.all() or not few.any():
        return values
    others = np.sort(values[~few])
    place = values[few].to_frame("value").assign(turn=-rows.loc[few, "turn"])
    order = np.lexsort((place["turn"], place["value"]))
    quantile = (np.arange(len(order)) + 0.5) / len(order)
    scaled = values.astype(float)
    scaled.iloc[np.flatnonzero(few)[order]] = np.quantile(others, quantile)
    return scaled


def _largest(
    pairs: pd.DataFrame, key: Callable[[pd.DataFrame], pd.Series], budget: int
) -> pd.DataFrame:
    """The `budget` pairs with the largest key; ties are broken by turn."""
    values = key(pairs).to_numpy(float)
    if 0 < budget < len(values):
        # to sort millions for a hundred takes seconds
        likely = values >= np.partition(values, -budget)[-budget]
        pairs, values = pairs[likely], values[likely]
    ordered = pairs.assign(key=values).sort_values(["key", "turn"], ascending=[False, True])
    return ordered.head(budget).drop(columns="key")


def _posterior(
    pairs: Pairs, fitted: Fitted
) -> tuple[np.ndarray, np.ndarray, Callable[[int], np.ndarray]]:
    """Under the probe's Laplace posterior, of each pair's reward difference (logits): mean,
    variance, and a function that gives the covariance of all pairs with pair k."""
    columns = fitted.probe.columns(fitted.pool)
    difference = _differences(columns, fitted.pool, pairs)
    whitened = rewards.information(fitted.probe, fitted.known, fitted.training, fitted.l2)
    seen = difference @ whitened.T
    mean = difference @ fitted.probe.weight
    variance = np.maximum((difference**2).sum(1) - (seen**2).sum(1), 0) / fitted.l2

    def covariance(k: int) -> np.ndarray:
        return (difference @ difference[k] - seen @ seen[k]) / fitted.l2

    return mean, variance, covariance


def _differences(values: np.ndarray, pool: pd.DataFrame, pairs: pd.DataFrame) -> np.ndarray:
    """values of completion i minus values of completion j of each pair. values: (completions of
    the pool, ...)."""
    return values[rewards.locate(pool, pairs, "i")] - values[rewards.locate(pool, pairs, "j")]


def _entropy(p: np.ndarray) -> np.ndarray:
    """Entropy of a yes-or-no answer, in nats."""
    p = np.clip(p, 0, 1)  # a mean over quadrature nodes can leave [0, 1] by rounding
    return entr(p) + entr(1 - p)
