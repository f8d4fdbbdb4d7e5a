"""Where a figure, a table or a number comes from: a file goes in, what made it and the command
that makes it again come out.

    print(text(trace(Path("figures/pacs_plane.png"))))
    release(Path("runs/quickstart/02_conflict/figures/pacs_plane.png"), Path("figures/pacs_plane.png"))

A file inside a run folder is traced by the folder's run.json, one inside a sweep's folder by
plan.json and the done.json of its jobs. What was released from there (figures/, docs/results/) is
traced by the provenance.json beside it, which holds the same facts and the file's sha256: a
figure that was changed afterwards has no trace. Nothing is written into the figures themselves,
so that the same table gives the same bytes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import ValidationError

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Params
from shfcas_lib.storage import files
from shfcas_lib.storage.files import sha256, write_json
from shfcas_lib.storage.inputs import wheels

RECORDS = "provenance.json"
_PEOPLE = ("person", "team", "mixed", "judge")


@dataclass(frozen=True)
class Trace:
    """What made a file. made: its place below the folder of the run or sweep; definition: the
    parameters of that run, or the sweep's file with the parameter files that it names; facts:
    seed, commits, versions, machine, inputs."""

    path: Path
    kind: str  # run or sweep
    name: str
    made: str
    definition: dict | None
    facts: dict


def trace(path: Path) -> Trace:
    """What made `path`. Raises InputError where nothing says so, or where a released file was
    changed since."""
    if not path.is_file():
        raise InputError(f"{path} is no file")
    path = path.resolve()
    for folder in path.parents:
        for name, read in (("run.json", _of_run), ("plan.json", _of_sweep), (RECORDS, _of_record)):
            if (folder / name).is_file():
                try:
                    return _checked(read(path, folder))
                except (AttributeError, KeyError, TypeError, ValidationError) as error:
                    raise InputError(
                        f"{folder / name} is not as this library writes it ({type(error).__name__}:"
                        f" {error})"
                    ) from error
    raise InputError(
        f"{path} lies in no folder of a run or a sweep, and no {RECORDS} beside it says what"
        " made it"
    )


def trace_text(found: Trace) -> str:
    """A trace for people: what made the file, and the commands that make it again."""
    facts = found.facts
    lines = [
        ("file", _name(found.path)),
        ("made by", f"{found.kind} {found.name}, as {found.made}"),
        ("seed", facts.get("seed")),
        ("commit", _commits(facts.get("commits"))),
        ("machine", facts.get("machine")),
        ("device", facts.get("device")),
        ("versions", _pairs(facts.get("versions"))),
        ("inputs", _pairs(facts.get("inputs"))),
        ("note", facts.get("note")),
    ]
    head = "\n".join(
        f"{name:<12}{'not recorded' if value is None else value}"
        for name, value in lines
        if value is not None or name not in ("seed", "note")
    )
    if found.definition is None:
        return f"{head}\nparameters  not recorded"
    shown = "\n".join("    " + line for line in definition_text(found).splitlines())
    return f"{head}\nparameters\n{shown}\n\nto make it again:\n" + "\n".join(
        "    " + line for line in commands(found)
    )


def commands(found: Trace) -> list[str]:
    """The command lines that make a file again, below the folder again/."""
    where = f"again/{found.name}" if found.kind == "run" else f"again/sweeps/{found.name}"
    commit = next((commit.partition("+")[0] for commit in found.facts.get("commits") or {}), None)
    kind = ((found.definition or {}).get("feedback") or {}).get("kind")
    asked = (
        f"# labels came from a {kind}: set feedback.kind to replay, and feedback.file to the table"
        " of labels that were given"
    )
    return [
        f"python -m shfcas_lib trace {_name(found.path)} --params again.yaml",
        *([asked] if kind in _PEOPLE else []),
        *([f"git checkout {commit}"] if commit else []),
        (
            f"SHFCAS_RUNS=again python -m shfcas_lib {found.kind} again.yaml      # then"
            f" {where}/{found.made}"
        ),
    ]


def definition_text(found: Trace) -> str:
    """The parameter file (or sweep file) that makes it again, as YAML."""
    return yaml.safe_dump(found.definition, sort_keys=False, width=120)


def release(source: Path, target: Path) -> list[Path]:
    """Copy a figure (png, svg and csv of one name) or a single table to `target`, and note in
    provenance.json there what made it. Returns the files written. Raises InputError where
    `source` has no trace."""
    found = trace(source)
    together = (".png", ".svg", ".csv")
    same = (
        [source.with_suffix(suffix) for suffix in together if source.with_suffix(suffix).is_file()]
        if source.suffix in together
        else [source]
    )
    written = [target.with_suffix(path.suffix) for path in same]
    for path, copy in zip(same, written):
        with files.atomic(copy) as temporary:
            temporary.write_bytes(path.read_bytes())
    note_released(
        found,
        {copy.name: str(Path(found.made).with_suffix(copy.suffix)) for copy in written},
        target.parent,
    )
    return written


def note_released(found: Trace, files: dict[str, str], folder: Path) -> None:
    """Write into folder/provenance.json that `files` (name below the folder -> its place in the
    run or sweep) were made as `found` was."""
    known = _read(folder / RECORDS) or {"files": {}, "records": {}}
    record = {
        "kind": found.kind,
        "name": found.name,
        "facts": found.facts,
        "definition": found.definition,
    }
    known["records"][found.name] = record
    for name, made in files.items():
        known["files"][name] = {"sha256": sha256(folder / name), "record": found.name, "made": made}
    write_json(
        folder / RECORDS, {key: dict(sorted(values.items())) for key, values in known.items()}
    )


def of_sweep(folder: Path) -> Trace:
    """The trace of a sweep as a whole, from its plan and the jobs that are done."""
    return _of_sweep(folder / "report.html", folder)


def _checked(found: Trace) -> Trace:
    """Raises TypeError where a record holds something else than what `note` and run folders
    hold."""
    blocks = [
        found.facts,
        found.definition or {},
        (found.definition or {}).get("feedback") or {},
        *(found.facts.get(key) or {} for key in ("commits", "versions", "inputs")),
    ]
    if not all(isinstance(block, dict) for block in blocks) or not all(
        isinstance(value, str) for value in (found.kind, found.name, found.made)
    ):
        raise TypeError("a block or a name is of another type")
    return found


def _of_run(path: Path, folder: Path) -> Trace:
    facts = _read(folder / "run.json") or {}
    kept = {key: facts.get(key) for key in ("seed", "versions", "machine", "device", "inputs")}
    return Trace(
        path,
        "run",
        facts.get("parameters", {}).get("run", folder.name),
        str(path.relative_to(folder)),
        facts.get("parameters"),
        kept | {"commits": {str(facts["commit"]): 1} if facts.get("commit") else None},
    )


def _of_sweep(path: Path, folder: Path) -> Trace:
    """A file of one job by that job alone; the report and its tables by all jobs that are done."""
    plan = _read(folder / "plan.json") or {}
    made = str(path.relative_to(folder))
    mine = [place for place in plan.get("jobs", {}) if made.startswith(f"{place}/")]
    places = mine or [
        place for place in plan.get("jobs", {}) if (folder / place / "done.json").is_file()
    ]
    finished = [done for place in places if (done := _read(folder / place / "done.json"))]
    jobs = [plan["jobs"][place] for place in places]
    versions = finished[-1]["versions"] if finished else None
    read = {
        name: digest
        for job in jobs
        for name, digest in (job.get("inputs") or {}).items()
        if name not in (versions or {})
    }
    for job in (
        jobs
    ):  # a digest of the code covers the checksums of assets, so a job's inputs do not name them
        read |= wheels(Params.model_validate(job["params"]))
    commits = Counter(str(done.get("commit")) for done in finished)
    seeds = sorted({job["params"]["seed"] for job in jobs if "seed" in job["params"]})
    return Trace(
        path,
        "sweep",
        plan.get("sweep", folder.name),
        made,
        plan.get("definition"),
        {
            "seed": ", ".join(map(str, seeds)) or None,
            "commits": dict(commits) or None,
            "versions": versions,
            "machine": next((done.get("machine") for done in finished), None),
            "inputs": read or None,
        },
    )


def _of_record(path: Path, folder: Path) -> Trace:
    known, name = _read(folder / RECORDS) or {}, str(path.relative_to(folder))
    entry = known.get("files", {}).get(name)
    if entry is None:
        raise InputError(f"{folder / RECORDS} says nothing about {name}")
    if entry["sha256"] != files.sha256(path):
        raise InputError(
            f"{path} was changed after it was released (sha256 {files.sha256(path)[:12]}, released"
            f" as {entry['sha256'][:12]}): its trace no longer holds"
        )
    record = known["records"][entry["record"]]
    return Trace(
        path, record["kind"], record["name"], entry["made"], record["definition"], record["facts"]
    )


def _read(path: Path) -> dict | None:
    try:
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    if values is not None and not isinstance(values, dict):
        raise InputError(f"{path} holds {type(values).__name__}, expected an object")
    return values


def _name(path: Path) -> str:
    home = places.home().resolve()
    return str(path.relative_to(home) if path.is_relative_to(home) else path)


def _commits(commits: dict[str, int] | None) -> str | None:
    """Commits with how many jobs each made, where there are several."""
    if not commits:
        return None
    named = {
        commit.replace("+changes", " with changes that were not committed"): count
        for commit, count in commits.items()
    }
    return ", ".join(
        name if len(named) == 1 else f"{name} ({count} jobs)" for name, count in named.items()
    )


def _pairs(values: dict | None) -> str | None:
    return ", ".join(f"{name} {value}" for name, value in values.items()) if values else None
