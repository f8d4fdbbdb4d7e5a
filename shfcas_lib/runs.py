"""The run folder: stage folders with tables, written whole or not at all, and read back on resume.

    stage = open_run(params).stage("02_conflict")
    pool = stage.table("pool", lambda: sample(...))     # computed once, read from then on

A stage folder belongs to the parameters that it depends on; opening it with others is an error, never a mix.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib import processes
from shfcas_lib.params import InputError, Params, Sft, Training, fingerprint

_COMMON = ("seed", "task", "model", "prompts", "split", "sampling", "preferences", "bias", "gold", "reward", "sft", "training")
STAGES = {
    "01_proxy": _COMMON,
    "02_conflict": _COMMON,
    "03_feedback": (*_COMMON, "selection", "feedback", "policy"),
    "04_evaluation": (*_COMMON, "selection", "feedback", "policy", "evaluation"),
}
# How the judge is reached and when it stops: free to change between two attempts at the same run, unlike what it is asked.
_JUDGE_LIMITS = ("concurrency", "timeout", "retries", "backoff", "max_tokens", "max_cost", "price_in", "price_out")
# What decides how much memory and time a training takes, and not what comes out: free to change as well.
_TRAINING_LIMITS = ("gradient_checkpointing", "checkpoint_every")
# Keys that runs of earlier versions did not have: at their defaults they change nothing, and are left out.
_NEWER = {"sft": tuple(Sft.model_fields), "training": tuple(Training.model_fields), "policy": ("generations", "prompts"), "gold": ("model",), "sampling": ("engine",),
          "evaluation": ("answers",), "model": ("attention", "template", "trust_remote_code"), "reward": ("proxy", "model")}
_TEMPORARY = ".part"  # ends the name of what is being written
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)  # faults of the place, not of the caller
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "numpy", "scipy", "pandas")
pd.set_option("display.html.use_mathjax", False)  # a completion's dollar signs are no formula where a notebook shows a table


def rng(seed: int, name: str) -> np.random.Generator:
    """The generator that the seed of a run gives to the random choice called `name`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, name, bits=128)))


def derive(seed: int, name: str, bits: int = 31) -> int:
    """An integer of at most 128 bits that depends on (seed, name) alone, the same on every machine and in every process."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:16], "big") >> (128 - bits)


def home() -> Path:
    """The project folder that relative paths start from: the environment variable SHFCAS_HOME, or the nearest folder upwards that holds
    notebooks/ and params/."""
    if os.environ.get("SHFCAS_HOME"):
        return Path(os.environ["SHFCAS_HOME"])
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "notebooks").is_dir() and (p / "params").is_dir()), here)


def found(path: str | Path) -> Path:
    """A path of the user's: as it is, or below the project folder where it is relative."""
    path = Path(path).expanduser()
    return path if path.is_absolute() else home() / path


def contents(path: str | Path | None) -> str | None:
    """Sixteen hex digits of everything in a file or folder of the user's; None where there is none, as with a hub id."""
    if path is None or not found(path).exists():
        return None
    place, digest = found(path), hashlib.sha256()
    for file in sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place]:
        digest.update(f"{file.relative_to(place)}\n".encode() if place.is_dir() else b"")
        with open(file, "rb") as opened:
            while block := opened.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]


def runs_dir() -> Path:
    """Where run folders live: the environment variable SHFCAS_RUNS, or runs/ in the project folder."""
    return Path(os.environ.get("SHFCAS_RUNS") or home() / "runs").expanduser()


def open_run(params: Params) -> Run:
    """The run that `params` describes; its folder is made when the first stage is opened."""
    return Run(params, runs_dir() / params.run)


class Run:
    """One run folder."""

    def __init__(self, params: Params, folder: Path):
        self.params, self.folder = params, folder

    def stage(self, name: str) -> Stage:
        """Open stage `name`, making its folder, and clear what killed processes left in the run folder. Raises InputError if the stage was made
        with other parameters, or cannot be written."""
        folder = self.folder / name
        if not self.belongs(name):
            needed = self._needed(name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with held(folder):  # of two runs that come with other parameters at the same moment, one is refused
                    if not self.belongs(name):
                        write_json(folder / "parameters.json", {"fingerprint": fingerprint(needed), "parameters": needed})
            except OSError as error:
                raise InputError(f"cannot write to run folder {folder}: {error}") from error
        clear(self.folder)
        return Stage(folder, self)

    def belongs(self, name: str) -> bool:
        """Was stage `name` made with these parameters? False if it was not made yet; raises InputError if with others."""
        found = self.folder / name / "parameters.json"
        if not found.exists():
            return False
        before, needed = json.loads(found.read_text()), self._needed(name)
        if before["fingerprint"] != fingerprint(needed):
            raise InputError(f"{found.parent} was made with other parameters ({_difference(before['parameters'], needed)}): "
                             "give this run another name, or delete that folder")
        return True

    def finished(self, name: str) -> bool:
        """Did the notebook of stage `name` reach its end with these parameters?"""
        return self.belongs(name) and (self.folder / name / "metrics.json").exists()

    def take_over(self, name: str) -> bool:
        """Copy stage `name` from another run that finished it with the same parameters; False where there is none.

        Whole or not at all: it is copied under another name and then renamed.
        """
        clear(self.folder)
        if (self.folder / name).exists():
            return False
        mine = fingerprint(self._needed(name))
        for other in sorted(self.folder.parent.glob(f"*/{name}/parameters.json")):
            source = other.parent
            if json.loads(other.read_text())["fingerprint"] == mine and (source / "metrics.json").exists():
                with writing(self.folder / name), scratch(self.folder, name) as temporary:
                    copy = shutil.copytree(source, temporary / name, ignore=shutil.ignore_patterns(f".*{_TEMPORARY}"))
                    with contextlib.suppress(OSError):  # another process was faster: then that stage stands there
                        os.rename(copy, self.folder / name)
                return self.finished(name)
        return False

    def _needed(self, name: str) -> dict:
        everything = self.params.model_dump(mode="json")
        for key in _JUDGE_LIMITS:
            del everything["feedback"]["judge"][key]
        for key in _TRAINING_LIMITS:
            del everything["training"][key]
        default = Params().model_dump(mode="json")
        for block, keys in _NEWER.items():
            everything[block] = {key: value for key, value in everything[block].items() if key not in keys or value != default[block][key]}
        needed = {key: everything[key] for key in STAGES[name] if everything[key] != {}}
        for block in ("prompts", "preferences"):  # data that was edited makes another run, though its name is the same
            sha256 = contents(needed[block]["file"] or needed[block]["source"])
            if sha256:
                needed[block] = needed[block] | {"sha256": sha256}
        return needed

    def require(self, stage: str, name: str) -> pd.DataFrame:
        """A table that an earlier stage must have written. Raises InputError that says which notebook makes it."""
        path = self.folder / stage / f"{name}.parquet"
        if not self.belongs(stage) or not path.exists():
            raise InputError(f"{path} is missing: run notebook {stage[:2]} with the same parameters first")
        return pd.read_parquet(path)

    @functools.cached_property
    def inputs(self) -> dict[str, str]:
        """Checksums of what the run reads beside the code."""
        from shfcas_lib import provenance  # which reads run folders in its turn

        return provenance.inputs(self.params)

    def record(self, **facts) -> None:
        """Merge facts into run.json, beside the parameters, versions, commit and device; of several processes the main one does."""
        if not processes.is_main():
            return
        path = self.folder / "run.json"
        now = {"parameters": self.params.model_dump(), "seed": self.params.seed, "versions": versions(), "commit": commit(),
               "machine": machine(), "inputs": self.inputs, **device()}
        path.parent.mkdir(parents=True, exist_ok=True)
        with held(path.parent):  # two processes in one run must not drop each other's facts
            known = json.loads(path.read_text()) if path.exists() else {}
            seconds = known.get("seconds", {})
            for name, value in facts.pop("seconds", {}).items():
                seconds[name] = max(value, seconds.get(name, 0))  # a step that is only read back took its time before
            write_json(path, known | now | facts | {"seconds": seconds})


class Stage:
    """One stage folder: memoised tables, metrics, wall time."""

    def __init__(self, folder: Path, run: Run):
        self.folder, self.run = folder, run

    def __truediv__(self, name: str) -> Stage:
        """A sub-folder of the stage with the same services."""
        return Stage(self.folder / name, self.run)

    def table(self, name: str, make: Callable[[], pd.DataFrame | None]) -> pd.DataFrame | None:
        """Read `name`.parquet, or make it and write it whole. A killed run picks up at the first table that is missing. Where several
        processes work together all of them make it, and the main one writes. A table that a run without gold cannot have is None, and not written."""
        path = self.folder / f"{name}.parquet"
        if not processes.agreed(path.exists()):
            table = make()
            if table is None:
                return None
            if processes.is_main():
                with atomic(path) as target:
                    table.to_parquet(target, index=False)
            processes.wait()
        return pd.read_parquet(path)

    def metrics(self, values: dict) -> None:
        """Write metrics.json."""
        write_json(self.folder / "metrics.json", values)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Record the seconds that the block takes in run.json under 'stage: what'."""
        start = time.perf_counter()
        yield
        self.run.record(seconds={f"{self.folder.name}: {what}": round(time.perf_counter() - start, 1)})


class Memory:
    """Stands in for a Stage where nothing should be written: every table is made anew. Used by replicates."""

    def __truediv__(self, name: str) -> Memory:
        return self

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        return make()


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a scratch folder beside `path`; rename it over `path` when the block succeeds, remove it when it
    fails. Raises InputError where the disk is full or the folder cannot be written."""
    with writing(path), scratch(path.parent, path.name) as folder:
        yield folder / path.name
        with open(folder / path.name, "rb") as written:
            os.fsync(written.fileno())
        os.replace(folder / path.name, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise InputError where the block fails because the disk is full or the folder of `path` cannot be written. safetensors says so in words
    alone: '(os error 28)'."""
    try:
        yield
    except Exception as error:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = error.errno if isinstance(error, OSError) else int(told[1]) if told else None
        if number in _DISK:
            raise InputError(f"cannot write {path}: {os.strerror(number)}") from error
        raise


@contextlib.contextmanager
def scratch(folder: Path, name: str) -> Iterator[Path]:
    """A hidden folder in `folder`, for what is written there before it gets the name `name`; removed at the end. It is locked as long as this
    process lives: `clear` removes it after a kill."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary, lock = _locked_scratch(folder, name)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _locked_scratch(folder: Path, name: str) -> tuple[Path, int]:
    while True:
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_TEMPORARY, dir=folder))
        with contextlib.suppress(FileNotFoundError):  # `clear` came between the folder's making and its lock: another one
            lock = _lock(temporary)
            if temporary.exists():
                return temporary, lock
            os.close(lock)


def clear(folder: Path) -> None:
    """Remove what killed processes left half-written anywhere below `folder`. What a living process writes is locked, and stays."""
    for place, folders, _ in os.walk(folder):  # not rglob: that fails where a folder goes while it looks
        for name in [name for name in folders if name.startswith(".") and name.endswith(_TEMPORARY)]:
            folders.remove(name)
            with contextlib.suppress(OSError):  # its writer lives, it is gone meanwhile, or the folder is read-only
                lock = _lock(Path(place, name), wait=False)
                shutil.rmtree(Path(place, name), ignore_errors=True)
                os.close(lock)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Wait until no other process or thread holds `folder`, and hold it. The kernel lets go when this process ends, however it ends."""
    lock = _lock(folder)
    try:
        yield
    finally:
        os.close(lock)


def _lock(folder: Path, wait: bool = True) -> int:
    """The handle of a locked folder. With `wait`, a file system that knows no locks is written to without; else every failure is raised."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        if not wait:
            os.close(handle)
            raise
    return handle


def write_json(path: Path, values: dict) -> None:
    """Write a dict as indented JSON, whole or not at all. NaN and infinity are refused."""
    with atomic(path) as target:
        target.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def records(table: pd.DataFrame | None) -> list[dict]:
    """A table for JSON, row by row, NaN as null; nothing where there is no table."""
    return [] if table is None else table.astype(object).where(table.notna(), None).to_dict("records")


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, without importing them."""
    from shfcas_lib import __version__

    installed = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {"shfcas": __version__, "python": platform.python_version(), **installed}


def commit() -> str | None:
    """The git commit of the code, with '+changes' when files other than docs/ differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        # results are released into docs/: the second of two sweeps must not look changed because the first one was released
        status = ["git", "status", "--porcelain", "-uno", "--", ":/", ":(top,exclude)docs"]
        dirty = subprocess.run(status, cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if dirty.strip() else "")


def machine() -> str:
    """The machine, in a few words."""
    gpu = ", NVIDIA GPU" if Path("/proc/driver/nvidia/version").exists() else ""
    return f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores{gpu}"


def device() -> dict[str, str]:
    """The device that torch would use, if torch is loaded."""
    import sys

    if "torch" not in sys.modules:
        return {}
    import torch

    return {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _difference(before: dict, now: dict, prefix: str = "") -> str:
    for key in {**now, **before}:
        old, new = before.get(key), now.get(key)
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return _difference(old, new, f"{prefix}{key}.")
            return f"{prefix}{key}: {json.dumps(old)} there, {json.dumps(new)} now"
    return "an older version of this library"
