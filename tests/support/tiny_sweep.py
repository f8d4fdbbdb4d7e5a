"""A sweep on a tiny model, driven by the command line, and its results to compare."""

import subprocess
import sys

import pandas as pd
import yaml
from project import ROOT, environment


def write_sweep(folder, tiny_model, **values):
    """Two pools, two budgets, a gold and a bias of the tests' own; seconds of work."""
    (folder / "base.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"source": str(tiny_model), "quantisation": "none"},
                "prompts": {"n": 40},
                "sampling": {"n": 4, "max_new_tokens": 6},
                "gold": {"kind": "tiny_gold:vowels"},
                "bias": [
                    {"kind": "attribute", "attribute": "tiny_gold:consonants", "strength": 0.8}
                ],
                "selection": {
                    "rounds": 1,
                    "budget": 6,
                    "strategies": ["shf_cas", "uncertainty", "random"],
                },
                "reward": {"l2": 20.0},
                "evaluation": {"replicates": 3, "bootstrap": 200},
            }
        )
    )
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sweep": "tiny",
                "base": "base.yaml",
                "cross": {"seed": [0, 1], "selection.budget": [6, 12]},
                **values,
            }
        )
    )
    return path


def drive(path, runs_folder, *words, **options):
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "shfcas_lib",
            "sweep",
            str(path),
            "--cores",
            "2",
            "--gpus",
            "0",
            *words,
        ],
        cwd=ROOT,
        env=environment(runs_folder),
        capture_output=True,
        text=True,
        **options,
    )


def results(runs_folder, name="tiny"):
    """Every table of the finished sweep but the timing, as bytes-comparable frames."""
    folder = runs_folder / "sweeps" / name / "tables"
    return {
        path.stem: pd.read_parquet(path)
        for path in sorted(folder.glob("*.parquet"))
        if path.stem != "timing"
    }


def assert_same(first, second):
    assert set(first) == set(second)
    for name in first:
        pd.testing.assert_frame_equal(first[name], second[name])
