"""Commands that take something out of a run: a reward, a policy, its labels and completions."""

from __future__ import annotations

import argparse
from pathlib import Path

from shfcas_lib.cli.kinds import Commands

_RUN = "the run's parameter file, its folder, or its name in runs/"


def add(commands: Commands) -> None:
    """`export-model`, `export-data`, `benchmark`."""
    _add_export_model(commands)
    _add_export_data(commands)
    _add_benchmark(commands)


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
    _add_push(command)
    command.set_defaults(act=_export_model)


def _add_export_data(commands: Commands) -> None:
    text = "labels, preferences and completions as a data set with a card"
    command = commands.add_parser("export-data", help=text, description=text)
    command.add_argument("run", help=_RUN)
    command.add_argument("folder", type=Path, help="a new folder")
    _add_push(command)
    command.set_defaults(act=_export_data)


def _add_benchmark(commands: Commands) -> None:
    text = "proxy and refined reward on chosen and rejected answers"
    command = commands.add_parser("benchmark", help=text, description=text)
    command.add_argument("run", help=_RUN)
    command.add_argument(
        "file",
        help="RM-Bench's or RewardBench's layout, a preference file of yours, a folder of such"
        " files, or rm-bench, reward-bench from the hub",
    )
    command.add_argument(
        "--strategy", metavar="NAME", help="whose refined reward (default: of all strategies)"
    )
    command.add_argument(
        "--prompts", type=int, metavar="N", help="at most N rows of each subset, by the run's seed"
    )
    command.set_defaults(act=_benchmark)


def _add_push(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="upload the folder to this repository, private where it is new; the token is HF_TOKEN",
    )


def _export_model(options: argparse.Namespace) -> int:
    from shfcas_lib.out import hub, models
    from shfcas_lib.storage import runs

    write = models.export_reward if options.what == "reward" else models.export_policy
    run = runs.find_run(options.run)
    if options.push_to_hub:
        hub.check(options.push_to_hub)
        models.check_public(run, options.merged, options.what)
    lines = write(run, options.strategy, options.folder, options.merged, options.dtype)
    print(*lines, sep="\n")
    if options.push_to_hub:
        print(hub.push(options.folder, options.push_to_hub, "model"))
    return 0


def _export_data(options: argparse.Namespace) -> int:
    from shfcas_lib.out import hub, labels
    from shfcas_lib.storage import runs

    if options.push_to_hub:
        hub.check(options.push_to_hub)
    print(*labels.export_data(runs.find_run(options.run), options.folder), sep="\n")
    if options.push_to_hub:
        print(hub.push(options.folder, options.push_to_hub, "dataset"))
    return 0


def _benchmark(options: argparse.Namespace) -> int:
    from shfcas_lib.analysis.benchmark import as_markdown
    from shfcas_lib.experiment import benchmarking
    from shfcas_lib.storage import runs

    run = runs.find_run(options.run)
    result = benchmarking.benchmark(run, options.file, options.strategy, options.prompts)
    print(as_markdown(result))
    return 0
