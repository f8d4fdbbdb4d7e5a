"""Completions that this project did not make, in the columns of a user's own."""

import numpy as np
import pandas as pd

from shfcas_lib.tasks.embedded import embedded_prompts

WORDS = "a an the cat dog rain answer good honest ran sat in on and is".split()


def table(prompts=40, seed=0, sizes=(2, 3, 5)):
    """A row per completion, prompts with different numbers of them: prompt, completion, logp,
    reward, gold, category. Reward follows length, gold the vowels."""
    generator = np.random.default_rng(seed)
    asked = embedded_prompts("helpfulness").head(prompts)
    rows = []
    for k, row in enumerate(asked.itertuples()):
        for _ in range(sizes[k % len(sizes)]):
            words = generator.choice(WORDS, generator.integers(2, 9))
            text = " ".join(words)
            gold = sum(text.count(vowel) for vowel in "aeiou") / len(text)
            reward = len(text) / 10 + generator.normal() / 10
            logp = -2.0 * len(words) - generator.gamma(2, 1)
            rows.append((row.prompt, text, logp, reward, gold, row.category))
    columns = ["prompt", "completion", "logp", "reward", "gold", "category"]
    return pd.DataFrame(rows, columns=columns)
