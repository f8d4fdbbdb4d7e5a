"""Fill the tables of docs/performance.md from results/*.csv.

Each block between `<!-- table: NAME -->` and `<!-- end -->` is the file of that name.
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
    lines = [_line(list(table.columns)), "|" + "---|" * len(table.columns)]
    for row in table.itertuples(index=False):
        lines.append(_line([_text(value) for value in row]))
    return "\n".join(lines)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _text(value: object) -> str:
    if not isinstance(value, float) or value == int(value):
        return str(value).removesuffix(".0")
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def fill(text: str) -> str:
    """The page with every block read anew."""
    return re.sub(r"<!-- table: (\w+) -->\n.*?<!-- end -->", _filled, text, flags=re.DOTALL)


def _filled(block: re.Match) -> str:
    return f"<!-- table: {block[1]} -->\n{markdown(block[1])}\n<!-- end -->"


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
