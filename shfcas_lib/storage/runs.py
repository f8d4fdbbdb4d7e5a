"""The run folder: stage folders with tables, written whole or not at all, and read back on resume.

    stage = open_run(params).stage("02_conflict")
    pool = stage.table("pool", lambda: sample(...))     # computed once, read from then on

A stage folder belongs to the parameters that it depends on; opening it with others is an error,
never a mix.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import functools
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol, TypeVar

import pandas as pd

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.places import content_hash, runs_dir
from shfcas_lib.params import reading
from shfcas_lib.params.reading import fingerprint
from shfcas_lib.params.schema import Params
from shfcas_lib.storage.files import TEMPORARY, atomic, clear, locked, scratch, write_json, writing
from shfcas_lib.storage.inputs import of_run
from shfcas_lib.storage.labels import answers_of_people
from shfcas_lib.storage.machine import commit, description, device, versions


class Saved(Protocol):
    """Whatever can be kept in a folder."""

    def save(self, folder: Path) -> None: ...


R = TypeVar("R", bound=Saved)

_COMMON = (
    "seed",
    "task",
    "model",
    "prompts",
    "split",
    "sampling",
    "completions",
    "preferences",
    "bias",
    "gold",
    "reward",
    "sft",
    "training",
)
STAGES = {
    "01_proxy": _COMMON,
    "02_conflict": _COMMON,
    "03_feedback": (*_COMMON, "selection", "feedback", "policy"),
    "04_evaluation": (*_COMMON, "selection", "feedback", "policy", "evaluation"),
}
# A look at the user's own pairs that belongs to no notebook of a run.
_BESIDE = {"audit": ("seed", "model", "prompts", "preferences")}
# Where a block names data, and what the content of that data is called.
_DATA = {"source": "sha256", "file": "sha256", "requests": "requests_sha256"}
# How the judge is reached and when it stops: free to change between two attempts at the same run,
# unlike what it is asked.
_JUDGE_LIMITS = (
    "concurrency",
    "timeout",
    "retries",
    "backoff",
    "max_tokens",
    "max_cost",
    "price_in",
    "price_out",
)
# What decides how much memory and time a training takes and what is logged, not what comes out:
# free to change as well.
_TRAINING_LIMITS = ("gradient_checkpointing", "checkpoint_every", "report_to", "watch_every")
# a completion's dollar signs are no formula where a notebook shows a table
pd.set_option("display.html.use_mathjax", False)


def open_run(params: Params) -> Run:
    """The run that `params` describes; its folder is made when the first stage is opened."""
    return Run(params, runs_dir() / params.run)


def find_run(named: str) -> Run:
    """The run that a person names: by its parameter file, its folder, or its name among the runs.

    Raises InputError where there is none.
    """
    path = Path(named).expanduser()
    if path.is_file():
        return open_run(reading.load(path))
    for folder in (path, runs_dir() / named):
        record = folder / "run.json"
        if record.is_file():
            params = reading.validate(json.loads(record.read_text())["parameters"], str(record))
            return Run(params, folder)
    there = sorted(record.parent.name for record in runs_dir().glob("*/run.json"))
    raise InputError(
        f"{named!r} is no parameter file, run folder or name of a run (runs in {runs_dir()}:"
        f" {', '.join(there[:20]) or 'none'})"
    )


class Run:
    """One run folder."""

    def __init__(self, params: Params, folder: Path):
        self.folder = folder
        self._day_is_given = params.model.date is not None
        self.params = params
        self._keep_day(params.model.date or self._recorded_day() or dt.date.today().isoformat())

    def _keep_day(self, day: str) -> None:
        """The day that chat templates are told in this run."""
        model = self.params.model.model_copy(update={"date": day})
        self.params = self.params.model_copy(update={"model": model})

    def _recorded_day(self) -> str | None:
        """The day that the first stage of the run recorded."""
        for name in STAGES:
            path = self.folder / name / "parameters.json"
            if path.exists():
                return json.loads(path.read_text()).get("day")
        return None

    def stage(self, name: str) -> Stage:
        """Open stage `name`, and clear what killed processes left in the run folder.

        Its folder is made where it is missing. Raises InputError if the stage was made with
        other parameters, or cannot be written.
        """
        folder = self.folder / name
        if not self.belongs(name):
            needed = self._needed(name)
            facts = {
                "fingerprint": fingerprint(needed),
                "parameters": needed,
                "day": self.params.model.date,
            }
            try:
                folder.mkdir(parents=True, exist_ok=True)
                # of two runs that come with other parameters at the same moment, one is refused
                with locked(folder):
                    if not self.belongs(name):
                        write_json(folder / "parameters.json", facts)
            except OSError as error:
                raise InputError(f"cannot write to run folder {folder}: {error}") from error
        clear(self.folder)
        return Stage(folder, self)

    def belongs(self, name: str) -> bool:
        """Was stage `name` made with these parameters? False if it was not made yet.

        Raises InputError if it was made with others.
        """
        path = self.folder / name / "parameters.json"
        if not path.exists():
            return False
        before, needed = json.loads(path.read_text()), self._needed(name)
        if before["fingerprint"] != fingerprint(needed):
            raise InputError(
                f"{path.parent} was made with other parameters"
                f" ({_difference(before['parameters'], needed)}): {self._way_out()}"
            )
        day = before.get("day", self.params.model.date)
        if day != self.params.model.date and self._day_is_given:
            raise InputError(
                f"{path.parent} was made with model.date {day}, now it is"
                f" {self.params.model.date}: give this run another name, or leave model.date out"
            )
        self._keep_day(day)
        return True

    def _way_out(self) -> str:
        """What to do where the folder belongs to other parameters. What people answered, and what
        a judge was paid for, is never advised away."""
        answers = answers_of_people(self.folder)
        if answers:
            return (
                f"give this run another name, and `shfcas import PARAMS {self.folder}` brings the"
                f" {answers} answers along that people gave there"
            )
        if any(self.folder.glob("03_feedback/judge.sqlite*")):
            return f"give this run another name: {self.folder} keeps what a judge was paid for"
        return "give this run another name, or delete that folder"

    def finished(self, name: str) -> bool:
        """Did the notebook of stage `name` reach its end with these parameters?"""
        return self.belongs(name) and (self.folder / name / "metrics.json").exists()

    def take_over(self, name: str) -> bool:
        """Copy stage `name` from another run that finished it with the same parameters.

        False where there is none.

        Whole or not at all: it is copied under another name and then renamed.
        """
        clear(self.folder)
        if (self.folder / name).exists():
            return False
        mine = fingerprint(self._needed(name))
        # a run that has begun stays with its day
        fixed = self._day_is_given or self._recorded_day() is not None
        for path in sorted(self.folder.parent.glob(f"*/{name}/parameters.json")):
            source, facts = path.parent, json.loads(path.read_text())
            same_day = not fixed or facts.get("day") == self.params.model.date
            same = facts["fingerprint"] == mine and same_day
            if same and (source / "metrics.json").exists():
                self._copy(source, name)
                return self.finished(name)
        return False

    def _copy(self, source: Path, name: str) -> None:
        with writing(self.folder / name), scratch(self.folder, name) as temporary:
            unfinished = shutil.ignore_patterns(f".*{TEMPORARY}")
            copy = shutil.copytree(source, temporary / name, ignore=unfinished)
            # where another process was faster, that stage stands there already
            with contextlib.suppress(OSError):
                os.rename(copy, self.folder / name)

    def _needed(self, name: str) -> dict:
        """The parameters that stage `name` depends on, as JSON."""
        everything = self.params.model_dump(mode="json")
        for key in _JUDGE_LIMITS:
            del everything["feedback"]["judge"][key]
        for key in _TRAINING_LIMITS:
            del everything["training"][key]
        del everything["model"]["date"]  # most templates write none; `belongs` compares it
        needed = {key: everything[key] for key in (STAGES | _BESIDE)[name]}

        # data that was edited makes another run, though its name is the same
        for block in needed.keys() & {"prompts", "preferences", "completions"}:
            for key, name in _DATA.items():
                digest = content_hash(everything[block].get(key))
                if digest:
                    needed[block] = needed[block] | {name: digest}
        return needed

    def require(self, stage: str, name: str) -> pd.DataFrame:
        """A table that an earlier stage must have written.

        Raises InputError that says which notebook makes it.
        """
        path = self.folder / stage / f"{name}.parquet"
        if not self.belongs(stage) or not path.exists():
            raise InputError(
                f"{path} is missing: run notebook {stage[:2]} with the same parameters first"
            )
        return read_table(path)

    @functools.cached_property
    def inputs(self) -> dict[str, str | None]:
        """Checksums of what the run reads beside the code."""
        return of_run(self.params)

    def record(self, **facts) -> None:
        """Merge facts into run.json, beside the parameters, versions, commit and device.

        Of several processes the main one does.
        """
        if not processes.is_main():
            return
        path = self.folder / "run.json"
        now = {
            "parameters": self.params.model_dump(),
            "seed": self.params.seed,
            "versions": versions(),
            "commit": commit(),
            "machine": description(),
            "inputs": self.inputs,
            **device(),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.parent):  # two processes in one run must not drop each other's facts
            known = json.loads(path.read_text()) if path.exists() else {}
            seconds = known.get("seconds", {})
            for name, value in facts.pop("seconds", {}).items():
                # a step that is only read back took its time before
                seconds[name] = max(value, seconds.get(name, 0))
            write_json(path, known | now | facts | {"seconds": seconds})


class Stage:
    """One stage folder: memoised tables, metrics, wall time."""

    def __init__(self, folder: Path, run: Run | None):
        self.folder, self.run = folder, run

    def __truediv__(self, name: str) -> Stage:
        """A sub-folder of the stage with the same services."""
        return Stage(self.folder / name, self.run)

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Read `name`.parquet, or make it and write it whole.

        A killed run picks up at the first table that is missing. Where several processes work
        together all of them make it, and the main one writes.
        """
        path = self.folder / f"{name}.parquet"
        if not processes.agreed(path.exists()):
            self._write(path, make())
        return read_table(path)

    def table_or_none(
        self, name: str, make: Callable[[], pd.DataFrame | None]
    ) -> pd.DataFrame | None:
        """The same for a table that a run may not have: then it is None, and not written."""
        path = self.folder / f"{name}.parquet"
        if not processes.agreed(path.exists()):
            table = make()
            if table is None:
                return None
            self._write(path, table)
        return read_table(path)

    def _write(self, path: Path, table: pd.DataFrame) -> None:
        if processes.is_main():
            with atomic(path) as target:
                table.to_parquet(target, index=False)
        processes.wait()

    def reward(self, make: Callable[[], R], read: Callable[[Path], R | None]) -> R:
        """The reward that this folder keeps: what `read` finds in it, or else what `make` returns,
        saved whole. Of several processes the main one writes."""
        reward = read(self.folder)
        if reward is None:
            reward = make()
            if processes.is_main():
                reward.save(self.folder)
            processes.wait()
        return reward

    @property
    def figures(self) -> Path:
        """Where the stage's figures go."""
        return self.folder / "figures"

    def metrics(self, values: dict) -> None:
        """Write metrics.json."""
        write_json(self.folder / "metrics.json", values)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Record the seconds that the block takes in run.json under 'stage: what'."""
        start = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - start, 1)
        if self.run is not None:
            self.run.record(seconds={f"{self.folder.name}: {what}": seconds})


class Memory:
    """Stands in for a Stage where nothing should be written: everything is made anew.

    Used by replicates.
    """

    folder = None

    def __truediv__(self, name: str) -> Memory:
        return self

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """What `make` returns."""
        return make()

    def reward(self, make: Callable[[], R], read: Callable[[Path], R | None]) -> R:
        """What `make` returns."""
        return make()


def read_table(path: Path) -> pd.DataFrame:
    """A table of a run folder. Raises InputError for one that is damaged."""
    try:
        return pd.read_parquet(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # pyarrow raises errors of its own
        raise InputError(
            f"{path} cannot be read ({' '.join(str(error).split())[:200]}), as if it was cut off or"
            " changed: move it away, and the same command makes it again"
        ) from error


def _difference(before: dict, now: dict, prefix: str = "") -> str:
    """The first parameter that differs, with both values, in words."""
    for key in {**now, **before}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            return _difference(old, new, f"{prefix}{key}.")
        return f"{prefix}{key}: {json.dumps(old)} there, {json.dumps(new)} now"
    return "an older version of this library"
