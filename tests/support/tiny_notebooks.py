"""Parameters of a run of the four notebooks that takes seconds."""


def settings(tiny_model, **changes):
    """A run of a few seconds: 60 prompts, 4 short completions, random tiny model."""
    values = {
        "run": "tiny",
        "seed": 0,
        "model": {"source": str(tiny_model), "quantisation": "none"},
        "prompts": {"n": 60},
        "sampling": {"n": 4, "max_new_tokens": 8},
        "gold": {"kind": "tiny_gold:vowels"},
        "bias": [
            {"kind": "attribute", "attribute": "tiny_gold:consonants", "strength": 0.7},
            {"kind": "noise", "rate": 0.1},
            {"kind": "coverage", "absent": ["travel"]},
        ],
        "selection": {"budget": 12, "rounds": 2},
        "evaluation": {"replicates": 2, "bootstrap": 200},
    }
    return values | changes
