"""Long work, watched: does memory grow, do files stay open, is anything lost or doubled?

    make soak                                      both
    python tools/soak.py labels --answers 100000   a label store, 8 writers at once
    python tools/soak.py sweep --points 1000       a sweep on a tiny model; interrupted, the same
                                                   command goes on

Prints what docs/reliability.md quotes.
"""

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

import faults
from project import PATHS

from shfcas_lib.storage import files

WRITERS = 8
PRELOAD = ["soak", "shfcas_lib.storage.labels"]


def used(pid="self"):
    """(resident memory in MB, open files) of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.split("VmRSS:")[1].split()[0]) / 1024, 1), len(
        list(Path(f"/proc/{pid}/fd").iterdir())
    )


def write(folder, say, who, answers, marks):
    """One writer: `answers` answers, every eleventh of them taken back and given again. Says
    (answers so far, memory, files) at the marks."""
    from shfcas_lib.storage.labels import LabelStore

    with LabelStore(folder / "labels.sqlite") as store:
        say({"start": time.monotonic()})
        for number in range(answers):
            comparison = {
                "prompt_id": f"{who}-{number // 28}",
                "i": number % 28 // 4,
                "j": 7 + number % 4,
                "strategy": "shf_cas",
                "reason": "K 0.50, |PACS| 1.20 and 0.80",
            }
            if number % 11 == 0:
                store.retract(
                    store.add(
                        comparison,
                        "second",
                        f"person {who}",
                        shown_left=comparison["j"],
                        latency=2.0,
                        after=None,
                    )
                )
            store.add(
                comparison,
                "first",
                f"person {who}",
                shown_left=comparison["i"],
                latency=2.0,
                after=None,
            )
            if number + 1 in marks:
                say((number + 1, *used()))
        say({"end": time.monotonic()})


def labels(folder, answers, context):
    """Fill one store by WRITERS processes at once; returns what was measured, raises where an
    answer is lost or doubled."""
    from shfcas_lib.storage.labels import LabelStore

    each = answers // WRITERS
    marks = (each // 10, each // 2, each)
    outcomes = faults.together(
        context, write, folder, [(who, each, marks) for who in range(WRITERS)], limit=None
    )
    assert all(code == 0 for code, _ in outcomes), outcomes
    seconds = max(heard[-2]["end"] for _, heard in outcomes) - min(
        heard[0]["start"] for _, heard in outcomes
    )
    with LabelStore(folder / "labels.sqlite") as store:
        rows, standing, before = store.rows(), store.labels(), used()
        for _ in range(3):
            store.labels()
        begun = time.monotonic()
        store.labels()
        reading = time.monotonic() - begun
    extra = WRITERS * -(-each // 11)
    assert len(standing) == WRITERS * each and (standing["answer"] == "first").all(), (
        "an answer is lost"
    )
    assert len(rows) == WRITERS * each + 2 * extra, "an answer is doubled"
    said = [[row for row in heard if isinstance(row, tuple)] for _, heard in outcomes]
    growth = {
        row[0] * WRITERS: (max(heard[k][1] for heard in said), max(heard[k][2] for heard in said))
        for k, row in enumerate(said[0])
    }
    return {
        "answers": len(standing),
        "rows": len(rows),
        "seconds": round(seconds, 1),
        "answers_per_second": round(len(standing) / seconds, 1),
        "megabytes": round((folder / "labels.sqlite").stat().st_size / 1e6, 1),
        "memory_and_files_of_a_writer": growth,
        "seconds_to_read_labels": round(reading, 2),
        "memory_and_files_of_the_reader": before,
        "leftovers": [p.name for p in folder.iterdir() if p.name != "labels.sqlite"],
    }


def sweep(folder, points):
    """Drive a sweep of small points; returns what was measured, raises where a point is missing."""
    import conftest
    import yaml

    from shfcas_lib.sweeps import driver
    from shfcas_lib.sweeps import plan as sweep_plan

    os.environ |= {
        "SHFCAS_RUNS": str(folder),
        "SHFCAS_HOME": str(faults.ROOT),
        "PYTHONPATH": PATHS,
        "TQDM_DISABLE": "1",
    }
    model = folder / "tiny_model"
    if not (model / "config.json").exists():
        model.mkdir(parents=True, exist_ok=True)
        conftest.make_tiny_model(model)
    (folder / "base.yaml").write_text(
        yaml.safe_dump(
            {
                "model": {"source": str(model), "quantisation": "none"},
                "prompts": {"n": 30},
                "sampling": {"n": 4, "max_new_tokens": 4},
                "gold": {"kind": "tiny_gold:vowels"},
                "selection": {"rounds": 1, "strategies": ["shf_cas", "random"]},
                "reward": {"l2": 20.0},
                "evaluation": {"replicates": 1, "bootstrap": 100},
            }
        )
    )
    (folder / "soak.yaml").write_text(
        yaml.safe_dump(
            {
                "sweep": "soak",
                "base": "base.yaml",
                "cross": {
                    "selection.budget": list(range(1, 21)),
                    "feedback.noise": [round(k / 1000, 3) for k in range(-(-points // 20))],
                },
            }
        )
    )
    plan = sweep_plan.compile_plan(folder / "soak.yaml")
    seen, stop = [], threading.Event()

    def look():
        while not stop.wait(5):
            finished = sum(driver.is_done(plan, place) for place in plan.jobs)
            below = [
                int(pid)
                for pid in (
                    Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
                )
            ]
            watched = [
                used(pid)
                for pid in below
                if b"snakemake" in Path(f"/proc/{pid}/cmdline").read_bytes()
            ]
            seen.append((finished, used(), *watched[:1]))
            with files.atomic(folder / "soak.json") as target:
                target.write_text(json.dumps(seen))

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    start = time.monotonic()
    status = driver.drive(plan, cores=os.cpu_count(), gpus=0)
    stop.set()
    watcher.join()
    done = [place for place in plan.jobs if driver.is_done(plan, place)]
    assert status == 0 and len(done) == len(plan.jobs), (
        f"{len(plan.jobs) - len(done)} jobs are missing"
    )
    return {
        "points": len(plan.points),
        "jobs": len(plan.jobs),
        "seconds": round(time.monotonic() - start),
        "first": seen[:1],
        "middle": seen[len(seen) // 2 :][:1],
        "last": seen[-1:],
        "leftovers": faults.hidden(plan.folder),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="?", choices=("labels", "sweep"))
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--folder", type=Path, default=faults.ROOT / "runs" / "soak")
    options = parser.parse_args()
    if options.what != "sweep":
        import tempfile

        with tempfile.TemporaryDirectory(
            dir=options.folder.parent if options.folder.parent.exists() else None
        ) as place:
            print(
                json.dumps(labels(Path(place), options.answers, faults.server(PRELOAD)), indent=1)
            )
    if options.what != "labels":
        options.folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(sweep(options.folder.resolve(), options.points), indent=1))
    sys.exit(0)
