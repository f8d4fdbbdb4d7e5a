"""`make gpu-check`: does it run on CUDA as on a CPU, and do the recipes keep to their memory?

Skips, with one line and status 0, without a GPU.

1. The embedded model, in float32 on both devices: the same completions, log-probabilities,
   rewards and conflict; on a GPU also the four notebooks.
2. Each recipe under params/ for one card (qlora, t4): a backbone of its model's shape with random
   weights, through sampling, scoring, reward and policy steps at the recipe's sizes; peaks beside
   the plan's, tokens per second, and what the four roles take on one backbone against four models.

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
# A model small enough to try the script itself with.
TINY_SHAPE = {
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
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
    chosen = {}
    for path in sorted((ROOT / "params").glob("*.yaml")):
        if any(key in path.stem for key in GOALS):
            chosen[path.stem] = reading.load(path)
    return chosen


def config(source: str, revision: str | None = None):
    """The configuration of a recipe's model, for which no hub is needed, or of the tiny one."""
    from transformers import AutoConfig

    if source == "tiny":
        return AutoConfig.for_model(**TINY_SHAPE)
    return shapes.read_config(source, revision).config


def measure(
    name: str, recipe: Params, prompt_tokens: int, device: str
) -> tuple[list[list], list[str]]:
    """One recipe's rows for the table, and what there is to say about its goals."""
    made = config(recipe.model.source, recipe.model.revision)
    model = recipe.model.model_copy(update={"device": device})
    knobs = knobs_of(recipe.model_copy(update={"model": model}), prompt_tokens)
    planned = {stage.name: stage.total for stage in estimate.stages(shapes.shape_of(made), knobs)}
    meter = stages.Meter(device)
    meter.reset()
    backbone = stages.random_backbone(made, recipe.model.quantisation, device, recipe.model.dtype)
    measured = [stages.Measured("building", meter.peak(), meter.reserved(), 0.0, 0)]
    alone = meter.current()
    measured += stages.run(backbone, recipe, prompt_tokens, meter)
    rows: list[list] = []
    for m in measured:
        speed = m.tokens / m.seconds if m.seconds else None
        rows.append([name, m.stage, m.peak, m.reserved, planned.get(m.stage), m.seconds, speed])

    # what the four roles take beside the backbone, once nothing runs
    backbone.add_adapter("proxy", recipe.reward.lora)
    backbone.add_adapter("refined", recipe.reward.lora)
    backbone.add_adapter(POLICY, recipe.policy.lora)
    roles = meter.current()
    rows.append([name, "backbone alone", alone, None, None, None, None])
    rows.append([name, "policy + reference + proxy + refined", roles, None, None, None, None])
    return rows, _goals(name, roles, alone, max(m.reserved for m in measured))


def _goals(name: str, roles: int, alone: int, peak: int) -> list[str]:
    """What there is to say of a recipe's goals; bytes."""
    goal = next((GOALS[key] for key in GOALS if key in name), None)
    kept = f", {verdict(roles <= ROLES_GOAL * alone)} (goal {ROLES_GOAL})" if goal else ""
    lines = [
        f"{name}: four roles on one backbone take {roles / alone:.3f} times the backbone"
        f" alone{kept}; four models would take {4 * alone / roles:.2f} times as much"
    ]
    if goal:
        lines.append(
            f"{name}: highest peak {peak / 1e9:.2f} GB held by the allocator,"
            f" {verdict(peak <= goal)} (goal {goal / 1e9:.0f} GB)"
        )
    return lines


_FLOAT32 = {"quantisation": "none", "dtype": "float32", "device": "cpu"}
NEAR = {
    "prompts": {"n": 24},
    "sampling": {"n": 4, "max_new_tokens": 24},
    "evaluation": {"replicates": 0},
}


def near(source: str, device: str) -> list[str]:
    """The method's tables on the CPU and on `device`, in float32: how far apart?

    Raises SystemExit where they are not near.
    """
    settings = reading.validate(NEAR | {"model": _FLOAT32 | {"source": source}}, "gpu-check")
    texts = embedded_prompts("helpfulness").head(24)
    models = [settings.model.model_copy(update={"device": where}) for where in ("cpu", device)]
    backbones = [_loaded(model) for model in models]
    here, there = (pool.sample(backbone, texts, settings.sampling, 0) for backbone in backbones)

    # the same completions through both, so that differences are those of the arithmetic alone
    again = pool.score(backbones[1], here)
    letters = here[["prompt_id", "index"]].copy()
    letters["gold"] = [len(set(completion)) for completion in here["completion"]]
    preferences = preferences_from_gold(letters, 4, 0)
    scores, conflicts = [], []
    for sample in (here, again):
        score = rewards.fit_probe(sample, preferences, settings.reward.l2).score(sample)
        scores.append(score)
        conflicts.append(conflict_table(sample, score, sample["logp"].to_numpy())["pacs"])

    same = (here["tokens"].map(list) == there["tokens"].map(list)).mean()
    close = (np.abs(here["logp"] - again["logp"]) < 0.01).mean()
    measures = {
        "completions that are the same": (float(same), 0.9),
        "log-probabilities within 0.01": (float(close), 0.99),
        "correlation of proxy rewards": (float(np.corrcoef(*scores)[0, 1]), 0.99),
        "correlation of PACS": (float(np.corrcoef(*conflicts)[0, 1]), 0.99),
    }
    for name, (value, least) in measures.items():
        if not value >= least:
            raise SystemExit(
                f"gpu-check: {name}: {value:.4f}, at least {least} expected: {device} does not"
                " compute what the CPU computes"
            )
    return [
        f"embedded model, cpu against {device}: {name} {value:.4f} (at least {least})"
        for name, (value, least) in measures.items()
    ]


def _loaded(model: Model) -> Backbone:
    if model.source != "tiny":
        return loading.load_backbone(model)
    torch.manual_seed(0)
    device = loading.pick_device(model.device)
    return stages.random_backbone(config("tiny"), "none", device, "float32")


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


def table(rows: list[list], lines: list[str], card: str) -> str:
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
    return head + body + "\n" + "".join(f"- {line}\n" for line in lines)


def write(rows: list[list], lines: list[str], card: str, out: Path) -> str:
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
    text = table(rows, lines, card)
    (out / "gpu_check.md").write_text(text, encoding="utf-8")
    return text


def _options() -> argparse.Namespace:
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
    return parser.parse_args()


def main() -> int:
    options = _options()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check SKIPPED: this machine shows no CUDA GPU, nothing was measured", flush=True)
        return 0
    out, sys.stdout = sys.stdout, sys.stderr  # trainers print their logs
    tiny = options.shape == "tiny"
    cases = {"tiny": reading.validate(TINY, "gpu-check")} if tiny else recipes()
    if not cases:
        goals = ", ".join(GOALS)
        print(f"gpu-check: no recipe in params/ has one of {goals} in its name", file=out)
        return 1
    lines, rows = near("tiny" if tiny else "smollm2-135m-instruct", options.device), []
    full = options.device == "cuda" and not tiny
    if full:
        lines.append(notebooks())
    for name, recipe in cases.items():
        tokens = options.prompt_tokens or (24 if tiny else longest_prompt(recipe))
        measured, goals = measure(name, recipe, tokens, options.device)
        rows += measured
        lines += goals
    card = f"CPU ({platform.machine()})"
    if options.device == "cuda":
        card = torch.cuda.get_device_name()
    text = write(rows, lines, card, options.out)
    if full:
        _fill_page(text)
    print(text, file=out)
    return 1 if any("NOT met" in line for line in lines) else 0


def _fill_page(text: str) -> None:
    """Put the table between its marks in docs/performance.md, where the page has them."""
    page = PAGE.read_text(encoding="utf-8")
    if START in page:
        head = page[: page.index(START) + len(START)]
        tail = page[page.index(END) :]
        PAGE.write_text(f"{head}\n\n{text}\n{tail}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
