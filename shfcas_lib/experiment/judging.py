"""Is it better? The steps of notebook 04, and those of 01 and 02 that ask for the truth.

Whether a run has gold is decided here and nowhere else: with gold, it judges; without, what cannot
be said is None (a line says what is left out), and what can be said comes from
`analysis.without_gold`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import bias, evaluation, refine
from shfcas_lib.analysis import agreement, audit, diagnosis, examples, summary, way, without_gold
from shfcas_lib.analysis.stats import Interval
from shfcas_lib.conflict import conflict_table, log_probabilities
from shfcas_lib.experiment import proxy_data, replication, stages, without_labels
from shfcas_lib.experiment.trained import sampled_policies, trained_claims, trained_policies
from shfcas_lib.gold import gold_scores, gold_table
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage.runs import Run

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

EVALUATION = "04_evaluation"
AGREEMENT_NEEDS = agreement.NEEDS
GIVEN_NEEDS = f"{audit.FEWEST} preferences of your own that did not train the proxy"


# --- for the cells of a notebook


def rounded(table: pd.DataFrame | None, what: str, needs: str = "gold") -> pd.DataFrame | None:
    """The table, rounded, for a cell to show; where there is none, one printed line says that
    `what` is left out for want of what it needs."""
    if table is None:
        print(f"{what}: left out, it needs {needs}")
        return None
    return table.round(3)


def judge(run: Run) -> str:
    """Who says which of two completions is better where the proxy is judged, with the verb."""
    return "gold ranks" if run.params.gold.known else "your preferences rank"


def attribute(run: Run) -> str | None:
    """The surface attribute that rewards are compared with (`diagnosis.injected_attribute`)."""
    return diagnosis.injected_attribute(run.params)


def accuracy_text(table: pd.DataFrame | None) -> str:
    """What `accuracy` found over all prompts, as one line."""
    if table is None:
        return (
            "how good the proxy is: not known, there is neither gold nor a preference of your own"
            " that did not train it"
        )
    overall = table[table["group"].str.startswith("all ")].set_index("reward")
    if "length" in overall.index:
        rows = overall.loc[["proxy", "length"]].to_dict("records")
        proxy, length = [Interval(row["value"], row["low"], row["high"]) for row in rows]
        return (
            f"given preferences that did not train the proxy, ranked as they say: {proxy};"
            f" by length alone {length}; {rows[0]['prompts']} prompts"
        )
    named = {"proxy": "proxy", "clean": "clean labels"}
    parts = []
    for name in [name for name in named if name in overall.index]:
        parts.append(f"{named[name]} {overall.at[name, 'value']:.3f}")
    return f"pair accuracy on held-out prompts: {', '.join(parts)}"


# --- notebook 01: where the proxy is wrong


def gold(run: Run) -> np.ndarray | None:
    """Gold of the evaluation completions, (rows,); None where nobody knows it."""
    table, pool = run.require(stages.PROXY, "prompts"), run.require(stages.PROXY, "pool_evaluate")
    kept = run.stage(stages.PROXY).table(
        "gold_evaluate", lambda: gold_table(pool, table, run.params)
    )
    return kept["gold"].to_numpy() if run.params.gold.known else None


def ceiling(run: Run) -> pd.DataFrame | None:
    """Can this task show anything? A reward of all clean pairs of the training completions tells
    (`summary.ceiling`)."""
    params, stage = run.params, run.stage(stages.PROXY)
    truth = gold(run)
    if truth is None:
        return None
    if params.task == "safety":
        print(diagnosis.hand_label_agreement())
    table, train = run.require(stages.PROXY, "prompts"), run.require(stages.PROXY, "pool_train")
    every = params.preferences.model_copy(update={"per_prompt": 10**6})
    every_pair = params.model_copy(update={"preferences": every})

    def make() -> pd.DataFrame:
        clean = proxy_data.clean_preferences(train, table, every_pair, stage)
        evaluate = run.require(stages.PROXY, "pool_evaluate")
        return summary.ceiling(params, train, clean, evaluate, truth)

    return stage.table("ceiling", make)


def accuracy(
    run: Run, backbone: Backbone, proxy: RewardModel, scores: dict[str, np.ndarray]
) -> pd.DataFrame | None:
    """How often rewards rank a pair rightly, by group. scores: of the evaluation completions.
    Without gold the proxy, beside length alone, by preferences of the user's own that did not
    train it; None where there are none."""
    table, truth = run.require(stages.PROXY, "prompts"), gold(run)
    if truth is not None:
        evaluate = run.require(stages.PROXY, "pool_evaluate")
        return diagnosis.accuracy_by_group(table, evaluate, truth, scores, run.params.seed)

    given = _given_pairs(run, backbone, proxy)
    if given is None or "proxy" not in set(given["judge"]):
        return None
    return audit.beside_length(given)


def given_pairs(run: Run, backbone: Backbone, proxy: RewardModel) -> pd.DataFrame | None:
    """How often preferences of the user's own are ranked as they say: `audit.accuracy` of the
    proxy on those that did not train it, on those that did, and of length and policy; None where
    there are none. With gold or without; where the proxy has not learnt its own pairs, one printed
    line says so."""
    found = _given_pairs(run, backbone, proxy)
    warning = None if found is None else audit.unlearnt(found)
    if warning:
        print(warning)
    return found


def _given_pairs(run: Run, backbone: Backbone, proxy: RewardModel) -> pd.DataFrame | None:
    table = run.require(stages.PROXY, "prompts")

    def make() -> pd.DataFrame | None:
        train = run.require(stages.PROXY, "pool_train")
        # a published proxy learnt from none of them
        seen = "preferences_clean" if run.params.reward.published else "preferences_biased"
        observed = run.require(stages.PROXY, seen)
        if not run.params.reward.published:
            observed = bias.observed(observed)
        return proxy_data.judged_pairs(backbone, train, observed, table, proxy, run.params)

    pairs = run.stage(stages.PROXY).table_or_none("preferences_judged", make)
    if pairs is None:
        return None
    return audit.accuracy(pairs, diagnosis.groups(table), run.params.seed)


def attribute_pull(run: Run, scores: dict[str, np.ndarray]) -> pd.DataFrame | None:
    """How strongly each reward, and gold, follows the attribute that annotators followed; None
    where there is none to compare with."""
    name, truth = attribute(run), gold(run)
    if name is None:
        return None
    known = {} if truth is None else {"gold": truth}
    evaluate = run.require(stages.PROXY, "pool_evaluate")
    return diagnosis.attribute_correlation(name, evaluate, known | scores)


# --- notebook 02: does conflict know where the proxy is wrong?


def held_out_conflict(run: Run, proxy: RewardModel) -> pd.DataFrame:
    """The conflict table of the evaluation completions under the proxy."""
    evaluate = run.require(stages.PROXY, "pool_evaluate")
    logp = log_probabilities(evaluate, run.params.selection.logp)
    return run.stage(stages.CONFLICT).table(
        "conflict_evaluate", lambda: conflict_table(evaluate, proxy.score(evaluate), logp)
    )


def predicts_error(run: Run, conflict: pd.DataFrame) -> pd.DataFrame | None:
    """`diagnosis.predicts_error` on evaluation prompts, kept; None without gold."""
    if not run.params.gold.known:
        return None
    truth = run.require(stages.PROXY, "gold_evaluate")
    return run.stage(stages.CONFLICT).table(
        "predicts_error", lambda: diagnosis.predicts_error(conflict, truth, run.params.seed)
    )


def given_predicts_error(run: Run) -> pd.DataFrame | None:
    """`diagnosis.given_predicts_error` on preferences of the user's own that did not train the
    proxy, kept; None where there are too few of them."""
    if not run.params.preferences.given:
        return None
    pairs = run.require(stages.PROXY, "preferences_judged").dropna(subset=["proxy"])
    if (pairs["label"] != 0.5).sum() < audit.FEWEST:
        return None
    return run.stage(stages.CONFLICT).table(
        "predicts_error_given", lambda: diagnosis.given_predicts_error(pairs, run.params.seed)
    )


def above_chance(predicts: pd.DataFrame | None, needs: str = "gold") -> pd.DataFrame | None:
    """`predicts_error` for a cell to show, each number beside its placebo; where there is none one
    printed line says what is left out."""
    text = None if predicts is None else diagnosis.as_text(predicts)
    return rounded(text, "does conflict know where the proxy is wrong?", needs)


def roc_table(run: Run, conflict: pd.DataFrame) -> pd.DataFrame | None:
    """The table behind the ROC figure; None without gold."""
    if not run.params.gold.known:
        return None
    truth = run.require(stages.PROXY, "gold_evaluate")
    return diagnosis.roc_table(conflict, truth, run.params.seed)


# --- notebook 04: rewards, policies, and what labels changed


def rewards(run: Run, backbone: Backbone | None) -> dict[str, RewardModel]:
    """The rewards that are compared, in the figures' order: the proxy, the remedies that need no
    labels, one refined with the labels of each strategy, and the ceiling where there is one."""
    refined = stages.refined_rewards(run, backbone)
    compared = {"proxy": stages.proxy(run, backbone)}
    compared |= _remedied(run, backbone, refined)
    compared |= {name: refined[name] for name in reversed(run.params.selection.strategies)}
    if run.params.ceiling:
        folder = run.folder / stages.PROXY / "clean"
        compared["clean"] = stages.finished_reward(run, folder, "clean", backbone)
    return compared


def _remedied(
    run: Run, backbone: Backbone | None, refined: dict[str, RewardModel]
) -> dict[str, RewardModel]:
    """The rewards of the run's remedies, kept below 04_evaluation/remedies."""
    if not run.params.evaluation.remedies:
        return {}
    stage, setting = run.stage(EVALUATION) / "remedies", stages.setting(run, backbone)
    evaluate = run.require(stages.PROXY, "pool_evaluate")
    leading = refined[summary.leading(run.params)]
    cautious = without_labels.cautious(setting, leading, evaluate, stage)
    return without_labels.mended(setting, stage) | cautious


def label_agreement(run: Run, proxy: RewardModel) -> pd.DataFrame | None:
    """How often each reward ranks a labelled pair as its label does (`agreement.table`)."""
    train = run.require(stages.PROXY, "pool_train")
    feedback = run.require(stages.CONFLICT, "pool_feedback")
    observed = bias.observed(run.require(stages.PROXY, "preferences_biased"))
    labels, completions = agreement.collected(run, train, feedback)
    return run.stage(EVALUATION).table_or_none(
        "label_agreement",
        lambda: agreement.table(run.params, completions, observed, labels, proxy),
    )


def changes(run: Run, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """What labels changed in the proxy's ranking of the evaluation completions."""
    pool = run.require(stages.PROXY, "pool_evaluate")
    return run.stage(EVALUATION).table(
        "changes", lambda: without_gold.changes(pool, scores, run.params)
    )


def per_prompt(run: Run, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """Every tilted policy on every evaluation prompt, by gold or by what rewards claim."""
    pool, beta, truth = _judged(run)
    logp = log_probabilities(pool, run.params.selection.logp)
    if truth is None:
        return _kept(run, "per_prompt", lambda: without_gold.claims(pool, scores, beta, logp))
    return _kept(run, "per_prompt", lambda: evaluation.tilted(pool, truth, scores, beta, logp))


def over_optimisation(run: Run, scores: dict[str, np.ndarray]) -> pd.DataFrame:
    """The over-optimisation curve of the proxy, the remedies, random labels, the leading
    strategy's, the same labels merged and clean ones, by gold. Without gold that of the proxy and
    the remedies, by the leading strategy's refined reward: no reward judges its own policy, nor
    one that learnt from labels."""
    pool, _, truth = _judged(run)
    betas, judge = run.params.evaluation.betas, summary.leading(run.params)
    # the cautious proxy goes along the proxy's own line
    mended = [name for name in run.params.evaluation.remedies if name != "conservative_kl"]
    named = [name for name in ("proxy", *mended, "random", judge, "clean") if name in scores]
    if truth is None:
        shown = {name: scores[name] for name in ("proxy", *mended)}
        make = lambda: without_gold.curve(pool, scores[judge], shown, betas)  # noqa: E731
        return _kept(run, "over_optimisation", make)
    shown = {name: scores[name] for name in named}
    merged = _merged(run, judge)
    if merged is not None:
        shown["merged"] = merged.score(pool)
    return _kept(run, "over_optimisation", lambda: evaluation.curve(pool, truth, shown, betas))


def _merged(run: Run, strategy: str) -> RewardModel | None:
    """The reward that a strategy's labels give by `merge`, for comparison with `trust`; None
    where the run's own is no probe that `trust` refined."""
    settings = run.params.reward
    if settings.kind != "probe" or settings.fixed or settings.refinement != "trust":
        return None
    train = run.require(stages.PROXY, "pool_train")
    feedback = run.require(stages.CONFLICT, "pool_feedback")
    observed = bias.observed(run.require(stages.PROXY, "preferences_biased"))
    labels, completions = agreement.collected(run, train, feedback)
    merge = settings.model_copy(update={"refinement": "merge"})
    data = refine.Data(completions, observed, labels[strategy])
    return refine.updated(run.stage(EVALUATION) / "merged", merge, data, run.params.seed)


def means(run: Run, table: pd.DataFrame, name: str = "summary") -> pd.DataFrame:
    """`summary.summarise`, kept under `name`."""
    return _kept(run, name, lambda: summary.summarise(table, run.params))


def contrasts(
    run: Run, table: pd.DataFrame, name: str = "contrasts", unit: str = "prompt_id"
) -> pd.DataFrame:
    """`summary.contrasts`, kept under `name`."""
    return _kept(run, name, lambda: summary.contrasts(table, run.params, unit))


def replicates(run: Run) -> pd.DataFrame | None:
    """The experiment again with fresh seeds; None where no replicates are asked for."""
    params, stage = run.params, run.stage(EVALUATION)
    if not params.evaluation.replicates:
        return None
    table = run.require(stages.PROXY, "prompts")
    pools = [run.require(stages.PROXY, name) for name in ("pool_train", "pool_evaluate")]
    everything = summary.joined(*pools, run.require(stages.CONFLICT, "pool_feedback"))

    def make() -> pd.DataFrame:
        truth = gold_scores(everything, table, params)
        tables = replication.replicates(params, table, everything, truth)
        stage.table("way", lambda: tables["way"])
        return tables["replicates"]

    with stage.timed("replicates"):
        return stage.table("replicates", make)


def way_back(run: Run) -> pd.DataFrame | None:
    """How much of what the flaw cost labels undo (`way.shares`); None where there are no
    replicates, or no cost that is clear of 0."""
    table = _waypoints(run)
    back = None if table is None else way.shares(table, run.params)
    return None if back is None or not len(back) else back


def _waypoints(run: Run) -> pd.DataFrame | None:
    """Gold along the way, of `replication.waypoints`; None where there are no replicates."""
    return run.require(EVALUATION, "way") if run.params.evaluation.replicates else None


def trained(
    run: Run, backbone: Backbone | None, rewards: dict[str, RewardModel]
) -> pd.DataFrame | None:
    """Trained policies on the evaluation prompts, with answers of their own; None for the closed
    form. Nobody trained a policy against the ceiling, nor against a remedy's reward."""
    params, stage = run.params, run.stage(EVALUATION)
    if params.policy.kind == "tilt":
        return None
    folder = run.folder / stages.FEEDBACK
    untrained = ("clean", *params.evaluation.remedies)
    adapters = {name: folder / f"policy_{name}" for name in rewards if name not in untrained}
    pool, _, truth = _judged(run)
    table = run.require(stages.PROXY, "prompts")

    def make() -> pd.DataFrame:
        model = backbone or stages.policy(run)
        pools = sampled_policies(params, table, model, adapters, stage)
        if truth is None:
            return trained_claims(params, pools, pool, rewards)
        return trained_policies(params, table, pools, pool, truth, stage)

    return stage.table("trained_per_prompt", make)


def side_by_side(run: Run, scores: dict[str, np.ndarray], count: int = 3) -> str:
    """Favourites of the proxy and of the leading strategy's reward where gold differs most, or,
    without gold, the completions that rose and fell furthest; plain text."""
    pool, _, truth = _judged(run)
    leading = summary.leading(run.params)
    if truth is None:
        return examples.rank_changes(pool, scores, "proxy", leading, 2 * count)
    return examples.side_by_side(pool, truth, scores, "proxy", leading, count)


def headline(
    run: Run,
    table: pd.DataFrame,
    repeats: pd.DataFrame | None,
    changed: pd.DataFrame,
    agreed: pd.DataFrame | None,
) -> dict[str, str]:
    """The numbers that matter, as text. table: `per_prompt`."""
    if run.params.gold.known:
        predicts = run.require(stages.CONFLICT, "predicts_error")
        numbers = summary.headline(table, repeats, predicts, run.params)
        along = _waypoints(run)
        return numbers if along is None else numbers | way.headline(along, run.params)
    return without_gold.headline(means(run, table), changed, agreed, run.params)


def _judged(run: Run) -> tuple[pd.DataFrame, float, np.ndarray | None]:
    """The evaluation pool, the anchor of the tilted policies, and gold where there is one."""
    pool = run.require(stages.PROXY, "pool_evaluate")
    return pool, run.params.policy.beta, gold(run)


def _kept(run: Run, name: str, make) -> pd.DataFrame:
    return run.stage(EVALUATION).table(name, make)
