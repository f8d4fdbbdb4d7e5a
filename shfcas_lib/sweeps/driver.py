"""The driver of a sweep: Snakemake runs the jobs of a plan that are not done, a line for each.

status = drive(compile_plan(path))  # type it again to resume, after whatever happened
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from shfcas_lib.base import extras, places, processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading
from shfcas_lib.storage import files, locks
from shfcas_lib.sweeps import jobs
from shfcas_lib.sweeps.plan import SweepPlan
from shfcas_lib.sweeps.slurm import CLUSTER_CORES, cancel_orphans, is_slurm, job_name, ran_on_slurm

_CONFIG, _LOG = "snakemake.json", "snakemake.log"  # in the sweep's folder


def drive(
    plan: SweepPlan,
    cores: int | None = None,
    gpus: int | None = None,
    profile: Path | None = None,
    dry_run: bool = False,
) -> int:
    """Run what is not done yet.

    Returns 0, or 1 where a job failed (the others go on). Raises InputError where another driver
    is at work.
    """
    extras.need("sweep", what="a sweep")
    missing = _reasons(plan)
    print(
        f"sweep {plan.name}: {len(plan.points)} points, {len(plan.jobs)} jobs, {len(missing)} to"
        f" run; {plan.folder}"
    )
    if dry_run:
        for place, why in missing.items():
            print(f"  {place:<60} {why}")
        return 0
    plan.folder.mkdir(parents=True, exist_ok=True)
    locks.need(plan.folder)
    with open(plan.folder / ".lock", "w") as lock:
        # the lock is free again when this process ends, however it ends
        try:
            if locks.wanted():
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another driver is already running this sweep in {plan.folder}: wait for it, or"
                " stop it first"
            ) from None
        failed = _run_missing(plan, missing, cores, gpus, profile)
    return 1 if failed else 0


def _run_missing(
    plan: SweepPlan,
    missing: dict[str, str],
    cores: int | None,
    gpus: int | None,
    profile: Path | None,
) -> list[str]:
    """Write the plan and run its missing jobs; returns those that failed."""
    files.clear(plan.folder)
    slurm = profile is not None and is_slurm(profile)
    if slurm or ran_on_slurm(plan):
        cancel_orphans(plan)
    cores = cores or (CLUSTER_CORES if slurm else os.cpu_count() or 1)
    gpus = _gpus() if gpus is None else gpus
    at_once = _at_once(cores, gpus, profile)
    _write(plan, missing, cores // at_once, slurm)
    if not missing:
        return []
    return _snakemake(plan, missing, cores, gpus, at_once, profile)


def _at_once(cores: int, gpus: int, profile: Path | None) -> int:
    """How many jobs that load the language model run beside each other.

    On a CPU two, each on half of the cores: one that samples on two cores leaves a quarter of
    them idle (docs/sweeps.md). On a GPU, and for a cluster's scheduler, each job has what it asks
    for.
    """
    return 2 if cores > 1 and not gpus and not profile else 1


def is_done(plan: SweepPlan, place: str) -> bool:
    """Is that job done?"""
    return (plan.folder / place / "done.json").exists()


def _reasons(plan: SweepPlan) -> dict[str, str]:
    """The jobs that are not done, in order, each with the reason in a few words."""
    before = _previous(plan.folder)
    reasons: dict[str, str] = {}
    for place, job in plan.jobs.items():
        if is_done(plan, place):
            continue
        upstream = [need for need in job["needs"].values() if need in reasons]
        old = before.get((job["kind"], reading.fingerprint(job["params"])))
        same = before.get((job["kind"], json.dumps(job["label"])))
        if (plan.folder / place / "failed.json").exists():
            reasons[place] = "failed before"
        elif old and old["code"] != job["code"]:
            now, then = job["code"], old["code"]
            changed = [name for name in now | then if now.get(name) != then.get(name)]
            reasons[place] = f"changed: {', '.join(changed)}"
        elif upstream:
            reasons[place] = f"needs {upstream[0]}"
        elif same and same["params"] != job["params"]:
            reasons[place] = "other parameters than before"
        else:
            reasons[place] = "not run yet" if not old else "not finished"
    return reasons


def _previous(folder: Path) -> dict[tuple[str, str], dict]:
    """The jobs of the last plan that was run in this folder.

    Each by its kind and parameters, and by its kind and label.
    """
    path = folder / "plan.json"
    if not path.exists():
        return {}
    before = {}
    for job in json.loads(path.read_text())["jobs"].values():
        before[job["kind"], reading.fingerprint(job["params"])] = job
        before[job["kind"], json.dumps(job["label"])] = job
    return before


def _write(plan: SweepPlan, missing: dict[str, str], cores: int, slurm: bool) -> None:
    """The plan, and a folder with job.json for every job that is to run.

    cores: for one that loads the language model.
    """
    for place in missing:
        (plan.folder / place).mkdir(parents=True, exist_ok=True)
        for left in ("failed.json", "log.txt"):
            (plan.folder / place / left).unlink(missing_ok=True)
        threads = cores if plan.jobs[place]["kind"] in jobs.BACKBONE else 1
        files.write_json(plan.folder / place / "job.json", plan.jobs[place] | {"threads": threads})
    written = {
        "sweep": plan.name,
        "definition": plan.definition,
        "slurm": slurm,
        "points": plan.points,
        "jobs": plan.jobs,
    }
    files.write_json(plan.folder / "plan.json", written)


def _snakemake(
    plan: SweepPlan,
    missing: dict[str, str],
    cores: int,
    gpus: int,
    at_once: int,
    profile: Path | None,
) -> list[str]:
    """Run Snakemake below this process, one line per finished job; returns the jobs that failed."""
    command = _command(plan, cores, gpus, at_once, profile)
    config = {"python": sys.executable, "cores": cores // at_once, "gpus": gpus}
    files.write_json(plan.folder / _CONFIG, config)
    environment = os.environ | {
        "SHFCAS_RUNS": str(places.runs_dir().resolve()),
        "SHFCAS_HOME": str(places.home().resolve()),
    }
    with open(plan.folder / _LOG, "a") as log:
        said = log.tell()
        process = subprocess.Popen(
            command,
            cwd=plan.folder,
            stdout=log,
            stderr=log,
            env=environment,
            preexec_fn=processes.die_with_parent,
        )
        try:
            failed = _watch(plan, list(missing), process, cores, at_once)
        except BaseException:
            process.kill()
            raise
    if process.returncode and not failed:
        why = _last_words(plan.folder / _LOG, said)
        raise InputError(
            f"Snakemake stopped with status {process.returncode}: {why} (all that it said is in"
            f" {plan.folder / _LOG})"
        )
    return failed


def _last_words(log: Path, start: int) -> str:
    """The last lines of a log from byte `start` on, in one; tracebacks end with what matters."""
    with open(log, "rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").split("\n")
    return " | ".join([line.strip() for line in lines if line.strip()][-3:]) or "it said nothing"


def _command(
    plan: SweepPlan, cores: int, gpus: int, at_once: int, profile: Path | None
) -> list[str]:
    """The command line of Snakemake, below the sweep's folder.

    No path of the user's stands in it: Snakemake reads `#`, `:` and quotes in them as its own.
    """
    command = [sys.executable, "-m", "snakemake"]
    command += ["--snakefile", str(Path(__file__).parent / "Snakefile")]
    command += ["--nolock", "--rerun-incomplete", "--rerun-triggers", "params", "--keep-going"]
    command += ["--quiet", "all", "--configfile", _CONFIG]
    if profile is None:
        resources = [f"backbone={at_once}", f"gpu={gpus}"]
        return [*command, "--cores", str(cores), "--resources", *resources]
    command += ["--profile", str(profile.resolve())]
    if is_slurm(profile):
        command += ["--slurm-jobname-prefix", job_name(plan)]
    return command


def _watch(
    plan: SweepPlan, waiting: list[str], process: subprocess.Popen, cores: int, at_once: int
) -> list[str]:
    """Print a line for each job that finishes, until Snakemake ends; returns those that failed."""
    start, total = time.monotonic(), len(waiting)
    failed: list[str] = []
    seconds: dict[str, list[float]] = {}
    ended = False
    while waiting and not ended:
        ended = process.poll() is not None  # one more look after the end
        for place in list(waiting):
            state = _state(plan.folder / place)
            if not state:
                continue
            waiting.remove(place)
            if state == "done":
                done = json.loads((plan.folder / place / "done.json").read_text())
                seconds.setdefault(plan.jobs[place]["kind"], []).append(done["seconds"])
            else:
                failed.append(place)
            left = _remaining([plan.jobs[p]["kind"] for p in waiting], seconds, cores, at_once)
            count = f"{total - len(waiting):>{len(str(total))}}/{total}"
            elapsed = _clock(time.monotonic() - start)
            print(f"[{count}] {place:<56} {state}  elapsed {elapsed}, left {left}", flush=True)
        if not ended:
            time.sleep(0.3)
    process.wait()
    return failed + _left_over(plan, waiting, failed)


def _state(folder: Path) -> str:
    """'' while a job runs or waits, 'done', or FAILED with what went wrong."""
    if (folder / "done.json").exists():
        return "done"
    if not (folder / "failed.json").exists():
        return ""
    fault = json.loads((folder / "failed.json").read_text())
    return f"FAILED  {fault['error']}  ({folder / fault['notebook']})"


def _left_over(plan: SweepPlan, waiting: list[str], failed: list[str]) -> list[str]:
    """Say what became of the jobs that left no word; returns those that had begun."""
    killed: list[str] = []
    for place in waiting:
        if (plan.folder / place / "log.txt").exists():
            killed.append(place)
            print(f"FAILED: {place} was killed, or ran out of memory or time")
        else:
            reason = " (a job that it needs failed)" if failed or killed else ""
            print(f"not run: {place}{reason}")
    return killed


def _remaining(kinds: list[str], seconds: dict[str, list[float]], cores: int, at_once: int) -> str:
    """Time left, by the mean of finished jobs of the same kind; unknown while a kind has none."""
    if any(kind not in seconds for kind in kinds):
        return "not known yet"
    total = 0.0
    for kind in kinds:
        mean = sum(seconds[kind]) / len(seconds[kind])
        total += mean / (at_once if kind in jobs.BACKBONE else cores)
    return f"about {_clock(total)}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _gpus() -> int:
    """1 where this machine shows an NVIDIA GPU, else 0; one GPU is used even where there are more.

    No import of torch for it.
    """
    return int(Path("/proc/driver/nvidia/version").exists())
