"""Accuracies of rewards on benchmarks: what is counted, and against what."""

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.analysis import benchmark


def table(chosen=3, rejected=3, rows=20, subsets=("a", "b")):
    parts = []
    for k in range(rows):
        for side, count in (("chosen", chosen), ("rejected", rejected)):
            for style in range(count):
                parts.append((f"r{k:02d}", f"prompt {k}", side, style, subsets[k % len(subsets)]))
    return pd.DataFrame(parts, columns=["prompt_id", "prompt", "side", "style", "subset"])


def test_hard_is_a_plain_answer_against_an_adorned_one():
    """A reward that likes adornment alone: right where the chosen one is the more adorned."""
    rows = table()
    found = benchmark.accuracies(rows, rows["style"].to_numpy(float))
    means = found.groupby("style")["right"].mean()
    assert means.to_dict() == {"all": pytest.approx(1 / 3), "easy": 1, "hard": 0, "normal": 0}


def test_a_tie_is_no_win():
    rows = table(1, 1)
    assert benchmark.accuracies(rows, np.zeros(len(rows)))["right"].eq(0).all()


def test_lists_of_other_lengths_have_no_styles():
    rows = table(1, 3)
    found = benchmark.accuracies(rows, (rows["side"] == "chosen").to_numpy(float))
    assert set(found["style"]) == {"all"} and found["right"].eq(1).all()


def test_a_difference_is_paired_and_its_verdict_corrected():
    rows, draw = table(rows=60), np.random.default_rng(0)
    noise = draw.normal(size=len(rows))
    better = noise + 3 * (rows["side"] == "chosen")
    scores = {"proxy": noise, "same": noise.copy(), "better": better.to_numpy()}
    found = benchmark.compare(rows, scores, seed=0)
    whole = found[(found["subset"] == "all") & (found["style"] == "all")].set_index("reward")
    assert whole.at["same", "gain"] == whole.at["same", "gain_low"] == 0
    assert whole.at["same", "verdict"] == "not significant"
    assert whole.at["better", "verdict"] == "higher" and whole.at["better", "gain_low"] > 0
    assert whole.at["proxy", "verdict"] == "" and np.isnan(whole.at["proxy", "gain"])
    text = benchmark.as_markdown(found)
    assert text.count("\n") == 1 + 3 * 4 and "better - proxy" in text


def test_rows_of_one_prompt_are_no_independent_ones():
    """Twelve copies of a row are as sure as one."""
    few = table(1, 1, rows=12, subsets=("a",))
    copies = [few.assign(prompt_id=few["prompt_id"] + f"_{k}") for k in range(12)]
    many = pd.concat(copies, ignore_index=True)
    score = lambda rows: rows["prompt"].str[-1].astype(int) % 2 * (rows["side"] == "chosen")  # noqa: E731
    width = {}
    for name, rows in (("few", few), ("many", many)):
        found = benchmark.compare(rows, {"proxy": score(rows).to_numpy(float)}, seed=0).iloc[0]
        width[name] = found["high"] - found["low"]
    assert width["many"] == pytest.approx(width["few"], abs=0.1) and width["few"] > 0.3
