"""What reads strangers' bytes, as functions of bytes: each returns, or raises InputError on one
short line, and nothing else.

    python tools/fuzz.py 60          every target in turn, so many seconds each, guided by coverage
                                     (atheris; `make fuzz`)
    python tools/fuzz.py 60 jsonl    one of them

tests/whole/test_hostile.py runs the same functions on what hypothesis makes up.
"""

import atexit
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

PLACE = Path(os.environ.get("SHFCAS_FUZZ") or tempfile.mkdtemp(prefix="shfcas-fuzz-"))
if __name__ != "__main__":  # what the guided form finds stays there
    atexit.register(shutil.rmtree, PLACE, ignore_errors=True)


def written(name, content):
    path = PLACE / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def parameters(content):
    """A parameter file."""
    reading.load(written("mine.yaml", content))


def sweep_file(content):
    """A sweep file, up to the points that it crosses to."""
    path = written("sweep.yaml", content)
    for number, _ in enumerate(sweep_plan._cross(path, sweep_plan._read(path))):
        if number > 20:
            break


def _pairs(suffix):
    def read(content):
        path = written(f"mine.{suffix}", content)
        load_pairs(Preferences(file=str(path), bad_rows="drop" if len(content) % 2 else "stop"))

    return read


def rows(content):
    """One row that is valid JSON, under column names that make every branch of the reader run."""
    path = written("row.jsonl", content)
    for columns in (
        {},
        {"prompt": None},
        {"first": "chosen", "second": "rejected", "better": "label"},
        {"preference": "label"},
        {"rating_first": "label", "rating_second": "harmful"},
        {"category": ["category", "label"]},
    ):
        for read in (
            lambda block: load_pairs(Preferences(**block)),
            lambda block: _load_own_prompts(Prompts(**block), 0, ["b"]),
        ):
            try:
                read({"file": str(path), "columns": columns})
            except InputError as error:
                fine(error)


def dialogue(content):
    """Text that may look like a dialogue or a transcript."""
    text = content.decode("utf-8", "replace")
    assert dialogues.messages(dialogues.encode([{"role": "user", "content": text}])) == [
        {"role": "user", "content": text}
    ]
    dialogues.plain(text)
    dialogues.from_transcript(text)


def sheet(content):
    """A spreadsheet of answers."""
    spreadsheet.from_csv(content.decode("utf-8-sig", "replace"), "sheet.csv", "me")


def label_studio(content):
    """Label Studio's export."""
    from_label_studio(content.decode("utf-8-sig", "surrogateescape"), "export.json")


def answers(content):
    """Files of answers to replay."""
    for suffix in ("csv", "parquet", "jsonl"):
        try:
            load_annotator(
                Feedback(kind="replay", file=str(written(f"answers.{suffix}", content))), None, 0
            )
        except InputError as error:
            fine(error)


def manifest(content):
    """The manifest of a cached asset."""
    assets._verify(
        written("toy/asset.json", content).parent,
        replace(assets.ASSETS["do-not-answer"], sha256="0" * 64),
    )


def wheel(content):
    """A wheel: whatever it is, nothing is written beside the files that were asked for."""
    staging = PLACE / "staging"
    for stale in staging.glob("*") if staging.exists() else []:
        stale.unlink()
    toy = dataclasses.replace(assets.ASSETS["do-not-answer"], members={"a/b.txt": "b.txt"})
    try:
        assets._unpack(written("staging/toy.whl", content), toy, staging)
    except OSError:
        pass  # which the caller turns into a sentence about the cache folder
    finally:
        assert {path.name for path in staging.iterdir()} <= {"toy.whl", "b.txt"}


def provenance_file(content):
    """A run folder's facts, and the record beside a released figure."""
    figure = written("run/figure.png", b"x")
    for name in ("run.json", "provenance.json", "plan.json"):
        for other in ("run.json", "provenance.json", "plan.json"):
            (figure.parent / other).unlink(missing_ok=True)
        written(f"run/{name}", content)
        try:
            provenance.trace_text(provenance.trace(figure))
        except InputError as error:
            fine(error)


TARGETS = {
    "parameters": parameters,
    "sweep": sweep_file,
    "jsonl": _pairs("jsonl"),
    "jsonl.gz": _pairs("jsonl.gz"),
    "csv": _pairs("csv"),
    "parquet": _pairs("parquet"),
    "rows": rows,
    "dialogue": dialogue,
    "sheet": sheet,
    "label_studio": label_studio,
    "answers": answers,
    "manifest": manifest,
    "wheel": wheel,
    "provenance": provenance_file,
}


def fine(error):
    """A refusal is one short printable line."""
    assert str(error).isprintable() and 0 < len(str(error)) <= 2000, error


def attempt(name, content):
    """Run one target; raises where it does anything but return or refuse."""
    try:
        TARGETS[name](content)
    except InputError as error:
        fine(error)


def seeds():
    """Inputs to start from, by target."""
    pair = {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
        "label": 1,
        "category": {"x": True},
        "harmful": False,
    }
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    line = json.dumps(pair).encode()
    zipped = PLACE / "seed.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("a/b.txt", "one")
        archive.writestr("../c.txt", "two")
    question = "q-0123456789abcdef-4-1-0f1e2d3c"
    exported = [
        {
            "id": 1,
            "data": {"question": question},
            "annotations": [
                {
                    "id": 1,
                    "completed_by": {"email": "a@b"},
                    "updated_at": "2026",
                    "result": [
                        {"type": "choices", "from_name": "answer", "value": {"choices": ["left"]}}
                    ],
                }
            ],
        }
    ]
    run = {"parameters": {"run": "x", "seed": 0}, "seed": 0, "commit": "c", "versions": {"a": "1"}}
    sha = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    record = {
        "files": {"figure.png": {"sha256": sha, "record": "x", "made": "m"}},
        "records": {"x": {"kind": "run", "name": "x", "definition": {}, "facts": {}}},
    }
    plan = {
        "sweep": "s",
        "jobs": {"pool/x": {"params": {"seed": 1}, "inputs": {"a": "b"}}},
        "definition": {"sweep": "s"},
    }
    found = {
        "parameters": [
            b"seed: 0\nbias: [{kind: noise, rate: 0.5}]\nsampling: {n: 4}\n",
            b"a: &a [1]\nb: *a",
            b"!!python/name:os.system x",
        ],
        "sweep": [
            b"sweep: s\nbase: {seed: 0}\ncross: {seed: [0, 1]}\nset: {sampling.n: 3}\ngrids: {a:"
            b" {selection.budget: [1]}}\n"
        ],
        "jsonl": [line, line + b"\n" + line],
        "csv": [b"prompt,chosen,rejected,label\nq,a,b,1\n"],
        "parquet": [b"PAR1"],
        "rows": [line, json.dumps(pair | {"chosen": talk, "rejected": talk}).encode()],
        "sheet": [f"question,answer\n{question},left\n".encode()],
        "label_studio": [json.dumps(exported).encode()],
        "answers": [b"prompt_id,i,j,answer\nx,0,1,first\n"],
        "wheel": [zipped.read_bytes()],
        "manifest": [b'{"files": {"asset.json": "0"}, "wheel_sha256": "' + b"0" * 64 + b'"}'],
        "dialogue": [b"\n\nHuman: a\n\nAssistant: b", json.dumps(talk).encode()],
        "provenance": [json.dumps(values).encode() for values in (run, record, plan)],
    }
    return {name: found.get(name, []) for name in TARGETS}


def _guided(name, seconds):
    """One target under atheris, in this process, which it ends."""
    import atheris

    corpus = PLACE / "corpus" / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(seeds()[name]):
        (corpus / str(number)).write_bytes(content)
    for function in {
        id(f): f
        for module in (
            schema,
            problems,
            formats,
            data_rows,
            dialogues,
            exchange,
            feedback,
            assets,
            provenance,
            sweep_plan,
        )
        for f in vars(module).values()
        if callable(f)
        and getattr(f, "__module__", "") == module.__name__
        and hasattr(f, "__code__")
    }.values():
        atheris.instrument_func(function)
    atheris.Setup(
        [
            sys.argv[0],
            str(corpus),
            f"-max_total_time={seconds}",
            "-timeout=20",
            "-rss_limit_mb=3000",
            "-print_final_stats=1",
            f"-artifact_prefix={PLACE}/{name}-",
        ],
        lambda content: attempt(name, content),
    )
    atheris.Fuzz()


if __name__ == "__main__":
    seconds, chosen = int(sys.argv[1]), sys.argv[2:] or list(TARGETS)
    if len(chosen) > 1:
        failed = []
        for name in chosen:
            done = subprocess.run(
                [sys.executable, __file__, str(seconds), name],
                capture_output=True,
                text=True,
                env=os.environ | {"SHFCAS_FUZZ": str(PLACE / name)},
            )
            runs_ = [
                line.split()[-1]
                for line in done.stderr.splitlines()
                if "number_of_executed_units" in line
            ]
            print(
                f"{name:<14}{runs_[0] if runs_ else '?':>10} inputs  "
                f" {'fine' if done.returncode == 0 else 'FAILED'}",
                flush=True,
            )
            if done.returncode:
                failed.append(name)
                print(done.stderr[-3000:])
        sys.exit(1 if failed else 0)

# ruff: noqa: E402 (the guided form of many targets starts a process for each and imports nothing)
from shfcas_lib import feedback
from shfcas_lib.annotators import exchange, spreadsheet
from shfcas_lib.annotators.label_studio import from_label_studio
from shfcas_lib.annotators.people import load_annotator
from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.data import formats
from shfcas_lib.data import rows as data_rows
from shfcas_lib.data.preferences import load_pairs
from shfcas_lib.data.prompts import _load_own_prompts
from shfcas_lib.params import problems, reading, schema
from shfcas_lib.params.schema import Feedback, Preferences, Prompts
from shfcas_lib.storage import assets, provenance
from shfcas_lib.sweeps import plan as sweep_plan

if __name__ == "__main__":
    _guided(chosen[0], seconds)
