"""Text tables, as programs and spreadsheets write them: how one is written is found out first.

    for number, row in read_sheet(Path("mine.csv")): ...      # column to Cell
    dialect_of(Path("mine.csv")).said                         # 'separated by semicolons'

Encoding: a mark at the start (UTF-8, UTF-16, UTF-32), or UTF-8, or what chardet recognises.
Separator: the one of , ; tab | with which every row at the start has as many cells as the header.
Cells hold what RFC 4180 says: quotes around, doubled inside, line breaks allowed.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from shfcas_lib.base.errors import InputError

LONGEST = 1 << 25  # characters of one line or cell; nothing that a person compared is longer
ENDINGS = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "pipes"}
_SAMPLE = 1 << 18  # bytes that are looked at before the first row is read
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark its own starts with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What spreadsheets save text as where it is no Unicode; Latin-1 is part of the first.
_WESTERN = "cp1252"
_LEGACY = [
    *(f"cp125{number}" for number in range(8)),
    *("mac-roman", "cp932", "cp949", "gb18030", "big5hkscs"),
]
_WIDE = ["utf-16-le", "utf-16-be"]
_CLEARLY, _LEAST = 1.6, 0.02  # how much likelier than cp1252, and how likely at least
_HINT = re.compile(r"sep=(.)\r?\n?", re.IGNORECASE)  # a first line that Excel understands
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")


class Cell(str):
    """Text out of a text table, where numbers and truth values are text too."""

    _decimal_comma = False

    @property
    def number(self) -> float | None:
        """The number that the text stands for; None where it stands for none."""
        text = self.strip()
        if self._decimal_comma and _DECIMAL_COMMA.fullmatch(text):
            text = text.replace(",", ".")
        try:
            return float(text)
        except ValueError:
            return None


class _CommaCell(Cell):
    """A cell of a table whose separator is no comma, because commas stand in its numbers."""

    _decimal_comma = True


@dataclass(frozen=True)
class Dialect:
    """How a text table is written. hint: its first line names the separator, and is no row."""

    encoding: str = "utf-8"
    separator: str = ","
    hint: bool = False

    @property
    def said(self) -> str:
        """What is out of the ordinary, in words; '' for UTF-8 with commas."""
        words = []
        if not self.encoding.startswith("utf-8"):
            words.append(f"in {self.encoding}")
        if self.separator != ",":
            words.append(f"separated by {_SEPARATORS[self.separator]}")
        return ", ".join(words)


def is_sheet(path: Path) -> bool:
    """Is a file of this name a text table?"""
    return path.name.lower().endswith(ENDINGS)


def dialect_of(source: Path | bytes, origin: str | None = None) -> Dialect:
    """How a file, or its contents, is written. Raises InputError."""
    origin = origin or str(source)
    try:
        with _opened(source) as file:
            encoding = _encoding(file, origin)
            file.seek(0)
            start = file.read(_SAMPLE + 1)
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(f"{origin} cannot be read: {error}") from error
    whole = len(start) <= _SAMPLE
    # a character that the sample cuts in two is left out; one that is broken is met when read
    text = codecs.getincrementaldecoder(encoding)("replace").decode(start[:_SAMPLE])
    hint = _HINT.match(text)
    if hint and hint[1] in _SEPARATORS:
        return Dialect(encoding, hint[1], hint=True)
    return Dialect(encoding, _separator(text, whole))


def read_sheet(source: Path | bytes, origin: str | None = None) -> Iterator[tuple[int, dict]]:
    """(row number, column to Cell) of a text table with a header, in order.

    The row under the header is 1; rows without any text count and are left out. Raises InputError
    for a table without a header, a column named twice, and a row that has not the header's number
    of cells.
    """
    origin = origin or str(source)
    dialect = dialect_of(source, origin)
    kind = Cell if dialect.separator == "," else _CommaCell
    records = _records(source, origin, dialect)
    _, names = next(records)
    for number, cells in records:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) != len(names):
            raise InputError(_ragged(origin, number, cells, names, dialect))
        named = zip(names, cells, strict=True)
        yield number, {name: kind(cell) for name, cell in named if name}


def columns_of(source: Path | bytes, origin: str | None = None) -> list[str]:
    """The names in the header of a text table. Raises InputError."""
    origin = origin or str(source)
    _, names = next(_records(source, origin, dialect_of(source, origin)))
    return [name for name in names if name]


def _records(
    source: Path | bytes, origin: str, dialect: Dialect
) -> Iterator[tuple[int, list[str]]]:
    """(0, the columns' names), then (row number, cells) of every row."""
    number = 0
    csv.field_size_limit(LONGEST)
    try:
        with io.TextIOWrapper(_opened(source), encoding=dialect.encoding, newline="") as file:
            if dialect.hint:
                file.readline()
            table = csv.reader(lines(file, origin), delimiter=dialect.separator, strict=True)
            yield 0, _header(next(table, []), origin)
            for number, cells in enumerate(table, 1):
                yield number, cells
    except (csv.Error, EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(f"{origin} cannot be read after row {number}: {error}") from error


def lines(file: TextIO, origin: str) -> Iterator[str]:
    """The lines of a file, none of them held that is longer than anything sensible."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) >= LONGEST:
            raise InputError(f"{origin}, line {number}: longer than {LONGEST} characters")
        yield line


def unicode_encoding(path: Path) -> str:
    """What a file of JSON lines is encoded in: UTF-8, or what the mark at its start says."""
    with _opened(path) as file:
        return _marked(file.read(4)) or "utf-8"


def _opened(source: Path | bytes) -> BinaryIO:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if source.name.lower().endswith(".gz"):
        return gzip.open(source, "rb")  # type: ignore[return-value]
    return open(source, "rb")


def _marked(start: bytes) -> str | None:
    """The encoding that the mark at the start of a file stands for."""
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)


def _encoding(file: BinaryIO, origin: str) -> str:
    """The encoding of a whole file, read once in blocks."""
    if marked := _marked(file.read(4)):
        return marked
    file.seek(0)
    decoder = codecs.getincrementaldecoder("utf-8")()
    block = b""
    try:
        while block := file.read(_SAMPLE):
            if _is_wide(block):
                return _guessed(block, origin)
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return _guessed(block, origin) if block else "utf-8"
    return "utf-8"


def _is_wide(block: bytes) -> bool:
    """Half of the bytes of UTF-16 without a mark are zero, in most languages."""
    return block.count(0) > len(block) // 4


def _guessed(block: bytes, origin: str) -> str:
    """The encoding of bytes that are no UTF-8. Raises InputError where none is likely."""
    # a few broken bytes among letters that are UTF-8: reading stops there, with its place
    text = block.decode("utf-8", "replace")
    if sum(not character.isascii() for character in text) > 2 * text.count("\ufffd"):
        return "utf-8"

    import chardet

    known = _WIDE if _is_wide(block) else _LEGACY
    found = chardet.detect_all(
        block, ignore_threshold=True, include_encodings=known, compat_names=False
    )
    likely = {str(guess["encoding"]): guess["confidence"] for guess in found}
    best = max(likely, key=lambda name: likely[name], default=_WESTERN)
    # short texts fit many of them: the commonest one, unless another fits clearly better
    western = likely.get(_WESTERN, 0)
    if likely.get(best, 0) < max(_LEAST, _CLEARLY * western):
        best = _WESTERN
    try:
        # a letter at the end may be cut in two
        codecs.getincrementaldecoder(best)().decode(block)
    except (LookupError, UnicodeDecodeError) as error:
        raise InputError(
            f"{origin} is not UTF-8, and what it is cannot be told: save it as 'CSV UTF-8'"
        ) from error
    return best


def _separator(text: str, whole: bool) -> str:
    """The separator with which the rows at the start of a table have the header's cells.

    Of several the one that makes the most cells; where none does, the one that most rows agree
    with, so that the first row that does not is named. whole: the text is all of the table.
    """
    best, found = (-1.0, 0), ","
    for separator in _SEPARATORS:
        sizes = _sizes(text, separator, whole)
        if not sizes or sizes[0] < 2:
            continue
        fit = (sizes.count(sizes[0]) / len(sizes), sizes[0])
        if fit > best:
            best, found = fit, separator
    return found


def _sizes(text: str, separator: str, whole: bool) -> list[int]:
    """How many cells each row has, the header first; none where quotes do not fit the separator."""
    sizes: list[int] = []
    csv.field_size_limit(LONGEST)
    try:
        for cells in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True):
            if any(cell.strip() for cell in cells) or not sizes:
                sizes.append(len(cells))
    except csv.Error as error:
        # where the text goes on, its end may cut a quoted cell
        if whole or "end of data" not in str(error):
            return []
        return sizes
    return sizes if whole or len(sizes) < 2 else sizes[:-1]


def _header(cells: list[str], origin: str) -> list[str]:
    """The columns' names; '' for those without. Raises InputError."""
    # csv modules that know no mark keep it, and put it between quotes when they write
    names = [cell.strip().lstrip("\ufeff").strip('" ') for cell in cells]
    if not any(names):
        raise InputError(f"{origin} cannot be read: it has no header")
    refuse_twice(names, f"{origin}: the header")
    return names


def refuse_twice(names: list[str], what: str) -> None:
    """Raise InputError for a name that is given twice; `what` names them."""
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if twice is not None:
        raise InputError(
            f"{what} names {twice[:60]!r} twice: rename or remove one of them, so that it is clear"
            " which is meant"
        )


def _ragged(origin: str, number: int, cells: list[str], names: list[str], dialect: Dialect) -> str:
    """What is said of a row that has not the header's number of cells."""
    separator = _SEPARATORS[dialect.separator]
    return (
        f"{origin}, row {number}: {len(cells)} cells, expected {len(names)}, as many as in the"
        f" header, separated by {separator}: put a text that holds {separator} or line breaks"
        " between quotes"
    )
