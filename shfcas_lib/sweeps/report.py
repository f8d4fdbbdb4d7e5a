"""The report of a sweep: finished jobs go in, a folder of tables and one HTML page come out.

    write_report(plan)                        # gathers runs/sweeps/NAME/tables, runs notebook 05,
                                              # exports report.html
    tables = open_tables("runs/sweeps/NAME")  # what notebook 05 reads

Every table names a result by setting (the cases of the sweep's own axes), budget (-1: no limit),
pool (the seed that completions were sampled with), seed (0, 1, ...: split, bias, fit, selection)
and policy.
"""

from __future__ import annotations

import html
import itertools
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base import places, texts
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.experiment import notebooks
from shfcas_lib.remedies import REMEDIES
from shfcas_lib.storage import files, provenance
from shfcas_lib.sweeps.driver import is_done
from shfcas_lib.sweeps.plan import SweepPlan

REFERENCES = ("base", "proxy", "full", "clean")
LABEL_FREE = (*REFERENCES, *REMEDIES)  # no budget changes them
UNITS = ["setting", "budget", "pool", "seed"]
_TABLES = ("measures", "curves", "categories", "rounds", "timing", "predicts", "trained")


def write_report(plan: SweepPlan) -> Path:
    """Gather the tables, run notebook 05 on them, write report.html; returns its path.

    Raises InputError where nothing is done yet.
    """
    for stale in ("tables", "figures"):
        shutil.rmtree(plan.folder / stale, ignore_errors=True)
    gather(plan)
    executed = plan.folder / "notebooks" / "05_sweep_report.ipynb"
    error = notebooks.run_notebook("05_sweep_report", {"sweep": str(plan.folder)}, executed)
    if error:
        raise InputError(f"{error}; the traceback is in {executed}")
    return _export(executed, plan.folder / "report.html", plan.name)


def gather(plan: SweepPlan) -> None:
    """Write the tables of every finished point below plan.folder/tables, whole or not at all."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in _TABLES}
    states, seen = [], set()
    for point in plan.points:
        place, job = point["place"], plan.jobs[point["place"]]
        state = _state(plan, place)
        budget = job["params"]["selection"]["budget"]  # none: all that the threshold form finds
        facts = {
            "setting": _setting(point["label"]),
            "budget": -1 if budget is None else budget,
            "pool": job["params"]["seed"],
        }
        states.append(point["label"] | facts | {"place": place, "state": state})
        if state != "done":
            continue
        tables = _point_tables(plan, place, job)
        # points of one bias share their proxies: once is enough
        cases = job["needs"].get("cases")
        if cases in seen:
            tables.pop("predicts", None)
        seen.add(cases)
        for name, table in tables.items():
            parts[name].append(table.assign(**facts))
    if not any(parts.values()):
        raise InputError(f"no point of sweep {plan.name} is done: nothing to report")

    folder = plan.folder / "tables"
    save(folder, "points", pd.DataFrame(states))
    for name, pieces in parts.items():
        if pieces:
            save(folder, name, _without_repeats(pd.concat(pieces, ignore_index=True)))


def _state(plan: SweepPlan, place: str) -> str:
    if is_done(plan, place):
        return "done"
    return "failed" if (plan.folder / place / "failed.json").exists() else "not run"


def _without_repeats(table: pd.DataFrame) -> pd.DataFrame:
    """Each result once.

    Two points with the same setting and budget (strategies as an axis) bring the same references
    and seeds.
    """
    names = (*UNITS, "policy", "beta", "category", "measure", "round", "prompt_id")
    keys = [name for name in names if name in table]
    return table.drop_duplicates(keys, ignore_index=True)


def release_tables(plan: SweepPlan, folder: Path) -> Path:
    """Copy what a reader needs to check or redraw a report into folder/NAME; returns that folder.

    These are the tables as CSV (one row per pool, seed and policy), and the figures with the
    tables they were drawn from.
    """
    target = folder / plan.name
    for name, table in open_tables(plan.folder).items():
        if name != "timing":
            _release_table(table, target / f"{name}.csv")
    for path in sorted((plan.folder / "figures").glob("*")):
        if path.suffix in (".png", ".csv"):
            with files.atomic(target / "figures" / path.name) as temporary:
                temporary.write_bytes(path.read_bytes())

    # where each file came from, so that it can be traced
    sources = {}
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.name != provenance.RECORDS:
            name = str(path.relative_to(target))
            table_name = f"tables/{path.name.split('.')[0]}.parquet"
            sources[name] = table_name if path.parent == target else name
    provenance.note_released(provenance.of_sweep(plan.folder), sources, target)
    return target


def _release_table(table: pd.DataFrame, path: Path) -> None:
    """A table as CSV, packed where it would be a few megabytes of text otherwise."""
    packed = len(table) > 15_000
    if packed:
        path = path.with_name(f"{path.name}.gz")
    with files.atomic(path) as temporary:
        texts.table_csv(
            table,
            temporary,
            float_format="%.5g",
            lineterminator="\n",
            compression={"method": "gzip", "mtime": 0} if packed else None,
        )


def open_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of a sweep, by name; one that the sweep does not have is left out.

    folder: '' takes the sweep that was reported last. Raises InputError where there are none.
    """
    tables = Path(folder or latest_sweep()) / "tables"
    if not (tables / "points.parquet").exists():
        raise InputError(
            f"{tables} holds no tables of a sweep: run `python -m shfcas_lib sweep` first"
        )
    return {path.stem: pd.read_parquet(path) for path in sorted(tables.glob("*.parquet"))}


def latest_sweep() -> Path:
    """The folder of the sweep that was reported last. Raises InputError where there is none."""
    known = list(places.runs_dir().glob("sweeps/*/tables/points.parquet"))
    if not known:
        raise InputError(
            f"there is no finished sweep below {places.runs_dir() / 'sweeps'}: run `python -m"
            " shfcas_lib sweep` first"
        )
    known.sort(key=lambda path: path.stat().st_mtime)
    return known[-1].parent.parent


def strategies_of(measures: pd.DataFrame) -> list[str]:
    """The strategies among the policies, `random` last."""
    names = [name for name in measures["policy"].drop_duplicates() if name not in LABEL_FREE]
    return sorted(names, key=lambda name: name == "random")


def comparisons(
    measures: pd.DataFrame, value: str = "gold", against: str = "random"
) -> pd.DataFrame:
    """Every strategy, and every remedy, against one strategy at the same budget, in each setting.

    Columns: setting, budget, and those of stats.compare. Holm's correction runs over the
    policies compared in one setting and budget. Empty where no setting has both.
    """
    kept = measures[~measures["policy"].isin(REFERENCES) | (measures["policy"] == against)]
    parts = []
    for (setting, budget), part in kept.groupby(["setting", "budget"], sort=False, dropna=False):
        if {against} < set(part["policy"]):
            compared = stats.compare(part, against, 0, value)
            parts.append(compared.assign(setting=setting, budget=budget))
    if not parts:
        return pd.DataFrame(columns=["setting", "budget", "policy", "difference", "verdict"])
    columns = parts[0].columns.drop(["setting", "budget"])
    return pd.concat(parts, ignore_index=True)[["setting", "budget", *columns]]


def matrix(measures: pd.DataFrame, value: str = "gold") -> pd.DataFrame:
    """Every policy against every other: policy, against, and the columns of stats.compare.

    Each pair is tested once and stands twice, with the sign turned; Holm's correction runs over
    all pairs.
    """
    policies = set(measures["policy"])
    every = ["proxy", *REMEDIES, *reversed(strategies_of(measures))]
    names = [name for name in every if name in policies]
    wide = measures.pivot(index=["pool", "seed"], columns="policy", values=value)
    pairs = [stats.paired(wide, *pair, 0, value) for pair in itertools.combinations(names, 2)]
    rows = [row for row in pairs if row]
    if not rows:
        return pd.DataFrame(columns=["policy", "against", "difference", "verdict"])
    once = stats.verdicts(pd.DataFrame(rows))
    turned = once.assign(
        policy=once["against"],
        against=once["policy"],
        difference=-once["difference"],
        low=-once["high"],
        high=-once["low"],
        interquartile_mean=-once["interquartile_mean"],
        effect_size=-once["effect_size"],
        improvement=1 - once["improvement"],
        verdict=once["verdict"].replace({"higher": "lower", "lower": "higher"}),
    )
    both = pd.concat([once, turned])
    by = ["policy", "against"]
    return both.sort_values(by, key=lambda column: column.map(names.index), ignore_index=True)


def budget_curves(measures: pd.DataFrame) -> pd.DataFrame:
    """Gold against budget in the settings that have several.

    Columns: setting, policy, budget (0: the proxy), pool, seed, gold.
    """
    several = measures.groupby("setting")["budget"].nunique()
    kept = measures[measures["setting"].isin(several[several > 1].index)]
    proxy = kept[kept["policy"] == "proxy"].drop_duplicates(["setting", "pool", "seed"])
    parts = [kept[~kept["policy"].isin(LABEL_FREE)]]
    for setting, part in kept.groupby("setting"):
        start = proxy[proxy["setting"] == setting].assign(budget=0)
        parts += [start.assign(policy=policy) for policy in strategies_of(part)]
    columns = ["setting", "policy", "budget", "pool", "seed", "gold"]
    return pd.concat(parts, ignore_index=True)[columns]


def budget_gains(curves: pd.DataFrame) -> pd.DataFrame:
    """`budget_curves` with the column gain: gold over the proxy of the same pool and seed.

    That takes out how hard its prompts are.
    """
    key = ["setting", "policy", "pool", "seed"]
    before = curves[curves["budget"] == 0][[*key, "gold"]].rename(columns={"gold": "before"})
    table = curves.merge(before, on=key)
    return table.assign(gain=table["gold"] - table["before"])


def efficiency(curves: pd.DataFrame, reference: str = "random") -> pd.DataFrame:
    """stats.label_efficiency at every budget but the largest, in each setting."""
    parts = []
    for setting, part in curves.groupby("setting", sort=False):
        if reference not in set(part["policy"]):
            continue
        for budget in sorted(part["budget"].unique())[1:-1]:
            table = stats.label_efficiency(part, reference, int(budget), 0)
            parts.append(table.assign(setting=setting, at_budget=int(budget)))
    if not parts:
        return pd.DataFrame(columns=["setting", "policy", "at_budget", "ratio"])
    return pd.concat(parts, ignore_index=True)


def bands(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean of `value` with its nested bootstrap interval (pools, then seeds).

    One row for each combination of `by`: those columns, value, low, high. Units without a value
    (a correlation that is not defined) are left out.
    """
    rows = []
    for key, part in table.dropna(subset=[value]).groupby(by, sort=False):
        interval = stats.nested_interval(part, "pool", value, rng(0, f"bands/{value}/{key}"), 2000)
        rows.append((*key, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high"])


def predictions(predicts: pd.DataFrame) -> pd.DataFrame:
    """Does conflict know where the proxy is wrong, and better than its placebo?

    One row for each setting and measure: setting, measure, value and its nested interval low,
    high, chance (the placebo's mean), above, above_low, above_high (value over placebo, paired by
    pool and seed), p, p_holm and verdict (`stats.verdicts`, corrected over the measures of one
    setting), pools and agree. Units without a value are left out.
    """
    key = ["setting", "pool", "seed", "measure"]
    every = predicts.drop_duplicates(key).dropna(subset=["value", "chance"])
    rows = []
    for (setting, measure), part in every.groupby(["setting", "measure"], sort=False):
        both = part.set_index(["pool", "seed"])[["value", "chance"]]
        above = stats.paired(both, "value", "chance", 0, measure)
        named = {"setting": setting, "measure": measure, "chance": both["chance"].mean()}
        rows.append(named | (above or {}))
    columns = {"difference": "above", "low": "above_low", "high": "above_high"}
    facts = ["setting", "measure", "chance", *columns, "p", "pools", "agree"]
    found = pd.DataFrame(rows, columns=facts).rename(columns=columns)
    table = bands(every, ["setting", "measure"], "value").merge(found, on=["setting", "measure"])
    return stats.verdicts(table, within="setting", prefix="above_")


def gains(categories: pd.DataFrame) -> pd.DataFrame:
    """Gold gained over the proxy, per category.

    Columns: setting, budget, pool, seed, policy, category, gain.
    """
    key = [*UNITS, "category"]
    proxy = categories[categories["policy"] == "proxy"].drop_duplicates(key)
    proxy = proxy[[*key, "gold"]].rename(columns={"gold": "before"})
    kept = categories[~categories["policy"].isin(REFERENCES)].merge(proxy, on=key)
    return kept.assign(gain=kept["gold"] - kept["before"])


def overhead(
    timing: pd.DataFrame, rounds: pd.DataFrame, setting: str, budget: float
) -> pd.DataFrame:
    """Median seconds of one selection by each strategy in one setting: policy, seconds."""
    seconds = rows_at(timing, setting, budget).groupby("policy")["seconds"].median()
    last_round = rows_at(rounds, setting, budget)["round"].max()
    return (seconds / last_round).reset_index()


_TRAINED = [
    "setting",
    "budget",
    "policy",
    "value",
    "low",
    "high",
    "over",
    "over_low",
    "over_high",
    "kl",
    "pools",
]


def trained_table(table: pd.DataFrame, against: str = "proxy") -> pd.DataFrame:
    """Trained policies of a sweep.

    Intervals are stats.nested_interval's: pools, each with trainings of its own, then prompts.
    One pool has none: its prompts say nothing about another training. Columns:

        setting, budget, policy
        value, low, high           gold
        over, over_low, over_high  gold over that of the policy `against`, paired by prompt
        kl                         evaluation.sampled_policy's mean log-ratio, no exact KL where
                                   the temperature is not 1
        pools                      how many
    """
    rows = []
    for (setting, budget), part in table.groupby(["setting", "budget"], sort=False):
        wide = part.pivot(index=["pool", "prompt_id"], columns="policy", values="gold")
        for policy, own in part.groupby("policy", sort=False):
            name = f"trained/{setting}/{budget}/{policy}"
            gold = _over_pools(wide[policy], f"{name}/gold")
            over = _over_pools(wide[policy] - wide[against], f"{name}/over")
            kl = own.groupby("pool")["kl"].mean().mean() if "kl" in own else np.nan
            rows.append((setting, budget, policy, *gold, *over, kl, own["pool"].nunique()))
    return pd.DataFrame(rows, columns=_TRAINED)


def _over_pools(gold: pd.Series, name: str) -> tuple[float, float, float]:
    """Mean gold with its interval, pool by pool; NaN for limits that one pool cannot give."""
    table = gold.dropna().rename("gold").reset_index()
    mean = stats.nested_interval(table, "pool", "gold", rng(0, name), 2000)
    if table["pool"].nunique() < 2:
        return mean.value, np.nan, np.nan
    return mean.value, mean.low, mean.high


def main_setting(measures: pd.DataFrame) -> tuple[str, float]:
    """The setting and budget for figures that show one.

    The setting with several budgets, else with most strategies, at its middle budget.
    """
    strategies = measures[~measures["policy"].isin(REFERENCES)]
    count = strategies.groupby("setting", sort=False)["policy"].nunique()
    budgets = measures.groupby("setting")["budget"].nunique()
    setting = max(count.index, key=lambda name: (budgets[name] > 1, count[name]))
    every = sorted(measures.loc[measures["setting"] == setting, "budget"].unique())
    return setting, every[len(every) // 2]


def rows_at(table: pd.DataFrame, setting: str, budget: float) -> pd.DataFrame:
    """The rows of one setting and budget."""
    return table[(table["setting"] == setting) & (table["budget"] == budget)]


def _setting(label: dict[str, str]) -> str:
    """The cases that are neither seed, budget nor strategies, as one name."""
    rest = []
    for axis, name in label.items():
        if axis not in ("seed", "budget", "strategies"):
            rest.append(f"{axis} {name}" if _is_number(name) else name)
    return ", ".join(rest) or "all"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _point_tables(plan: SweepPlan, place: str, job: dict) -> dict[str, pd.DataFrame]:
    """The tables of a finished point with those of the cases it started from.

    Where policies were trained: what they wrote was worth.
    """
    folder = plan.folder / place
    if job["kind"] == "policies":
        return {"trained": pd.read_parquet(folder / "trained.parquet")}
    if job["kind"] == "run":
        name = "per_prompt" if job["params"]["policy"]["kind"] == "tilt" else "trained_per_prompt"
        return {"trained": pd.read_parquet(folder / "run" / "04_evaluation" / f"{name}.parquet")}
    shared = plan.folder / job["needs"]["cases"]
    tables = {}
    for name in ("measures", "curves", "categories"):
        sources = [shared / f"{name}.parquet", folder / f"{name}.parquet"]
        tables[name] = pd.concat([pd.read_parquet(path) for path in sources])
    for name in ("rounds", "timing"):
        tables[name] = pd.read_parquet(folder / f"{name}.parquet")
    tables["predicts"] = pd.read_parquet(shared / "predicts.parquet")
    return tables


def save(folder: Path, name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table of the report, whole or not at all; returns it."""
    with files.atomic(folder / f"{name}.parquet") as target:
        table.to_parquet(target, index=False)
    return table


def _export(notebook: Path, target: Path, title: str) -> Path:
    """The executed notebook as one HTML file without its code, that needs no network.

    No script, style or font is fetched.
    """
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        embed_images=True,
        mathjax_url="",
        require_js_url="",
        jquery_url="",
        mermaid_js_url="",
        mermaid_layout_elk_js_url="",
        widget_renderer_url="",
    )
    body, _ = exporter.from_notebook_node(
        nbformat.read(notebook, 4), {"metadata": {"name": html.escape(title)}}
    )
    with files.atomic(target) as temporary:
        temporary.write_text(texts.visible_in_html(body), encoding="utf-8")
    return target
