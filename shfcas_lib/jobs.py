"""One job of a sweep: a folder with job.json, run as one notebook under Papermill.

    python -m shfcas_lib job runs/sweeps/label_efficiency/point/helpfulness.0.40-1f2e3d4c     what Snakemake calls
    work = jobs.open_job(job)                                                                 what the notebook calls

Kinds: `pool` samples completions and their gold, `cases` fits what strategies share, `point` runs strategies, `policies` trains policies against
what they refined, `run` is the four notebooks in a run folder of their own. A job leaves its executed notebook, log.txt (progress) and
done.json, or failed.json that says in which cell it stopped.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from shfcas_lib import params as parameters
from shfcas_lib import runs
from shfcas_lib.params import InputError, Params

_PR_SET_PDEATHSIG = 1
BACKBONE = ("pool", "policies", "run")  # these kinds load the language model: one at a time on a GPU, two on a CPU
NOTEBOOKS = {"pool": ("sweep/pool",), "cases": ("sweep/cases",), "point": ("sweep/point",), "policies": ("sweep/policies",),
             "run": ("01_proxy_bias_injection", "02_conflict_analysis", "03_targeted_feedback", "04_evaluation")}


@dataclass(frozen=True)
class Work:
    """An open job: its parameters, its label, its own tables, and those of the jobs it needs."""

    folder: Path
    label: dict[str, str]
    params: Params
    needs: dict[str, Path]

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table of this job: read, or made and written whole."""
        return runs.Stage(self.folder, None).table(name, make)

    def read(self, kind: str, name: str) -> pd.DataFrame:
        """A table of the job of that kind which this one needs."""
        return pd.read_parquet(self.needs[kind] / f"{name}.parquet")


def open_job(folder: str | Path) -> Work:
    """The job in `folder`. Raises InputError where there is none."""
    path = Path(folder) / "job.json"
    if not folder or not path.is_file():
        raise InputError(f"job: found {str(folder)!r}, expected a folder that `python -m shfcas_lib sweep` made, for example runs/sweeps/NAME/point/...")
    job = json.loads(path.read_text())
    sweep = path.parent.parent.parent
    return Work(path.parent, job["label"], parameters.check(job["params"], str(path)), {kind: sweep / place for kind, place in job["needs"].items()})


def execute(folder: Path) -> bool:
    """Run the job in `folder`; True where it is done. A failure is written down, its notebook kept, and nothing raised."""
    die_with_parent()
    job = json.loads((folder / "job.json").read_text())
    os.environ["OMP_NUM_THREADS"] = str(job["threads"])  # two jobs with two threads each on two cores slow each other down many times
    started, start = time.time(), time.monotonic()
    if job["kind"] == "run":
        os.environ["SHFCAS_RUNS"], job["params"]["run"] = str(folder), "run"
        values = job["params"]
    else:
        values = {"job": str(folder)}
    with open(folder / "log.txt", "w") as log:  # progress bars, to look at while it runs
        for name in NOTEBOOKS[job["kind"]]:
            executed = folder / "notebooks" / f"{Path(name).name}.ipynb"
            try:
                error = _changed(job) or run_notebook(name, values, executed, log)
            except Exception as fault:  # a kernel that was killed, for example: the other jobs go on, this one says what happened
                error = f"{name} stopped: {type(fault).__name__}: {fault}"
            if error:
                runs.write_json(folder / "failed.json", {"notebook": str(executed.relative_to(folder)), "error": " ".join(error.split())[:500]})
                return False
    runs.write_json(folder / "done.json", {"started": started, "seconds": round(time.monotonic() - start, 2), "digest": job["digest"],
                                           "commit": runs.commit(), "versions": runs.versions(), "machine": runs.machine()})
    return True


def _changed(job: dict) -> str | None:
    """What differs between the code that the job was planned with and the code that would run now, in a sentence."""
    from shfcas_lib import sweep

    now = sweep.code_of(NOTEBOOKS[job["kind"]])
    different = [name for name in job["code"] | now if job["code"].get(name) != now.get(name)]
    return f"{', '.join(different)} changed after the sweep was started: start it again" if different else None


def run_notebook(name: str, values: dict, executed: Path, output=None) -> str | None:
    """Run notebooks/`name`.ipynb through Papermill with parameters `values`, its executed copy to `executed`; progress bars go to `output`
    (default: nowhere). Returns one line about what went wrong, or None. Raises InputError where the notebook does not exist."""
    papermill = _papermill()
    source = _source(name)
    executed.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    try:
        papermill.execute_notebook(source, executed, parameters=values, cwd=runs.home(), kernel_name="python3", progress_bar=False,
                                   stderr_file=output, extra_arguments=["--IPKernelApp.log_level=ERROR"])
    except papermill.PapermillExecutionError as error:
        return f"{name} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}"
    return None


def prepare_notebook(name: str, values: dict, copy: Path) -> Path:
    """Write a copy of a notebook with `values` in it, as Papermill would inject them, not executed; returns its absolute path."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    _papermill().execute_notebook(_source(name), copy, parameters=values, kernel_name="python3", prepare_only=True, progress_bar=False)
    return copy.resolve()


def _source(name: str) -> Path:
    source = runs.home() / "notebooks" / f"{name}.ipynb"
    if not source.is_file():
        raise InputError(f"notebook {source} does not exist: run this command inside the project folder")
    return source


def _papermill():
    """The package. Its validator would compile the grammars of internationalised addresses, which no notebook has: a second for every job."""
    grammars = "rfc3987_syntax"
    unseen = sys.modules.setdefault(grammars, None) is None
    import papermill

    if unseen:
        sys.modules.pop(grammars)
    return papermill


def die_with_parent() -> None:
    """Ask the kernel to kill this process when the one that started it dies: a driver that is killed leaves no orphans."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
