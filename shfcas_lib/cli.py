"""The command line: `shfcas` or `python -m shfcas_lib`.

shfcas run params/quickstart.yaml      the four notebooks, headless, one after another
shfcas stage pools params/mine.yaml    one heavy stage alone, also under `accelerate launch`
                                       on several GPUs
shfcas annotate params/annotate.yaml   label in JupyterLab: notebook 03 with its screen
shfcas check params/mine.yaml          everything about a run that needs no model
shfcas plan params/mine.yaml           memory of every stage against a GPU's, before anything
                                       is downloaded
shfcas keys                            every parameter with its default and meaning
shfcas assets                          fetch the embedded model and prompts
shfcas numbers params/quickstart.yaml  the numbers of a finished run once more
shfcas sweep params/sweeps/smoke.yaml  many runs on Snakemake, then notebook 05 and its HTML
                                       report
shfcas export params/mine.yaml q.csv   the comparisons that wait for people: .csv, or .json
                                       for Label Studio
shfcas import params/mine.yaml q.csv   their answers, into the run
shfcas trace figures/pacs_plane.png    what made a figure, a table or a metrics.json, and the
                                       command that makes it again
shfcas release FIGURE figures/mine.png copy a figure out of a run folder; its trace goes with
                                       it
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import one_line, printable

if TYPE_CHECKING:
    from shfcas_lib.storage.runs import Run

    Act = Callable[[argparse.Namespace], int]  # options to exit status
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Bad input ends in one sentence on stderr and status 2.
    """
    options = _parser().parse_args(arguments)
    try:
        status = options.act(options)
        sys.stdout.flush()
        return status
    except InputError as error:
        print(f"shfcas: {one_line(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# --- what each command takes
def _parser() -> argparse.ArgumentParser:
    """The command line with all its commands, in the order in which --help lists them."""
    parser = argparse.ArgumentParser(
        prog="shfcas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _on_params(commands, "run", _run, "run the four notebooks with a parameter file")
    _on_params(commands, "check", _check, "validate a parameter file and its data")
    _on_params(commands, "numbers", _numbers, "print the numbers of a finished run")
    _add_stage(commands)
    _add_plan(commands)
    _add_sweep(commands)
    _add_job(commands)
    _exchange(commands, "export", _export, "write the comparisons that wait for an answer")
    _add_import(commands)
    _add_trace(commands)
    _add_release(commands)
    _add_annotate(commands)
    commands.add_parser("keys", help="list every parameter").set_defaults(act=_keys)
    assets = commands.add_parser("assets", help="fetch the embedded model and prompts")
    assets.set_defaults(act=_assets)
    return parser


def _on_params(commands: Commands, name: str, act: Act, text: str) -> None:
    """A command that takes a parameter file and nothing else."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("params", type=Path, help="a YAML file, see params/")
    command.set_defaults(act=act)


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
    command.set_defaults(act=_stage)


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
    command.set_defaults(act=_plan)


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
    command.set_defaults(act=_sweep)


def _add_job(commands: Commands) -> None:
    command = commands.add_parser("job", help="run one job of a sweep (what Snakemake calls)")
    command.add_argument("folder", type=Path)
    command.set_defaults(act=_job)


def _exchange(commands: Commands, name: str, act: Act, text: str) -> argparse.ArgumentParser:
    """A command that moves comparisons between a run and a file."""
    command = commands.add_parser(name, help=text, description=text)
    command.add_argument("params", type=Path, help="the run's YAML file")
    command.add_argument("file", type=Path, help=".csv for a spreadsheet, .json for Label Studio")
    command.set_defaults(act=act)
    return command


def _add_import(commands: Commands) -> None:
    command = _exchange(commands, "import", _import, "bring answers into the run, all or none")
    command.add_argument(
        "--annotator", default="spreadsheet", help="who answered, where a row of a csv does not say"
    )


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
    command.set_defaults(act=_annotate)


# --- what each command does
def _run(options: argparse.Namespace) -> int:
    from shfcas_lib.experiment import checks, notebooks
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.load(options.params))
    prompt_check = None if run.finished("01_proxy") else checks.PromptCheck(run.params)
    checks.check(run.params, prompt_check)
    for stage in runs.STAGES:
        run.belongs(stage)  # refuses a folder of other parameters before any work starts
    start = time.monotonic()
    for name in notebooks.RUN:
        if not _execute(name, run):
            return 1
    minutes = (time.monotonic() - start) / 60
    print(f"\nfour notebooks in {minutes:.1f} minutes", file=sys.stderr)
    return _numbers(options)


def _stage(options: argparse.Namespace) -> int:
    from shfcas_lib.experiment import stages
    from shfcas_lib.params import reading

    stages.run_stages(options.names, reading.load(options.params))
    return 0


def _execute(name: str, run: Run) -> bool:
    """Run one notebook of a run; False where a cell failed.

    Its progress bars appear on this terminal.
    """
    from shfcas_lib.experiment import notebooks

    print(f"\n{name}", file=sys.stderr)
    executed = run.folder / "notebooks" / f"{name}.ipynb"
    error = notebooks.run_notebook(name, run.params.model_dump(), executed, sys.stderr)
    if error:
        print(f"\nshfcas: {one_line(error)}", file=sys.stderr)
        print(f"        the traceback is in {executed}", file=sys.stderr)
    return not error


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
        if not ready and not _execute(name, run):
            return 1

    target = run.folder / "notebooks" / f"{third}.ipynb"
    notebook = notebooks.prepare_notebook(third, run.params.model_dump(), target)
    print(_steps(notebook, options.params), file=sys.stderr)
    if options.prepare:
        print(notebook)
        return 0
    _open_lab(notebook, run.folder)


def _steps(notebook: Path, params: Path) -> str:
    """What a person does from here on."""
    return (
        f"\n1. JupyterLab opens {notebook}\n"
        "2. choose Run > Run All Cells, and answer on the screen that appears (? lists the keys)\n"
        "3. when it says that the reward is refined, run the cells below it\n"
        f"4. python -m shfcas_lib run {params} then evaluates it\n"
        "Stop whenever you like: the same command brings you back to the same place.\n"
    )


def _open_lab(notebook: Path, folder: Path) -> NoReturn:
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


def _check(options: argparse.Namespace) -> int:
    from shfcas_lib.data import prompts as prompt_data
    from shfcas_lib.experiment import checks
    from shfcas_lib.params import reading

    settings = reading.load(options.params)
    prompts = checks.check(settings)
    sizes = prompts["split"].value_counts()
    splits = ", ".join(f"{size} {split}" for split, size in sizes.items())
    print(f"{options.params}: fine; {len(prompts)} prompts: {splits}")
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
    return 0


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


def _keys(options: argparse.Namespace) -> int:
    from shfcas_lib.params import reading

    for name, default, text in reading.keys():
        print(f"{name:<38} {default:<28} {text}")
    return 0


def _assets(options: argparse.Namespace) -> int:
    from shfcas_lib.storage import assets

    for name in assets.ASSETS:
        print(assets.asset_path(name))
    return 0
