"""SLURM, for a sweep's driver: is it asked for, and which jobs of a dead driver wait there?"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from pathlib import Path

from shfcas_lib.base.errors import InputError
from shfcas_lib.params import reading
from shfcas_lib.sweeps.plan import SweepPlan

# what a job that loads the model asks a cluster for, unless --cores says otherwise: this
# machine's count means nothing there
CLUSTER_CORES = 4


def is_slurm(profile: Path) -> bool:
    """Does this Snakemake profile send jobs to SLURM?"""
    return reading.read_yaml(profile / "config.yaml").get("executor") == "slurm"


def job_name(plan: SweepPlan) -> str:
    """The name that this sweep's SLURM jobs start with."""
    digest = hashlib.sha256(str(plan.folder.resolve()).encode()).hexdigest()
    return f"shfcas-{digest[:10]}"


def ran_on_slurm(plan: SweepPlan) -> bool:
    """Did an earlier start of this sweep send its jobs to SLURM?"""
    path = plan.folder / "plan.json"
    return path.exists() and bool(json.loads(path.read_text()).get("slurm"))


def cancel_orphans(plan: SweepPlan) -> None:
    """Cancel jobs of a driver that died.

    They live on in SLURM's queue, and a new driver would run them once more.
    """
    ids = [number for number, name in _queue() if name.startswith(job_name(plan))]
    if ids:
        print(f"cancelling {len(ids)} jobs of a driver that died")
        subprocess.run(["scancel", *ids], check=True)
        while set(ids) & {number for number, _ in _queue()}:
            time.sleep(0.5)


def _queue() -> list[tuple[str, str]]:
    """(id, name) of this user's jobs."""
    try:
        answer = subprocess.run(
            ["squeue", "--me", "--noheader", "--format=%i %j"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            "this sweep ran on SLURM, but squeue does not answer, so that jobs of a dead driver"
            f" cannot be cancelled: {error}"
        ) from error
    parts = [line.partition(" ") for line in answer.stdout.splitlines()]
    return [(number, name) for number, _, name in parts]
