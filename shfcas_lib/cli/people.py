"""Commands for those who answer: the screen, comparisons out to a file, answers in."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from shfcas_lib.base.errors import InputError
from shfcas_lib.cli.kinds import Act, Commands
from shfcas_lib.cli.runs import execute


def add(commands: Commands) -> None:
    """`annotate`, `export`, `import`."""
    _add_annotate(commands)
    kinds = ".csv for a spreadsheet, .json for Label Studio"
    text = "write the comparisons that wait for an answer"
    _exchange(commands, "export", _export, text, kinds)
    _add_import(commands)


def _add_annotate(commands: Commands) -> None:
    text = "label in JupyterLab"
    command = commands.add_parser("annotate", help=text, description=text)
    command.add_argument(
        "params", type=Path, help="a YAML file with feedback.kind person, see params/annotate.yaml"
    )
    command.add_argument(
        "--prepare",
        action="store_true",
        help="only make everything ready and print the notebook's path",
    )
    command.set_defaults(act=_annotate, needs=("models", "screen", "notebooks"))


def _exchange(
    commands: Commands, name: str, act: Act, text: str, kinds: str
) -> argparse.ArgumentParser:
    """A command that moves comparisons between a run and a file."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("params", type=Path, help="the run's YAML file")
    command.add_argument("file", type=Path, help=kinds)
    command.set_defaults(act=act)
    return command


def _add_import(commands: Commands) -> None:
    text = "bring answers into the run, all or none"
    kinds = (
        "a filled-in csv or tsv, the JSON or CSV export of Label Studio, or the folder of another"
        " run whose answers count here too"
    )
    command = _exchange(commands, "import", _import, text, kinds)
    command.add_argument(
        "--annotator", default="spreadsheet", help="who answered, where a row of a csv does not say"
    )


def _annotate(options: argparse.Namespace) -> int:
    """Notebook 03 with this run's parameters, opened in JupyterLab.

    Notebooks 01 and 02 run first where they are not done yet.
    """
    from shfcas_lib.experiment import checks, notebooks
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.load(options.params))
    kind = run.params.feedback.kind
    if kind != "person":
        raise InputError(f"{options.params}: feedback.kind: found {kind!r}, expected 'person'")
    checks.check(run.params)
    run.belongs("03_feedback")

    # the screen shows pairs of the pool, which the first two notebooks make
    first, second, third, _ = notebooks.RUN
    for name, stage in zip((first, second), list(runs.STAGES)[:2], strict=True):
        ready = run.finished(stage) or run.take_over(stage)
        if not ready and not execute(name, run):
            return 1

    target = run.folder / "notebooks" / f"{third}.ipynb"
    notebook = notebooks.prepare_notebook(third, reading.changed(run.params), target)
    print(_steps(notebook, options.params), file=sys.stderr)
    if options.prepare:
        print(notebook)
        return 0
    open_lab(notebook, run.folder)


def _steps(notebook: Path, params: Path) -> str:
    """What a person does from here on."""
    return (
        f"\n1. JupyterLab opens {notebook}\n"
        "2. choose Run > Run All Cells, and answer on the screen that appears (? lists the keys)\n"
        "3. when it says that the reward is refined, run the cells below it\n"
        f"4. python -m shfcas_lib run {params} then evaluates it\n"
        "Stop whenever you like: the same command brings you back to the same place.\n"
    )


def open_lab(notebook: Path, folder: Path) -> NoReturn:
    """Become JupyterLab, rooted in the project where the notebook lies inside it."""
    from shfcas_lib.base import places

    root = places.home() if notebook.is_relative_to(places.home()) else folder
    os.execv(sys.executable, _lab(notebook, root))


def _lab(notebook: Path, root: Path) -> list[str]:
    """The command line of JupyterLab.

    It listens on loopback whatever the user's configuration says, with the token that it makes up
    itself.
    """
    return [
        sys.executable,
        "-m",
        "jupyterlab",
        "--ServerApp.ip=127.0.0.1",
        f"--ServerApp.root_dir={root}",
        str(notebook),
    ]


def _export(options: argparse.Namespace) -> int:
    from shfcas_lib.annotators import exchange
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    params = reading.load(options.params)
    questions = exchange.pending(runs.open_run(params))
    for path in exchange.write_questions(questions, options.file, params.feedback.graded):
        contents = f"{len(questions)} comparisons"
        if path.suffix == ".xml":
            contents = "labelling configuration"
        print(f"{path}: {contents}")
    return 0


def _import(options: argparse.Namespace) -> int:
    from shfcas_lib.annotators import exchange
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.load(options.params))
    counts = exchange.bring_in(run, options.file, options.annotator)
    next_step = "" if counts["waiting"] else ": run the same parameters again to go on"
    print(
        f"{options.file}: {counts['added']} answers added, {counts['known']} known before,"
        f" {counts['closed']} too late for a finished round; {counts['waiting']} comparisons wait"
        f"{next_step}"
    )
    for name, words in _ALSO.items():
        if counts.get(name):
            print(f"  {counts[name]} {words}")
    return 0


_ALSO = {
    "empty": "annotations were submitted without an answer, and are left out",
    "changed": (
        "rows hold texts that a spreadsheet made numbers or dates of; their questions' ids tell"
        " which they are"
    ),
    "elsewhere": "answers are about questions that this run does not ask, or not yet",
}
