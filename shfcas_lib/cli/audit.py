"""The command that looks for labels that deserve a second opinion."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import printable
from shfcas_lib.cli.kinds import Commands

_COLUMNS = "KEY=NAME"


def add(commands: Commands) -> None:
    """`audit`."""
    text = "rank labelled pairs by how much a cross-fitted proxy contradicts them"
    command = commands.add_parser(
        "audit",
        help=text,
        description=f"{text}; and how often it is right, by category. See docs/audit.md.",
    )
    command.add_argument(
        "preferences", help="a data file, or a YAML file with a preferences block (see params/)"
    )
    command.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="where the rows go, .csv or .parquet"
    )
    command.add_argument(
        "--by", default="proxy", help="what contradicts a label: proxy, policy or both"
    )
    command.add_argument("--recipe", help="how a published data set is read: docs/data.md")
    command.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar=_COLUMNS,
        help="what columns are called: prompt=question chosen=better (null: no such column)",
    )
    command.add_argument("--n", type=int, help="how many pairs to take (default: all)")
    command.add_argument("--model", help="hub id or folder of the model (default: the embedded)")
    command.add_argument("--seed", type=int, help="of the folds and of --n (default: 0)")
    command.add_argument("--run", help="name of the run folder (default: after the file)")
    command.set_defaults(act=_audit)


def _audit(options: argparse.Namespace) -> int:
    from shfcas_lib.analysis import audit
    from shfcas_lib.experiment import auditing
    from shfcas_lib.storage import runs

    # what can be wrong is met before the model reads anything
    if options.by not in audit.BY:
        raise InputError(f"--by: found {options.by!r}, expected one of {', '.join(audit.BY)}")
    if options.output:
        auditing.check_name(options.output)
    run = runs.open_run(auditing.settings(_values(options), options.preferences))
    stage = run.stage(auditing.STAGE)

    judged = auditing.pairs(run)
    accuracy = auditing.accuracy(run, judged)
    rows = auditing.rows(run, judged, options.by)
    auditing.finish(run, accuracy)
    target = options.output or stage.folder / "rows.csv"
    auditing.write(rows, target)
    print(printable(auditing.text(accuracy)))
    print(f"{target}: {len(rows)} rows, those most worth a second opinion first")
    print(f"by category, and what was left out: {stage.folder}", file=sys.stderr)
    return 0


def _values(options: argparse.Namespace) -> dict[str, Any]:
    """The parameters that file and options give."""
    from shfcas_lib.experiment import auditing
    from shfcas_lib.params import reading

    values: dict[str, Any] = {}
    preferences: dict[str, Any] = {"file": options.preferences}
    if Path(options.preferences).suffix.lower() in (".yaml", ".yml"):
        values = reading.read_yaml(options.preferences)
        preferences = values.get("preferences") or {}
        if not isinstance(preferences, dict) or not preferences:
            raise InputError(f"{options.preferences}: there is no preferences block to audit")
    given = {"recipe": options.recipe, "n": options.n}
    preferences = preferences | {key: value for key, value in given.items() if value is not None}
    if options.columns:
        columns = preferences.get("columns") or {}
        preferences["columns"] = columns | dict(map(_column, options.columns))
    values["preferences"] = preferences

    if options.model is not None:
        values["model"] = (values.get("model") or {}) | {"source": options.model}
    if options.seed is not None:
        values["seed"] = options.seed
    # a run of the user's keeps its folder: the audit has one of its own
    name = values.get("run") or options.preferences
    return values | {"run": options.run or auditing.name_for(str(name))}


def _column(word: str) -> tuple[str, str | None]:
    """A key of `columns` and the column that it names."""
    key, mark, name = word.partition("=")
    if not mark or not key or not name:
        raise InputError(f"--columns: found {word!r}, expected {_COLUMNS}")
    return key, None if name == "null" else name
