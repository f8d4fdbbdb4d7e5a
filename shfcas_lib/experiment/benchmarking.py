"""The proxy and the refined rewards of a run on a benchmark.

    result = benchmark(run, "rm_bench/")
    print(analysis.benchmark.as_markdown(result))

Gold of the run takes no part: the benchmark's own preferences are the truth. A reward learns
nothing here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.analysis import benchmark as tables
from shfcas_lib.base import progress
from shfcas_lib.base.batches import by_length
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.data.benchmarks import read_benchmark
from shfcas_lib.experiment import stages
from shfcas_lib.models import published
from shfcas_lib.models.decoding import read_states
from shfcas_lib.rewards import RewardModel
from shfcas_lib.storage import files
from shfcas_lib.storage.runs import Run

if TYPE_CHECKING:
    from shfcas_lib.models.backbone import Backbone

BATCH = 8


def benchmark(
    run: Run, named: str, strategy: str | None = None, most: int | None = None
) -> pd.DataFrame:
    """`analysis.benchmark.compare` of a run's rewards, kept in benchmarks/ of its folder.

    named: as for `read_benchmark`. strategy: whose refined reward; None: of all strategies.
    most: prompts of each subset, drawn by the run's seed; None: all. Prompts that the backbone
    cannot read whole are left out, and a printed line counts them. Raises InputError.
    """
    names = run.params.selection.strategies
    if strategy is not None and strategy not in names:
        raise InputError(f"strategy: found {strategy!r}, expected one of {', '.join(names)}")
    if most is not None and most < 1:
        raise InputError(f"--prompts: found {most}, expected 1 or more")
    table = _drawn(read_benchmark(named), most, run.params.seed)
    backbone = stages.policy(run)
    table = _readable(backbone, table)
    refined = stages.refined_rewards(run, backbone)
    kept = names if strategy is None else [strategy]
    rewards: dict[str, RewardModel] = {"proxy": stages.proxy(run, backbone)}
    rewards |= {name: refined[name] for name in kept}
    result = tables.compare(table, scores(run, backbone, rewards, table), run.params.seed)
    with files.atomic(run.folder / "benchmarks" / f"{_name(named)}.csv") as target:
        result.to_csv(target, index=False)
    return result


def _name(named: str) -> str:
    return re.sub(r"[^\w-]+", "_", Path(named).name.partition(".")[0]) or "benchmark"


def _drawn(table: pd.DataFrame, most: int | None, seed: int) -> pd.DataFrame:
    """The table with at most so many rows of the set in each subset."""
    if most is None:
        return table
    kept: list[str] = []
    for subset, part in table.groupby("subset", sort=False):
        names = part["prompt_id"].unique()
        order = rng(seed, f"benchmark/{subset}").permutation(len(names))
        kept += list(names[np.sort(order[:most])])
    return table[table["prompt_id"].isin(kept)].reset_index(drop=True)


def _readable(backbone: Backbone, table: pd.DataFrame) -> pd.DataFrame:
    """The table without prompts that spell control tokens or are too long with an answer."""
    bad = set()
    for name, part in table.groupby("prompt_id"):
        longest = max(len(backbone.completion_ids(text)) for text in part["completion"])
        if backbone.refusal(part["prompt"].iloc[0], longest):
            bad.add(name)
    if bad:
        print(f"{len(bad)} of {table['prompt_id'].nunique()} rows left out: the model cannot read")
    kept = table[~table["prompt_id"].isin(bad)].reset_index(drop=True)
    if not len(kept):
        raise InputError("benchmark: no row is left that the model can read")
    return kept


def scores(
    run: Run, backbone: Backbone, rewards: dict[str, RewardModel], table: pd.DataFrame
) -> dict[str, np.ndarray]:
    """Scores of a benchmark's completions by each reward, (rows,)."""
    table = published.scored(table, run.params)
    if run.params.reward.kind == "probe":
        table = table.assign(features=list(_features(backbone, table)))
    return {name: reward.score(table) for name, reward in rewards.items()}


def _features(backbone: Backbone, table: pd.DataFrame) -> np.ndarray:
    """What a probe reads of every completion, (rows, 4 x hidden); of like length together."""
    texts = (table["prompt"] + table["completion"]).tolist()
    batches = by_length(texts, BATCH)
    found: list[np.ndarray] = [np.empty(0)] * len(table)
    with backbone.using(None):
        for rows in progress.over(batches, "reading the benchmark", "batch"):
            for row, states in zip(rows, read_states(backbone, table.iloc[rows]), strict=True):
                found[row] = states
    return np.stack(found)
