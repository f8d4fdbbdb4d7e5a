"""The same experiment with fresh seeds: a pool with its gold goes in, one row per seed and policy
comes out.

    case = build_case(params, prompts, pool, seed)      # split, bias, proxy: what strategies share
    outcome = loop.run_rounds("shf_cas", case.setting, case.human, runs.Memory())

`pool` is a pool table of all prompts with the column gold. A seed decides split, bias, fit and
selection; the completions stay. Only for reward `probe` and simulated feedback, and but for
`trained` only for policy `tilt`. Gold reaches a strategy through the answers to what it asked,
never otherwise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import bias, evaluation, loop, policies, refine
from shfcas_lib.analysis import diagnosis, summary
from shfcas_lib.annotators.people import load_annotator
from shfcas_lib.base import progress
from shfcas_lib.base.randomness import derive
from shfcas_lib.conflict import conflict_table, log_probabilities
from shfcas_lib.data.preferences import preferences_from_gold
from shfcas_lib.data.prompts import SPLITS, split
from shfcas_lib.experiment import proxy_data, without_labels
from shfcas_lib.experiment.trained import sampled_policies, trained_policies
from shfcas_lib.feedback import SimulatedHuman
from shfcas_lib.gold import load_gold
from shfcas_lib.params.schema import Params
from shfcas_lib.rewards import RewardModel
from shfcas_lib.selection import all_pairs
from shfcas_lib.storage import runs

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone


@dataclass(frozen=True)
class Case:
    """One seed: the setting that strategies start from, the simulated human, the evaluation pool
    (with gold), and the ceilings: the reward of clean preferences, and `full`, the reward of the
    biased preferences and a label for every pair that could be asked."""

    setting: loop.Setting
    human: SimulatedHuman
    evaluate: pd.DataFrame
    clean: RewardModel
    full: RewardModel | None = None

    @property
    def references(self) -> dict[str, np.ndarray]:
        """Scores of the evaluation pool by what no strategy changes: proxy, clean, and full where
        the case has it."""
        known = {"proxy": self.setting.proxy, "full": self.full, "clean": self.clean}
        return {name: reward.score(self.evaluate) for name, reward in known.items() if reward}


def seeds(params: Params) -> list[int]:
    """The seeds of a run's replicates."""
    return [_seed(params, k) for k in range(params.evaluation.replicates)]


def _seed(params: Params, k: int) -> int:
    return derive(params.seed, f"replicate/{k}")


def build_case(
    params: Params,
    prompts: pd.DataFrame,
    pool: pd.DataFrame,
    seed: int,
    folder: Path | None = None,
    full: bool = True,
) -> Case:
    """Split, bias and fit once more with `seed`. Rewards are read from `folder` where it holds
    them, else fitted (and kept there). full: with the reward of a label for every pair."""
    stage = runs.Stage(folder, None) if folder else runs.Memory()

    # the split and the biased preferences
    prompts = split(prompts.drop(columns="split"), params.split, seed)
    part = pool["prompt_id"].map(dict(zip(prompts["prompt_id"], prompts["split"], strict=True)))
    train, feedback, evaluate = (pool[part == name].reset_index(drop=True) for name in SPLITS)
    clean = preferences_from_gold(train, params.preferences.per_prompt, seed)
    biased = proxy_data.spoilt_preferences(clean, train, prompts, params, seed)
    observed = bias.observed(biased)

    def fit(name: str, completions: pd.DataFrame, preferences: pd.DataFrame) -> RewardModel:
        return refine.kept(stage / name, params.reward, completions, preferences, seed)

    # what strategies start from: no gold in the pools
    setting = loop.Setting(
        params,
        seed,
        prompts,
        train.drop(columns="gold"),
        feedback.drop(columns="gold"),
        observed,
        fit("proxy", train, observed),
    )

    # the human and the ceilings, who know gold
    gold = pool.set_index(["prompt_id", "index"])["gold"].to_dict()
    case = Case(setting, _human(params, gold, seed), evaluate, fit("clean", train, clean))
    if not full:
        return case
    labels = _every_label(setting.askable, gold)
    everything = refine.merge(observed, labels, params.reward.feedback_weight)
    return dataclasses.replace(case, full=fit("full", setting.known, everything))


def _human(params: Params, gold: dict, seed: int) -> SimulatedHuman:
    """Who answers about completions of the pool. gold: (prompt_id, index) to gold."""

    def known(shown: pd.DataFrame) -> np.ndarray:
        keys = zip(shown["prompt_id"], shown["index"], strict=True)
        return np.array([gold[key] for key in keys])

    given = params.feedback
    return SimulatedHuman(known, given.noise, given.tie_margin, seed, given.much_better)


def measure(case: Case, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Means over the seed's evaluation prompts: policy (base and each of `scores`) and
    evaluation.MEASURES."""
    params, gold = case.setting.params, case.evaluate["gold"].to_numpy()
    logp = log_probabilities(case.evaluate, params.selection.logp)
    table = evaluation.tilted(case.evaluate, gold, scores, params.policy.beta, logp)
    return table.groupby("policy", sort=False)[list(evaluation.MEASURES)].mean().reset_index()


def curves(case: Case, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """The seed's over-optimisation curve: policy, beta, kl, reward_gain, gold_gain."""
    return evaluation.curve(
        case.evaluate,
        case.evaluate["gold"].to_numpy(),
        scores,
        case.setting.params.evaluation.betas,
    )


def categories(case: Case, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Mean gold of each policy in each category of prompts: policy, category, prompts, gold."""
    ids, gold = case.evaluate["prompt_id"].to_numpy(), case.evaluate["gold"].to_numpy()
    prompts = case.setting.prompts
    category = dict(zip(prompts["prompt_id"], prompts["category"], strict=True))
    parts = []
    for policy, reward in {"base": np.zeros(len(gold)), **scores}.items():
        weights = policies.tilt(ids, reward, case.setting.params.policy.beta)
        table = policies.per_prompt(ids, weights, {"gold": gold})
        by = table.groupby(table["prompt_id"].map(category))["gold"]
        means = by.agg(["size", "mean"]).rename_axis("category").reset_index()
        means = means.rename(columns={"size": "prompts", "mean": "gold"})
        parts.append(means.assign(policy=policy))
    return pd.concat(parts, ignore_index=True)


def replicates(
    params: Params, prompts: pd.DataFrame, pool: pd.DataFrame, gold: np.ndarray
) -> dict[str, pd.DataFrame]:
    """All of it for every seed, in memory. prompts: all prompts of the run; pool, gold: their
    completions and (rows,) gold. Two tables, means over each seed's evaluation prompts:

    replicates  seed (0, 1, ...), policy (base, proxy, every remedy and strategy, clean) and the
                MEASURES
    way         seed, policy (proxy, clean, every strategy), refinement, labels so far, gold

    The spread over seeds covers split, bias, fit and selection; it does not cover the sampling of
    completions."""
    parts = []
    for k, seed in _counted(params):
        case = build_case(params, prompts, pool.assign(gold=gold), seed, full=False)
        fixed, (refined, outcomes) = case.references, _refined(case)
        mended = _mended(case, runs.Memory())
        scores = {"proxy": fixed["proxy"], **mended, **refined, "clean": fixed["clean"]}
        tables = {"replicates": measure(case, scores), "way": waypoints(case, outcomes)}
        parts.append({name: table.assign(seed=k) for name, table in tables.items()})
    return _stacked(parts)


def waypoints(case: Case, outcomes: dict[str, loop.Outcome]) -> pd.DataFrame:
    """Gold along the way from the proxy to clean labels: policy, refinement, labels, gold. After
    every round by the run's refinement; of random and SHF-CAS labels also by `merge`."""
    settings = case.setting.params.reward
    gold = partial(tilted_gold, case)
    fixed = case.references
    rows = [("proxy", "", 0, gold(fixed["proxy"])), ("clean", "", 0, gold(fixed["clean"]))]
    for name, outcome in outcomes.items():
        counts = outcome.rounds["labels"].cumsum()
        for count, reward in zip(counts, outcome.rewards, strict=True):
            score = reward.score(case.evaluate)
            rows.append((name, settings.refinement, int(count), gold(score)))
        if name in ("random", "shf_cas") and settings.refinement != "merge":
            for count in counts:
                score = merged(case, outcome, int(count)).score(case.evaluate)
                rows.append((name, "merge", int(count), gold(score)))
    return pd.DataFrame(rows, columns=["policy", "refinement", "labels", "gold"])


def tilted_gold(case: Case, score: np.ndarray) -> float:
    """Mean gold of the policy tilted by a score of the evaluation pool."""
    ids = case.evaluate["prompt_id"].to_numpy()
    weights = policies.tilt(ids, score, case.setting.params.policy.beta)
    table = policies.per_prompt(ids, weights, {"gold": case.evaluate["gold"].to_numpy()})
    return float(table["gold"].mean())


def merged(case: Case, outcome: loop.Outcome, count: int) -> RewardModel:
    """The reward that the first labels of an outcome give by `merge`."""
    setting = case.setting
    settings = setting.params.reward.model_copy(update={"refinement": "merge"})
    data = refine.Data(outcome.pool, setting.observed, outcome.labels.head(count))
    return refine.update(settings, data, setting.seed)


def references(
    params: Params, prompts: pd.DataFrame, pool: pd.DataFrame, folder: Path
) -> dict[str, pd.DataFrame]:
    """What a sweep's points share, for every seed: fits the rewards, keeps them in folder/<seed
    number>, and returns the tables measures, curves, categories (of base, proxy, full, clean and
    the remedies that depend on no strategy) and predicts (does conflict predict the proxy's error,
    on evaluation prompts, and what its placebo predicts)."""
    parts = []
    for k, seed in _counted(params):
        case = build_case(params, prompts, first(pool, params.sampling.n), seed, folder / str(k))
        logp = log_probabilities(case.evaluate, params.selection.logp)
        conflict = conflict_table(case.evaluate, case.setting.proxy.score(case.evaluate), logp)
        mended = _mended(case, runs.Stage(folder / str(k), None) / "remedies")
        tables = _tables(case, case.references | mended)
        tables["predicts"] = diagnosis.error_measures(conflict, case.evaluate, seed)
        parts.append({name: table.assign(seed=k) for name, table in tables.items()})
    return _stacked(parts)


def strategies(
    params: Params, prompts: pd.DataFrame, pool: pd.DataFrame, folder: Path
) -> dict[str, pd.DataFrame]:
    """A sweep's point, for every seed: the tables measures, curves, categories (of the strategies,
    and of conservative_kl, which follows the leading one), rounds, and timing (seconds that
    selection took; the only table that differs when a point is run again). folder: where
    `references` kept the rewards."""
    parts = []
    for k, seed in _counted(params):
        case = build_case(params, prompts, first(pool, params.sampling.n), seed, folder / str(k))
        scores, outcomes = _refined(case)
        tables = {}
        for name, table in _tables(case, scores).items():
            tables[name] = table[table["policy"] != "base"]
        rounds = [outcome.rounds.assign(policy=name) for name, outcome in outcomes.items()]
        tables["rounds"] = pd.concat(rounds)
        seconds = [outcome.seconds for outcome in outcomes.values()]
        tables["timing"] = pd.DataFrame({"policy": list(outcomes), "seconds": seconds})
        parts.append({name: table.assign(seed=k) for name, table in tables.items()})
    return _stacked(parts)


def trained(
    params: Params,
    prompts: pd.DataFrame,
    pool: pd.DataFrame,
    folder: Path,
    backbone: Backbone,
    stage: runs.Stage,
) -> pd.DataFrame:
    """Policies trained against the proxy, every strategy's refined reward and, as a ceiling, the
    clean one, for the first seed of replicates, sampled anew on its evaluation prompts.

    folder: where `references` kept that seed's rewards. stage: keeps what is done, so that a
    killed job goes on. Returns policy, prompt_id, gold, kl and win of the trained policy, with
    tilted_gold and tilted_kl, those of the closed form with the same reward on the same prompts.
    """
    case = build_case(params, prompts, first(pool, params.sampling.n), _seed(params, 0), folder)
    setting = dataclasses.replace(case.setting, backbone=backbone)

    # later rounds ask about completions that the pool does not hold
    human = load_annotator(params.feedback, load_gold(params), setting.seed)
    refined: dict[str, RewardModel] = {}
    for name in params.selection.strategies:
        refined[name] = loop.run_rounds(name, setting, human, stage / name).reward
    rewards: dict[str, RewardModel] = {"proxy": setting.proxy}
    rewards |= {name: refined[name] for name in reversed(params.selection.strategies)}
    rewards["clean"] = case.clean

    # a policy for each reward, and the closed form beside it
    adapters: dict[str, Path] = {}
    for policy, reward in rewards.items():
        adapters[policy] = stage.folder / f"policy_{policy}"
        loop.train_policy(setting, reward, setting.known, adapters[policy])
    gold = case.evaluate["gold"].to_numpy()
    pools = sampled_policies(params, setting.prompts, backbone, adapters, stage)
    table = trained_policies(params, setting.prompts, pools, case.evaluate, gold, stage)
    tilted = evaluation.evaluate(case.evaluate, gold, rewards, params.policy.beta)
    tilted = tilted[["policy", "prompt_id", "gold", "kl"]]
    tilted = tilted.rename(columns={"gold": "tilted_gold", "kl": "tilted_kl"})
    return table.merge(tilted, on=["policy", "prompt_id"])


def first(pool: pd.DataFrame, n: int) -> pd.DataFrame:
    """The pool with N = n: the first n completions of each prompt, which do not depend on how
    many more were drawn."""
    return pool[pool["index"] < n].reset_index(drop=True)


def _counted(params: Params):
    """(0, seed), (1, seed), ... with a progress bar."""
    return enumerate(progress.over(seeds(params), "replicates", "seed"))


def _refined(case: Case) -> tuple[dict[str, np.ndarray], dict[str, loop.Outcome]]:
    """Scores of the evaluation pool by each strategy's refined reward, before them by the remedy
    that follows the leading one, and the outcomes."""
    outcomes: dict[str, loop.Outcome] = {}
    scores: dict[str, np.ndarray] = {}
    # the figures' order: the method last, just above the ceiling
    for name in reversed(case.setting.params.selection.strategies):
        outcomes[name] = loop.run_rounds(name, case.setting, case.human, runs.Memory())
        scores[name] = outcomes[name].reward.score(case.evaluate)
    leading = outcomes[summary.leading(case.setting.params)].reward
    cautious = without_labels.cautious(case.setting, leading, case.evaluate, runs.Memory())
    before = {name: reward.score(case.evaluate) for name, reward in cautious.items()}
    return before | scores, outcomes


def _mended(case: Case, stage: runs.Stage | runs.Memory) -> dict[str, np.ndarray]:
    """Scores of the evaluation pool by the remedies that depend on no strategy."""
    rewards = without_labels.mended(case.setting, stage)
    return {name: reward.score(case.evaluate) for name, reward in rewards.items()}


def _tables(case: Case, scores: dict[str, np.ndarray]) -> dict[str, pd.DataFrame]:
    return {
        "measures": measure(case, scores),
        "curves": curves(case, scores),
        "categories": categories(case, scores),
    }


def _stacked(parts: list[dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    stacked = {}
    for name in parts[0]:
        stacked[name] = pd.concat([part[name] for part in parts], ignore_index=True)
    return stacked


def _every_label(pool: pd.DataFrame, gold: dict) -> pd.DataFrame:
    """Gold labels of all pairs of a pool: prompt_id, i, j, label. gold: (prompt_id, index) to
    gold."""
    unused = ("kendall", "mean_abs_pacs", "degenerate", "pacs", "reward", "z_reward", "z_logp")
    flat = pool[["prompt_id", "index"]].assign(**dict.fromkeys(unused, 0.0))
    pairs = all_pairs(flat)[["prompt_id", "i", "j"]]
    values = []
    for side in ("i", "j"):
        keys = zip(pairs["prompt_id"], pairs[side], strict=True)
        values.append(np.array([gold[key] for key in keys]))
    return pairs.assign(label=(np.sign(values[0] - values[1]) + 1) / 2)
