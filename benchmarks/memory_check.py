"""Estimated against measured peaks of memory, stage by stage, on this machine's CPU: `make
plan-check`, or --quick for the short form.

Each case runs the library's own stages in this process (see `stages`) after a first pass over a
tiny model, which pays for imports, thread pools and lazy set-up. Prints a Markdown table; with
--json the same as JSON lines.
"""

import argparse
import itertools
import json
import logging
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TQDM_DISABLE", "1")

import stages
from transformers import AutoConfig

from shfcas_lib.memory import estimate, shapes
from shfcas_lib.memory.plan import knobs_of
from shfcas_lib.models import loading
from shfcas_lib.params import reading

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_attention_heads": 12,
    "vocab_size": 16000,
    "max_position_embeddings": 2048,
}
EMBEDDED = "smollm2-135m-instruct"
QUICK = [("llama", "nf4", 3, 0.1, 72, 24), (EMBEDDED, "nf4", 30, 0.0, 48, 8)]
QUICK_STAGES = {"llama": 5, EMBEDDED: 3}  # policy steps of thirty layers take a quarter of a minute
LONG = [
    ("llama", "none", 4, 0.1, 80, 48),
    ("llama", "nf4", 4, 0.1, 80, 48),
    ("llama", "int8", 4, 0.0, 80, 48),
    ("qwen2", "nf4", 4, 0.0, 80, 48),
    ("qwen3", "nf4", 4, 0.1, 80, 48),
    ("mistral", "nf4", 4, 0.1, 80, 48),
    ("gemma2", "nf4", 4, 0.0, 80, 48),
    ("gpt_neox", "none", 4, 0.0, 80, 48),
    ("gpt_neox", "nf4", 4, 0.1, 80, 48),
    (EMBEDDED, "none", 30, 0.1, 64, 48),
    (EMBEDDED, "nf4", 30, 0.1, 64, 48),
]


def config(family: str, layers: int, **sizes):
    """A configuration of a family with made-up sizes; key-value heads are a third of the heads
    where the family has them.
    """
    made = AutoConfig.for_model(family, **(SIZES | sizes), num_hidden_layers=layers)
    if hasattr(made, "num_key_value_heads"):
        made.num_key_value_heads = max(1, made.num_attention_heads // 3)
        made.head_dim = made.hidden_size // made.num_attention_heads
    return made


def settings(
    source: str, quantisation: str, dropout: float, completion: int, rows: int = 64, pairs: int = 4
):
    """Parameters of a run that has every stage; the embedded model, whose thirty layers take
    their time, is not fine-tuned first.
    """
    lora, tuned = {"dropout": dropout}, "none" if source == EMBEDDED else "chosen"
    return reading.validate(
        {
            "model": {"source": source, "quantisation": quantisation, "device": "cpu"},
            "sampling": {"n": 8, "max_new_tokens": completion, "batch_size": rows},
            "reward": {"kind": "lora", "batch_size": pairs, "lora": lora},
            "policy": {"kind": "dpo", "batch_size": pairs, "lora": lora},
            "sft": {"answers": tuned, "batch_size": pairs, "lora": lora},
            "preferences": {"file": "not read here"},
            "evaluation": {"replicates": 0},
        },
        "benchmark",
    )


def compare(case, steps: int, **sizes):
    """(measured, estimated stage) for each stage of one case."""
    name, quantisation, layers, dropout, prompt, completion = case
    params = settings(name, quantisation, dropout, completion, **sizes)
    meter = stages.Meter("cpu")
    if name == EMBEDDED:
        backbone = stages.unmapped(loading.load_backbone(params.model))
        made = shapes.read_config(name).config
    else:
        made = config(name, layers)
        backbone = stages.random_backbone(made, quantisation, "cpu")
    planned = estimate.stages(shapes.shape_of(made), knobs_of(params, prompt))
    estimated = {stage.name: stage for stage in planned}
    for measured in stages.run(backbone, params, prompt, meter, steps):
        yield measured, estimated[measured.stage]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    out, sys.stdout = sys.stdout, sys.stderr  # trainers print their logs
    _warm_up()
    if not options.json:
        print(_HEAD, file=out)
    for case in QUICK if options.quick else LONG:
        compared = compare(case, 2)
        if options.quick:
            compared = compare(case, 1, rows=32, pairs=2)
            compared = itertools.islice(compared, QUICK_STAGES[case[0]])
        for measured, estimated in compared:
            row = _row(case, measured, estimated)
            line = "| " + " | ".join(map(str, row.values())) + " |"
            print(json.dumps(row) if options.json else line, file=out, flush=True)


_HEAD = """| model | backbone | layers | dropout | stage | measured, MB | estimated, MB |\
 estimated / measured |
|---|---|---|---|---|---|---|---|"""


def _warm_up() -> None:
    """A first pass over a tiny model pays for imports, thread pools and lazy set-up."""
    tiny = config(
        "llama", 2, hidden_size=192, intermediate_size=256, num_attention_heads=3, vocab_size=512
    )
    backbone = stages.random_backbone(tiny, "nf4", "cpu")
    params = settings("tiny", "nf4", 0.1, 8, rows=16, pairs=2)
    for _ in stages.run(backbone, params, 20, stages.Meter("cpu"), 1):
        pass


def _row(case: tuple, measured: stages.Measured, estimated: estimate.StageMemory) -> dict:
    model, backbone, layers, dropout, *_ = case
    return {
        "model": model,
        "backbone": backbone,
        "layers": layers,
        "dropout": dropout,
        "stage": measured.stage,
        "measured": round(measured.peak / 1e6),
        "estimated": round(estimated.total / 1e6),
        "ratio": round(estimated.total / measured.peak, 3),
    }


if __name__ == "__main__":
    main()
