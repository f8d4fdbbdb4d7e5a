"""Completions that others wrote, sampled or logged, as one table.

    completions = read_completions("completions.parquet")

    prompt_id, index    the completion's name: a hash of the prompt's text, and a number
    prompt, completion  the texts; a prompt of several turns is one string (`base.dialogues`)
    category, harmful   of the prompt

and where the data has them

    logp                log-probability of the whole completion under one policy, in nats
    n_tokens, logp_mean how many tokens that is, and the mean of them
    reward              the proxy's
    gold                a better reward, or a person's rating
    model               who wrote it
    logp_of             whose log-probability logp is

A row of the data is a completion, or a prompt with lists; or what another program writes (module
layouts). A number that is missing is NaN; a column in which all are missing is left out.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from shfcas_lib.base import dialogues, places, progress
from shfcas_lib.base.alignment import columns_found
from shfcas_lib.base.dialogues import prompt_id
from shfcas_lib.base.errors import InputError
from shfcas_lib.data import formats, layouts
from shfcas_lib.data.formats import Cell, Row
from shfcas_lib.data.rows import _absent, _encoded, _number, _shown, _text, _turns, _Unusable
from shfcas_lib.params.schema import CompletionColumns, Completions, Params

ID = ["prompt_id", "index"]
FIRST = [*ID, "prompt", "completion", "category", "harmful"]
KNOWN = ["logp", "n_tokens", "logp_mean", "reward", "gold", "model", "logp_of"]
# of each completion, where a row is a prompt: lists as long as that of completions
_EACH = ("index", "logp", "token_logps", "reward", "gold", "model", "logp_of")
_NAMES = ("model", "logp_of")  # may be said once for a row's whole list
_NUMBERS = ("index", "logp", "reward", "gold")
_RAW = ["prompt", "completion", *_NUMBERS, "n_tokens", *_NAMES, "category", "harmful"]
_RAW += ["origin", "row"]  # its place in the data; row is NaN where origin says all
_UNKNOWN_TOKEN = -9999.0  # what APIs write for a token that is not among the likeliest
_POSITIVE = 1e-6  # a log-probability may be above 0 by rounding
_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".csv", ".json")


def read_completions(
    table: str | Path | pd.DataFrame | Completions,
    columns: Mapping[str, Any] | None = None,
    logp_of: str | None = None,
    drop: bool = False,
) -> pd.DataFrame:
    """Completions as a table, sorted by (prompt_id, index); its columns are in the module's text.

    table:    a file (.parquet, .jsonl, .jsonl.gz, .json, .csv), a folder of such files, a table
              in memory, or what `completions` says
    columns:  what the columns are called, where not as `params.schema.CompletionColumns` has it
    logp_of:  whose log-probability logp is, where no column says it
    drop:     leave out rows that cannot be used, instead of stopping at the first

    Raises InputError: for a column that is missing, a text or a number that cannot be used, a
    log-probability above 0 or that is not the sum of its tokens', a list of another length than
    its completions', and two rows of one (prompt_id, index).
    """
    block = table if isinstance(table, Completions) else _block(table, columns, logp_of, drop)
    given = table if isinstance(table, pd.DataFrame) else None
    return counted_completions(block, given)[0]


def _block(table: Any, columns: Mapping[str, Any] | None, logp_of: str | None, drop: bool) -> Any:
    """The parameters that arguments of a call stand for."""
    file = None if isinstance(table, pd.DataFrame) else str(Path(table).absolute())
    return Completions(
        file=file,
        columns=named_columns(columns or {}),
        logp_of=logp_of,
        bad_rows="drop" if drop else "stop",
    )


def named_columns(columns: Mapping[str, Any]) -> CompletionColumns:
    """What the columns are called, from a mapping. Raises InputError for a key that is none."""
    known = list(CompletionColumns.model_fields)
    for key, name in columns.items():
        if key not in known:
            raise InputError(f"columns: found {key!r}, expected one of {', '.join(known)}")
        if not isinstance(name, (str, list, type(None))):
            raise InputError(f"columns.{key}: found {name!r}, expected the name of a column")
    return CompletionColumns(**columns)


def counted_completions(
    block: Completions, table: pd.DataFrame | None = None
) -> tuple[pd.DataFrame, Counter]:
    """`read_completions`, and how many rows were left out, by reason.

    table: read instead of the file.
    """
    left_out: Counter = Counter()
    sieve = _Sieve(block.bad_rows == "drop", left_out)
    raw = _raw(block, table, sieve)
    if not len(raw):
        reasons = [f"{rows} dropped: {reason}" for reason, rows in left_out.most_common(3)]
        told = f" that can be used ({', '.join(reasons)})" if reasons else ""
        raise InputError(f"{_name(block)} holds no completions{told}")
    return _normal(raw, block, sieve), left_out


def own_completions(params: Params) -> tuple[pd.DataFrame, Counter]:
    """The completions of a run, with a number in every column that it takes from them, and how
    many rows were left out, by reason. Read once; a file that changed is read again.

    Raises InputError as `counted_completions` and `needed` do.
    """
    block = params.completions
    wanted = [("reward", params.reward.proxy == "given"), ("gold", params.gold.kind == "given")]
    names = tuple(name for name, given in wanted if given)
    contents = [places.content_hash(place) for place in places_of(block)]
    return _read_once(block.model_dump_json(), names, tuple(contents))


def places_of(block: Completions) -> list[str]:
    """The files and folders that a block of completions names."""
    return [place for place in (block.file, block.source, block.requests) if place]


@lru_cache(maxsize=2)
def _read_once(
    block: str, names: tuple[str, ...], _contents: tuple[str | None, ...]
) -> tuple[pd.DataFrame, Counter]:
    settings = Completions.model_validate_json(block)
    table, left_out = counted_completions(settings)
    if settings.logp == "given" and "logp" in table:
        names = ("logp", *names)
    return needed(table, names, settings.bad_rows == "drop", left_out), left_out


def needed(
    completions: pd.DataFrame, names: Sequence[str], drop: bool, left_out: Counter, advice: str = ""
) -> pd.DataFrame:
    """The completions that have a number in every column of `names`.

    The others are dropped and counted, or the first raises InputError. advice: how a column comes
    that is missing altogether.
    """
    for name in names:
        if name not in completions:
            raise InputError(
                f"the completions have no {name}{columns_found(name, completions)}{advice}"
            )
        missing = completions[name].isna().to_numpy()
        if missing.any() and not drop:
            raise InputError(_missing(completions, name, missing))
        if missing.any():
            left_out[f"no {name}"] += int(missing.sum())
            completions = completions[~missing]
    if "logp" in names:
        _check_policy(completions)
    return completions.reset_index(drop=True)


def _missing(completions: pd.DataFrame, name: str, missing: np.ndarray) -> str:
    """The sentence about completions that lack a number which others have."""
    first = completions[missing].iloc[0]
    text = (
        f"{missing.sum()} of {len(completions)} completions have no {name}, the first is completion"
        f" {first['index']} of prompt {first['prompt'][:60]!r}"
    )
    others = completions[completions["prompt_id"] == first["prompt_id"]]
    writers = _writers(others)
    if name == "logp" and len(writers) > 1:
        text += (
            f", written by {first['model']} beside others of"
            f" {', '.join(w for w in writers if w != first['model'])}: logp must be that of one"
            " policy for all of a prompt"
        )
    return f"{text}; bad_rows drop (--drop) leaves them out and counts them"


def _writers(completions: pd.DataFrame) -> list[str]:
    return sorted(completions["model"].dropna().unique()) if "model" in completions else []


def _check_policy(completions: pd.DataFrame) -> None:
    """Raise InputError for a prompt whose log-probabilities are those of several policies, as far
    as the table says whose they are."""
    name = "logp_of" if "logp_of" in completions else "model"
    if name not in completions:
        return
    several = completions.groupby("prompt_id")[name].nunique() > 1
    if not several.any():
        return
    prompt = several.index[several.to_numpy()][0]
    rows = completions[completions["prompt_id"] == prompt]
    policies = ", ".join(sorted(rows[name].dropna().unique())[:5])
    if name == "logp_of":
        raise InputError(
            f"logp of prompt {rows['prompt'].iloc[0][:60]!r} is that of {policies}: expected one"
            " policy's for all completions of a prompt"
        )
    raise InputError(
        f"completions of prompt {rows['prompt'].iloc[0][:60]!r} were written by {policies}, and"
        " nothing says whose log-probability logp is: compute it with one policy for all, and name"
        " that policy in a column logp_of or as completions.logp_of (--logp-of)"
    )


def described(completions: pd.DataFrame, left_out: Mapping[str, int]) -> str:
    """What a table of completions holds, as text of one line or more."""
    sizes = completions.groupby("prompt_id").size()
    span = f"{sizes.min()}" if sizes.min() == sizes.max() else f"{sizes.min()} to {sizes.max()}"
    known = [name for name in ("logp", "reward", "gold") if name in completions]
    lines = [
        f"{len(completions)} completions of {len(sizes)} prompts, {span} each; columns known:"
        f" {', '.join(known) or 'the texts alone'}"
    ]
    policies = policy_names(completions)
    if policies and "logp" in completions:
        lines.append(f"logp is that of {', '.join(policies[:5])}")
    for name in known:
        missing = int(completions[name].isna().sum())
        if missing:
            lines.append(f"{missing} completions have no {name}")
    if (sizes == 1).any():
        lines.append(f"{int((sizes == 1).sum())} prompts have one completion, nothing to compare")
    lines += [f"{number} rows left out: {reason}" for reason, number in left_out.items()]
    return "\n".join(lines)


def report(params: Params) -> str:
    """What a run's completions hold and which of it the run takes, as text."""
    completions, left_out = own_completions(params)
    lines = [described(completions, left_out)]
    if params.completions.logp == "backbone" or "logp" not in completions:
        lines.append("logp will be computed by the run's model")
    for name, used, key in (
        ("reward", params.reward.proxy == "given", "reward.proxy"),
        ("gold", params.gold.kind == "given", "gold.kind"),
    ):
        if name in completions and not used:
            lines.append(f"column {name} is not used: {key} given would take it")
    return "\n".join(lines)


def policy_names(completions: pd.DataFrame) -> list[str]:
    """Whose log-probability logp is, as far as the table says."""
    for name in ("logp_of", "model"):
        if name in completions:
            return sorted(completions[name].dropna().unique())
    return []


# --- from rows to columns


class _Sieve:
    """Stops at a row that cannot be used, or leaves it out and counts it."""

    def __init__(self, drop: bool, counts: Counter):
        self.drop, self.counts = drop, counts

    def refuse(self, where: str, reason: _Unusable) -> None:
        """One row. Raises InputError where rows are not dropped."""
        if not self.drop:
            raise InputError(
                f"{where}: {reason}; bad_rows drop (--drop) leaves such rows out"
            ) from reason
        self.counts[reason.kind] += 1

    def without(
        self, table: pd.DataFrame, bad: np.ndarray, told: Callable[[Any], str], kind: str
    ) -> pd.DataFrame:
        """The rows that are not `bad`. told: what is wrong with a row, in words."""
        if not bad.any():
            return table
        first = table[bad].iloc[0]
        if not self.drop:
            more = f" ({int(bad.sum())} rows are like it)" if bad.sum() > 1 else ""
            raise InputError(
                f"{_where(first)}: {told(first)}{more}; bad_rows drop (--drop) leaves such rows out"
            )
        self.counts[kind] += int(bad.sum())
        return table[~bad]


def _name(block: Completions) -> str:
    return formats.name_of(block) if block.given else "the table"


def _raw(block: Completions, table: pd.DataFrame | None, sieve: _Sieve) -> pd.DataFrame:
    """One row a completion, columns _RAW: prompts encoded, numbers as they are or NaN."""
    read = [_of_part(part, given, sieve) for part, given in _parts(block, table)]
    parts = [part for part, _ in read]
    raw = pd.concat(parts, ignore_index=True) if len(parts) > 1 else parts[0]
    return _once(raw, sieve) if read[0][1] == "trl" else raw


def _parts(
    block: Completions, table: pd.DataFrame | None
) -> Iterator[tuple[Completions, pd.DataFrame | None]]:
    """The files of a folder, one by one; anything else is one part."""
    path = places.user_path(block.file) if block.file else None
    if table is not None or path is None or not path.is_dir() or _saved(path):
        yield block, table
        return
    for file in _files(path):
        yield block.model_copy(update={"file": str(file)}), None


def _saved(path: Path) -> bool:
    """Did `save_to_disk` write this folder?"""
    return (path / "state.json").exists() or (path / "dataset_dict.json").exists()


def _files(folder: Path) -> list[Path]:
    """The tables in a folder, by name: TRL's logs, the harness's samples, or all of one kind."""
    for pattern in ("completions_*.parquet", "samples_*.jsonl"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(_SUFFIXES))
    kinds = sorted({path.suffix.lower() for path in found})
    if len(kinds) != 1:
        raise InputError(
            f"{folder}: expected tables of one kind, {', '.join(_SUFFIXES)}; found"
            f" {', '.join(kinds) or 'none'}"
        )
    return found


def _of_part(
    block: Completions, table: pd.DataFrame | None, sieve: _Sieve
) -> tuple[pd.DataFrame, str]:
    """One file, or one table in memory, and its layout. A table of plain columns is taken as a
    whole, anything else row by row."""
    whole = _flat_file(block) if table is None else table
    if whole is not None:
        names = whole.columns.astype(str)
        if names.duplicated().any():
            raise InputError(
                f"{_name(block)} has two columns {names[names.duplicated()][0]!r}: expected each"
                " name once"
            )
        layout = layouts.recognised(block, dict.fromkeys(map(str, whole.columns)))
        if layout in ("table", "trl"):
            columns = _resolved(block, list(map(str, whole.columns)), layout, _name(block))
            if _is_flat(whole, columns):
                return _taken(whole, columns, layout, _name(block), sieve), layout
    rows = _rows_of(table) if table is not None else formats.read_rows(block)
    return _one_by_one(rows, block, sieve)


def _flat_file(block: Completions) -> pd.DataFrame | None:
    """A Parquet file without lists, with the columns that count; None for anything else."""
    path = places.user_path(block.file) if block.file else None
    if path is None or path.suffix.lower() != ".parquet" or not path.is_file():
        return None
    import pyarrow.parquet
    import pyarrow.types

    try:
        schema = pyarrow.parquet.read_schema(path)
        layout = layouts.recognised(block, dict.fromkeys(schema.names))
        if layout not in ("table", "trl"):
            return None
        columns = _resolved(block, schema.names, layout, str(path))
        wanted = [name for name in schema.names if name in _used(columns, layout)]
        if any(pyarrow.types.is_nested(schema.field(name).type) for name in wanted):
            return None
        return pd.read_parquet(path, columns=wanted)
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error


def _used(columns: CompletionColumns, layout: str) -> set[str]:
    """The columns of a file that are looked at."""
    names = {"step", "advantage"} if layout == "trl" else set()
    for entry in columns.model_dump().values():
        names |= set(entry) if isinstance(entry, list) else {entry}
    return names


def _resolved(
    block: Completions, there: Sequence[str], layout: str, where: str
) -> CompletionColumns:
    """The columns by the names that this file has for them. Raises InputError where one that must
    be there, or that the parameters name, is not."""
    columns, plain = block.columns, CompletionColumns()
    if layout == "trl":
        reward = layouts.reward_columns(list(there), block, where)
        columns = columns.model_copy(update={"reward": reward, "model": "model"})
        there = [*there, "model"]
    changes = {}
    for key in CompletionColumns.model_fields:
        entry = getattr(columns, key)
        if layout == "table" and entry == getattr(plain, key) and entry not in there:
            # a row per prompt may say so in the plural
            changes[key] = f"{entry}s" if f"{entry}s" in there else entry
        must = key in ("prompt", "completion") or entry != getattr(plain, key)
        for name in entry if isinstance(entry, list) else [changes.get(key, entry)]:
            if must and name is not None and name not in there:
                says = f": say completions.columns.{key} (--columns {key}=NAME)"
                raise InputError(f"{where} has no column {name!r}{columns_found(key, there)}{says}")
    return columns.model_copy(update=changes)


def _is_flat(table: pd.DataFrame, columns: CompletionColumns) -> bool:
    """Are all columns that count plain texts and numbers, of the kinds that they should be?"""
    named = columns.model_dump()
    for key in ("prompt", "completion"):
        if not isinstance(table[named[key]].dtype, pd.StringDtype):
            return False
    for key in ("index", "logp", "gold"):
        if named[key] in table and not _is_number(table[named[key]]):
            return False
    reward = named["reward"]
    for name in reward if isinstance(reward, list) else [reward]:
        if name in table and not _is_number(table[name]):
            return False
    harmful = named["harmful"]
    if harmful in table and table[harmful].dtype != bool:
        return False
    return named["token_logps"] not in table


def _is_number(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and column.dtype != bool


def _taken(
    table: pd.DataFrame, columns: CompletionColumns, layout: str, name: str, sieve: _Sieve
) -> pd.DataFrame:
    """A table of plain columns, a row per completion, as a whole."""
    table = table.reset_index(drop=True)
    if layout == "trl":
        table = table.assign(model="step " + table["step"].astype(str))
    named = columns.model_dump()
    raw = pd.DataFrame({"origin": name, "row": np.arange(1, len(table) + 1)})
    for key in ("completion", "index", "logp", "gold", *_NAMES, "category", "harmful"):
        raw[key] = table[named[key]] if named[key] in table else None
    raw["reward"], raw["n_tokens"] = _summed(table, named["reward"]), np.nan

    # what is said of a prompt's text is said once for all of its rows
    codes, texts = pd.factorize(table[named["prompt"]])
    encoded, faults = _encoded_prompts(texts, named["prompt"])
    # an empty cell has the code -1, and finds what is appended
    raw["prompt"] = np.array([*encoded, None], object)[codes]
    raw["fault"] = np.array([*faults, f"no {named['prompt']!r}"], object)[codes]
    bad = raw["fault"].notna().to_numpy()
    raw = sieve.without(raw, bad, lambda row: row["fault"], "prompt cannot be used")
    empty = raw["completion"].isna().to_numpy()
    missing = f"no {named['completion']!r}"
    return sieve.without(raw, empty, lambda row: missing, missing)[_RAW]


def _encoded_prompts(texts: Sequence[str], name: str) -> tuple[list[str | None], list[str | None]]:
    """Prompts as `dialogues.encode` has them, and what is wrong with each."""
    encoded: list[str | None] = []
    faults: list[str | None] = []
    for text in texts:
        try:
            encoded.append(_prompt(text, name))
            faults.append(None)
        except _Unusable as reason:
            encoded.append(None)
            faults.append(str(reason))
    return encoded, faults


def _prompt(value: Any, name: str) -> str:
    """A prompt in the one string that it is everywhere else; text that is such a string already,
    as this library's own tables hold it, stays."""
    if isinstance(value, str) and len(dialogues.messages(value)) > 1:
        return str(value)
    return _encoded(_turns(value, name), name)


def _summed(table: pd.DataFrame, names: str | list[str] | None) -> pd.Series | float:
    """One reward for each row: a column, or several added up; NaN where there is none."""
    listed = names if isinstance(names, list) else [names]
    there = [name for name in listed if name in table]
    if not there:
        return np.nan
    return table[there].astype(float).sum(axis=1, skipna=False)


def _once(raw: pd.DataFrame, sieve: _Sieve) -> pd.DataFrame:
    """TRL's logs without what was written again: where several steps learn from one batch, each of
    them logs the batch's completions."""
    said, before = raw[["prompt", "completion", "reward"]], None
    again = np.zeros(len(raw), bool)
    places_of_step = raw.groupby("model").indices
    for name in raw["model"].unique():  # in their order, which is not that of their names
        rows = places_of_step[name]
        step = said.iloc[rows].reset_index(drop=True)
        again[rows] = before is not None and step.equals(before)
        before = step
    if again.any():
        sieve.counts["logged again by a later step of the same batch"] += int(again.sum())
    return raw[~again]


def _rows_of(table: pd.DataFrame) -> Iterator[Row]:
    """The rows of a table in memory; arrays in its cells become lists."""
    names = list(map(str, table.columns))
    for number, values in enumerate(table.itertuples(index=False, name=None), 1):
        yield f"the table, row {number}", dict(zip(names, map(_plain, values), strict=True))


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [_plain(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def _one_by_one(rows: Iterator[Row], block: Completions, sieve: _Sieve) -> tuple[pd.DataFrame, str]:
    """Any data, row by row: columns _RAW, and the layout."""
    adapt: Any = None
    layout = "table"
    values: dict[str, list] = {name: [] for name in _RAW}
    title = f"reading {_name(block)}"
    for where, row in progress.over(rows, title, "row"):
        if adapt is None:
            layout = layouts.recognised(block, row)
            adapt = layouts.adapter(layout, block)
            reader = _Reader(block, layout, row, where)
        cells = adapt(row, where)
        if cells is None:
            continue
        try:
            found = reader.completions(cells, where, sieve)
        except _Unusable as reason:
            sieve.refuse(where, reason)
            continue
        for completion in found:
            for name, value in zip(_RAW, completion, strict=True):
                values[name].append(value)
    return pd.DataFrame(values, columns=_RAW), layout


class _Reader:
    """Reads completions out of rows of one layout."""

    def __init__(self, block: Completions, layout: str, row: dict, where: str):
        # an adapter writes this library's names into the row, so that they are there
        there = list(row) if layout in ("table", "trl") else ["prompt", "completion", *row]
        self.columns = _resolved(block, there, layout, where.rpartition(", ")[0])
        if layout not in ("table", "trl"):
            own = {name: name for name in ("prompt", "completion", *_EACH) if name != "reward"}
            kept = {key: getattr(block.columns, key) for key in ("gold",)}
            self.columns = self.columns.model_copy(update=own | kept)
        self.prompts: dict[str, str] = {}

    def completions(self, row: dict, where: str, sieve: _Sieve) -> list[tuple]:
        """The completions of a row, each as _RAW has it. Raises _Unusable for a row that says
        nothing; a completion of several that cannot be used goes through the sieve alone."""
        columns = self.columns
        value = self._value(row, columns.completion, where)
        category, harmful = self._facts(row)
        prompt = self._prompt(self._value(row, columns.prompt, where), columns.prompt)
        several = isinstance(value, list) and not _is_dialogue(value)
        texts = value if several else [value]
        if not texts:
            raise _Unusable(f"{columns.completion!r} is an empty list, expected completions")
        each = [self._of(row, name, len(texts) if several else None) for name in _EACH]
        found = []
        for text, *others in zip(texts, *each, strict=True):
            try:
                index, logp, tokens, reward, gold, model, logp_of = others
                answer = _completion(text, columns.completion)
                logp, count = self._logp(logp, tokens)
                number, rating = self._optional(index, "index"), self._optional(gold, "gold")
                numbers = (number, logp, self._reward(reward), rating)
                facts = (count, *map(_word, (model, logp_of)), category, harmful, where, math.nan)
                found.append((prompt, answer, *numbers, *facts))
            except _Unusable as reason:
                if not several:
                    raise
                sieve.refuse(where, reason)
        return found

    def _value(self, row: dict, name: str, where: str) -> Any:
        """A cell that must be there: a column that is missing stops, an empty cell is unusable."""
        value = row.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            if name not in row:
                raise InputError(f"{where}: no {name!r}{columns_found(name, row)}")
            raise _Unusable(f"no {name!r}")
        return value

    def _prompt(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            return _prompt(value, name)
        if value not in self.prompts:
            self.prompts[value] = _prompt(value, name)
        return self.prompts[value]

    def _of(self, row: dict, key: str, size: int | None) -> list:
        """What a row says of each of its completions; size: how many, None: it is one itself."""
        name = getattr(self.columns, key)
        if key == "reward":
            value: Any = _together([row.get(part) for part in _named(name)], size)
        else:
            value = None if name is None else row.get(name)
        if size is None:
            return [value]
        if key in _NAMES and not isinstance(value, list):
            return [value] * size
        if value is None:
            return [None] * size
        if not isinstance(value, list) or len(value) != size:
            count = f"{len(value)} entries" if isinstance(value, list) else "no list"
            raise _Unusable(
                f"{name!r} has {count}, {self.columns.completion!r} {size}: expected one for each"
                " completion",
                f"{name!r} is not as long as {self.columns.completion!r}",
            )
        return value

    def _optional(self, value: Any, key: str) -> float:
        """A number, or NaN where there is none. Raises _Unusable for anything else."""
        name = getattr(self.columns, key)
        if _absent(value):
            return math.nan
        if isinstance(value, list):
            advice = "; is it columns.token_logps?" if key == "logp" else ""
            raise _Unusable(f"{name!r} is a list, expected a number{advice}")
        return _number(value, name)

    def _reward(self, value: Any) -> float:
        parts = value if isinstance(value, tuple) else (value,)
        return sum(self._optional(part, "reward") for part in parts)

    def _logp(self, logp: Any, tokens: Any) -> tuple[float, float]:
        """Log-probability and number of tokens, of what a row says of both."""
        total = self._optional(logp, "logp")
        if _absent(tokens):
            return total, math.nan
        values = _token_logps(tokens, self.columns.token_logps or "token_logps")
        summed = math.fsum(values)
        if math.isnan(total):
            return summed, len(values)
        if abs(total - summed) > 0.01 + 1e-3 * abs(summed):
            mean = summed / max(1, len(values))
            also = ", and logp is their mean" if abs(total - mean) < 0.01 else ""
            raise _Unusable(
                f"{self.columns.logp!r} is {total:.6g}, but its {len(values)} token"
                f" log-probabilities sum to {summed:.6g}{also}: expected their sum",
                "logp is not the sum of its tokens'",
            )
        return total, len(values)

    def _facts(self, row: dict) -> tuple[str, bool]:
        """Category and harmful of the prompt."""
        category, harmful = (
            row.get(name) for name in (self.columns.category, self.columns.harmful)
        )
        if isinstance(harmful, Cell):
            harmful = {"true": True, "1": True, "false": False, "0": False}.get(
                harmful.lower(), harmful
            )
        harmful = False if _absent(harmful) else harmful
        if not isinstance(harmful, (int, float)) or harmful not in (0, 1):
            raise _Unusable(
                f"{self.columns.harmful!r} is {_shown(harmful)}, expected true or false",
                f"{self.columns.harmful!r} is neither true nor false",
            )
        return _word(category) or "all", bool(harmful)


def _named(names: str | list[str] | None) -> list[str]:
    if names is None:
        return []
    return names if isinstance(names, list) else [names]


def _together(columns: list, size: int | None) -> Any:
    """Rewards of several columns as one cell: a tuple of parts, or for a row per prompt a list of
    such tuples; one column stays as it is."""
    if len(columns) < 2:
        return columns[0] if columns else None
    if size is None:
        return tuple(columns)
    if not all(isinstance(column, list) and len(column) == size for column in columns):
        raise _Unusable(f"the columns of reward are not all lists of {size}, as completions are")
    return list(zip(*columns, strict=True))


def _is_dialogue(value: list) -> bool:
    return bool(value) and all(isinstance(part, dict) and "role" in part for part in value)


def _completion(value: Any, name: str) -> str:
    """The text of a completion: text, or one message of the assistant. It may be empty: a policy
    may have ended at once."""
    if isinstance(value, str) and not value.strip():
        return str(value)
    if isinstance(value, str):
        return _text(value, name)
    if value is None:
        raise _Unusable(f"{name!r} holds no text")
    if isinstance(value, list) and len(value) > 1 and _is_dialogue(value):
        raise _Unusable(
            f"{name!r} is a dialogue of {len(value)} turns, expected one message of the assistant",
            f"{name!r} is a dialogue of several turns",
        )
    (turn,) = _turns(value, name)
    if turn["role"] not in ("", "assistant"):
        raise _Unusable(f"{name!r} is a message of {turn['role']}, expected the assistant's")
    return turn["content"]


def _token_logps(value: Any, name: str) -> list[float]:
    """Log-probabilities of the tokens of one completion; a csv has them as JSON."""
    if isinstance(value, Cell):
        try:
            value = json.loads(value)
        except ValueError:
            pass
    if not isinstance(value, list):
        raise _Unusable(f"{name!r} is {_shown(value)}, expected a list of numbers")
    found = [_number(part, name) for part in value]
    if any(part == _UNKNOWN_TOKEN for part in found):
        raise _Unusable(
            f"{name!r} holds {_UNKNOWN_TOKEN:.0f}, which stands for a token whose log-probability"
            " is not known",
            f"{name!r} holds tokens that are not known",
        )
    return found


def _word(value: Any) -> str | None:
    return None if _absent(value) else str(value)


# --- from columns to the table


def _normal(raw: pd.DataFrame, block: Completions, sieve: _Sieve) -> pd.DataFrame:
    """The table of the module's text, from columns _RAW."""
    numbers = {name: raw[name].astype(float) for name in (*_NUMBERS, "n_tokens")}
    raw = raw.assign(**numbers)
    for name in ("logp", "reward", "gold"):
        raw = _finite(raw, name, sieve)
    raw = sieve.without(
        raw,
        (raw["logp"] > _POSITIVE).to_numpy(),
        lambda row: f"logp is {row['logp']:.6g}, expected a log-probability, 0 or less",
        "logp above 0",
    )
    raw = _numbered(raw, block, sieve)
    if not len(raw):
        raise InputError(f"{_name(block)} holds no completions that can be used")
    return _in_order(raw, block)


def _finite(raw: pd.DataFrame, name: str, sieve: _Sieve) -> pd.DataFrame:
    bad = np.isinf(raw[name].to_numpy())
    return sieve.without(
        raw, bad, lambda row: f"{name} is {row[name]}, expected a finite number", f"{name} infinite"
    )


def _numbered(raw: pd.DataFrame, block: Completions, sieve: _Sieve) -> pd.DataFrame:
    """Every completion with its index: the data's own, or its place among its prompt's."""
    codes, prompts = pd.factorize(raw["prompt"])
    ids = np.array([prompt_id(text) for text in prompts], object)
    raw = raw.assign(prompt_id=ids[codes], code=codes)
    index = raw["index"]
    if index.isna().all():
        return raw.assign(index=raw.groupby("code").cumcount())
    name = block.columns.index
    bad = ((index.isna()) | (index < 0) | (index % 1 != 0)).to_numpy()
    raw = sieve.without(
        raw,
        bad,
        lambda row: f"{name!r} is {row['index']}, expected a whole number",
        f"{name!r} is no whole number",
    )
    raw = raw.assign(index=raw["index"].astype("int64"))
    again = raw.duplicated(["code", "index"], keep=False)
    if again.any():
        raise InputError(_twice(raw[again], name))
    return raw


def _twice(rows: pd.DataFrame, name: str | None) -> str:
    """The sentence about two rows that have one name."""
    first = rows.iloc[0]
    same = rows[(rows["code"] == first["code"]) & (rows["index"] == first["index"])]
    other = same.iloc[1]
    return (
        f"{_where(other)}: prompt {first['prompt'][:60]!r} has completion {first['index']} at"
        f" {_where(first)} already: expected each once; without the column they are numbered in"
        f" their order (completions.columns.index: null, --columns index=)"
    )


def _where(row: Any) -> str:
    """A row's place in the data, for messages."""
    return row["origin"] if math.isnan(row["row"]) else f"{row['origin']}, row {row['row']:.0f}"


def _in_order(raw: pd.DataFrame, block: Completions) -> pd.DataFrame:
    """Sorted by id, with the columns that are known."""
    facts = raw.drop_duplicates("code").set_index("code")
    # by the prompts' few ids, not by every row's text
    place = facts["prompt_id"].sort_values().index
    rank = pd.Series(np.arange(len(place)), index=place).reindex(raw["code"]).to_numpy()
    raw = raw.iloc[np.lexsort((raw["index"].to_numpy(), rank))]
    category = facts["category"].fillna("all").astype(str)
    table = pd.DataFrame(
        {
            "prompt_id": raw["prompt_id"].astype("str"),
            "index": raw["index"].astype("int64"),
            "prompt": raw["prompt"].astype("str"),
            "completion": raw["completion"].astype("str"),
            "category": raw["code"].map(category).astype("str"),
            "harmful": raw["code"].map(facts["harmful"].astype(bool)),
        }
    )
    known = {name: raw[name] for name in ("logp", "n_tokens", "reward", "gold", *_NAMES)}
    if block.logp_of is not None and known["logp"].notna().any():
        known["logp_of"] = known["logp_of"].fillna(block.logp_of)
    if known["n_tokens"].notna().all():
        table["logp_mean"] = known["logp"] / known["n_tokens"].clip(lower=1)
        known["n_tokens"] = known["n_tokens"].astype("int64")
    else:
        known.pop("n_tokens")
    for name, values in known.items():
        if values.notna().any():
            table[name] = values.astype("str") if name in _NAMES else values
    there = [name for name in (*FIRST, *KNOWN) if name in table]
    return table[there].reset_index(drop=True)
