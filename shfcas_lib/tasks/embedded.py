"""The prompts of the embedded tasks, and the hand labels that the safety rules were checked
against."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd

from shfcas_lib.base.dialogues import prompt_id
from shfcas_lib.storage import assets
from shfcas_lib.tasks import instructions

_EMBEDDED = Path(__file__).parent / "prompts"


def embedded_prompts(task: str) -> pd.DataFrame:
    """All prompts of an embedded task: columns prompt_id, prompt, category, harmful."""
    if task in ("helpfulness", "instructions"):
        rows = [(r["prompt"], r["category"], False) for r in _rows(_EMBEDDED / "helpfulness.jsonl")]
        return prompt_table(rows if task == "helpfulness" else instructions.attached(rows))
    benign = [(r["prompt"], r["category"], False) for r in _rows(_EMBEDDED / "safety_benign.jsonl")]
    harmful = [
        (row["prompt"].strip(), path.stem, True)
        for path in sorted(assets.asset_path("do-not-answer").glob("*.jsonl"))
        for row in _rows(path)
    ]
    return prompt_table(harmful + benign).drop_duplicates("prompt_id", ignore_index=True)


def hand_labels() -> pd.DataFrame:
    """The shipped hand labels of the safety task: prompt_id, prompt, harmful, completion, label
    (0, 0.5 or 1)."""
    labels = pd.DataFrame(_rows(_EMBEDDED / "safety_hand_labels.jsonl"))
    return labels.merge(
        embedded_prompts("safety")[["prompt_id", "prompt"]], on="prompt_id", validate="many_to_one"
    )


def prompt_table(rows: list[tuple[str, str, bool]]) -> pd.DataFrame:
    """Prompts with their category and whether they are harmful, as the table that a run reads:
    prompt_id, prompt, category, harmful."""
    table = pd.DataFrame(rows, columns=["prompt", "category", "harmful"])
    return table.assign(prompt_id=table["prompt"].map(prompt_id))[
        ["prompt_id", "prompt", "category", "harmful"]
    ]


def _rows(path: Path) -> list[dict]:
    """The objects of a jsonl file of ours, whose bytes were checked or come with this library."""
    return [
        json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
