"""Commands about many runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from shfcas_lib.cli.kinds import Commands

_NEEDS = ("models", "notebooks", "sweep")


def add(commands: Commands) -> None:
    """`sweep`, and `job`, which Snakemake calls."""
    _add_sweep(commands)
    _add_job(commands)


def _add_sweep(commands: Commands) -> None:
    command = commands.add_parser(
        "sweep",
        help="cross lists of parameters, run what is not done, write the report",
        description="Run a sweep; type it again to resume.",
    )
    command.add_argument("sweep", type=Path, help="a YAML file, see params/sweeps/")
    command.add_argument("--dry-run", action="store_true", help="say what would run and why")
    command.add_argument("--cores", type=int, help="cores to use here (default: all)")
    command.add_argument(
        "--gpus",
        type=int,
        help="GPUs that one job asks for, 0 or 1 (default: 1 where this machine has one)",
    )
    command.add_argument("--profile", type=Path, help="a Snakemake profile, such as profiles/slurm")
    command.add_argument(
        "--release",
        type=Path,
        metavar="FOLDER",
        help="copy tables (CSV) and figures of the report there",
    )
    command.set_defaults(act=_sweep, needs=_NEEDS)


def _add_job(commands: Commands) -> None:
    command = commands.add_parser("job", help="run one job of a sweep (what Snakemake calls)")
    command.add_argument("folder", type=Path)
    command.set_defaults(act=_job, needs=_NEEDS)


def _sweep(options: argparse.Namespace) -> int:
    from shfcas_lib.sweeps import driver, report
    from shfcas_lib.sweeps import plan as sweep_plan

    plan = sweep_plan.compile_plan(options.sweep)
    status = driver.drive(plan, options.cores, options.gpus, options.profile, options.dry_run)
    if not options.dry_run:
        print("report", report.write_report(plan))
    if options.release:
        print("released", report.release_tables(plan, options.release))
    return status


def _job(options: argparse.Namespace) -> int:
    from shfcas_lib.sweeps import jobs

    return 0 if jobs.execute_job(options.folder.resolve()) else 1
