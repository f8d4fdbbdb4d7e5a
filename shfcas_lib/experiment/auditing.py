"""An audit, written once: what `shfcas audit` and the notebook of that name call.

    run = open_run(settings({"preferences": {"file": "my_pairs.jsonl"}}, "my_pairs.jsonl"))
    pairs = auditing.pairs(run)            # judged out of fold, kept in the run folder
    rows = auditing.rows(run, pairs)       # the table that people get, worst first

The language model reads every answer once, part by part: a killed audit goes on with the part that
is missing, and another recipe of the same data starts anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib import pool
from shfcas_lib.analysis import audit
from shfcas_lib.analysis.stats import Interval
from shfcas_lib.base import dialogues, texts
from shfcas_lib.base.errors import InputError
from shfcas_lib.data.preferences import as_completions, own_pairs
from shfcas_lib.data.prompts import dropped, load_prompts
from shfcas_lib.experiment.checks import PromptCheck
from shfcas_lib.models import loading
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import files
from shfcas_lib.storage.runs import Run

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

STAGE = "audit"
PART = 256  # completions that are read and kept at a time
_KEYS = ("run", "seed", "model", "prompts", "preferences")
# what a row of the table for people holds, in this order
_ROWS = ["rank", "where", "category", "prompt", "chosen", "rejected", "label"]
_ROWS += ["against_proxy", "against_policy", "longer"]


def settings(values: dict[str, Any], origin: str) -> Params:
    """Parameters of an audit from those of a run, of which run, seed, model, preferences and the
    order of categories count. origin: what an error calls them. Raises InputError."""
    chosen = {key: values[key] for key in _KEYS if key in values}
    order = (chosen.pop("prompts", None) or {}).get("categories")
    if order is not None:
        chosen["prompts"] = {"categories": order}
    nobody = {"gold": {"kind": "none"}, "feedback": {"kind": "person"}}
    params = reading.validate(chosen | nobody | {"evaluation": {"replicates": 0}}, origin)
    return params


def name_for(data: str) -> str:
    """The name of the run that audits a file or a data set, where the user gives none."""
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(data).name.split(".")[0]).strip("-._")
    return f"audit-{stem or 'pairs'}"[:64]


def pairs(run: Run) -> pd.DataFrame:
    """Every pair of the run's preferences that its model can read, judged out of fold
    (`audit.cross_fitted`), with prompt, category, chosen, rejected and where it stands; kept.

    Raises InputError for too few pairs, before the model is loaded.
    """
    stage = run.stage(STAGE)

    def make() -> pd.DataFrame:
        given = _given(run)
        completions, preferences = as_completions(given)
        read = _read(run, completions)
        judged = audit.cross_fitted(read, preferences, run.params.seed)
        # one preference a row, in the order of the rows
        facts = given.drop(columns=["prompt_id", "label", "harmful"])
        return pd.concat([judged, facts.reset_index(drop=True)], axis=1)

    with stage.timed("read and judge the pairs"):
        return stage.table("pairs", make)


def _given(run: Run) -> pd.DataFrame:
    """The pairs that the run's model can read; what was left out is kept beside them."""
    params, stage = run.params, run.stage(STAGE)
    given = own_pairs(params)
    audit.check(given)
    screen = PromptCheck(params)
    prompts = load_prompts(params, screen)
    stage.table("dropped", lambda: dropped(params, screen))
    return given[given["prompt_id"].isin(prompts["prompt_id"])].reset_index(drop=True)


def _read(run: Run, completions: pd.DataFrame) -> pd.DataFrame:
    """The pool table of the completions. They are read part by part, short ones first, and a part
    that is there is not read again."""
    kept = run.stage(STAGE) / "read"
    parts = list(_parts(completions))
    models: list[Backbone] = []  # loaded where a part is missing, once

    def make(number: int, part: pd.DataFrame) -> pd.DataFrame:
        if not models:
            models.append(loading.load_backbone(run.params.model))
        label = f"reading answers, part {number} of {len(parts)}"
        return pool.score(models[0], part, label=label)

    read = []
    for number, part in enumerate(parts, 1):
        read.append(kept.table(f"{number:04d}", partial(make, number, part)))
    return pd.concat(read, ignore_index=True)


def _parts(completions: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Whole prompts by length, about PART completions at a time."""
    prompts = completions["prompt_id"]
    size = completions["prompt"].str.len() + completions["completion"].str.len()
    longest = size.groupby(prompts).max().sort_values(kind="stable")
    counts = prompts.value_counts()[longest.index]
    part = (counts.cumsum() - 1) // PART
    for _, rows in completions.groupby(prompts.map(part)):
        yield rows.reset_index(drop=True)


def accuracy(run: Run, judged: pd.DataFrame) -> pd.DataFrame:
    """`audit.accuracy` by the categories of the data."""
    category = dict(zip(judged["prompt_id"], judged["category"], strict=True))
    return audit.accuracy(judged, category, run.params.seed)


def text(table: pd.DataFrame) -> str:
    """What `accuracy` found over all pairs, a line for each judge."""
    whole = table[table["group"] == "all pairs"]
    head = f"labels that agree, of {whole['pairs'].iloc[0]} pairs that are no tie:"
    lines = [
        f"  {Interval(row['value'], row['low'], row['high'])}  {audit.JUDGES[row['judge']]}"
        for row in whole.to_dict("records")
    ]
    return "\n".join([head, *lines])


def rows(run: Run, judged: pd.DataFrame, by: str = "proxy") -> pd.DataFrame:
    """The pairs as people read them, those most worth a second opinion first (`audit.ranked`).

    Columns rank, where (file and line), category, prompt, chosen and rejected (as the label says),
    label (1, or 0.5 for a tie), against_proxy (log odds), against_policy (nats), longer (characters
    that chosen has more).
    """
    table = audit.ranked(judged, by, run.params.seed)
    turned = np.where(table["label"] < 0.5, -1, 1)
    return table.assign(
        prompt=table["prompt"].map(dialogues.plain),
        label=np.maximum(table["label"], 1 - table["label"]),
        longer=table["longer"] * turned,
    )[[name for name in _ROWS if name in table]]


def finish(run: Run, table: pd.DataFrame) -> None:
    """Write metrics.json of the audit: what `accuracy` found."""
    run.stage(STAGE).metrics({"accuracy": files.records(table)})
    run.record()


def check_name(path: Path) -> None:
    """Raise InputError for a file that `write` cannot write."""
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise InputError(f"{path}: expected a name that ends in .csv or .parquet")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: the folder {path.absolute().parent} does not exist")


def write(table: pd.DataFrame, path: Path) -> None:
    """The rows as .csv (texts made harmless for a spreadsheet) or .parquet."""
    with files.atomic(path) as target:
        if path.suffix.lower() == ".csv":
            texts.table_csv(table, target)
        else:
            table.to_parquet(target, index=False)
