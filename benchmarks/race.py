"""Contestants take turns, and only ratios are compared: whatever else the machine does meanwhile
hits all of them alike.

rounds = race({"ours": ours, "usual": usual})
release("pool_building", ratios(rounds, "ours"))
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS = 5


def race(
    contestants: dict[str, Callable[[], float | None]], rounds: int = ROUNDS, warm: bool = True
) -> pd.DataFrame:
    """Every contestant once in every round, in alternating order, after an uncounted turn each:
    round, name, seconds, amount.

    A contestant returns the amount of work it did (tokens, rows) where turns differ in it, or None.
    """
    rows = []
    for number in range(-1 if warm else 0, rounds):
        order = list(contestants) if number % 2 == 0 or number < 0 else list(contestants)[::-1]
        for name in order:
            start = time.perf_counter()
            amount = contestants[name]()
            seconds = time.perf_counter() - start
            if number >= 0:
                rows.append((number, name, seconds, 1.0 if amount is None else float(amount)))
                print(f"  round {number + 1} of {rounds}: {name:<28} {seconds:8.3f} s", flush=True)
    return pd.DataFrame(rows, columns=["round", "name", "seconds", "amount"])


def ratios(rounds: pd.DataFrame, ours: str) -> pd.DataFrame:
    """How many times as long as `ours` each contestant takes for the same amount, round by round:
    contestant, seconds (median), ratio (median), least, most, rounds.
    """
    per_unit = (
        (rounds["seconds"] / rounds["amount"])
        .groupby([rounds["round"], rounds["name"]])
        .first()
        .unstack()
    )
    over = per_unit.div(per_unit[ours], axis=0)
    seconds = rounds.groupby("name")["seconds"].median()
    table = pd.DataFrame(
        {"seconds": seconds, "ratio": over.median(), "least": over.min(), "most": over.max()}
    ).reindex(rounds["name"].unique())
    return table.rename_axis("contestant").reset_index().assign(rounds=rounds["round"].nunique())


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """b of seconds ~ a size^b, by least squares in the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def growth(
    what: str, sizes: list[int], run: Callable[[int], object], rounds: int = 3
) -> pd.DataFrame:
    """Median seconds at each size, and the exponent fitted through all of them: what, size,
    seconds, exponent.
    """
    run(sizes[0])
    medians = []
    for size in sizes:
        turns = []
        for _ in range(rounds):
            start = time.perf_counter()
            run(size)
            turns.append(time.perf_counter() - start)
        medians.append(float(np.median(turns)))
        print(f"  {what}, {size}: {medians[-1]:.3f} s", flush=True)
    return pd.DataFrame(
        {"what": what, "size": sizes, "seconds": medians, "exponent": exponent(sizes, medians)}
    )


def release(name: str, table: pd.DataFrame) -> None:
    """Print a table and write it to results/NAME.csv."""
    RESULTS.mkdir(exist_ok=True)
    print(table.round(3).to_string(index=False), flush=True)
    table.to_csv(RESULTS / f"{name}.csv", index=False, float_format="%.4g")
