"""The command that starts a folder of the user's own."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from shfcas_lib.base.texts import printable
from shfcas_lib.cli.kinds import Commands


def add(commands: Commands) -> None:
    """`init`."""
    text = "put notebooks, parameter files and profiles into a new folder"
    command = commands.add_parser("init", help=text, description=text)
    command.add_argument("folder", type=Path, help="a new folder, or an empty one")
    command.set_defaults(act=_init)


def _init(options: argparse.Namespace) -> int:
    from shfcas_lib.experiment import study

    folder = study.make(options.folder)
    near = os.path.relpath(folder)
    print(printable(f"{folder}: notebooks/, params/ and profiles/; runs will lie in runs/ there"))
    print(printable(f"    cd {near}"))
    print("    shfcas run params/quickstart.yaml")
    return 0
