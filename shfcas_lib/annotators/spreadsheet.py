"""Questions as a csv that a spreadsheet can open, and answers out of the filled-in one."""

from __future__ import annotations

import csv
import io

import pandas as pd

from shfcas_lib.annotators.questions import Answer, answer_of, parsed
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import neutral, restored

_LONGEST_CELL = 32_000  # spreadsheets cut a cell off a little after that
_LONGEST_FIELD = 100_000_000


def csv_text(table: pd.DataFrame) -> str:
    """A table of texts as csv, every cell neutral."""
    out = io.StringIO()
    writer = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(table.columns)
    for row in table.itertuples(index=False):
        writer.writerow([neutral(str(cell)) for cell in row])
    return out.getvalue()


def csv_rows(text: str, origin: str) -> list[dict[str, str]]:
    """The rows of a csv that a spreadsheet may have saved (with commas, semicolons or tabs),
    cells restored. Raises InputError.
    """
    header = text.partition("\n")[0]
    csv.field_size_limit(_LONGEST_FIELD)
    delimiter = max(",;\t", key=header.count)
    number = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip().lower() for name in next(reader, [])]
        missing = [name for name in ("question", "answer") if name not in names]
        if missing:
            raise InputError(
                f"{origin} has no column {missing[0]!r} (columns found: {', '.join(names)})"
            )
        rows = []
        for number, cells in enumerate(reader, 1):
            if len(cells) != len(names) and any(cells):
                raise InputError(
                    f"{origin}, row {number}: {len(cells)} cells, expected {len(names)}"
                )
            # a row of empty cells may be shorter or longer
            rows.append(dict(zip(names, map(restored, cells), strict=False)))
    except csv.Error as error:
        raise InputError(f"{origin} cannot be read after row {number}: {error}") from error
    return rows


def from_csv(text: str, origin: str, annotator: str, graded: bool = False) -> list[Answer]:
    """Answers in a filled-in csv.

    Rows with an empty answer are left out; `annotator` answers where a row names nobody.
    """
    answers: dict[tuple, Answer] = {}
    for number, row in enumerate(csv_rows(text, origin), 1):
        word = row.get("answer", "").strip()
        if not word:
            continue
        who = row.get("annotator", "").strip() or annotator
        where = f"{origin}, row {number}"
        answer = answer_of(row["question"].strip(), word, who, where, graded)
        before = answers.setdefault((*answer.key, who), answer)
        if before.answer != answer.answer:
            raise InputError(
                f"{answer.where}: {who!r} answers this question another way than in"
                f" {before.where.rpartition(', ')[2]}"
            )
    return list(answers.values())


def check_texts(text: str, origin: str, chosen: dict[tuple, pd.Series]) -> None:
    """Refuse a sheet in which texts moved away from their questions.

    That happens when only some of its columns were sorted. chosen: (prompt_id, i, j, code) to the
    comparison with its texts. Raises InputError.
    """
    for number, row in enumerate(csv_rows(text, origin), 1):
        if not row.get("answer", "").strip():
            continue
        for name, expected in _texts(row, f"{origin}, row {number}", chosen).items():
            if name in row and _plain(row[name]) != _plain(expected):
                raise InputError(
                    f"{origin}, row {number}: the text under {name!r} is not that of"
                    f" {row['question']}: was only a part of the sheet sorted?"
                )


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
    return " ".join("".join(characters).split())[: _LONGEST_CELL // 2]
