"""Fill the tables of docs/performance.md from results/*.csv: each block between `<!-- table: NAME
-->` and `<!-- end -->` is the file of that name.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs" / "performance.md"


def markdown(name: str) -> str:
    """A released table in Markdown."""
    table = pd.read_csv(HERE / "results" / f"{name}.csv")
    lines = ["| " + " | ".join(table.columns) + " |", "|" + "---|" * len(table.columns)]
    return "\n".join(
        lines
        + [
            "| " + " | ".join(_text(value) for value in row) + " |"
            for row in table.itertuples(index=False)
        ]
    )


def _text(value: object) -> str:
    if not isinstance(value, float) or value == int(value):
        return str(value).removesuffix(".0")
    return (
        f"{value:.1e}"
        if abs(value) < 1e-3
        else f"{value:.3g}"
        if abs(value) < 1000
        else f"{value:.0f}"
    )


def fill(text: str) -> str:
    """The page with every block read anew."""
    return re.sub(
        r"<!-- table: (\w+) -->\n.*?<!-- end -->",
        lambda m: f"<!-- table: {m[1]} -->\n{markdown(m[1])}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
