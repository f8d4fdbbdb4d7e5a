"""The driver of a sweep: a plan goes in, Snakemake runs the jobs that are not done, a line for
each finished one comes out.

status = drive(compile_plan(path))          # type it again to resume, after whatever happened
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from shfcas_lib.base import places, processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading
from shfcas_lib.storage import files
from shfcas_lib.sweeps import jobs
from shfcas_lib.sweeps.plan import SweepPlan
from shfcas_lib.sweeps.slurm import CLUSTER_CORES, cancel_orphans, is_slurm, job_name, ran_on_slurm


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
    _need_snakemake()
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
    with open(plan.folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another driver is already running this sweep in {plan.folder}: wait for it, or"
                " stop it first"
            ) from None
        files.clear(plan.folder)
        slurm = profile is not None and is_slurm(profile)
        if slurm or ran_on_slurm(plan):
            cancel_orphans(plan)
        cores = cores or (CLUSTER_CORES if slurm else os.cpu_count() or 1)
        gpus = _gpus() if gpus is None else gpus
        at_once = _at_once(cores, gpus, profile)
        _write(plan, missing, cores // at_once, slurm)
        failed = _snakemake(plan, missing, cores, gpus, at_once, profile) if missing else []
    return 1 if failed else 0


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
            changed = [
                name
                for name in job["code"] | old["code"]
                if job["code"].get(name) != old["code"].get(name)
            ]
            reasons[place] = f"changed: {', '.join(changed)}"
        elif upstream:
            reasons[place] = f"needs {upstream[0]}"
        elif same and same["params"] != job["params"]:
            reasons[place] = "other parameters than before"
        else:
            reasons[place] = "not run yet" if not old else "not finished"
    return reasons


def _previous(folder: Path) -> dict[tuple[str, str], dict]:
    """The jobs of the last plan that was run in this folder, by kind and parameters, and by kind
    and label.
    """
    path = folder / "plan.json"
    found = json.loads(path.read_text())["jobs"].values() if path.exists() else []
    return {
        (job["kind"], key): job
        for job in found
        for key in (reading.fingerprint(job["params"]), json.dumps(job["label"]))
    }


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
    files.write_json(
        plan.folder / "plan.json",
        {
            "sweep": plan.name,
            "definition": plan.definition,
            "slurm": slurm,
            "points": plan.points,
            "jobs": plan.jobs,
        },
    )


def _snakemake(
    plan: SweepPlan,
    missing: dict[str, str],
    cores: int,
    gpus: int,
    at_once: int,
    profile: Path | None,
) -> list[str]:
    """Run Snakemake below this process, one line per finished job; returns the places of jobs
    that failed.
    """
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(Path(__file__).parent / "Snakefile"),
        "--directory",
        str(plan.folder),
        "--nolock",
        "--rerun-incomplete",
        "--rerun-triggers",
        "params",
        "--keep-going",
        "--quiet",
        "all",
        "--config",
        f"plan={plan.folder / 'plan.json'}",
        f"python={sys.executable}",
        f"cores={cores // at_once}",
        f"gpus={gpus}",
    ]
    if profile:
        command += (
            ["--profile", str(profile.resolve()), "--slurm-jobname-prefix", job_name(plan)]
            if is_slurm(profile)
            else ["--profile", str(profile.resolve())]
        )
    else:
        command += ["--cores", str(cores), "--resources", f"backbone={at_once}", f"gpu={gpus}"]
    environment = os.environ | {
        "SHFCAS_RUNS": str(places.runs_dir().resolve()),
        "SHFCAS_HOME": str(places.home().resolve()),
    }
    with open(plan.folder / "snakemake.log", "a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, preexec_fn=processes.die_with_parent
        )
        try:
            failed = _watch(plan, list(missing), process, cores, at_once)
        except BaseException:
            process.kill()
            raise
    if process.returncode and not failed:
        raise InputError(
            f"Snakemake stopped with status {process.returncode}: {plan.folder / 'snakemake.log'}"
            " says why"
        )
    return failed


def _watch(
    plan: SweepPlan, waiting: list[str], process: subprocess.Popen, cores: int, at_once: int
) -> list[str]:
    """Print a line for each job that finishes, until Snakemake ends."""
    start, total, failed = time.monotonic(), len(waiting), []
    seconds: dict[str, list[float]] = {}
    ended = False
    while waiting and not ended:
        ended = process.poll() is not None  # one more look after the end
        for place in list(waiting):
            folder = plan.folder / place
            state = (
                "done"
                if (folder / "done.json").exists()
                else "FAILED"
                if (folder / "failed.json").exists()
                else ""
            )
            if not state:
                continue
            waiting.remove(place)
            kind = plan.jobs[place]["kind"]
            if state == "done":
                seconds.setdefault(kind, []).append(
                    json.loads((folder / "done.json").read_text())["seconds"]
                )
            else:
                failed.append(place)
                fault = json.loads((folder / "failed.json").read_text())
                state = f"FAILED  {fault['error']}  ({folder / fault['notebook']})"
            left = _remaining([plan.jobs[p]["kind"] for p in waiting], seconds, cores, at_once)
            print(
                f"[{total - len(waiting):>{len(str(total))}}/{total}] {place:<56} {state}  elapsed"
                f" {_clock(time.monotonic() - start)}, left {left}",
                flush=True,
            )
        if not ended:
            time.sleep(0.3)
    process.wait()
    for place in waiting:
        if (plan.folder / place / "log.txt").exists():
            failed.append(place)
            print(f"FAILED: {place} was killed, or ran out of memory or time")
        else:
            print(f"not run: {place}" + (" (a job that it needs failed)" if failed else ""))
    return failed


def _remaining(kinds: list[str], seconds: dict[str, list[float]], cores: int, at_once: int) -> str:
    """Time left, by the mean of finished jobs of the same kind; unknown as long as a kind has
    none.
    """
    if any(kind not in seconds for kind in kinds):
        return "not known yet"
    mean = {kind: sum(values) / len(values) for kind, values in seconds.items()}
    return "about " + _clock(
        sum(mean[kind] / (at_once if kind in jobs.BACKBONE else cores) for kind in kinds)
    )


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def _gpus() -> int:
    """1 where this machine shows an NVIDIA GPU, else 0; one GPU is used even where there are more.

    No import of torch for it.
    """
    return int(Path("/proc/driver/nvidia/version").exists())


def _need_snakemake() -> None:
    import importlib.util

    if importlib.util.find_spec("snakemake") is None:
        raise InputError(
            "sweeps run on Snakemake, which is an extra: python -m pip install --constraint"
            " requirements.lock --editable '.[sweep]'"
        )
