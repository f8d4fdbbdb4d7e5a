"""Memory: the loop's one backbone with its adapters against four separate models, and pool
building at growing numbers of prompts.

    python benchmarks/memory.py

Embedded model, NF4, CPU, each table in a fresh process. What the imports and a first, discarded
model leave behind is not counted (see stages.Meter).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from race import exponent, release

ROOT = Path(__file__).resolve().parents[1]
START = """
import os; os.environ["TQDM_DISABLE"] = "1"
import stages
from shfcas_lib import data, lora_reward, models, params, pool
settings = params.load("params/quickstart.yaml")
def loaded():
    return stages.unmapped(models.load_backbone(settings.model))
warm = loaded()
warm.add_adapter("default", settings.policy.lora)
del warm
meter = stages.Meter("cpu")
backbone = loaded()
"""
ROLES = (
    START
    + """
print(meter.current())
for name in ("default", "proxy", "refined"):
    backbone.add_adapter(name, settings.policy.lora)
heads = [lora_reward._new_head(backbone) for _ in range(2)]
print(meter.current())
others = [loaded() for _ in range(3)]
print(meter.current())
"""
)
POOLS = (
    START
    + """
sampling = settings.sampling.model_copy(update={"max_new_tokens": 4, "batch_size": 32})
prompts = data.check(settings).sort_values("prompt_id")
pool.sample(backbone, prompts.head(2), sampling, 0)
for size in SIZES:
    meter.reset()
    drawn = pool.sample(backbone, prompts.head(size), sampling, 0)
    print(meter.peak())
"""
)
SIZES = [4, 8, 16, 32]


def printed(code: str) -> list[float]:
    """What a fresh process prints, bytes as MB."""
    done = subprocess.run(
        [sys.executable, "-c", f"SIZES = {SIZES}\n{code}"],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}"},
    )
    return [float(line) / 1e6 for line in done.stdout.split()]


def main() -> None:
    alone, roles, four = printed(ROLES)
    release(
        "memory",
        pd.DataFrame(
            [
                {"held": "backbone alone", "MB": alone, "over the backbone": 1.0},
                {
                    "held": "policy, reference, proxy and refined reward: adapters on one backbone",
                    "MB": roles,
                    "over the backbone": roles / alone,
                },
                {
                    "held": "four separate models, one with adapters",
                    "MB": four,
                    "over the backbone": four / alone,
                },
            ]
        ),
    )
    peaks = printed(POOLS)
    release(
        "memory_pool",
        pd.DataFrame({"prompts": SIZES, "peak, MB": peaks, "exponent": exponent(SIZES, peaks)}),
    )


if __name__ == "__main__":
    main()
