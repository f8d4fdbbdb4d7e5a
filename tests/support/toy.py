"""A toy on which training can be seen to work: prompts whose completions are words (good) or
figures (bad), and a backbone for it."""

import pandas as pd

KEY = ["prompt_id", "i", "j"]
GOOD = [
    "a good answer",
    "the honest cat sat on the mat in the rain",
    "an honest user and a good dog",
]
BAD = ["42 17 99", "0 1 2 3 4 5 6 7 8 9 10 11", "7777 8888 9999 10"]


def load_tiny(folder):
    """The tiny model as a backbone of the caller's own, unquantised, on the CPU."""
    from shfcas_lib.models.loading import load_backbone
    from shfcas_lib.params.schema import Model

    return load_backbone(Model(source=str(folder), quantisation="none", device="cpu"))


def make_pool():
    """16 prompts x 4 completions: at even indices words, at odd ones figures, of several
    lengths."""
    rows = []
    for k in range(16):
        for i in range(4):
            text = (GOOD if i % 2 == 0 else BAD)[(k + i) % 3]
            rows.append((f"p{k:02d}", i, f"question {k}", f"{text} {k}"))
    return pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion"])


def make_preferences(pool):
    """Words are preferred over figures; pairs of the same kind are ties."""
    rows = [
        (prompt, i, j, 0.5 if i % 2 == j % 2 else float(i % 2 == 0))
        for prompt in pool["prompt_id"].unique()
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    return pd.DataFrame(rows, columns=[*KEY, "label"])


def weights_of(backbone, but=None):
    """Copies of all weights on the backbone, adapters too, by name; `but`: without the adapter of
    that name."""
    return {
        key: weight.detach().clone()
        for key, weight in backbone.causal.named_parameters()
        if f".{but}." not in key
    }


def adapter_weights(backbone, name):
    return {
        key: weight.detach().clone()
        for key, weight in backbone.causal.named_parameters()
        if f".{name}." in key
    }


def assert_same_weights(one, other):
    import torch

    assert list(one) == list(other) and one
    assert all(torch.equal(one[key], other[key]) for key in one)
