"""Commands that take something out of a run: a reward, a policy, its labels and completions."""

from __future__ import annotations

import argparse
from pathlib import Path

from shfcas_lib.cli.kinds import Commands

_RUN = "the run's parameter file, its folder, or its name in runs/"


def add(commands: Commands) -> None:
    """`export-model`."""
    _add_export_model(commands)


def _add_export_model(commands: Commands) -> None:
    text = "a reward or a policy as a folder that transformers and PEFT load"
    command = commands.add_parser("export-model", help=text, description=text)
    command.add_argument("run", help=_RUN)
    command.add_argument("what", choices=("reward", "policy"))
    command.add_argument("folder", type=Path, help="a new folder")
    command.add_argument(
        "--strategy",
        metavar="NAME",
        help="whose refined reward or policy; proxy: the one before labels (default: the first"
        " strategy that is not random)",
    )
    command.add_argument(
        "--merged", action="store_true", help="whole weights instead of an adapter and its base"
    )
    command.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="of whole weights (default: what the run computes in)",
    )
    command.set_defaults(act=_export_model)


def _export_model(options: argparse.Namespace) -> int:
    from shfcas_lib.out import models
    from shfcas_lib.storage import runs

    write = models.export_reward if options.what == "reward" else models.export_policy
    run = runs.find_run(options.run)
    lines = write(run, options.strategy, options.folder, options.merged, options.dtype)
    print(*lines, sep="\n")
    return 0
