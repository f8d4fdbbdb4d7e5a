"""Gold of the helpfulness task: relevance.

Cosine between the sentence embeddings of request and completion (all-MiniLM-L6-v2), plus 0.15
if the last sentence is complete, so that a completion cut off by the token limit is worth a
little less.
"""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from shfcas_lib.base import progress
from shfcas_lib.base.batches import by_length
from shfcas_lib.base.dialogues import plain
from shfcas_lib.storage import assets

COMPLETE = 0.15  # worth of a complete last sentence, in units of cosine similarity


def complete(completion: str) -> bool:
    """Does the text end a sentence?"""
    return bool(re.search(r"[.!?][\"')\]]*$", completion.strip()))


class Relevance:
    """Cosine of sentence embeddings plus the worth of a complete last sentence."""

    def __init__(self):
        from transformers import AutoModel, AutoTokenizer

        folder = assets.asset_path("all-minilm-l6-v2")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()

    def __call__(self, table: pd.DataFrame) -> np.ndarray:
        """Gold of completions, (rows,). table: columns prompt and completion."""
        prompts = list(dict.fromkeys(table["prompt"]))
        wanted = dict(zip(prompts, self.embed([plain(p) for p in prompts]), strict=True))
        written = self.embed(list(table["completion"]))
        cosine = [wanted[p] @ answer for p, answer in zip(table["prompt"], written, strict=True)]
        whole = np.array([complete(text) for text in table["completion"]], float)
        return np.array(cosine) + COMPLETE * whole

    def embed(self, texts: list[str], batch: int = 64) -> np.ndarray:
        """Unit sentence embeddings, texts x 384: mean over tokens, as the model was trained."""
        import torch

        out = np.zeros((len(texts), self.model.config.hidden_size))
        batches = by_length(texts, batch)
        for rows in progress.over(batches, "embedding", "batch"):
            tokens = self.tokenizer(
                [texts[k] for k in rows],
                padding=True,
                truncation=True,
                max_length=256,
                return_tensors="pt",
            )
            with torch.inference_mode():
                hidden = self.model(**tokens).last_hidden_state
            mask = tokens["attention_mask"][..., None]
            mean = (hidden * mask).sum(1) / mask.sum(1)
            out[rows] = torch.nn.functional.normalize(mean, dim=-1).double().numpy()
        return out
