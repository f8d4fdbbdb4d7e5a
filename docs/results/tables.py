"""Fill the tables of docs/results.md from the CSV files beside this script: `make claims`.

Every block of the page between `<!-- table: NAME -->` and `<!-- end -->` is what the function of
that name returns. A test runs this and compares, so that no number on the page can differ from
the rows it came from.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base.randomness import rng
from shfcas_lib.sweeps import report

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "results.md"
_KNOWN = {task: f"results_{task}" for task in ("safety", "helpfulness")}
TASKS = {task: folder for task, folder in _KNOWN.items() if (HERE / folder).is_dir()}
NAMES = {
    "budget": "systematic (the demo's)",
    "bias, noise 35%": "label noise 35%",
    "bias, compliance 100%": "compliance 100%",
    "bias, length 80%": "length 80%",
    "bias, length 100%": "length 100%",
    "bias, coverage": "missing categories",
    "bias, all three": "all three",
}
BIASES = list(NAMES)


def read(task: str, name: str) -> pd.DataFrame:
    path = HERE / TASKS[task] / f"{name}.csv"
    return pd.read_csv(path if path.exists() else path.with_suffix(".csv.gz"))


def markdown(rows: list[dict]) -> str:
    """Rows as a Markdown table; the columns are the keys of the first."""
    columns = list(rows[0])
    lines = [_line(columns), "|" + "---|" * len(columns)]
    for row in rows:
        lines.append(_line([str(row.get(column, "")) for column in columns]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def interval(value: float, low: float, high: float, digits: int = 3, sign: bool = True) -> str:
    style = f"+.{digits}f" if sign else f".{digits}f"
    return f"{value:{style}} [{low:{style}}, {high:{style}}]".replace("-", "−")


def band(table: pd.DataFrame, column: str, name: str) -> stats.Interval:
    return stats.nested_interval(table, "pool", column, rng(0, f"results/{name}"))


@cache
def compared(task: str, value: str, against: str) -> pd.DataFrame:
    """Against one strategy at the same budget.

    Holm's correction runs over all strategies that the sweep compared in that setting.
    """
    return report.comparisons(read(task, "measures"), value, against)


def differences(
    task: str,
    settings: list[str],
    policies: list[str],
    budget: int | None = None,
    value: str = "gold",
    against: str = "random",
) -> list[dict]:
    table = compared(task, value, against)
    if budget is not None:
        table = table[table["budget"] == budget]
    rows = []
    for setting in settings:
        for policy in policies:
            part = table[(table["setting"] == setting) & (table["policy"] == policy)]
            rows += [_difference(task, against, row) for row in part.itertuples()]
    return rows


def _difference(task: str, against: str, row) -> dict:
    """A row of stats.compare as the page shows it."""
    return {
        "task": task,
        "setting": NAMES.get(row.setting, row.setting),
        "labels": row.budget,
        "strategy": row.policy,
        f"over {against}": interval(row.difference, row.low, row.high),
        "effect size": f"{row.effect_size:+.2f}".replace("-", "−"),
        "better on": f"{row.improvement:.0%}",
        "p (Holm)": f"{row.p_holm:.3f}" if row.p_holm >= 0.001 else "< 0.001",
        "verdict": row.verdict,
    }


def both(*arguments, **options) -> str:
    rows = []
    for task in TASKS:
        rows += differences(task, *arguments, **options)
    return markdown(rows)


def levels() -> str:
    """What there is to win: the base policy, the proxy and the ceilings, and what lies between."""
    rows = []
    for task in TASKS:
        measures = read(task, "measures")
        here = measures[(measures["setting"] == "budget") & (measures["budget"] == 80)]
        for policy in ("base", "proxy", "random", "shf_cas", "pacs_difference", "full", "clean"):
            part = here[here["policy"] == policy]
            gold, accuracy = band(part, "gold", f"{task}/{policy}"), part["pair_accuracy"]
            rows.append(
                {
                    "task": task,
                    "policy": policy,
                    "gold reward": interval(gold.value, gold.low, gold.high, sign=False),
                    "pair accuracy": "" if accuracy.isna().all() else f"{accuracy.mean():.3f}",
                }
            )
    return markdown(rows)


def predicts() -> str:
    # how the name of a measure begins
    short = {
        "wrong pairs found by |PACS|,": "|PACS|",
        "wrong pairs found by K,": "K",
        "wrong pairs found by |PACS_i - PACS_j|,": "|PACSᵢ − PACSⱼ|",
        "wrong pairs found by the proxy's": "proxy's margin (small first)",
        "|PACS| with the proxy's error": "|PACS| and error, Spearman",
    }
    rows = []
    for task in TASKS:
        table = read(task, "predicts").drop_duplicates(["setting", "pool", "seed", "measure"])
        settings = set(table["setting"])
        for setting in [name for name in BIASES if name in settings]:
            row = {"task": task, "bias": NAMES[setting]}
            for measure, name in short.items():
                named = table["measure"].str.startswith(measure)
                part = table[(table["setting"] == setting) & named]
                mean = band(part, "value", f"{task}/{setting}/{part['measure'].iloc[0]}")
                signed = "Spearman" in name
                cell = interval(mean.value, mean.low, mean.high, 2, sign=signed)
                row[name.replace("|", "\\|")] = cell
            rows.append(row)
    return markdown(rows)


def bias() -> str:
    return both(BIASES, ["shf_cas", "pacs_difference", "uncertainty"], budget=80)


def strongest() -> str:
    """Against ensemble uncertainty, the strongest of the strategies that do not know the policy."""
    return both(BIASES, ["shf_cas", "pacs_difference"], budget=80, against="uncertainty")


def budgets() -> str:
    return both(["budget"], ["shf_cas", "pacs_difference", "uncertainty"])


def efficiency() -> str:
    rows = []
    for task in TASKS:
        measures = read(task, "measures").query("setting == 'budget'")
        table = report.efficiency(report.budget_curves(measures))
        shown = table["at_budget"].isin([40, 80]) & (table["policy"] != "random")
        for row in table[shown].itertuples():
            ratio = f"{row.ratio:.2f} [{row.ratio_low:.2f}, {row.ratio_high:.2f}]"
            rows.append(
                {
                    "task": task,
                    "random with": row.at_budget,
                    "strategy": row.policy,
                    "labels needed": f"{row.labels:.0f} [{row.low:.0f}, {row.high:.0f}]",
                    "random labels worth one": ratio,
                    "reached": f"{row.reached:.0%}",
                }
            )
    return markdown(rows)


def parts() -> str:
    names = [
        "shf_cas",
        "shf_cas_threshold",
        "pacs",
        "kendall",
        "pacs_difference",
        "uncertainty",
        "margin",
        "bald",
        "d_optimal",
        "best_of",
        "random_prompts",
        "low_conflict",
    ]
    return both(["strategies"], names)


def ablation() -> str:
    """SHF-CAS without K, without PACS, and with the difference in place of the sum.

    All are compared with shf_cas.
    """
    others = ["pacs", "kendall", "pacs_difference", "shf_cas_threshold"]
    return both(["strategies"], others, budget=80, against="shf_cas")


def rounds() -> str:
    return both(["budget", "rounds, rounds 2", "rounds, rounds 4"], ["shf_cas", "pacs"], budget=80)


def gap() -> str:
    policies = ["shf_cas", "pacs", "pacs_difference", "uncertainty", "margin"]
    return both(["budget"], policies, budget=80, value="gap")


def hardest() -> str:
    """The end of the over-optimisation curve, at the loosest anchor.

    What gold gains, and what the reward believes.
    """
    rows = []
    for task in TASKS:
        curves = read(task, "curves")
        loosest = curves[curves["beta"] == curves["beta"].min()]
        end = report.rows_at(loosest, "budget", 80)
        for policy in ("proxy", "random", "shf_cas", "pacs_difference", "full", "clean"):
            part = end[end["policy"] == policy]
            gold = band(part, "gold_gain", f"{task}/gold/{policy}")
            own = band(part, "reward_gain", f"{task}/own/{policy}")
            rows.append(
                {
                    "task": task,
                    "policy": policy,
                    "gold gains, sd": interval(gold.value, gold.low, gold.high, 2),
                    "reward believes, sd": interval(own.value, own.low, own.high, 2),
                }
            )
    return markdown(rows)


def sensitivity() -> str:
    settings = [
        "budget",
        "sensitivity, N 4",
        "sensitivity, per-token logp",
        "sensitivity, noisy annotator 20%",
        "temperature, temperature 1.0",
    ]
    return both(settings, ["shf_cas", "pacs_difference"], budget=80)


def own_prompts() -> str:
    settings = [f"own_prompts, train_and_feedback, {logp}" for logp in ("sum", "mean")]
    return both(settings, ["shf_cas", "pacs_difference"])


def trained() -> str:
    """Policies trained with DPO and sampled anew, beside the closed form of the same rewards."""
    rows = []
    for task in TASKS:
        table = read(task, "trained")
        over_proxy, over_random, over_base = (
            report.trained_table(table, against).set_index("policy")
            for against in ("proxy", "random", "base")
        )
        # the same table, with the closed form's gold in the place of the trained policy's
        tilted = table.drop(columns=["gold", "kl"])
        tilted = tilted.rename(columns={"tilted_gold": "gold", "tilted_kl": "kl"})
        closed = report.trained_table(tilted).set_index("policy")
        columns = ["over", "over_low", "over_high"]
        for policy in ("base", "proxy", "random", "shf_cas", "clean"):
            own = over_proxy.loc[policy]
            rows.append(
                {
                    "task": task,
                    "policy": policy,
                    "gold reward": interval(own["value"], own["low"], own["high"], sign=False),
                    "over base": interval(*over_base.loc[policy, columns]),
                    "over the proxy's": interval(*own[columns]),
                    "over random labels'": interval(*over_random.loc[policy, columns]),
                    "log-ratio to base, nats": f"{own['kl']:.2f}",
                    "closed form over the proxy's": interval(*closed.loc[policy, columns]),
                    "its KL, nats": f"{closed.loc[policy, 'kl']:.2f}",
                }
            )
    return markdown(rows)


_FUNCTIONS = [
    levels,
    predicts,
    bias,
    strongest,
    budgets,
    efficiency,
    parts,
    ablation,
    rounds,
    gap,
    hardest,
    sensitivity,
    own_prompts,
    trained,
]
BLOCKS = {function.__name__: function for function in _FUNCTIONS}


def fill(text: str) -> str:
    """The page with every block computed anew."""
    return filled(text, BLOCKS)


def filled(text: str, blocks: dict[str, Callable[[], str]]) -> str:
    """A page with every block between its marks computed anew."""
    marks = r"<!-- table: (\w+) -->\n.*?<!-- end -->"

    def block(found: re.Match) -> str:
        return f"<!-- table: {found[1]} -->\n{blocks[found[1]]()}\n<!-- end -->"

    return re.sub(marks, block, text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
    sys.exit(0)
