"""The same sweep on a real SLURM: results equal to local ones, and jobs of a driver that died are
cancelled before they are submitted again.

`.ci/run` starts a SLURM of one node (`.ci/slurm`) and sets SHFCAS_TEST_SLURM; no test submits to
a cluster it was not told of."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from project import ROOT, environment
from tiny_sweep import assert_same, drive, results, write_sweep

PROFILE = ("--profile", "profiles/slurm")

if os.environ.get("SHFCAS_TEST_SLURM") != "1" or not shutil.which("sbatch"):
    pytest.skip(
        "NOT TESTED: SLURM. To test it on this machine: apt-get install slurmctld slurmd"
        " slurm-client munge, then, as root, `.ci/slurm`, and SHFCAS_TEST_SLURM=1 make test",
        allow_module_level=True,
    )


def queue():
    return subprocess.run(
        ["squeue", "--noheader", "--format=%i %j %T"], capture_output=True, text=True, check=True
    ).stdout.split("\n")[:-1]


def start(path, runs_folder, log):
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "shfcas_lib",
            "sweep",
            str(path),
            "--cores",
            "1",
            "--gpus",
            "1",
            *PROFILE,
        ],
        cwd=ROOT,
        env=environment(runs_folder),
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
    )


def suspend(job):
    """Stop a job where it is, as soon as it runs: else it may be done before anybody looks."""
    end = time.time() + 60
    while subprocess.run(["scontrol", "suspend", job], capture_output=True).returncode:
        assert time.time() < end, queue()
        time.sleep(0.2)


@pytest.mark.timeout(1200)
def test_slurm_gives_the_same_results_and_a_dead_driver_is_cleaned_up(tiny_model, tmp_path):
    path = write_sweep(tmp_path, tiny_model, cross={"seed": [0], "selection.budget": [6, 12]})
    local = drive(path, tmp_path / "local")
    assert local.returncode == 0, local.stdout + local.stderr[-2000:]

    mine = tmp_path / "slurm"
    with open(tmp_path / "first.log", "w") as log:
        process = start(path, mine, log)
        end = time.time() + 120
        while not queue() and time.time() < end:
            time.sleep(0.3)
        for line in queue():
            suspend(line.split()[0])
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert queue(), (tmp_path / "first.log").read_text()

    with open(tmp_path / "second.log", "w") as log:
        process = start(path, mine, log)
        process.wait(900)
    said = (tmp_path / "second.log").read_text()
    assert process.returncode == 0, said
    assert "jobs of a driver that died" in said and " 4 to run" in said
    assert_same(results(mine), results(tmp_path / "local"))
    assert not [line for line in queue() if line.split()[2] in ("RUNNING", "PENDING")]
    submitted = subprocess.run(
        ["scontrol", "show", "jobs"], capture_output=True, text=True, check=True
    ).stdout
    assert "TresPerJob=gres" in submitted  # the job that loads the model asked for the GPU
