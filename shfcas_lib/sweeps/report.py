"""The report of a sweep: finished jobs go in, a folder of tables and one HTML page come out.

    write(plan)                                  gathers runs/sweeps/NAME/tables, runs notebook 05, exports report.html
    tables = open_tables("runs/sweeps/NAME")     what notebook 05 reads

Every table names a result by setting (the cases of the sweep's own axes), budget (-1: no limit),
pool (the seed that completions were sampled with), seed (0, 1, ...: split, bias, fit, selection)
and policy.
"""

from __future__ import annotations

import html
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib.analysis import stats
from shfcas_lib.base import places, texts
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.experiment import notebooks
from shfcas_lib.storage import files, provenance
from shfcas_lib.sweeps.driver import is_done
from shfcas_lib.sweeps.plan import SweepPlan

REFERENCES = ("base", "proxy", "full", "clean")
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
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in _TABLES}
    states, told = [], set()
    for point in plan.points:
        job = plan.jobs[point["place"]]
        finished = is_done(plan, point["place"])
        state = (
            "done"
            if finished
            else "failed"
            if (plan.folder / point["place"] / "failed.json").exists()
            else "not run"
        )
        budget = job["params"]["selection"]["budget"]  # none: all that the threshold form finds
        facts = {
            "setting": _setting(point["label"]),
            "budget": -1 if budget is None else budget,
            "pool": job["params"]["seed"],
        }
        states.append(point["label"] | facts | {"place": point["place"], "state": state})
        if finished:
            for name, table in _point_tables(plan, point["place"], job).items():
                if (
                    name != "predicts" or job["needs"]["cases"] not in told
                ):  # points of one bias share their proxies: once is enough
                    found[name].append(table.assign(**facts))
            told.add(job["needs"].get("cases"))
    if not any(found.values()):
        raise InputError(f"no point of sweep {plan.name} is done: nothing to report")
    folder = plan.folder / "tables"
    save(folder, "points", pd.DataFrame(states))
    for name, parts in found.items():
        # two points with the same setting and budget (strategies as an axis) bring the same
        # references and seeds
        if parts:
            table = pd.concat(parts, ignore_index=True)
            keys = [
                c
                for c in (*UNITS, "policy", "beta", "category", "measure", "round", "prompt_id")
                if c in table
            ]
            save(folder, name, table.drop_duplicates(keys, ignore_index=True))


def release_tables(plan: SweepPlan, folder: Path) -> Path:
    """Copy what a reader needs to check or redraw a report into folder/NAME: the tables as CSV
    (one row per pool, seed and policy) and the figures with the tables they were drawn from;
    returns that folder.
    """
    target = folder / plan.name
    for name, table in open_tables(plan.folder).items():
        if name != "timing":
            packed = len(table) > 15_000  # a few megabytes of text otherwise
            with files.atomic(target / f"{name}.csv{'.gz' * packed}") as temporary:
                texts.table_csv(
                    table,
                    temporary,
                    float_format="%.5g",
                    lineterminator="\n",
                    compression={"method": "gzip", "mtime": 0} if packed else None,
                )
    for path in sorted((plan.folder / "figures").glob("*")):
        if path.suffix in (".png", ".csv"):
            with files.atomic(target / "figures" / path.name) as temporary:
                temporary.write_bytes(path.read_bytes())
    written = [
        path
        for path in sorted(target.rglob("*"))
        if path.is_file() and path.name != provenance.RECORDS
    ]
    found = provenance.of_sweep(plan.folder)
    made_by = {
        path: (
            f"tables/{path.name.split('.')[0]}.parquet"
            if path.parent == target
            else str(path.relative_to(target))
        )
        for path in written
    }
    provenance.note_released(
        found, {str(path.relative_to(target)): source for path, source in made_by.items()}, target
    )
    return target


def open_tables(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The tables of a sweep, by name; one that the sweep does not have is left out. '' takes the
    sweep that was reported last.
    """
    tables = Path(folder or latest_sweep()) / "tables"
    if not (tables / "points.parquet").exists():
        raise InputError(
            f"{tables} holds no tables of a sweep: run `python -m shfcas_lib sweep` first"
        )
    return {path.stem: pd.read_parquet(path) for path in sorted(tables.glob("*.parquet"))}


def latest_sweep() -> Path:
    """The folder of the sweep that was reported last. Raises InputError where there is none."""
    known = sorted(
        places.runs_dir().glob("sweeps/*/tables/points.parquet"), key=lambda p: p.stat().st_mtime
    )
    if not known:
        raise InputError(
            f"there is no finished sweep below {places.runs_dir() / 'sweeps'}: run `python -m"
            " shfcas_lib sweep` first"
        )
    return known[-1].parent.parent


def strategies_of(measures: pd.DataFrame) -> list[str]:
    """The strategies among the policies, `random` last."""
    names = [name for name in measures["policy"].drop_duplicates() if name not in REFERENCES]
    return sorted(names, key=lambda name: name == "random")


def comparisons(
    measures: pd.DataFrame, value: str = "gold", against: str = "random"
) -> pd.DataFrame:
    """Every strategy against one at the same budget, in each setting: setting, budget, and the
    columns of stats.compare. Holm's correction runs over the strategies of one setting and
    budget. Empty where no setting has both.
    """
    kept = measures[~measures["policy"].isin(REFERENCES) | (measures["policy"] == against)]
    parts = []
    for (setting, budget), part in kept.groupby(["setting", "budget"], sort=False, dropna=False):
        if {against} < set(part["policy"]):
            parts.append(
                stats.compare(part, against, 0, value).assign(setting=setting, budget=budget)
            )
    if not parts:
        return pd.DataFrame(columns=["setting", "budget", "policy", "difference", "verdict"])
    return pd.concat(parts, ignore_index=True)[
        ["setting", "budget", *parts[0].columns.drop(["setting", "budget"])]
    ]


def matrix(measures: pd.DataFrame, value: str = "gold") -> pd.DataFrame:
    """Every policy against every other: policy, against, and the columns of stats.compare.

    Each pair is tested once and stands twice, with the sign turned; Holm's correction runs over
    all pairs.
    """
    names = [
        name
        for name in ["proxy", *reversed(strategies_of(measures))]
        if name in set(measures["policy"])
    ]
    wide = measures.pivot(index=["pool", "seed"], columns="policy", values=value)
    rows = [
        row
        for k, a in enumerate(names)
        for b in names[k + 1 :]
        if (row := stats.paired(wide, a, b, 0, value))
    ]
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
    return both.sort_values(
        ["policy", "against"], key=lambda c: c.map(names.index), ignore_index=True
    )


def budget_curves(measures: pd.DataFrame) -> pd.DataFrame:
    """Gold against budget in the settings that have several: setting, policy, budget (0: the
    proxy), pool, seed, gold.
    """
    several = measures.groupby("setting")["budget"].nunique()
    kept = measures[measures["setting"].isin(several[several > 1].index)]
    proxy = kept[kept["policy"] == "proxy"].drop_duplicates(["setting", "pool", "seed"])
    parts = [kept[~kept["policy"].isin(REFERENCES)]]
    parts += [
        proxy[proxy["setting"] == setting].assign(policy=policy, budget=0)
        for setting, part in kept.groupby("setting")
        for policy in strategies_of(part)
    ]
    return pd.concat(parts, ignore_index=True)[
        ["setting", "policy", "budget", "pool", "seed", "gold"]
    ]


def budget_gains(curves: pd.DataFrame) -> pd.DataFrame:
    """`budget_curves` with the column gain: gold over the proxy of the same pool and seed, which
    takes out how hard its prompts are.
    """
    key = ["setting", "policy", "pool", "seed"]
    before = curves[curves["budget"] == 0][[*key, "gold"]].rename(columns={"gold": "before"})
    table = curves.merge(before, on=key)
    return table.assign(gain=table["gold"] - table["before"])


def efficiency(curves: pd.DataFrame, reference: str = "random") -> pd.DataFrame:
    """stats.label_efficiency against `reference` at every budget but the largest, in each
    setting.
    """
    parts = []
    for setting, part in curves.groupby("setting", sort=False):
        if reference in set(part["policy"]):
            for budget in sorted(part["budget"].unique())[1:-1]:
                parts.append(
                    stats.label_efficiency(part, reference, int(budget), 0).assign(
                        setting=setting, at_budget=int(budget)
                    )
                )
    return (
        pd.concat(parts, ignore_index=True)
        if parts
        else pd.DataFrame(columns=["setting", "policy", "at_budget", "ratio"])
    )


def bands(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean of `value` with its nested bootstrap interval (pools, then seeds) for each combination
    of `by`: those columns, value, low, high. Units without a value (a correlation that is not
    defined) are left out.
    """
    rows = []
    for key, part in table.dropna(subset=[value]).groupby(by, sort=False):
        interval = stats.nested_interval(part, "pool", value, rng(0, f"bands/{value}/{key}"), 2000)
        rows.append((*key, interval.value, interval.low, interval.high))
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high"])


def gains(categories: pd.DataFrame) -> pd.DataFrame:
    """Gold gained over the proxy, per category: setting, budget, pool, seed, policy, category,
    gain.
    """
    key = [*UNITS, "category"]
    proxy = (
        categories[categories["policy"] == "proxy"]
        .drop_duplicates(key)[[*key, "gold"]]
        .rename(columns={"gold": "before"})
    )
    kept = categories[~categories["policy"].isin(REFERENCES)].merge(proxy, on=key)
    return kept.assign(gain=kept["gold"] - kept["before"])


def overhead(
    timing: pd.DataFrame, rounds: pd.DataFrame, setting: str, budget: float
) -> pd.DataFrame:
    """Median seconds of one selection by each strategy in one setting: policy, seconds."""
    here = [rows_at(table, setting, budget) for table in (timing, rounds)]
    return (here[0].groupby("policy")["seconds"].median() / here[1]["round"].max()).reset_index()


def trained_table(table: pd.DataFrame, against: str = "proxy") -> pd.DataFrame:
    """Trained policies of a sweep: setting, budget, policy, value, low, high (gold), over,
    over_low, over_high (gold over that of the policy `against`, paired by prompt), kl
    (evaluation.trained's mean log-ratio, which is no exact KL at a temperature other than 1), and
    pools. Intervals are stats.nested_interval's: pools, each with trainings of its own, then
    prompts. One pool has none: its prompts say nothing about another training.
    """
    rows = []
    for (setting, budget), part in table.groupby(["setting", "budget"], sort=False):
        wide = part.pivot(index=["pool", "prompt_id"], columns="policy", values="gold")
        for policy, own in part.groupby("policy", sort=False):
            values = {"gold": wide[policy], "over": wide[policy] - wide[against]}
            intervals = [
                _over_pools(
                    v.dropna().rename("gold").reset_index(),
                    f"trained/{setting}/{budget}/{policy}/{name}",
                )
                for name, v in values.items()
            ]
            kl = own.groupby("pool")["kl"].mean().mean() if "kl" in own else np.nan
            rows.append(
                (setting, budget, policy, *intervals[0], *intervals[1], kl, own["pool"].nunique())
            )
    return pd.DataFrame(
        rows,
        columns=[
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
        ],
    )


def _over_pools(table: pd.DataFrame, name: str) -> tuple[float, float, float]:
    """Mean gold with its interval, pool by pool; NaN for limits that one pool cannot give."""
    found = stats.nested_interval(table, "pool", "gold", rng(0, name), 2000)
    return (
        (found.value, found.low, found.high)
        if table["pool"].nunique() > 1
        else (found.value, np.nan, np.nan)
    )


def main_setting(measures: pd.DataFrame) -> tuple[str, float]:
    """The setting and budget for figures that show one: the setting with several budgets, else
    with most strategies, at its middle budget.
    """
    count = (
        measures[~measures["policy"].isin(REFERENCES)]
        .groupby("setting", sort=False)["policy"]
        .nunique()
    )
    budgets = measures.groupby("setting")["budget"].nunique()
    setting = max(count.index, key=lambda name: (budgets[name] > 1, count[name]))
    every = sorted(measures.loc[measures["setting"] == setting, "budget"].unique())
    return setting, every[len(every) // 2]


def rows_at(table: pd.DataFrame, setting: str, budget: float) -> pd.DataFrame:
    """The rows of one setting and budget."""
    return table[(table["setting"] == setting) & (table["budget"] == budget)]


def _setting(label: dict[str, str]) -> str:
    """The cases that are neither seed, budget nor strategies, as one name."""
    rest = [
        f"{axis} {name}" if _is_number(name) else name
        for axis, name in label.items()
        if axis not in ("seed", "budget", "strategies")
    ]
    return ", ".join(rest) or "all"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _point_tables(plan: SweepPlan, place: str, job: dict) -> dict[str, pd.DataFrame]:
    """The tables of a finished point with those of the cases it started from; where policies were
    trained, what they wrote was worth.
    """
    folder = plan.folder / place
    if job["kind"] == "policies":
        return {"trained": pd.read_parquet(folder / "trained.parquet")}
    if job["kind"] == "run":
        name = "per_prompt" if job["params"]["policy"]["kind"] == "tilt" else "trained_per_prompt"
        return {"trained": pd.read_parquet(folder / "run" / "04_evaluation" / f"{name}.parquet")}
    shared = plan.folder / job["needs"]["cases"]
    tables = {
        name: pd.concat(
            [
                pd.read_parquet(shared / f"{name}.parquet"),
                pd.read_parquet(folder / f"{name}.parquet"),
            ]
        )
        for name in ("measures", "curves", "categories")
    }
    return (
        tables
        | {name: pd.read_parquet(folder / f"{name}.parquet") for name in ("rounds", "timing")}
        | {"predicts": pd.read_parquet(shared / "predicts.parquet")}
    )


def save(folder: Path, name: str, table: pd.DataFrame) -> pd.DataFrame:
    """Write a table of the report, whole or not at all; returns it."""
    with files.atomic(folder / f"{name}.parquet") as target:
        table.to_parquet(target, index=False)
    return table


def _export(notebook: Path, target: Path, title: str) -> Path:
    """The executed notebook as one HTML file without its code, that needs no network: no script,
    style or font is fetched.
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
