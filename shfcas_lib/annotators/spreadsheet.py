"""Questions as a csv that a spreadsheet can open, and answers out of the filled-in one, or out of
Label Studio's csv export."""

from __future__ import annotations

import csv
import io
import re

import pandas as pd

from shfcas_lib.annotators.changed import may_have_become
from shfcas_lib.annotators.questions import STUDIO, Answer, answer_of, parsed, studio_names
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import canonical, neutral, restored
from shfcas_lib.data.sheets import columns_of, read_sheet, refuse_twice

_LONGEST_CELL = 32_000  # spreadsheets cut a cell off a little after that
# columns that Label Studio's own export has, and no sheet of ours
_STUDIO_COLUMNS = {"annotation_id", "lead_time"}


def csv_text(table: pd.DataFrame) -> str:
    """A table of texts as csv, every cell neutral."""
    out = io.StringIO()
    # a name between quotes behind a byte order mark is another name to programs that keep the mark
    csv.writer(out, lineterminator="\r\n").writerow(table.columns)
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    for row in table.itertuples(index=False):
        writer.writerow([neutral(str(cell)) for cell in row])
    return out.getvalue()


def csv_rows(content: str | bytes, origin: str) -> list[dict[str, str]]:
    """The rows of a text table that a spreadsheet may have saved, whatever its separator and
    encoding; names of columns in small letters, cells restored. Rows without any text are empty.

    Raises InputError.
    """
    content = content.encode() if isinstance(content, str) else content
    names = [name.lower() for name in columns_of(content, origin)]
    refuse_twice(names, f"{origin}: the header")
    missing = [name for name in ("question", "answer") if name not in names]
    if missing:
        raise InputError(
            f"{origin} has no column {missing[0]!r} (columns found: {', '.join(names)})"
        )
    rows: list[dict[str, str]] = []
    for number, row in read_sheet(content, origin):
        rows += [{} for _ in range(number - 1 - len(rows))]
        rows.append({name.lower(): restored(str(cell)) for name, cell in row.items()})
    return rows


def from_csv(
    content: str | bytes, origin: str, annotator: str, graded: bool = False
) -> list[Answer]:
    """Answers in a filled-in csv.

    Rows with an empty answer are left out; `annotator` answers where a row names nobody. In an
    export of Label Studio the later of two answers of one person counts.
    """
    answers: dict[tuple, Answer] = {}
    for number, row in enumerate(csv_rows(content, origin), 1):
        word = row.get("answer", "").strip()
        if not word:
            continue
        who, *aliases = _person(row, annotator)
        where = f"{origin}, row {number}"
        question = row["question"].strip()
        answer = answer_of(question, word, who, where, graded, tuple(aliases))
        key = (*answer.key, who)
        before = answers.get(key, answer)
        exported = _exported(row)
        if before.answer != answer.answer and not exported:
            raise InputError(
                f"{answer.where}: {who!r} answers this question another way than in"
                f" {before.where.rpartition(', ')[2]}"
            )
        if key not in answers or exported:
            answers[key] = answer
    return list(answers.values())


def _exported(row: dict[str, str]) -> bool:
    """Is a row out of Label Studio's own export?"""
    return bool(_STUDIO_COLUMNS & set(row))


def _person(row: dict[str, str], otherwise: str) -> list[str]:
    """The name of who answered a row, then other names of the same person."""
    written = row.get("annotator", "").strip()
    # a spreadsheet may have taken a number of a person for a decimal
    written = re.sub(r"^(\d+)[.,]0$", r"\1", written)
    if not written:
        return [otherwise]
    if _exported(row) and not written.startswith(STUDIO):
        return studio_names(written)
    if "@" in written and not written.startswith(STUDIO):
        return [written, f"{STUDIO}{written}"]
    return [written]


def check_texts(content: str | bytes, origin: str, chosen: dict[tuple, pd.Series]) -> int:
    """Refuse a sheet in which texts moved away from their questions.

    That happens when only some of its columns were sorted. What a spreadsheet makes of numbers
    and dates is no such text. chosen: (prompt_id, i, j, code) to the comparison with its texts.
    Returns in how many rows a spreadsheet changed a text. Raises InputError.
    """
    changed = 0
    for number, row in enumerate(csv_rows(content, origin), 1):
        if not row.get("answer", "").strip():
            continue
        moved = []
        for name, expected in _texts(row, f"{origin}, row {number}", chosen).items():
            if name in row and _plain(row[name]) != _plain(expected):
                moved.append((name, expected))
        for name, expected in moved:
            if not may_have_become(_plain(expected), _plain(row[name])):
                raise InputError(
                    f"{origin}, row {number}: the text under {name!r} is not that of"
                    f" {row['question']}: was only a part of the sheet sorted? Where no row lost"
                    " its question, delete the columns prompt, left and right: question and answer"
                    " are enough"
                )
        changed += bool(moved)
    return changed


def _texts(row: dict[str, str], where: str, chosen: dict[tuple, pd.Series]) -> dict[str, str]:
    """The texts that a row was written with: prompt, left, right."""
    prompt, left, right, code = parsed(row["question"].strip(), where)
    comparison = chosen[prompt, min(left, right), max(left, right), code]
    first, second = comparison["one"], comparison["other"]
    if left > right:
        first, second = second, first
    return {"prompt": comparison["prompt"], "left": first, "right": second}


def _plain(text: str) -> str:
    """What is left of a text after a spreadsheet had it.

    Control characters and kinds of white space may change, and a long one is cut.
    """
    characters = [c if c.isprintable() else " " for c in text[:_LONGEST_CELL]]
    return canonical("".join(characters))[: _LONGEST_CELL // 2]
