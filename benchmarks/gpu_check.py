"""`make gpu-check`: does it run on CUDA as on a CPU, and do the recipes keep to their memory?

Skips, with one line and status 0, without a GPU.

1. The embedded model, in float32 on both devices: the same completions, log-probabilities,
rewards and conflict; on a GPU also the four notebooks. 2. Each recipe under params/ for one card
(qlora, t4): a backbone of its model's shape with random weights, through sampling, scoring,
reward and policy
   steps at the recipe's sizes; peaks beside the plan's, tokens per second, and what the four roles take on one backbone against four models.

Writes gpu_check.csv and gpu_check.md to --out, and on a GPU puts the table into
docs/performance.md. `--device cpu --shape tiny` tries the script itself.
"""

import argparse
import csv
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml

os.environ.setdefault("TQDM_DISABLE", "1")

import stages

from shfcas_lib import pool, rewards
from shfcas_lib.conflict import conflict_table
from shfcas_lib.data.preferences import preferences_from_gold
from shfcas_lib.memory import estimate, shapes
from shfcas_lib.memory.plan import knobs_of, longest_prompt
from shfcas_lib.models import loading
from shfcas_lib.models.backbone import POLICY, Backbone
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Model, Params
from shfcas_lib.tasks.embedded import embedded_prompts

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
START, END = "<!-- gpu-check -->", "<!-- end of gpu-check -->"
ROLES_GOAL = 1.15
GOALS = {"t4": 12e9, "qlora": 24e9}  # by what a recipe's file name holds
# Published sizes, for machines that reach no hub: by what the model's name holds.
SHAPES = {
    "llama-3.1-8b": (
        "llama",
        {
            "vocab_size": 128256,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
            "tie_word_embeddings": False,
        },
    ),
    "qwen2.5-7b": (
        "qwen2",
        {
            "vocab_size": 152064,
            "hidden_size": 3584,
            "intermediate_size": 18944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 32768,
            "tie_word_embeddings": False,
        },
    ),
    "pythia-1b": (
        "gpt_neox",
        {
            "vocab_size": 50304,
            "hidden_size": 2048,
            "intermediate_size": 8192,
            "num_hidden_layers": 16,
            "num_attention_heads": 8,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
    "smollm2-135m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "smollm2-360m": (
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 960,
            "intermediate_size": 2560,
            "num_hidden_layers": 32,
            "num_attention_heads": 15,
            "num_key_value_heads": 5,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
    "tinyllama-1.1b": (
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "max_position_embeddings": 2048,
            "tie_word_embeddings": False,
        },
    ),
    "tiny": (
        "llama",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": False,
        },
    ),
}
TINY = {
    "model": {"source": "tiny", "quantisation": "nf4"},
    "sampling": {"n": 4, "max_new_tokens": 8, "batch_size": 8},
    "reward": {"kind": "lora", "batch_size": 2},
    "policy": {"kind": "dpo", "batch_size": 2},
    "evaluation": {"replicates": 0},
}
COLUMNS = [
    "date",
    "device",
    "case",
    "stage",
    "peak_gb",
    "reserved_gb",
    "planned_gb",
    "seconds",
    "tokens_per_second",
]


def recipes() -> dict[str, Params]:
    """The recipes for one card, by name."""
    return {
        path.stem: reading.load(path)
        for path in sorted((ROOT / "params").glob("*.yaml"))
        if any(key in path.stem for key in GOALS)
    }


def config(source: str, revision: str | None = None):
    """The configuration of a recipe's model: from the table above, else from the cache or the
    hub.
    """
    from transformers import AutoConfig

    known = next((SHAPES[key] for key in SHAPES if key in source.lower()), None)
    return (
        AutoConfig.for_model(known[0], **known[1])
        if known
        else shapes.read_config(source, revision)
    )


def measure(
    name: str, recipe: Params, prompt_tokens: int, device: str
) -> tuple[list[list], list[str]]:
    """One recipe's rows for the table, and what there is to say about its goals."""
    made = config(recipe.model.source, recipe.model.revision)
    asked = knobs_of(
        recipe.model_copy(update={"model": recipe.model.model_copy(update={"device": device})}),
        prompt_tokens,
    )
    planned = {stage.name: stage.total for stage in estimate.stages(shapes.shape_of(made), asked)}
    meter = stages.Meter(device)
    meter.reset()
    backbone = stages.random_backbone(made, recipe.model.quantisation, device, recipe.model.dtype)
    measured = [stages.Measured("building", meter.peak(), meter.reserved(), 0.0, 0)]
    alone = meter.current()
    measured += stages.run(backbone, recipe, prompt_tokens, meter)
    rows = [
        [
            name,
            m.stage,
            m.peak,
            m.reserved,
            planned.get(m.stage),
            m.seconds,
            m.tokens / m.seconds if m.seconds else None,
        ]
        for m in measured
    ]
    for role, lora in (
        ("proxy", recipe.reward.lora),
        ("refined", recipe.reward.lora),
        (POLICY, recipe.policy.lora),
    ):
        backbone.add_adapter(role, lora)
    roles, peak = meter.current(), max(m.reserved for m in measured)
    goal = next((GOALS[key] for key in GOALS if key in name), None)
    rows += [
        [name, "backbone alone", alone, None, None, None, None],
        [name, "policy + reference + proxy + refined", roles, None, None, None, None],
    ]
    told = f", {verdict(roles <= ROLES_GOAL * alone)} (goal {ROLES_GOAL})" if goal else ""
    said = [
        f"{name}: four roles on one backbone take {roles / alone:.3f} times the backbone"
        f" alone{told}; four models would take {4 * alone / roles:.2f} times as much"
    ]
    said += (
        [
            f"{name}: highest peak {peak / 1e9:.2f} GB held by the allocator,"
            f" {verdict(peak <= goal)} (goal {goal / 1e9:.0f} GB)"
        ]
        if goal
        else []
    )
    return rows, said


def near(source: str, device: str) -> list[str]:
    """The method's tables on the CPU and on `device`, in float32: how far apart?

    Raises SystemExit where they are not near.
    """
    settings = reading.validate(
        {
            "model": {
                "source": source,
                "quantisation": "none",
                "dtype": "float32",
                "device": "cpu",
            },
            "prompts": {"n": 24},
            "sampling": {"n": 4, "max_new_tokens": 24},
            "evaluation": {"replicates": 0},
        },
        "gpu-check",
    )
    prompts = embedded_prompts("helpfulness").head(24)
    backbones = [
        _loaded(settings.model.model_copy(update={"device": where})) for where in ("cpu", device)
    ]
    here, there = (pool.sample(backbone, prompts, settings.sampling, 0) for backbone in backbones)
    again = pool.score(backbones[1], here)
    letters = here[["prompt_id", "index"]].assign(
        gold=[len(set(text)) for text in here["completion"]]
    )
    preferences = preferences_from_gold(letters, 4, 0)
    one, other = (
        rewards.fit_probe(table, preferences, settings.reward.l2).score(table)
        for table in (here, again)
    )
    conflicts = [
        conflict_table(table, score, table["logp"].to_numpy())["pacs"]
        for table, score in ((here, one), (again, other))
    ]
    found = {
        "completions that are the same": (
            float((here["tokens"].map(list) == there["tokens"].map(list)).mean()),
            0.9,
        ),
        "log-probabilities within 0.01": (
            float((np.abs(here["logp"] - again["logp"]) < 0.01).mean()),
            0.99,
        ),
        "correlation of proxy rewards": (float(np.corrcoef(one, other)[0, 1]), 0.99),
        "correlation of PACS": (float(np.corrcoef(*conflicts)[0, 1]), 0.99),
    }
    for name, (value, least) in found.items():
        if not value >= least:
            raise SystemExit(
                f"gpu-check: {name}: {value:.4f}, at least {least} expected: {device} does not"
                " compute what the CPU computes"
            )
    return [
        f"embedded model, cpu against {device}: {name} {value:.4f} (at least {least})"
        for name, (value, least) in found.items()
    ]


def _loaded(model: Model) -> Backbone:
    if model.source != "tiny":
        return loading.load_backbone(model)
    torch.manual_seed(0)
    return stages.random_backbone(
        config("tiny"), "none", loading.pick_device(model.device), "float32"
    )


def notebooks() -> str:
    """The four notebooks on CUDA, small."""
    settings = {
        "run": "gpu-check",
        "model": {"device": "cuda"},
        "prompts": {"n": 40},
        "sampling": {"n": 4, "max_new_tokens": 24},
        "selection": {"budget": 16},
        "evaluation": {"replicates": 0},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "gpu-check.yaml"
        path.write_text(yaml.safe_dump(settings))
        subprocess.run(
            [sys.executable, "-m", "shfcas_lib", "run", str(path)],
            cwd=ROOT,
            check=True,
            env=os.environ | {"SHFCAS_RUNS": folder},
            stdout=sys.stderr,
        )
    return "four notebooks on CUDA: finished"


def verdict(good: bool) -> str:
    return "met" if good else "NOT met"


def table(rows: list[list], said: list[str], card: str) -> str:
    """Markdown: the rows, and under them what there is to say."""

    def cell(value, scale=1.0, digits=2):
        return "" if value is None else f"{value / scale:.{digits}f}"

    head = (
        f"{card}, {datetime.date.today()}, torch {torch.__version__}\n\n| recipe | stage | peak, GB"
        " | held by the allocator, GB | planned, GB | tokens/s |\n|---|---|---|---|---|---|\n"
    )
    body = "".join(
        f"| {name} | {stage} | {cell(peak, 1e9)} | {cell(reserved, 1e9)} | {cell(planned, 1e9)} |"
        f" {cell(speed, digits=0)} |\n"
        for name, stage, peak, reserved, planned, _, speed in rows
    )
    return head + body + "\n" + "".join(f"- {line}\n" for line in said)


def write(rows: list[list], said: list[str], card: str, out: Path) -> str:
    """gpu_check.csv and gpu_check.md in `out`; returns the Markdown."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "gpu_check.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, stage, peak, reserved, planned, seconds, speed in rows:
            sizes = [
                "" if value is None else round(value / 1e9, 4)
                for value in (peak, reserved, planned)
            ]
            times = ["" if value is None else round(value, 2) for value in (seconds, speed)]
            writer.writerow([datetime.date.today(), card, name, stage, *sizes, *times])
    text = table(rows, said, card)
    (out / "gpu_check.md").write_text(text, encoding="utf-8")
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shape", choices=["recipes", "tiny"], default="recipes")
    parser.add_argument(
        "--prompt-tokens",
        type=int,
        help="tokens of every prompt (default: the plan's for the recipe; 24 for tiny)",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "performance")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check SKIPPED: this machine shows no CUDA GPU, nothing was measured", flush=True)
        return 0
    out, sys.stdout = sys.stdout, sys.stderr  # trainers print their logs
    tiny = options.shape == "tiny"
    cases = {"tiny": reading.validate(TINY, "gpu-check")} if tiny else recipes()
    if not cases:
        print(
            f"gpu-check: no recipe in params/ has one of {', '.join(GOALS)} in its name", file=out
        )
        return 1
    said, rows = near("tiny" if tiny else "smollm2-135m-instruct", options.device), []
    if options.device == "cuda" and not tiny:
        said.append(notebooks())
    for name, recipe in cases.items():
        more, told = measure(
            name,
            recipe,
            options.prompt_tokens or (24 if tiny else longest_prompt(recipe)),
            options.device,
        )
        rows, said = rows + more, said + told
    card = (
        torch.cuda.get_device_name() if options.device == "cuda" else f"CPU ({platform.machine()})"
    )
    text = write(rows, said, card, options.out)
    if options.device == "cuda" and not tiny and START in PAGE.read_text(encoding="utf-8"):
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(
            page[: page.index(START) + len(START)] + "\n\n" + text + "\n" + page[page.index(END) :],
            encoding="utf-8",
        )
    print(text, file=out)
    return 1 if any("NOT met" in line for line in said) else 0


if __name__ == "__main__":
    sys.exit(main())
