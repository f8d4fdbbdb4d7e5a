"""The prompts of the embedded tasks, and the hand labels that check the safety rules."""

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
        rows = _benign("helpfulness.jsonl")
        return prompt_table(rows if task == "helpfulness" else instructions.attached(rows))
    harmful = []
    for path in sorted(assets.asset_path("do-not-answer").glob("*.jsonl")):
        harmful += [(row["prompt"].strip(), path.stem, True) for row in _rows(path)]
    table = prompt_table(harmful + _benign("safety_benign.jsonl"))
    return table.drop_duplicates("prompt_id", ignore_index=True)


def hand_labels() -> pd.DataFrame:
    """The shipped hand labels of the safety task.

    Columns prompt_id, prompt, harmful, completion, label (0, 0.5 or 1).
    """
    labels = pd.DataFrame(_rows(_EMBEDDED / "safety_hand_labels.jsonl"))
    prompts = embedded_prompts("safety")[["prompt_id", "prompt"]]
    return labels.merge(prompts, on="prompt_id", validate="many_to_one")


def prompt_table(rows: list[tuple[str, str, bool]]) -> pd.DataFrame:
    """Requests (prompt, category, harmful) as the table that a run reads.

    Columns prompt_id, prompt, category, harmful.
    """
    table = pd.DataFrame(rows, columns=["prompt", "category", "harmful"])
    table.insert(0, "prompt_id", table["prompt"].map(prompt_id))
    return table


def _benign(name: str) -> list[tuple[str, str, bool]]:
    """The requests of a file of ours that nobody should decline."""
    return [(row["prompt"], row["category"], False) for row in _rows(_EMBEDDED / name)]


def _rows(path: Path) -> list[dict]:
    """The objects of a jsonl file of ours, whose bytes were checked or come with this library."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.strip()]
