"""The command line: `shfcas` or `python -m shfcas_lib`.

shfcas init my-study                   notebooks and params into a folder of your own
shfcas run params/quickstart.yaml      the four notebooks, headless, one after another
shfcas stage pools params/mine.yaml    one heavy stage alone, also under `accelerate launch`
                                       on several GPUs
shfcas annotate params/annotate.yaml   label in JupyterLab: notebook 03 with its screen
shfcas check params/mine.yaml          everything about a run that needs no model
shfcas plan params/mine.yaml           memory of every stage against a GPU's, before anything
                                       is downloaded
shfcas audit my_pairs.jsonl            labelled pairs, those most worth a second opinion first
shfcas keys                            every parameter with its default and meaning
shfcas assets                          fetch the embedded model and prompts
shfcas numbers params/quickstart.yaml  the numbers of a finished run once more
shfcas sweep params/sweeps/smoke.yaml  many runs on Snakemake, then notebook 05 and its HTML
                                       report
shfcas export params/mine.yaml q.csv   the comparisons that wait for people: .csv, or .json
                                       for Label Studio
shfcas import params/mine.yaml q.csv   their answers, into the run
shfcas conflicts completions.parquet   PACS and Kendall-tau distance of a table of completions
shfcas choose completions.parquet      what to ask about them: a spreadsheet, or Label Studio
shfcas label questions.csv             answer on the screen, or in the terminal
shfcas answers questions.csv           the answers as TRL preferences
shfcas export-model RUN reward FOLDER  the refined reward as AutoModelForSequenceClassification
                                       loads it; policy: the trained policy
shfcas export-data RUN FOLDER          labels, preferences and completions as a data set
shfcas benchmark RUN rm_bench/         proxy and refined reward on chosen and rejected answers
shfcas trace figures/pacs_plane.png    what made a figure, a table or a metrics.json, and the
                                       command that makes it again
shfcas release FIGURE figures/mine.png copy a figure out of a run folder; its trace goes with
                                       it
"""

from __future__ import annotations

import argparse
import os
import sys

from shfcas_lib.base import extras
from shfcas_lib.base.errors import InputError, Waiting
from shfcas_lib.base.texts import one_line
from shfcas_lib.cli import audit, models, origins, people, runs, study, sweeps, tables

_WAITS, _INTERRUPTED = 3, 128 + 2  # exit statuses


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Bad input ends in one sentence on stderr and status 2; a run that waits for people in one, and
    status 3; Ctrl-C in one, and the status of a program that was interrupted.
    """
    options = _parser().parse_args(arguments)
    name = f"shfcas {options.command}"
    try:
        extras.need(*getattr(options, "needs", ()), what=name)
        status = options.act(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nshfcas: stopped; the same command goes on with what is finished", file=sys.stderr)
        return _INTERRUPTED
    except Waiting as waiting:
        print(f"\n{one_line(str(waiting))}", file=sys.stderr)
        return _WAITS
    except InputError as error:
        print(f"shfcas: {one_line(str(error))}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:  # a package of an extra that only some parameters need
        sentence = extras.lacking(error, name)
        if sentence is None:
            raise
        print(f"shfcas: {sentence}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has read enough, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    """The command line with all its commands, in the order in which --help lists them."""
    parser = argparse.ArgumentParser(
        prog="shfcas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (study, tables, audit, runs, people, models, sweeps, origins):
        group.add(commands)
    commands.add_parser("keys", help="list every parameter").set_defaults(act=_keys)
    assets = commands.add_parser("assets", help="fetch the embedded model and prompts")
    assets.set_defaults(act=_assets, needs=("models",))
    return parser


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
