"""Commands about one run: run it, check it, plan its memory, print its numbers."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import one_line, printable
from shfcas_lib.cli.kinds import Commands, on_params

if TYPE_CHECKING:
    from shfcas_lib.storage.runs import Run


_NOTEBOOKS = ("models", "notebooks")


def add(commands: Commands) -> None:
    """`run`, `check`, `numbers`, `stage`, `plan`."""
    on_params(commands, "run", _run, "run the four notebooks with a parameter file", _NOTEBOOKS)
    on_params(commands, "check", _check, "validate a parameter file and its data")
    on_params(commands, "numbers", _numbers, "print the numbers of a finished run")
    _add_stage(commands)
    _add_plan(commands)


def _add_stage(commands: Commands) -> None:
    text = "compute heavy stages alone; the notebooks find them done"
    launch = "With several GPUs: accelerate launch --multi_gpu -m shfcas_lib stage ..."
    command = commands.add_parser("stage", help=text, description=f"{text}. {launch}")
    command.add_argument(
        "names",
        nargs="+",
        metavar="NAME",
        choices=("pools", "proxy", "rounds", "policies"),
        help="pools, proxy, rounds or policies, in this order",
    )
    command.add_argument("params", type=Path, help="a YAML file, see params/")
    command.set_defaults(act=_stage, needs=("models",))


def _add_plan(commands: Commands) -> None:
    command = commands.add_parser(
        "plan",
        help="estimate memory before anything is downloaded",
        description="Does a run fit on a GPU? Status 1 where it does not.",
    )
    command.add_argument("params", type=Path, help="a YAML file, see params/")
    command.add_argument(
        "--gpu-memory",
        help="GB, or a card: T4, L4, A10, A100-40 and so on (default: this machine's GPU)",
    )
    command.add_argument(
        "--config", type=Path, help="the model's config.json, where no hub is within reach"
    )
    guess = "guessed from the prompts; 512 for those on a hub"
    command.add_argument(
        "--prompt-tokens", type=int, help=f"tokens of the longest prompt (default: {guess})"
    )
    command.add_argument(
        "--completion-tokens",
        type=int,
        help="tokens of the longest completion (default: sampling.max_new_tokens)",
    )
    command.set_defaults(act=_plan, needs=("models",))


def _run(options: argparse.Namespace) -> int:
    from shfcas_lib.experiment import checks, notebooks
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.load(options.params))
    for name in notebooks.RUN:
        notebooks.located(name)  # refuses a folder that is no study before anything is read
    prompt_check = None if run.finished("01_proxy") else checks.PromptCheck(run.params)
    checks.check(run.params, prompt_check)
    for stage in runs.STAGES:
        run.belongs(stage)  # refuses a folder of other parameters before any work starts
    start = time.monotonic()
    for name in notebooks.RUN:
        if not execute(name, run):
            return 1
    minutes = (time.monotonic() - start) / 60
    print(f"\nfour notebooks in {minutes:.1f} minutes", file=sys.stderr)
    return _numbers(options)


def execute(name: str, run: Run) -> bool:
    """Run one notebook of a run; False where a cell failed.

    Its progress bars appear on this terminal.
    """
    from shfcas_lib.experiment import notebooks
    from shfcas_lib.params import reading

    print(f"\n{name}", file=sys.stderr)
    executed = run.folder / "notebooks" / f"{name}.ipynb"
    error = notebooks.run_notebook(name, reading.changed(run.params), executed, sys.stderr)
    if error:
        print(f"\nshfcas: {one_line(error)}", file=sys.stderr)
        print(f"        what the cells wrote is in {executed}", file=sys.stderr)
    return not error


def _stage(options: argparse.Namespace) -> int:
    from shfcas_lib.experiment import stages
    from shfcas_lib.params import reading

    stages.run_stages(options.names, reading.load(options.params))
    return 0


def _check(options: argparse.Namespace) -> int:
    from shfcas_lib import gold
    from shfcas_lib.data import completions
    from shfcas_lib.data import prompts as prompt_data
    from shfcas_lib.data.notes import notes
    from shfcas_lib.experiment import checks
    from shfcas_lib.params import reading

    settings = reading.load(options.params)
    prompts = checks.check(settings)
    sizes = prompts["split"].value_counts()
    splits = ", ".join(f"{size} {split}" for split, size in sizes.items())
    print(f"{options.params}: fine; {len(prompts)} prompts: {splits}")
    if settings.completions.given:
        print(printable(completions.report(settings)))
    if gold.kind_of(settings) == "safety" or prompts["harmful"].any():
        print(gold.harmful_text(prompts))
    for line in checks.check_models(settings):
        print(printable(line))
    for note in notes(settings, prompts):
        print(printable(note))
    print(f"{checks.askable_pairs(settings, prompts)} pairs of completions can be asked about")
    dropped = prompt_data.dropped(settings)
    if len(dropped):
        print(printable(prompt_data.dropped_text(dropped)))
    return 0


def _plan(options: argparse.Namespace) -> int:
    from shfcas_lib.memory.plan import make_plan
    from shfcas_lib.params import reading

    plan = make_plan(
        reading.load(options.params),
        options.gpu_memory,
        options.config,
        options.prompt_tokens,
        options.completion_tokens,
    )
    print(plan.text())
    return 0 if plan.fits else 1


def _numbers(options: argparse.Namespace) -> int:
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.load(options.params))
    run.belongs("04_evaluation")
    folder = run.folder
    path = folder / "04_evaluation" / "metrics.json"
    if not path.exists():
        raise InputError(f"{path} does not exist: run the four notebooks first")
    print(f"\nexecuted notebooks  {folder / 'notebooks'}")
    print(f"figures             {folder}/0*/figures")
    print(f"metrics             {path}\n")
    for name, text in json.loads(path.read_text())["numbers"].items():
        print(printable(f"{name:<64} {text}"))
    return 0
