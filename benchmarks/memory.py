"""Memory: the loop's one backbone with its adapters against four separate models, and pool building at growing numbers of prompts.

    python benchmarks/memory.py

Each figure is the peak resident memory of a fresh process, less that of a process that only imports what all of them import.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
from race import exponent, release

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = """
import os; os.environ["TQDM_DISABLE"] = "1"
import resource, torch, bitsandbytes, peft
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaForCausalLM
from shfcas_lib import params, models, data, pool, lora_reward
settings = params.load("params/quickstart.yaml")
prompts = data.check(settings).sort_values("prompt_id")
"""
ONE = """
backbone = models.load_backbone(settings.model)
for name in ("default", "proxy", "refined"):
    backbone.add_adapter(name, settings.policy.lora)
heads = [lora_reward._new_head(backbone) for _ in range(2)]
backbone.use(None)
"""
FOUR = """
backbone = models.load_backbone(settings.model)
others = [models.load_backbone(settings.model) for _ in range(3)]
"""
POOL = """
backbone = models.load_backbone(settings.model)
sampling = settings.sampling.model_copy(update={"max_new_tokens": 4, "batch_size": 32})
pool.sample(backbone, prompts.head(%d), sampling, 0)
"""
PEAK = "\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"


def peak(body: str) -> float:
    """MB of resident memory at the peak."""
    done = subprocess.run([sys.executable, "-c", IMPORTS + body + PEAK], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
                          capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    nothing = peak("")
    one, four, bare = (peak(body) - nothing for body in (ONE, FOUR, "backbone = models.load_backbone(settings.model)\n"))
    release("memory", pd.DataFrame([
        {"held": "backbone alone, NF4", "MB": bare, "over the backbone": 1.0},
        {"held": "policy, reference, proxy, refined: adapters", "MB": one, "over the backbone": one / bare},
        {"held": "four separate models", "MB": four, "over the backbone": four / bare}]))
    sizes = [8, 16, 32, 64]
    pools = [peak(POOL % size) - nothing for size in sizes]
    release("memory_pool", pd.DataFrame({"prompts": sizes, "MB": pools, "exponent": exponent(sizes, pools)}))


if __name__ == "__main__":
    main()
