"""Commands about what a run wrote: what made a file, and a copy of it elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import printable
from shfcas_lib.cli.kinds import Commands


def add(commands: Commands) -> None:
    """`trace`, `release`."""
    _add_trace(commands)
    _add_release(commands)


def _add_trace(commands: Commands) -> None:
    command = commands.add_parser(
        "trace",
        help="what made a file, and the command that makes it again",
        description="what made a file",
    )
    kinds = "a figure, table or metrics.json of a run or a sweep"
    command.add_argument("file", type=Path, help=f"{kinds}, or one that was released from there")
    command.add_argument(
        "--params",
        type=Path,
        metavar="FILE",
        help="write the parameter file (or sweep file) that makes it again",
    )
    command.set_defaults(act=_trace)


def _add_release(commands: Commands) -> None:
    command = commands.add_parser(
        "release",
        help="copy a figure or table out of a run folder, with its trace",
        description="copy a figure out of a run folder",
    )
    command.add_argument(
        "file",
        type=Path,
        help="a figure (its png, svg and csv are copied) or another file of a run",
    )
    command.add_argument("target", type=Path)
    command.set_defaults(act=_release)


def _trace(options: argparse.Namespace) -> int:
    from shfcas_lib.storage import files, provenance

    origin = provenance.trace(options.file)
    print(printable(provenance.trace_text(origin)))
    if options.params:
        if origin.definition is None:
            raise InputError(f"{options.file}: the parameters that made it were not recorded")
        with files.atomic(options.params) as target:
            target.write_text(provenance.definition_text(origin))
    return 0


def _release(options: argparse.Namespace) -> int:
    from shfcas_lib.storage import provenance

    for path in provenance.release(options.file, options.target):
        print(path)
    return 0
