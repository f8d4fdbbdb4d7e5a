"""Rows of a data set, one at a time, from wherever it lies: a hub, a folder, or a file.

Nothing is kept in memory but a batch.

    for where, row in read_rows(params.preferences, wanted=None): ...

where: the row's place, for messages ('mine.jsonl, line 3'). row: column to value. A csv cell is
text that may stand for a number or a truth value, and says so by its type, Cell.
"""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError

if TYPE_CHECKING:
    from shfcas_lib.params.schema import Place

Row = tuple[str, dict[str, Any]]
LONGEST = 1 << 25  # characters of one line or cell; nothing that a person compared is longer
LARGEST_JSON = 256_000_000  # bytes
BATCH = 1000


class Cell(str):
    """Text out of a csv file, where numbers and truth values are text too."""


def read_rows(data: Place, wanted: list[str] | None = None) -> Iterator[Row]:
    """Rows of a file, a saved data set or a hub data set, in their order.

    Raises InputError where it cannot be read (on).

    wanted: the columns to read where reading fewer costs less (Parquet, Arrow); the others are
    there, as None.
    """
    if data.file is None:
        return _read_parts(data, wanted)
    path = places.user_path(data.file)
    if path.is_dir():
        return _read_saved(path, data.split, wanted)
    if not path.is_file():
        raise InputError(f"data file {path} does not exist")
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        return ((f"{path}, line {n}", row) for n, row in read_jsonl(path))
    if name.endswith(".json"):
        return ((f"{path}, entry {n}", row) for n, row in enumerate(_read_json(path), 1))
    if name.endswith(".csv"):
        return _read_csv(path)
    if name.endswith(".parquet"):
        return _read_parquet(path, wanted)
    raise InputError(
        f"data file {path}: expected a name ending in .jsonl, .jsonl.gz, .json, .parquet or .csv"
    )


def name_of(data: Place) -> str:
    """What messages call the data set as a whole."""
    return str(places.user_path(data.file)) if data.file is not None else str(data.source)


def read_jsonl(path: Path) -> Iterator[tuple[int, dict]]:
    """(line number, object) of a jsonl or jsonl.gz file; blank lines count as lines only.

    Raises InputError for a file that ends early, a line that is no object or far too long.
    """
    opener = gzip.open if path.name.lower().endswith(".gz") else open
    number = 0
    try:
        with opener(path, "rt", encoding="utf-8") as file:
            for line in _lines(file, path):
                number += 1
                if line.strip():
                    yield number, _object(line, f"{path}, line {number}")
    except (EOFError, OSError, ValueError, zlib.error) as error:
        raise InputError(f"{path}, after line {number}: cannot be read on ({error})") from error


def _read_json(path: Path) -> list[dict]:
    """The objects of a json file: a list of them, or one. It is read whole."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise InputError(
                f"{path} has {path.stat().st_size / 1e6:.0f} MB, expected at most"
                f" {LARGEST_JSON / 1e6:.0f}: write it as .jsonl, which is read line by line"
            )
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error})") from error
    rows = [rows] if isinstance(rows, dict) else rows
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects, or one object")
    return rows


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    """The lines of a file, none of them held that is longer than anything sensible."""
    number = 0
    while line := file.readline(LONGEST):
        number += 1
        if len(line) >= LONGEST:
            raise InputError(f"{path}, line {number}: longer than {LONGEST} characters")
        yield line


def _object(line: str, where: str) -> dict:
    """The JSON object of one line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON ({error})") from error
    if not isinstance(row, dict):
        raise InputError(f"{where}: found {type(row).__name__}, expected an object")
    return row


def _read_csv(path: Path) -> Iterator[Row]:
    """Rows of a csv file with a header.

    A row with more or fewer cells than the header is an error.
    """
    number = 0
    csv.field_size_limit(LONGEST)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(_lines(file, path), strict=True)
            if not table.fieldnames:
                raise InputError(f"{path} cannot be read: it has no header")
            for number, row in enumerate(table, 1):
                if None in row or None in row.values():
                    raise InputError(f"{path}, row {number}: has not as many cells as the header")
                cells = {column: Cell(cell) for column, cell in row.items()}
                yield f"{path}, row {number}", cells
    except (csv.Error, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read after row {number}: {error}") from error


def _read_parquet(path: Path, wanted: list[str] | None) -> Iterator[Row]:
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as file:
            columns = file.schema_arrow.names
            chosen = _of(wanted, columns)
            for batch in file.iter_batches(BATCH, columns=chosen, use_threads=False):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", dict.fromkeys(columns) | row
    except InputError:
        raise
    except Exception as error:  # pyarrow raises errors of its own
        after = f" after row {number}" if number else ""
        raise InputError(f"{path} cannot be read{after}: {_sentence(error)}") from error


def _read_saved(path: Path, split: str | None, wanted: list[str] | None) -> Iterator[Row]:
    """Rows of a folder that `save_to_disk` wrote, memory-mapped."""
    import datasets

    try:
        data = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever lies in a folder, in whatever state
        raise InputError(
            f"{path} cannot be read as a saved data set: {_sentence(error)}"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        split = split or "train"
        if split not in data:
            raise InputError(f"{path} has no split {split!r} (splits found: {', '.join(data)})")
        data = data[split]
    return _read_arrow(data, str(path), wanted)


def _read_parts(data: Place, wanted: list[str] | None) -> Iterator[Row]:
    """Rows of a hub data set, or of a local folder laid out like one.

    Several folders in it are read one after the other; each row then has the folder's name
    under `data_dir`.
    """
    folders = data.data_dir if isinstance(data.data_dir, list) else [data.data_dir]
    for folder in folders:
        origin = f"{data.source} {folder}" if folder else str(data.source)
        for where, row in _read_arrow(_load(data, folder), origin, wanted):
            yield where, row if folder is None else row | {"data_dir": folder}


def _load(data: Place, folder: str | None) -> Any:
    """One data set through `datasets`, as Arrow files in its cache, memory-mapped.

    Scripts are never run.
    """
    import datasets
    from datasets.utils import disable_progress_bars, enable_progress_bars

    local = places.user_path(str(data.source))
    quiet = local.is_dir()
    split = data.split or "train"
    if quiet:
        disable_progress_bars()
    try:
        return datasets.load_dataset(
            str(local) if quiet else data.source,
            name=data.config,
            data_dir=folder,
            split=split,
            revision=None if quiet else data.revision,
        )
    # no network, no such id, config, folder, split or revision; a gate; broken files
    except Exception as error:
        options = {
            "config": data.config,
            "data_dir": folder,
            "split": split,
            "revision": data.revision,
        }
        given = ", ".join(f"{key} {value!r}" for key, value in options.items() if value)
        raise InputError(
            f"data set {data.source!r} ({given}) cannot be loaded: {_sentence(error)}"
        ) from error
    finally:
        if quiet:
            enable_progress_bars()


def _read_arrow(data: Any, origin: str, wanted: list[str] | None) -> Iterator[Row]:
    columns = data.column_names
    if wanted is not None:
        data = data.select_columns(_of(wanted, columns))
    number = 0
    for batch in data.iter(BATCH):
        for values in zip(*batch.values(), strict=True):
            number += 1
            row = dict(zip(batch, values, strict=True))
            yield f"{origin}, row {number}", dict.fromkeys(columns) | row


def _of(wanted: list[str] | None, there: list[str]) -> list[str] | None:
    """The wanted ones of the columns that are there; None: all of them.

    Where none of them is there it is any one, so that rows still come.
    """
    if wanted is None:
        return None
    return [column for column in there if column in wanted] or there[:1]


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:297] + "..."
