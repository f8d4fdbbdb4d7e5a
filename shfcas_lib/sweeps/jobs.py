"""One job of a sweep: a folder with job.json, run as one notebook under Papermill.

    python -m shfcas_lib job runs/sweeps/NAME/point/CASE-1f2e3d4c  # what Snakemake calls
    work = jobs.open_job(folder)                                   # what the notebook calls

Kinds: `pool` samples completions and their gold, `cases` fits what strategies share, `point` runs
strategies, `policies` trains policies against what they refined, `run` is the four notebooks in a
run folder of their own. A job leaves its executed notebook, log.txt (progress) and done.json, or
failed.json that says in which cell it stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.processes import die_with_parent
from shfcas_lib.experiment.notebooks import run_notebook
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import files, machine, runs
from shfcas_lib.sweeps.digests import NOTEBOOKS

# these kinds load the language model: one at a time on a GPU, two on a CPU
BACKBONE = ("pool", "policies", "run")


@dataclass(frozen=True)
class Work:
    """An open job: its parameters, its label, its own tables, and those of the jobs it needs."""

    folder: Path
    label: dict[str, str]
    params: Params
    needs: dict[str, Path]

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of this job: read, or made and written whole."""
        no_run: Any = None  # a job's folder belongs to no run
        return runs.Stage(self.folder, no_run).table(name, make)

    def read(self, kind: str, name: str) -> pd.DataFrame:
        """A table of the job of that kind which this one needs."""
        return pd.read_parquet(self.needs[kind] / f"{name}.parquet")


def open_job(folder: str | Path) -> Work:
    """The job in `folder`. Raises InputError where there is none."""
    path = Path(folder) / "job.json"
    if not folder or not path.is_file():
        raise InputError(
            f"job: found {str(folder)!r}, expected a folder that `python -m shfcas_lib sweep` made,"
            " for example runs/sweeps/NAME/point/..."
        )
    job = json.loads(path.read_text())
    sweep = path.parent.parent.parent
    needs = {kind: sweep / place for kind, place in job["needs"].items()}
    params = reading.validate(job["params"], str(path))
    return Work(path.parent, job["label"], params, needs)


def execute_job(folder: Path) -> bool:
    """Run the job in `folder`; True where it is done.

    A failure is written down, its notebook kept, and nothing raised.
    """
    die_with_parent()
    job = json.loads((folder / "job.json").read_text())
    # two jobs with two threads each on two cores slow each other down many times
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])
    started, start = time.time(), time.monotonic()
    values = {"job": str(folder)}
    if job["kind"] == "run":
        os.environ["SHFCAS_RUNS"] = str(folder)
        values = reading.changed(reading.validate(job["params"], str(folder / "job.json")))
        values["run"] = "run"

    # either file says that the job has ended; which one says how
    failure = _run_notebooks(folder, job, values)
    if failure:
        files.write_json(folder / "failed.json", failure)
        return False
    files.write_json(
        folder / "done.json",
        {
            "started": started,
            "seconds": round(time.monotonic() - start, 2),
            "digest": job["digest"],
            "commit": machine.commit(),
            "versions": machine.versions(),
            "machine": machine.description(),
        },
    )
    return True


def _run_notebooks(folder: Path, job: dict, values: dict) -> dict[str, str] | None:
    """Run the notebooks of a job's kind; None, or the one that failed and its error."""
    with open(folder / "log.txt", "w") as log:  # progress bars, to look at while it runs
        for name in NOTEBOOKS[job["kind"]]:
            executed = folder / "notebooks" / f"{Path(name).name}.ipynb"
            try:
                error = _changed(job) or run_notebook(name, values, executed, log)
            except Exception as fault:
                # a kernel that was killed, for example: the other jobs go on, this one says what
                # happened
                error = f"{name} stopped: {type(fault).__name__}: {fault}"
            if error:
                sentence = " ".join(error.split())[:500]
                return {"notebook": str(executed.relative_to(folder)), "error": sentence}
    return None


def _changed(job: dict) -> str | None:
    """What changed in the code since the job was planned, in a sentence; None where nothing did."""
    from shfcas_lib.sweeps import digests

    now = digests.code_of(NOTEBOOKS[job["kind"]])
    different = [name for name in job["code"] | now if job["code"].get(name) != now.get(name)]
    if not different:
        return None
    return f"{', '.join(different)} changed after the sweep was started: start it again"
