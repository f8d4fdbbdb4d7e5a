"""Is it better? Policies and gold go in, a per-prompt table and figures of merit come out.

Everything here reads completions of evaluation prompts, which training, selection and feedback never saw. Where there is no gold (None), its
measures are missing, and every policy is judged by every reward instead (`BY`): what they claim, which is no evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import policies, published, refine, runs, stats
from shfcas_lib.agreement import NEEDS
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.gold import values as gold_values
from shfcas_lib.models import POLICY
from shfcas_lib.params import Params
from shfcas_lib.pool import sample_adapted
from shfcas_lib.rewards import spread
from shfcas_lib.training_data import gold_table

if TYPE_CHECKING:
    from shfcas_lib.models import Backbone

MEASURES = {
    "gold": "gold reward of the optimised policy",
    "win": "win rate against the base policy",
    "pair_accuracy": "pairs the reward ranks as gold does",
    "gap": "reward gain minus gold gain, in standard deviations",
    "kl": "KL from the base policy, nats",
    "kendall": "Kendall-tau distance to the base policy",
    "mean_abs_pacs": "mean |PACS|",
}
BY = "gain by "  # and the name of a reward: what that reward says a policy gained, in standard deviations over completions; only without gold
_TOLD = ("gold", "win", "pair_accuracy", "gap")


def tilted(pool: pd.DataFrame, gold: np.ndarray | None, scores: dict[str, np.ndarray], beta: float) -> pd.DataFrame:
    """One row per policy and prompt: policy, prompt_id, the MEASURES, reward_gain and gold_gain.

    pool: evaluation pool, sorted by id. gold: (rows,). scores: name of a reward to its (rows,) scores; the policy of that
    name is the base policy tilted by it at `beta`. The base policy itself is added as `base`; what needs a reward is NaN there.
    Without gold: policy, prompt_id, kl, kendall, mean_abs_pacs, and `BY` for every reward.
    """
    if gold is None:
        return _tilted_without_gold(pool, scores, beta)
    ids = pool["prompt_id"].to_numpy()
    gold_spread = spread(gold, ids)
    parts = []
    for name, reward in {"base": None, **scores}.items():
        flat = np.zeros(len(pool)) if reward is None else reward
        weights = policies.tilt(ids, flat, beta)
        unit = spread(flat, ids)
        part = policies.per_prompt(ids, weights, {"gold": gold, "reward": flat})
        even = policies.per_prompt(ids, policies.tilt(ids, np.zeros(len(pool)), 1.0), {"gold": gold, "reward": flat})
        part = part.assign(policy=name, reward_gain=(part["reward"] - even["reward"]) / unit, gold_gain=(part["gold"] - even["gold"]) / gold_spread)
        part["gap"] = part["reward_gain"] - part["gold_gain"]
        part = part.merge(policies.win_rate(ids, weights, gold), on="prompt_id")
        if reward is None:
            part = part.assign(pair_accuracy=np.nan, kendall=np.nan, mean_abs_pacs=np.nan, gap=np.nan)
        else:
            conflict = conflict_table(pool, reward).drop_duplicates("prompt_id")[["prompt_id", "kendall", "mean_abs_pacs"]]
            part = part.merge(pair_accuracy(ids, reward, gold), on="prompt_id", how="left").merge(conflict, on="prompt_id")
        parts.append(part.drop(columns="reward"))
    return pd.concat(parts, ignore_index=True)[["policy", "prompt_id", *MEASURES, "reward_gain", "gold_gain"]]


def _tilted_without_gold(pool: pd.DataFrame, scores: dict[str, np.ndarray], beta: float) -> pd.DataFrame:
    ids = pool["prompt_id"].to_numpy()
    gains = {BY + name: _centred(ids, score) / spread(score, ids) for name, score in scores.items()}
    parts = []
    for name, reward in {"base": None, **scores}.items():
        part = policies.per_prompt(ids, policies.tilt(ids, np.zeros(len(pool)) if reward is None else reward, beta), gains).assign(policy=name)
        if reward is None:
            part = part.assign(kendall=np.nan, mean_abs_pacs=np.nan, **dict.fromkeys(gains, 0.0))  # not almost: the text would say -0.000
        else:
            part = part.merge(by_prompt(conflict_table(pool, reward)), on="prompt_id")
        parts.append(part)
    return pd.concat(parts, ignore_index=True)[["policy", "prompt_id", "kl", "kendall", "mean_abs_pacs", *gains]]


def _centred(ids: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Scores above the mean of their prompt's completions."""
    return score - pd.Series(score).groupby(ids).transform("mean").to_numpy()


def rewards_of(params: Params) -> list[str]:
    """The rewards that are compared, in the figures' order: the proxy, one refined with the labels of each strategy, and with gold the ceiling."""
    return ["proxy", *reversed(params.selection.strategies), *(["clean"] if params.gold.known else [])]


def changes(pool: pd.DataFrame, scores: dict[str, np.ndarray], params: Params) -> pd.DataFrame:
    """What labels changed in the proxy's ranking of the evaluation completions; no gold takes part. Columns reward, measure, value, low, high: the share of
    pairs of a prompt's completions that a refined reward ranks as the proxy does, and the share of prompts whose best completion is still the same."""
    ids = pool["prompt_id"].to_numpy()
    before = _favourites(ids, scores["proxy"])
    rows = []
    for name in [name for name in scores if name in params.selection.strategies]:
        measures = {"pairs ranked as the proxy ranks them": pair_accuracy(ids, scores[name], scores["proxy"])["pair_accuracy"],
                    "prompts with the same favourite": (_favourites(ids, scores[name]) == before).astype(float)}
        for measure, values in measures.items():
            interval = stats.mean_interval(values, runs.rng(params.seed, f"changes/{name}/{measure}"), params.evaluation.bootstrap)
            rows.append((name, measure, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["reward", "measure", "value", "low", "high"])


def _favourites(ids: np.ndarray, score: np.ndarray) -> pd.Series:
    """The row of each prompt's best completion."""
    return pd.Series(score).groupby(ids).idxmax()


def trained(name: str, sampled: pd.DataFrame, gold: np.ndarray, base: pd.DataFrame, base_gold: np.ndarray) -> pd.DataFrame:
    """The same table for a trained policy, from its own samples.

    kl is the sample mean of logp - logp_reference. At a sampling temperature other than 1 that is a log-ratio and no exact KL.
    """
    table = sampled[["prompt_id"]].assign(gold=gold, kl=sampled["logp"] - sampled["logp_reference"])
    rows = table.groupby("prompt_id").mean().reset_index()
    before = pd.Series(base_gold).groupby(base["prompt_id"].to_numpy()).apply(np.asarray)
    after = table.groupby("prompt_id")["gold"].apply(np.asarray)
    win = {p: ((np.sign(after[p][:, None] - before[p][None, :]) + 1) / 2).mean() for p in after.index}
    return rows.assign(policy=name, win=rows["prompt_id"].map(win))


def pair_accuracy(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, the share of pairs that gold tells apart which the reward ranks as gold does, reward ties counting one half:
    columns prompt_id, pair_accuracy. Prompts without such pairs are left out."""
    rows = []
    for prompt, part in pd.DataFrame({"p": prompt_ids, "r": reward, "g": gold}).groupby("p"):
        first, second = np.triu_indices(len(part), 1)
        g, r = part["g"].to_numpy(), part["r"].to_numpy()
        truth, guess = np.sign(g[first] - g[second]), np.sign(r[first] - r[second])
        told = truth != 0
        if told.any():
            rows.append((prompt, float(((truth * guess)[told] + 1).mean() / 2)))
    return pd.DataFrame(rows, columns=["prompt_id", "pair_accuracy"])


def headroom_share(prompt_ids: np.ndarray, reward: np.ndarray, gold: np.ndarray) -> pd.DataFrame:
    """Per prompt, what best-of-N by the reward gains in gold and what best-of-N by gold would gain: columns prompt_id, gained,
    headroom. The share of headroom reached is sum(gained) / sum(headroom)."""
    table = pd.DataFrame({"prompt_id": prompt_ids, "reward": reward, "gold": gold})
    best = table.loc[table.groupby("prompt_id")["reward"].idxmax()].set_index("prompt_id")["gold"]
    by = table.groupby("prompt_id")["gold"]
    return pd.DataFrame({"gained": best - by.mean(), "headroom": by.max() - by.mean()}).reset_index()


def ceiling(params: Params, train: pd.DataFrame, clean: pd.DataFrame, evaluate: pd.DataFrame, gold: np.ndarray | None) -> pd.DataFrame | None:
    """Can the task show anything? Columns measure, value, low, high, needed: the share of prompts on which gold differs, and
    the best-of-N headroom that a reward trained on clean preferences reaches on evaluation prompts. None without gold."""
    if gold is None:
        return None
    ids = evaluate["prompt_id"].to_numpy()
    score = refine.fit(params.reward.model_copy(update={"kind": "probe"}), train, clean, params.seed).score(evaluate)
    differs = (pd.Series(gold).groupby(ids).agg(np.ptp) > 1e-9).astype(float)
    head = headroom_share(ids, score, gold)
    accuracy = pair_accuracy(ids, score, gold)["pair_accuracy"]
    draw = lambda name: runs.rng(params.seed, f"ceiling/{name}")  # noqa: E731
    share = stats.cluster_interval(head, "prompt_id", lambda t: t["gained"].sum() / t["headroom"].sum(), draw("headroom"))
    rows = [("prompts on which gold differs between completions", stats.mean_interval(differs, draw("differs")), 0.5),
            ("best-of-N headroom reached by a reward trained on clean labels", share, 0.5),
            ("pairs that reward ranks as gold does", stats.mean_interval(accuracy, draw("accuracy")), None)]
    return pd.DataFrame([(name, i.value, i.low, i.high, needed) for name, i, needed in rows], columns=["measure", "value", "low", "high", "needed"])


def curve(pool: pd.DataFrame, gold: np.ndarray | None, scores: dict[str, np.ndarray], betas: list[float], refined: str = "") -> pd.DataFrame:
    """The over-optimisation curve in closed form: policy, beta, kl, reward_gain and gold_gain (in standard deviations), means over prompts.
    Without gold the reward called `refined` stands in for it, and gold_gain is called refined_gain."""
    if gold is None:
        return curve(pool, scores[refined], scores, betas).rename(columns={"gold_gain": "refined_gain"})
    ids = pool["prompt_id"].to_numpy()
    rows = []
    for name, reward in scores.items():
        values = {"gold_gain": gold / spread(gold, ids), "reward_gain": reward / spread(reward, ids)}
        even = policies.per_prompt(ids, policies.tilt(ids, np.zeros(len(pool)), 1.0), values).mean(numeric_only=True)
        for beta in sorted(betas, reverse=True):
            means = policies.per_prompt(ids, policies.tilt(ids, reward, beta), values).mean(numeric_only=True)
            rows.append((name, beta, means["kl"], means["reward_gain"] - even["reward_gain"], means["gold_gain"] - even["gold_gain"]))
    return pd.DataFrame(rows, columns=["policy", "beta", "kl", "reward_gain", "gold_gain"])


def summary(table: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Mean of every measure for every policy with a bootstrap interval over prompts: policy, measure, value, low, high."""
    rows = []
    for policy, part in table.groupby("policy", sort=False):
        for measure in [*MEASURES, *_by(table)]:
            values = part[measure].dropna() if measure in part else []
            if len(values):
                interval = stats.mean_interval(values, runs.rng(params.seed, f"summary/{policy}/{measure}"), params.evaluation.bootstrap)
                rows.append((policy, measure, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=["policy", "measure", "value", "low", "high"])


def _by(table: pd.DataFrame) -> list[str]:
    return [column for column in table if column.startswith(BY)]


def as_text(summary: pd.DataFrame, order: list[str]) -> pd.DataFrame:
    """A summary for people: policies in this order down, measures across, a value with its interval in each cell."""
    text = summary.apply(lambda r: f"{r['value']:.3f} [{r['low']:.3f}, {r['high']:.3f}]", axis=1)
    return summary.assign(text=text).pivot(index="policy", columns="measure", values="text").reindex(order)


def told(table: pd.DataFrame) -> pd.DataFrame:
    """The contrasts to read first: those by gold, or without gold all of them."""
    chosen = table[table["measure"].isin(_TOLD)]
    return chosen if len(chosen) else table


def contrasts(table: pd.DataFrame, params: Params, unit: str = "prompt_id") -> pd.DataFrame:
    """Paired differences between policies, by `unit` (prompt_id, or seed for replicates), with bootstrap intervals.

    Columns: better (the policy named first), than, measure, difference, low, high, p (Wilcoxon, two-sided, uncorrected),
    units, verdict: 'higher', 'lower' or 'not significant', by whether the interval holds 0.
    """
    wanted = [m for m in MEASURES if m in table] + _by(table)
    strategies = [name for name in params.selection.strategies if name in set(table["policy"])]
    pairs = [(a, b) for k, a in enumerate(strategies) for b in strategies[k + 1 :]] + [(a, "proxy") for a in strategies] + [("proxy", "base")]
    rows = []
    for measure in wanted:
        wide = table.pivot(index=unit, columns="policy", values=measure)
        for first, second in pairs:
            if first in wide and second in wide and len(values := (wide[first] - wide[second]).dropna()):
                i = stats.mean_interval(values, runs.rng(params.seed, f"contrast/{unit}/{measure}/{first}/{second}"), params.evaluation.bootstrap)
                verdict = "higher" if i.low > 0 else "lower" if i.high < 0 else "not significant"
                rows.append((first, second, measure, i.value, i.low, i.high, stats.wilcoxon_p(values), len(values), verdict))
    return pd.DataFrame(rows, columns=["better", "than", "measure", "difference", "low", "high", "p", "units", "verdict"])


def trained_policies(params: Params, prompts: pd.DataFrame, backbone: Backbone, adapters: dict[str, Path], base: pd.DataFrame,
                     base_gold: np.ndarray | None, stage: runs.Stage, rewards: dict[str, refine.RewardModel] | None = None) -> pd.DataFrame:
    """Sample the evaluation prompts from trained policies, `evaluation.answers` each: the table of `trained` for each policy, below the base
    policy's own rows. Completion k of a prompt draws from the same generator under every policy, the base policy's too unless vLLM wrote those: what they share does not blur the
    comparison.

    adapters: policy name to the folder that loop.train_policy wrote. base, base_gold: evaluation pool of the base policy. Without gold the `rewards`
    judge: kl, and `BY` for each.
    """
    held_out = prompts[prompts["split"] == "evaluate"]
    sampling = params.sampling.model_copy(update={"n": params.evaluation.answers or params.sampling.n})
    if base_gold is None:
        before = {name: reward.score(base) for name, reward in (rewards or {}).items()}
        parts = [_gains_by(base, base, rewards or {}, before).assign(policy="base", kl=0.0)]
    else:
        even = pd.DataFrame({"prompt_id": base["prompt_id"], "gold": base_gold}).groupby("prompt_id").mean().reset_index()
        parts = [even.assign(policy="base", kl=0.0, win=0.5)]
    for name, folder in adapters.items():
        backbone.load_adapter(POLICY, folder / "adapter")
        sampled = stage.table(f"pool_{name}", lambda: sample_adapted(
            backbone, POLICY, held_out, sampling, params.seed, f"policy {name}"))
        if base_gold is None:
            parts.append(_gains_by(published.scored(sampled, params), base, rewards or {}, before).assign(policy=name))
        else:
            gold = gold_values(stage.table(f"gold_{name}", lambda: gold_table(sampled, prompts, params)))
            parts.append(trained(name, sampled, gold, base, base_gold))
    return pd.concat(parts, ignore_index=True)


def _gains_by(sampled: pd.DataFrame, base: pd.DataFrame, rewards: dict[str, refine.RewardModel], before: dict[str, np.ndarray]) -> pd.DataFrame:
    """What every reward believes a policy gained: prompt_id, kl, and `BY`, from the mean of the base policy's completions of the prompt. before: the
    rewards of those."""
    table = sampled[["prompt_id"]].assign(kl=sampled["logp"] - sampled["logp_reference"] if "logp_reference" in sampled else 0.0)
    for name, reward in rewards.items():
        ids = base["prompt_id"].to_numpy()
        mean = pd.Series(before[name]).groupby(ids).mean()
        table[BY + name] = (reward.score(sampled) - sampled["prompt_id"].map(mean).to_numpy()) / spread(before[name], ids)
    return table.groupby("prompt_id").mean().reset_index()


def joined(*parts: pd.DataFrame) -> pd.DataFrame:
    """Pool tables of disjoint prompts as one, sorted by id."""
    return pd.concat(parts).sort_values(["prompt_id", "index"], ignore_index=True)


def leading(params: Params) -> str:
    """The strategy that the numbers are about: the first that is not the baseline."""
    return next((name for name in params.selection.strategies if name != "random"), "random")


def headline_without_gold(summary: pd.DataFrame, changed: pd.DataFrame, agreement: pd.DataFrame | None, params: Params) -> dict[str, str]:
    """The numbers that matter where there is no gold, as text. agreement: from module agreement, the only one that is evidence; the rest says what changed."""
    first = leading(params)
    number = lambda row: str(stats.Interval(row["value"], row["low"], row["high"]))  # noqa: E731
    numbers = {} if agreement is not None else {"agreement with the labels": f"not known, it needs {NEEDS}"}
    for asked, part in agreement.groupby("asked", sort=False) if agreement is not None else []:
        rows = part.set_index("reward")
        pairs = "random pairs" if asked == "random" else f"pairs that {asked} chose"
        numbers[f"{rows['labels'].iloc[0]} labels on {pairs}: the proxy agrees"] = number(rows.loc["proxy"])
        for name in [name for name in rows.index if name != "proxy" and (asked == "random" or name == asked)]:
            gain = stats.Interval(*rows.loc[name, ["gain", "gain_low", "gain_high"]])
            numbers[f"  gain with {name} labels on {pairs}, cross-validated"] = f"{gain}, {rows.at[name, 'verdict']}"
    numbers["evidence that it is better"] = "the agreement above, and nothing else; what follows says what changed"
    for row in changed[changed["reward"] == first].to_dict("records"):
        numbers[f"{row['measure']}, {first}"] = number(row)
    for name in ("proxy", first):
        for measure, what in (("kendall", "conflict K with the base policy"), ("kl", "KL of the tilted policy, nats")):
            found = summary[(summary["policy"] == name) & (summary["measure"] == measure)]
            numbers[f"{what}, {name}"] = number(found.iloc[0])
    return numbers


def headline(per_prompt: pd.DataFrame, repeats: pd.DataFrame | None, predicts: pd.DataFrame, params: Params) -> dict[str, str]:
    """The five numbers that matter, as text. Over seeds where there are replicates, over prompts otherwise."""
    table, unit, over = (per_prompt, "prompt_id", "prompts") if repeats is None else (repeats, "seed", "seeds")
    wide = table.pivot(index=unit, columns="policy", values="gold")
    first = leading(params)
    other = next((name for name in params.selection.strategies if name == "random"), None)

    def interval(values: pd.Series, name: str) -> str:
        return str(stats.mean_interval(values.dropna(), runs.rng(params.seed, f"headline/{name}"), params.evaluation.bootstrap))

    count = wide.notna().all(axis=1).sum()
    numbers = {f"gold reward, base policy ({count} {over})": interval(wide["base"], "base"),
               "gain of the biased proxy over the base policy": interval(wide["proxy"] - wide["base"], "proxy"),
               f"gain of {first} over the proxy": interval(wide[first] - wide["proxy"], "first")}
    if other and other != first:
        numbers[f"gain of {first} over {other} at the same budget"] = interval(wide[first] - wide[other], "other")
    area = predicts[predicts["measure"].str.startswith("wrong pairs found by |PACS|")].iloc[0]
    numbers["wrong pairs found by |PACS|, area under ROC (0.5: chance)"] = str(stats.Interval(area["value"], area["low"], area["high"]))
    return numbers
