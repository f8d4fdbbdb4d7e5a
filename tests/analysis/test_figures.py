"""What a figure draws, and what it says where there is nothing to draw."""

import numpy as np
import pandas as pd

from shfcas_lib.analysis import figures
from shfcas_lib.sweeps import figures as sweep_figures


def test_k_by_category_needs_a_prompt_that_is_not_degenerate(tmp_path, capsys):
    table = pd.DataFrame({"prompt_id": ["a"], "category": ["c"], "kendall": [0.5]})
    assert figures.kendall_by_category(table, tmp_path / "k") is not None
    assert figures.kendall_by_category(table.head(0), tmp_path / "none") is None
    said = capsys.readouterr().out
    assert said == "figure none: left out, it needs a prompt that is not degenerate\n"


def test_every_area_stands_beside_the_chance_level_of_its_own_row(tmp_path):
    rows = [("a", "|PACS|", 0.55, 0.48), ("a", "K", 0.56, 0.5), ("b", "|PACS|", 0.5, 0.47)]
    table = pd.DataFrame(rows, columns=["setting", "measure", "value", "chance"])
    table = table.assign(low=table["value"] - 0.01, high=table["value"] + 0.01)
    axes = sweep_figures.error_areas(table, tmp_path / "areas").axes[0]
    strokes = np.concatenate([group.get_offsets() for group in axes.collections[1::2]])
    dots = np.concatenate([line.get_xydata() for line in axes.lines if line.get_marker() == "o"])
    assert sorted(strokes[:, 0]) == [0.47, 0.48, 0.5]
    assert sorted(strokes[:, 1]) == sorted(dots[:, 1])
