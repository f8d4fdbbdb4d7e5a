"""What one more point of a sweep costs, as a share of starting from nothing: the quickstart's
pool, 20 seeds, probe and tilt.

    python benchmarks/sweep_point.py

The first sweep samples the pool, prepares the cases and runs one point (one strategy, one
budget). Then one more strategy within that point, and one more point of one strategy, are timed
from the command line to its end, Python's start and the report included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml
from race import release

ROOT = Path(__file__).resolve().parents[1]
NAME = "benchmark_point"


def sweep(folder: Path, budgets: list[int]) -> float:
    """Seconds of the command."""
    plan = {
        "sweep": NAME,
        "base": str(ROOT / "params" / "quickstart.yaml"),
        "set": {"selection.strategies": ["shf_cas"], "selection.rounds": 1},
        "cross": {"selection.budget": budgets},
    }
    path = folder / f"{NAME}.yaml"
    path.write_text(yaml.safe_dump(plan))
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "shfcas_lib", "sweep", str(path)],
        cwd=ROOT,
        check=True,
        env=os.environ | {"SHFCAS_RUNS": str(folder / "runs")},
    )
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        nothing_done = sweep(folder, [40])
        again = sweep(folder, [40])
        two_more = sweep(folder, [40, 60, 80])
    release(
        "sweep_point",
        pd.DataFrame(
            [
                {
                    "what": "from nothing: pool, cases, one point, report",
                    "seconds": nothing_done,
                    "share": 1.0,
                },
                {
                    "what": "nothing to do: start, check of what is there, report",
                    "seconds": again,
                    "share": again / nothing_done,
                },
                {
                    "what": "one more point, of two run together",
                    "seconds": (two_more - again) / 2,
                    "share": (two_more - again) / 2 / nothing_done,
                },
            ]
        ),
    )


if __name__ == "__main__":
    main()
