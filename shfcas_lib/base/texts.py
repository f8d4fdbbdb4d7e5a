"""Texts of strangers, made safe for a terminal, a figure or a spreadsheet's cell.

    print(printable(completion))          # no escape sequence, no text that runs backwards
    table_csv(table, path)                # no cell that a spreadsheet would take for a formula

Data stays what it is: nothing here changes a table of a run, only what people see of it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

# What a spreadsheet may take for a formula, at the start of a cell, or of what becomes a cell
# where the file is opened with another separator than its own: then quotes no longer hold it
# together.
_FORMULA = "[ \"]*['=+@＝＋－＠-]"
_START = re.compile(f'^(?=[ "]*[\t\r\n])|(^|[;\t\r\n])(?={_FORMULA})')
_HIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_STARTED = re.compile(f"^'(?=[ \"]*[\t\r\n])|(^|[;\t\r\n])'(?={_FORMULA})")


# Zero-width space, word joiner, byte order mark, soft hyphen: nobody sees them, and no script
# needs them, unlike the joiners of Persian, Hindi and emoji.
_UNSEEN = dict.fromkeys(map(ord, "\u200b\u2060\ufeff\u00ad"))


def canonical(text: str) -> str:
    """What two texts have in common that say the same in another spelling.

    White space of any kind is one space, characters are composed (Unicode's NFC: é is one
    character, not e and an accent), and unseen ones are left out. Case stays, and what Unicode
    only calls compatible: full-width letters are another text.
    """
    return " ".join(unicodedata.normalize("NFC", text.translate(_UNSEEN)).split())


def printable(text: str) -> str:
    """The text with a marker such as ⟨U+001B⟩ for every character that is no glyph.

    Those are control and escape characters, those that turn the direction of text, and half
    characters. Line ends stay. The annotation screen writes the same markers.
    """
    return "".join(c if c.isprintable() or c == "\n" else _marker(c) for c in text)


def visible_in_html(page: str) -> str:
    """A page with markers for control characters and those that turn the direction of text.

    The page's own spaces stay.
    """
    return _HIDDEN.sub(lambda match: _marker(match[0]), page)


def _marker(character: str) -> str:
    left = "\N{MATHEMATICAL LEFT ANGLE BRACKET}"
    right = "\N{MATHEMATICAL RIGHT ANGLE BRACKET}"
    return f"{left}U+{ord(character):04X}{right}"


def one_line(text: str) -> str:
    """The same on one line: what a terminal prints of an error."""
    return printable(" ".join(text.split("\n")))


def neutral(text: str) -> str:
    """A cell that no spreadsheet takes for a formula.

    An apostrophe goes before what could be one, and before an apostrophe.
    """
    return _START.sub(r"\1'", text)


def restored(cell: str) -> str:
    """The text that `neutral` made a cell of."""
    return _STARTED.sub(r"\1", cell)


def printable_table(table: pd.DataFrame) -> pd.DataFrame:
    """A table whose texts are printable: what a figure is drawn from."""
    return _mapped(table, printable)


def table_csv(table: pd.DataFrame, path: Path, **options) -> None:
    """Write a table as csv without its index, every text in it, and every column's name, neutral.

    options: of pandas' to_csv.
    """
    _mapped(table, neutral).rename(columns=neutral).to_csv(path, index=False, **options)


def _mapped(table: pd.DataFrame, change: Callable[[str], str]) -> pd.DataFrame:
    def changed(value: object) -> object:
        return change(value) if isinstance(value, str) else value

    texts = table.select_dtypes(exclude=["number", "bool"])
    return table.assign(**{name: column.map(changed) for name, column in texts.items()})
