"""Commands on a table of completions, with no model, no run and no parameter file: where reward and
policy disagree, what to ask, the answers."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shfcas_lib.base import extras
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli.kinds import Act, Commands

if TYPE_CHECKING:
    import pandas as pd


def add(commands: Commands) -> None:
    """`conflicts`, `choose`, `label`, `answers`."""
    _add_conflicts(commands)
    _add_choose(commands)
    _add_label(commands)
    _add_answers(commands)


def _on_table(commands: Commands, name: str, act: Act, text: str) -> argparse.ArgumentParser:
    """A command that reads a table of completions."""
    command = commands.add_parser(name, help=text, description=f"{text}: docs/completions.md")
    command.add_argument(
        "table",
        type=Path,
        help="completions with logp and reward: .parquet, .jsonl, .json, .csv, or a folder of them",
    )
    command.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KEY=NAME",
        help="what columns are called: completion=response reward=a,b (added up), index= (none)",
    )
    layouts = ("auto", "table", "trl", "openai", "lm_eval", "alpaca_eval")
    command.add_argument("--layout", choices=layouts, default="auto", help="default: by its rows")
    command.add_argument("--requests", help="the requests that an OpenAI batch answered")
    command.add_argument(
        "--logp-of", metavar="POLICY", help="whose log-probability logp is, if no column says it"
    )
    command.add_argument(
        "--drop", action="store_true", help="leave out and count rows that cannot be used"
    )
    command.add_argument(
        "--per-token",
        action="store_true",
        help="compare with the log-probability per token (needs token_logps)",
    )
    command.set_defaults(act=act)
    return command


def _add_conflicts(commands: Commands) -> None:
    text = "PACS and Kendall-tau distance of a table of completions"
    command = _on_table(commands, "conflicts", _conflicts, text)
    command.add_argument(
        "-o", "--output", type=Path, default=Path("conflicts.parquet"), help=".parquet or .csv"
    )


def _add_choose(commands: Commands) -> None:
    text = "the comparisons of a table of completions that are worth a label"
    command = _on_table(commands, "choose", _choose, text)
    command.add_argument("--budget", type=int, default=100, help="comparisons (default: 100)")
    command.add_argument("--strategy", default="shf_cas", help="default: shf_cas")
    command.add_argument("--seed", type=int, default=0, help="of every random choice")
    command.add_argument(
        "--random-share", type=float, default=0.0, help="share that chance draws among all pairs"
    )
    command.add_argument(
        "--graded", action="store_true", help="answers may say that one is much better"
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("questions.csv"),
        help=".csv for a spreadsheet, .json for Label Studio",
    )


def _add_label(commands: Commands) -> None:
    text = "answer questions on the annotation screen, or in the terminal"
    command = commands.add_parser("label", help=text, description=text)
    command.add_argument("questions", type=Path, help="the file that `choose` wrote")
    command.add_argument("--name", help="who answers (default: SHFCAS_ANNOTATOR, or person)")
    command.add_argument(
        "--repeats", type=float, default=0.1, help="share put twice, blindly (default: 0.1)"
    )
    command.add_argument(
        "--terminal", action="store_true", help="ask here, also where JupyterLab is installed"
    )
    command.add_argument(
        "--prepare", action="store_true", help="only write the screen's notebook, print its path"
    )
    command.set_defaults(act=_label)


def _add_answers(commands: Commands) -> None:
    text = "answers to questions as TRL preferences: prompt, chosen, rejected"
    command = commands.add_parser("answers", help=text, description=text)
    command.add_argument("questions", type=Path, help="the file that `choose` wrote")
    command.add_argument(
        "filled",
        type=Path,
        nargs="*",
        help="filled-in copies (.csv), or Label Studio's exports (.json)",
    )
    command.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("preferences.jsonl"),
        help=".jsonl or .parquet (default: preferences.jsonl)",
    )
    command.add_argument(
        "--annotator", default="spreadsheet", help="who answered, where a row of a csv does not say"
    )
    command.set_defaults(act=_answers)


# --- completions in, conflicts and questions out


def _read(options: argparse.Namespace) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The completions that have logp and reward, and their conflict table; what was left out and
    what cannot be compared is said on stderr."""
    from shfcas_lib.conflict import by_prompt, conflict_table
    from shfcas_lib.data import completions as data
    from shfcas_lib.params.schema import Completions

    block = Completions(
        file=str(options.table.absolute()),
        layout=options.layout,
        requests=options.requests and str(Path(options.requests).absolute()),
        columns=data.named_columns(_columns(options.columns)),
        logp_of=options.logp_of,
        bad_rows="drop" if options.drop else "stop",
    )
    table, left_out = data.counted_completions(block)
    advice = ": a run computes it with a model (`completions` of a parameter file)"
    names = ["logp", "reward"]
    table = data.needed(table, names, options.drop, left_out, advice)
    if options.per_token:
        advice = ": --per-token needs token_logps, the log-probabilities of the tokens"
        table = data.needed(table, ["logp_mean"], options.drop, left_out, advice)
        table["logp"] = table["logp_mean"]
    conflict = conflict_table(table)
    _say(data.described(table, left_out))
    alike = int((by_prompt(conflict)["degenerate"]).sum())
    if alike:
        _say(
            f"{alike} prompts have one completion, or rewards or log-probabilities that are all"
            " alike: there is nothing to rank, and their PACS is 0"
        )
    return table, conflict


def _columns(said: list[str]) -> dict[str, Any]:
    """KEY=NAME of the command line as a mapping: several names are a list, none is null."""
    columns: dict[str, Any] = {}
    for text in said:
        key, sign, name = text.partition("=")
        if not sign:
            raise InputError(f"--columns: found {text!r}, expected KEY=NAME")
        columns[key] = name.split(",") if "," in name else name or None
    return columns


def _say(text: str) -> None:
    from shfcas_lib.base.texts import printable

    print(printable(text), file=sys.stderr)


def _conflicts(options: argparse.Namespace) -> int:
    from shfcas_lib.base.texts import table_csv
    from shfcas_lib.conflict import means
    from shfcas_lib.storage import files

    kind = options.output.suffix.lower()
    if kind not in (".parquet", ".csv"):
        raise InputError(f"{options.output}: expected a name ending in .parquet or .csv")
    table, conflict = _read(options)
    # both are sorted by (prompt_id, index)
    texts = [name for name in ("prompt", "completion", "category", "model") if name in table]
    whole = conflict.assign(**{name: table[name].to_numpy() for name in texts})
    with files.atomic(options.output) as target:
        if kind == ".csv":
            table_csv(whole, target)
        else:
            whole.to_parquet(target, index=False)
    mean = means(conflict)
    print(
        f"{options.output}: mean K {mean['kendall']:.3f}, mean |PACS| {mean['mean_abs_pacs']:.3f}"
        f" over {conflict['prompt_id'].nunique()} prompts"
    )
    return 0


def _choose(options: argparse.Namespace) -> int:
    from shfcas_lib.annotators import exchange, sheets
    from shfcas_lib.params.schema import Selection
    from shfcas_lib.selection import check_strategy, choose_from

    exchange.kind_of(options.output)
    check_strategy(options.strategy)
    if not 0 <= options.random_share < 1:
        raise InputError(f"--random-share: found {options.random_share}, expected 0 to 1")
    table, conflict = _read(options)
    settings = Selection(random_share=options.random_share)
    chosen = choose_from(conflict, table, options.budget, options.strategy, options.seed, settings)
    written = sheets.write_sheet(options.output, chosen, table, options.seed, options.graded)
    print(f"{options.output}: {len(chosen)} questions; beside it {_listed(written[1:])}")
    return 0


def _listed(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths)


# --- answers


def _label(options: argparse.Namespace) -> int:
    from shfcas_lib.annotators.sheets import open_sheet
    from shfcas_lib.screen import terminal
    from shfcas_lib.screen.session import session_of

    sheet = open_sheet(options.questions)
    session = session_of(sheet, options.name, options.repeats)
    if options.terminal or _missing():
        if not options.terminal:
            _say(f"{_missing()[0]} is not installed: the questions are put here")
        terminal.ask(session)
        return 0
    session.store.close()
    notebook = _notebook(options)
    if options.prepare:
        print(notebook)
        return 0
    from shfcas_lib.cli.people import open_lab

    _say(f"JupyterLab opens {notebook}: choose Run > Run All Cells, and answer on the screen")
    open_lab(notebook, notebook.parent)


def _missing() -> list[str]:
    """The packages of the annotation screen that are not installed."""
    return [name for name in extras.EXTRAS["screen"] if importlib.util.find_spec(name) is None]


def _notebook(options: argparse.Namespace) -> Path:
    """A notebook of one cell that shows the screen, beside the questions."""
    from shfcas_lib.storage import files

    path = options.questions.absolute()
    target = path.with_name(f"{path.stem}_screen.ipynb")
    call = f"label({str(path)!r}, {options.name!r}, {options.repeats!r})"
    code = f"from shfcas_lib.screen import label\n\nscreen = {call}\nscreen"
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "screen",
        "metadata": {},
        "source": code,
        "outputs": [],
        "execution_count": None,
    }
    contents = {"cells": [cell], "metadata": {"kernelspec": kernel}}
    with files.atomic(target) as temporary:
        temporary.write_text(json.dumps(contents | {"nbformat": 4, "nbformat_minor": 5}, indent=1))
    return target


def _answers(options: argparse.Namespace) -> int:
    from shfcas_lib.annotators import sheets

    sheet = sheets.open_sheet(options.questions)
    files_read = list(options.filled)
    if sheets.holds_answers(options.questions) and options.questions not in files_read:
        files_read.insert(0, options.questions)
    counts: Counter = Counter()
    for path in files_read:
        counts.update(sheets.take_in(sheet, path, options.annotator))
    table, numbers = sheets.preferences(sheet)
    sheets.write_preferences(table, options.output)
    taken = f"{counts['added']} answers taken in, {counts['known']} known; " if files_read else ""
    print(
        f"{options.output}: {taken}{numbers['preferences']} preferences, {numbers['ties']} ties,"
        f" {numbers['skipped']} skipped, of {numbers['questions']} questions"
        f" {numbers['answered']} answered"
    )
    return 0
