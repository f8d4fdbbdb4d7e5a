"""Do `trust` and `targeted` hold on prompts that no development used? `make fresh`, then
`make claims`.

    python docs/results/fresh.py pools                # completions and gold, a folder a pool
    python docs/results/fresh.py units                # selection, labels, refinement: a file a unit
    python docs/results/fresh.py release              # the rows, docs/results/fresh/rows.csv.gz
    python docs/results/fresh.py tables               # the tables of docs/trust.md from the rows

Each step goes on where it was killed. `units safety 7102` does one task or one pool of it.

**Prompts.** Of the embedded ones those are left out that seeds 0 and 9001 of the quickstarts draw
(0: the demo; 9001: where `trust` was built), and of safety also the first 320 by id, on which the
sweeps of docs/results.md ran. 1,085 safety and 143 helpfulness prompts remain. Of helpfulness they
cannot leave out those sweeps too: 96 would remain. The pool's seed draws 240 and 120 of them.

**Seeds.** Pools 7101, 7102 and 7103, three draws of prompts and completions; on each, seeds 100 to
111 of split, bias, proxy and selection. All else is the quickstarts': 80 labels in rounds of 10,
10, 20 and 40, tilted policies, beta 0.5.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import tables

import shfcas_lib as shf
from shfcas_lib import gold, loop, trust
from shfcas_lib.analysis import belief, stats
from shfcas_lib.base import texts
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.experiment import replication
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage import files, inputs, machine, provenance, runs
from shfcas_lib.tasks.embedded import embedded_prompts

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = ROOT / "runs" / "fresh"
RELEASED = HERE / "fresh"
ROWS = "rows.csv.gz"
PAGE = HERE.parent / "trust.md"

QUICKSTART = {
    "safety": ROOT / "params" / "quickstart_safety.yaml",
    "helpfulness": ROOT / "params" / "quickstart.yaml",
}
PROMPTS = {"safety": 240, "helpfulness": 120}
DEVELOPMENT = (0, 9001)
POOLS = (7101, 7102, 7103)
SEEDS = range(100, 112)

# what annotators look at in the demo, and how much of the time
FLAW = {"safety": ("compliance", (70, 90, 100)), "helpfulness": ("length", (60, 90, 100))}
ERRING = 0.2
# By group: strategy, refinement, and what differs from the quickstart's selection. Random labels
# are merged as well, the same ones
ARMS: dict[str, list[tuple[str, str, dict]]] = {
    "gain": [("targeted", "trust", {}), ("random", "trust", {})],
    "uncertainty": [("uncertainty", "merge", {})],
    "conflict": [
        ("targeted, gamma 0", "trust", {"gamma": 0.0}),
        ("shf_cas", "trust", {}),
        ("placebo", "trust", {}),
    ],
}
# a group that is run in some settings alone: there labels could do harm
ONLY: dict[str, str | tuple[str, ...]] = {"uncertainty": ("no flaw", "missing categories")}


def unused(task: str) -> pd.DataFrame:
    """The embedded prompts of a task that no development used."""
    params = reading.load(QUICKSTART[task])
    table = embedded_prompts(task)
    used = [load_prompts(params.model_copy(update={"seed": seed})) for seed in DEVELOPMENT]
    if task == "safety":
        # what the sweeps of docs/results.md drew, when every seed drew the same
        by_id = table.sort_values("prompt_id")
        turn = by_id.groupby(["category", "harmful"]).cumcount()
        in_turn = by_id.assign(turn=turn).sort_values(["turn", "prompt_id"])
        used.append(in_turn.head(params.prompts.n))
    return table[~table["prompt_id"].isin(pd.concat(used)["prompt_id"])]


def pool_params(task: str, pool: int) -> Params:
    """The quickstart's parameters with the prompts and the seed of a fresh pool."""
    path = WORK / task / "prompts.jsonl"
    if not path.exists():
        rows = unused(task)[["prompt", "category", "harmful"]]
        with files.atomic(path) as temporary:
            rows.to_json(temporary, orient="records", lines=True)
    params = reading.load(QUICKSTART[task])
    prompts = params.prompts.model_copy(update={"file": str(path), "n": PROMPTS[task]})
    return params.model_copy(update={"seed": pool, "prompts": prompts})


def pools(task: str = "") -> None:
    """Prompts, completions and gold of every pool."""
    for pool in POOLS:
        for name in [task] if task else PROMPTS:
            _pool(name, pool)


def _pool(task: str, pool: int) -> None:
    params = pool_params(task, pool)
    stage = runs.Stage(WORK / task / str(pool), None)
    prompts = stage.table("prompts", lambda: load_prompts(params))
    completions = stage.table("pool", lambda: _sampled(params, prompts))
    stage.table("gold", lambda: gold.gold_table(completions, prompts, params))


def _sampled(params: Params, prompts: pd.DataFrame) -> pd.DataFrame:
    backbone = shf.load_backbone(params.model)
    label = f"{params.task} {params.seed}"
    return shf.sample(backbone, prompts, params.sampling, params.seed, label)


def settings(task: str) -> dict[str, tuple[list[dict], float]]:
    """By name: the annotators' flaws, and how often the human who labels errs."""
    sweep = reading.read_yaml(ROOT / "params" / "sweeps" / f"results_{task}.yaml")
    others = {name: found["bias"] for name, found in sweep["grids"]["bias"]["bias"].items()}
    attribute, strengths = FLAW[task]
    # as in the quickstart of helpfulness, where length is looked at with some noise
    beside = [{"kind": "noise", "rate": 0.05}] if task == "helpfulness" else []
    known: dict[str, tuple[list[dict], float]] = {}
    for percent in strengths:
        flaw = {"kind": "attribute", "attribute": attribute, "strength": percent / 100}
        known[f"{attribute} {percent}%"] = ([flaw, *(beside if percent < 100 else [])], 0.0)
    length = {"kind": "attribute", "attribute": "length", "strength": 0.8}
    known["length 80%"] = ([length], 0.0)
    known["all three"] = (others["all three"], 0.0)
    known["noise 35%"] = (others["noise 35%"], 0.0)
    known["missing categories"] = (others["coverage"], 0.0)
    known["no flaw"] = ([], 0.0)
    known["no flaw, human errs"] = ([], ERRING)
    known["missing categories, human errs"] = (others["coverage"], ERRING)
    return known


def units(task: str = "", group: str = "") -> None:
    """Every unit that is missing: a file each, so that any number of processes may share them.
    Ordered so that whatever stops early has all settings and pools alike."""
    for arms in [group] if group else ARMS:
        for seed in SEEDS:
            for name in [task] if task else PROMPTS:
                for setting in settings(name):
                    if setting.startswith(ONLY.get(arms, "")):
                        _pools_units(name, setting, seed, arms)


def _pools_units(task: str, setting: str, seed: int, group: str) -> None:
    for pool in POOLS:
        if (WORK / task / str(pool) / "gold.parquet").exists():
            _unit(task, pool, setting, seed, group)


def _unit(task: str, pool: int, setting: str, seed: int, group: str) -> pd.DataFrame:
    """One pool, setting, seed and group of arms: some of the released rows."""
    slug = setting.replace("%", "").replace(",", "").replace(" ", "_")
    stage = runs.Stage(WORK / task / str(pool) / "units" / slug, None)
    return stage.table(f"{seed}_{group}", lambda: _measured(task, pool, setting, seed, group))


def _measured(task: str, pool: int, setting: str, seed: int, group: str) -> pd.DataFrame:
    stage = runs.Stage(WORK / task / str(pool), None)
    tables_read = (pd.read_parquet(stage.folder / f"{name}.parquet") for name in ("pool", "gold"))
    completions, scores = tables_read
    prompts = pd.read_parquet(stage.folder / "prompts.parquet")
    flaws, errs = settings(task)[setting]
    everything = pool_params(task, pool).model_dump(mode="json")
    everything["bias"] = flaws
    everything["feedback"]["noise"] = errs
    params = reading.validate(everything, f"{task}, {setting}")
    known = completions.assign(gold=scores["gold"].to_numpy())
    case = replication.build_case(params, prompts, known, seed, full=False)
    found = list(_rows(case, group))
    where = {"task": task, "setting": setting, "pool": pool, "seed": seed}
    print(task, pool, setting, seed, group, flush=True)
    table = pd.DataFrame(found).assign(commit=_commit())
    for place, (name, value) in enumerate(where.items()):
        table.insert(place, name, value)
    return table


@cache
def _commit() -> str:
    return str(machine.commit())


_SAID = ["decided", "disbelieved", "tau", "kappa", "error"]


def _rows(case: replication.Case, group: str) -> Iterator[dict]:
    """Gold of the policy that each arm's reward tilts, after every round, and what the labels said
    about whom to trust; of the proxy and of clean labels once."""
    fixed = {"proxy": case.setting.proxy, "clean": case.clean} if group == "gain" else {}
    for name, reward in fixed.items():
        yield _row(case, name, "", 0, reward)
    for arm, refinement, changed in ARMS[group]:
        setting = _changed(case.setting, refinement, changed)
        strategy = arm.partition(",")[0]
        outcome = loop.run_rounds(strategy, setting, case.human, runs.Memory())
        counts = outcome.rounds["labels"].cumsum()
        for count, reward in zip(counts, outcome.rewards, strict=True):
            yield _row(case, arm, refinement, count, reward)
            if arm == "random":
                yield _row(case, arm, "merge", count, replication.merged(case, outcome, count))


def _row(
    case: replication.Case, policy: str, refinement: str, labels: int, reward: RewardModel
) -> dict:
    said = belief.facts({policy: reward}).get(policy, {})
    known = {name: said.get(name, np.nan) for name in _SAID}
    score = replication.tilted_gold(case, reward.score(case.evaluate))
    row = {"policy": policy, "refinement": refinement, "labels": int(labels), "gold": score}
    return row | known


def _changed(setting: loop.Setting, refinement: str, selection: dict) -> loop.Setting:
    """The same setting under another refinement or selection; what the biased pairs say stays."""
    params = setting.params
    reward = params.reward.model_copy(update={"refinement": refinement})
    chosen = params.selection.model_copy(update=selection)
    new = replace(setting, params=params.model_copy(update={"reward": reward, "selection": chosen}))
    new.__dict__["belief"] = setting.belief  # the cached property: seconds that nothing changes
    return new


def release() -> None:
    """The rows of every unit that is done, with what made them."""
    done = [pd.read_parquet(path) for path in sorted(WORK.glob("*/*/units/*/*.parquet"))]
    table = pd.concat(done).sort_values(["task", "setting", "pool", "seed"], kind="stable")
    commits = table.drop_duplicates(["task", "setting", "pool", "seed"])["commit"].value_counts()
    with files.atomic(RELEASED / ROWS) as temporary:
        packed = {"method": "gzip", "mtime": 0}
        texts.table_csv(
            table.drop(columns="commit"), temporary, float_format="%.5g", compression=packed
        )

    everything = {}
    for task in PROMPTS:
        everything |= inputs.wheels(reading.load(QUICKSTART[task]))
    facts = {
        "seed": ", ".join(map(str, POOLS)),
        "commits": commits.to_dict(),
        "versions": machine.versions(),
        "machine": machine.description(),
        "inputs": everything,
    }
    definition = {task: settings(task) for task in PROMPTS}
    origin = provenance.Trace(RELEASED / ROWS, "make", "fresh", "", definition, facts)
    provenance.note_released(origin, {ROWS: "runs/fresh"}, RELEASED)


# --- tables of the page

# what is compared: an arm over another, both as policy and refinement
WHOLE = ("targeted, trust", "random, merge")
AGAINST = {
    "over random, merged": WHOLE,
    "over uncertainty, merged": ("targeted, trust", "uncertainty, merge"),
}
PARTS = {
    "refinement": ("random, trust", "random, merge"),
    "selection": ("targeted, trust", "random, trust"),
    "conflict in targeted": ("targeted, trust", "targeted, gamma 0, trust"),
    "SHF-CAS over placebo": ("shf_cas, trust", "placebo, trust"),
}


@cache
def rows() -> pd.DataFrame:
    """The released rows; arm: policy and refinement."""
    table = pd.read_csv(RELEASED / ROWS, keep_default_na=False, na_values=[""])
    arm = table["policy"] + ", " + table["refinement"].fillna("")
    return table.assign(arm=arm)


def compared(contrasts: dict[str, tuple[str, str]], labels: int = 80) -> pd.DataFrame:
    """A row for each contrast, task and setting, as `stats.paired` makes it. Holm's correction of
    the verdict runs over the tasks and settings of a contrast."""
    found = []
    at = rows()[rows()["labels"] == labels]
    for (task, setting), part in at.groupby(["task", "setting"], sort=False):
        wide = part.pivot(index=["pool", "seed"], columns="arm", values="gold")
        for name, (arm, other) in contrasts.items():
            if {arm, other} <= set(wide):
                row = stats.paired(wide, arm, other, labels)
                where = {"contrast": name, "task": task, "setting": setting}
                means = (wide[arm] - wide[other]).groupby("pool").mean()
                found.append(where | row | {"by pool": means.to_list()})
    return stats.verdicts(pd.DataFrame(found), within="contrast")


def _by_setting(table: pd.DataFrame) -> Iterator[tuple[dict, pd.DataFrame]]:
    """(task and setting, their rows by contrast), in the order of `settings`."""
    for task in PROMPTS:
        for setting in settings(task):
            part = table[(table["task"] == task) & (table["setting"] == setting)]
            if len(part):
                yield {"task": task, "annotators' flaw": setting}, part.set_index("contrast")


def _cell(part: pd.DataFrame, name: str) -> str:
    """A difference with its interval, bold where it is *higher* or *lower*; empty where it was not
    measured."""
    if name not in part.index:
        return ""
    row = part.loc[name]
    text = tables.interval(row["difference"], row["low"], row["high"])
    return text if row["verdict"] == "not significant" else f"**{text}**"


def gains() -> str:
    """Targeted labels with `trust`, over what else one could do with 80 labels."""
    found = []
    for line, part in _by_setting(compared(AGAINST)):
        whole = part.loc["over random, merged"]
        by_pool = ", ".join(f"{mean:+.3f}".replace("-", "−") for mean in whole["by pool"])
        cells = {name: _cell(part, name) for name in AGAINST}
        found.append(line | {"units": str(whole["units"])} | cells | {"by pool": by_pool})
    return tables.markdown(found)


def parts() -> str:
    """What the gain is due to."""
    found = []
    for line, part in _by_setting(compared(PARTS)):
        found.append(line | {name: _cell(part, name) for name in PARTS})
    return tables.markdown(found)


def budgets() -> str:
    """The gain over merged random labels after every round."""
    by_count = []
    for count in (10, 20, 40, 80):
        by_count.append(compared({f"{count} labels": WHOLE}, count))
    found = []
    for line, part in _by_setting(pd.concat(by_count)):
        found.append(line | {name: _cell(part, name) for name in part.index})
    return tables.markdown(found)


def reports() -> str:
    """What the trust report said after 80 targeted labels, means over pools and seeds."""
    said = rows()[(rows()["labels"] == 80) & (rows()["arm"] == "targeted, trust")]
    found = []
    for line, part in _by_setting(said.assign(contrast="")):
        mean = part[["decided", "disbelieved", "tau", "kappa", "error"]].mean()
        found.append(
            line
            | {
                "decided": f"{mean['decided']:.0f}",
                "contradicted": f"{mean['disbelieved']:.0%}",
                "in words": trust.words(mean["disbelieved"]),
                "tau": f"{mean['tau']:.2f}",
                "kappa": f"{mean['kappa']:.2f}",
                "error rate": f"{mean['error']:.0%}",
            }
        )
    return tables.markdown(found)


BLOCKS = {"gains": gains, "parts": parts, "budgets": budgets, "reports": reports}


def fill(text: str) -> str:
    """The page with every table computed anew."""
    return tables.filled(text, BLOCKS)


def write_tables() -> None:
    PAGE.write_text(fill(PAGE.read_text()))


STEPS = {"pools": pools, "units": units, "release": release, "tables": write_tables}

if __name__ == "__main__":
    step, *rest = sys.argv[1:]
    STEPS[step](*rest)
