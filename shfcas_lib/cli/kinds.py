"""What the modules of commands share."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Act = Callable[[argparse.Namespace], int]  # options to exit status
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def on_params(
    commands: Commands, name: str, act: Act, text: str, needs: tuple[str, ...] = ()
) -> None:
    """A command that takes a parameter file and nothing else.

    needs: the extras of packages without which it does not start, as every command may set them.
    """
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("params", type=Path, help="a YAML file, see params/")
    command.set_defaults(act=act, needs=needs)
