"""Fonts for the texts of a figure, whatever their script.

matplotlib's own font has Latin, Greek, Cyrillic, Hebrew and Arabic letters. For the characters
that it lacks, those fonts of this machine are named that have them; what none has is said once.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from contextlib import contextmanager
from functools import cache

import pandas as pd

# Where several fonts have a character, that of the first of these families whose name holds the
# words is taken, else the first by name: one face for a script, the same in every figure.
_PREFERRED = ("Noto Sans CJK", "Noto Sans", "Source Han Sans", "Arial Unicode")
_MISSING = re.compile(r"Glyph (\d+) .*missing from font")
_told: set[str] = set()


def families(table: pd.DataFrame) -> list[str]:
    """The font families for a figure of a table: matplotlib's own, then those of this machine
    that have what it lacks of the table's texts."""
    lacking = _characters(table) - _covered(_own())
    names: list[str] = []
    for name, path in _installed():
        found = lacking & _covered(path) if lacking else set()
        if found:
            names.append(name)
            lacking -= found
    return ["sans-serif", *names]


@contextmanager
def missing_glyphs_told():
    """Within it, a glyph that no font has is said in one line, once a process, instead of a
    warning for each."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    found = [(warning, _MISSING.search(str(warning.message))) for warning in caught]
    glyphs = {chr(int(match[1])) for _, match in found if match}
    for warning, match in found:
        if not match:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    if new := sorted(glyphs - _told):
        _told.update(new)
        print(
            f"figures: no font of this machine has {' '.join(new)}, drawn as boxes: install one"
            " that has, such as Noto Sans for the script, and remove matplotlib's font cache"
        )


def _characters(table: pd.DataFrame) -> set[str]:
    """Every character of a table's texts and names that is not ASCII."""
    parts = [*table.columns, *table.index.names, *_texts(table.index.to_frame()), *_texts(table)]
    return {character for part in parts for character in str(part) if not character.isascii()}


def _texts(table: pd.DataFrame) -> Iterable[str]:
    for _, column in table.items():
        if not pd.api.types.is_numeric_dtype(column):
            yield from column.dropna().astype(str).unique()


def _own() -> str:
    """The file of the font that matplotlib brings."""
    from matplotlib import font_manager

    return font_manager.findfont("DejaVu Sans")


@cache
def _installed() -> list[tuple[str, str]]:
    """(family, file) of this machine's upright fonts, the preferred first."""
    from matplotlib import font_manager

    plain = [
        (font.name, font.fname)
        for font in font_manager.fontManager.ttflist
        if font.style == "normal" and font.weight in (400, "normal", "regular")
    ]
    return sorted(set(plain), key=lambda font: (_rank(font[0]), *font))


def _rank(name: str) -> int:
    ranks = [rank for rank, words in enumerate(_PREFERRED) if words in name]
    return min(ranks, default=len(_PREFERRED))


@cache
def _covered(path: str) -> frozenset[str]:
    """The characters that a font has; none where it cannot be drawn, as a font of bitmaps."""
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
