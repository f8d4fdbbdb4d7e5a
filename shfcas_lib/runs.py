"""The run folder: stage folders with tables, written whole or not at all, and read back on resume.

    stage = open_run(params).stage("02_conflict")
    pool = stage.table("pool", lambda: sample(...))     # computed once, read from then on

A stage folder belongs to the parameters that it depends on; opening it with others is an error, never a mix.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

from shfcas_lib.params import InputError, Params, fingerprint

_COMMON = ("seed", "task", "model", "prompts", "split", "sampling", "preferences", "bias", "gold", "reward")
STAGES = {
    "01_proxy": _COMMON,
    "02_conflict": _COMMON,
    "03_feedback": (*_COMMON, "selection", "feedback", "policy"),
    "04_evaluation": (*_COMMON, "selection", "feedback", "policy", "evaluation"),
}
# How the judge is reached and when it stops: free to change between two attempts at the same run, unlike what it is asked.
_JUDGE_LIMITS = ("concurrency", "timeout", "retries", "backoff", "max_tokens", "max_cost", "price_in", "price_out")
_PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "numpy", "scipy", "pandas")


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
        """Open stage `name`, making its folder. Raises InputError if it was made with other parameters, or cannot be written."""
        folder = self.folder / name
        if not self.belongs(name):
            needed = self._needed(name)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_json(folder / "parameters.json", {"fingerprint": fingerprint(needed), "parameters": needed})
            except OSError as error:
                raise InputError(f"cannot write to run folder {folder}: {error}") from error
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
        if (self.folder / name).exists():
            return False
        mine = fingerprint(self._needed(name))
        for other in sorted(self.folder.parent.glob(f"*/{name}/parameters.json")):
            source = other.parent
            if json.loads(other.read_text())["fingerprint"] == mine and (source / "metrics.json").exists():
                self.folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=self.folder) as temporary:
                    os.replace(shutil.copytree(source, Path(temporary) / name), self.folder / name)
                return True
        return False

    def _needed(self, name: str) -> dict:
        everything = self.params.model_dump(mode="json")
        for key in _JUDGE_LIMITS:
            del everything["feedback"]["judge"][key]
        needed = {key: everything[key] for key in STAGES[name]}
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

    def record(self, **facts) -> None:
        """Merge facts into run.json, beside the parameters, versions, commit and device."""
        path = self.folder / "run.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        known |= {"parameters": self.params.model_dump(), "seed": self.params.seed, "versions": versions(), "commit": commit(),
                  "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} cores", **device()}
        seconds = known.get("seconds", {})
        for name, value in facts.pop("seconds", {}).items():
            seconds[name] = max(value, seconds.get(name, 0))  # a step that is only read back took its time before
        write_json(path, known | facts | {"seconds": seconds})


class Stage:
    """One stage folder: memoised tables, metrics, wall time."""

    def __init__(self, folder: Path, run: Run):
        self.folder, self.run = folder, run

    def __truediv__(self, name: str) -> Stage:
        """A sub-folder of the stage with the same services."""
        return Stage(self.folder / name, self.run)

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """Read `name`.parquet, or make it and write it whole. A killed run picks up at the first table that is missing."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            with atomic(path) as target:
                make().to_parquet(target, index=False)
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
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds, remove it when it fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict) -> None:
    """Write a dict as indented JSON, whole or not at all. NaN and infinity are refused."""
    with atomic(path) as target:
        target.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text())


def versions() -> dict[str, str]:
    """Versions of the packages that decide a run's numbers, without importing them."""
    from shfcas_lib import __version__

    installed = {name: metadata.version(name) for name in _PACKAGES if _installed(name)}
    return {"shfcas": __version__, "python": platform.python_version(), **installed}


def commit() -> str | None:
    """The git commit of the code, with '+changes' when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
        dirty = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if dirty.strip() else "")


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
    for key in now:
        old, new = before.get(key), now[key]
        if old != new:
            if isinstance(old, dict) and isinstance(new, dict):
                return _difference(old, new, f"{prefix}{key}.")
            return f"{prefix}{key}: {json.dumps(old)} there, {json.dumps(new)} now"
    return "an older version of this library"
