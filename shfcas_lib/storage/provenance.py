"""Where a figure, a table or a number comes from, and the command that makes it again.

    print(trace_text(trace(Path("figures/pacs_plane.png"))))
    release(Path("runs/quickstart/02_conflict/figures/pacs_plane.png"), Path("figures/new.png"))

A file inside a run folder is traced by the folder's run.json, one inside a sweep's folder by
plan.json and the done.json of its jobs. What was released from there (figures/, docs/results/)
is traced by the provenance.json beside it, which holds the same facts and the file's sha256: a
figure that was changed afterwards has no trace. Nothing is written into the figures themselves,
so that the same table gives the same bytes.
"""

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
    """What made a file.

    made:        its place below the folder of the run or sweep
    definition:  the parameters of that run, or the sweep's file with the parameter files that
                 it names
    facts:       seed, commits, versions, machine, inputs
    """

    path: Path
    kind: str  # run, sweep, or make: a target of the Makefile
    name: str
    made: str
    definition: dict | None
    facts: dict


def trace(path: Path) -> Trace:
    """What made `path`.

    Raises InputError where nothing says so, or where a released file was changed since.
    """
    if not path.is_file():
        raise InputError(f"{path} is no file")
    path = path.resolve()
    readers = {"run.json": _of_run, "plan.json": _of_sweep, RECORDS: _of_record}
    for folder in path.parents:
        for name, read in readers.items():
            if not (folder / name).is_file():
                continue
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


def trace_text(origin: Trace) -> str:
    """A trace for people: what made the file, and the commands that make it again."""
    facts = origin.facts
    always = {
        "file": _name(origin.path),
        "made by": f"{origin.kind} {origin.name}, as {origin.made}",
        "commit": _commits(facts.get("commits")),
        "machine": facts.get("machine"),
        "device": facts.get("device"),
        "versions": _pairs(facts.get("versions")),
        "inputs": _pairs(facts.get("inputs")),
    }
    lines = [f"{name:<12}{_or_not_recorded(value)}" for name, value in always.items()]
    # runs of several seeds have none of their own, and few files have a note
    if facts.get("seed") is not None:
        lines.insert(2, f"{'seed':<12}{facts['seed']}")
    if facts.get("note") is not None:
        lines.append(f"{'note':<12}{facts['note']}")

    if origin.definition is None:
        return "\n".join([*lines, "parameters  not recorded"])
    lines += ["parameters", *_indented(definition_text(origin).splitlines())]
    lines += ["", "to make it again:", *_indented(commands(origin))]
    return "\n".join(lines)


def _or_not_recorded(value: object) -> object:
    return "not recorded" if value is None else value


def _indented(lines: list[str]) -> list[str]:
    return ["    " + line for line in lines]


def commands(origin: Trace) -> list[str]:
    """The command lines that make a file again, below the folder again/."""
    lines = [f"python -m shfcas_lib trace {_name(origin.path)} --params again.yaml"]
    kind = ((origin.definition or {}).get("feedback") or {}).get("kind")
    if kind in _PEOPLE:
        lines.append(
            f"# labels came from a {kind}: set feedback.kind to replay, and feedback.file to the"
            " table of labels that were given"
        )
    commits = list(origin.facts.get("commits") or {})
    revision = commits[0].partition("+")[0] if commits else None
    if revision:
        lines.append(f"git checkout {revision}")
    if origin.kind == "make":
        return [*lines[1:], f"make {origin.name}"]
    folder = f"again/{origin.name}" if origin.kind == "run" else f"again/sweeps/{origin.name}"
    again = f"SHFCAS_RUNS=again python -m shfcas_lib {origin.kind} again.yaml"
    lines.append(f"{again}      # then {folder}/{origin.made}")
    return lines


def definition_text(origin: Trace) -> str:
    """The parameter file (or sweep file) that makes it again, as YAML."""
    return yaml.safe_dump(origin.definition, sort_keys=False, width=120)


def release(source: Path, target: Path) -> list[Path]:
    """Copy a figure or a table to `target`, and note in provenance.json there what made it.

    Of a figure all that is there is copied: png, svg and csv of one name. Returns the files
    written. Raises InputError where `source` has no trace.
    """
    origin = trace(source)
    sources = [source]
    together = (".png", ".svg", ".csv")
    if source.suffix in together:
        variants = [source.with_suffix(suffix) for suffix in together]
        sources = [path for path in variants if path.is_file()]

    written = []
    for path in sources:
        copy = target.with_suffix(path.suffix)
        with files.atomic(copy) as temporary:
            temporary.write_bytes(path.read_bytes())
        written.append(copy)
    made = {copy.name: str(Path(origin.made).with_suffix(copy.suffix)) for copy in written}
    note_released(origin, made, target.parent)
    return written


def note_released(origin: Trace, made: dict[str, str], folder: Path) -> None:
    """Write into folder/provenance.json what made files that were released there.

    made: name of a file below the folder -> its place in the run or sweep of `origin`.
    """
    records = _read(folder / RECORDS) or {"files": {}, "records": {}}
    records["records"][origin.name] = {
        "kind": origin.kind,
        "name": origin.name,
        "facts": origin.facts,
        "definition": origin.definition,
    }
    for name, place in made.items():
        entry = {"sha256": sha256(folder / name), "record": origin.name, "made": place}
        records["files"][name] = entry
    in_order = {key: dict(sorted(values.items())) for key, values in records.items()}
    write_json(folder / RECORDS, in_order)


def of_sweep(folder: Path) -> Trace:
    """The trace of a sweep as a whole, from its plan and the jobs that are done."""
    return _of_sweep(folder / "report.html", folder)


def _checked(origin: Trace) -> Trace:
    """The same trace. Raises TypeError where a record holds something of another type.

    That is, something else than what `note_released` and run folders hold.
    """
    definition = origin.definition or {}
    blocks = [origin.facts, definition, definition.get("feedback") or {}]
    blocks += [origin.facts.get(key) or {} for key in ("commits", "versions", "inputs")]
    names = (origin.kind, origin.name, origin.made)
    sound = all(isinstance(block, dict) for block in blocks)
    if not sound or not all(isinstance(name, str) for name in names):
        raise TypeError("a block or a name is of another type")
    return origin


def _of_run(path: Path, folder: Path) -> Trace:
    facts = _read(folder / "run.json") or {}
    kept = {key: facts.get(key) for key in ("seed", "versions", "machine", "device", "inputs")}
    kept["commits"] = {str(facts["commit"]): 1} if facts.get("commit") else None
    parameters = facts.get("parameters")
    name = facts.get("parameters", {}).get("run", folder.name)
    return Trace(path, "run", name, str(path.relative_to(folder)), parameters, kept)


def _of_sweep(path: Path, folder: Path) -> Trace:
    """A file of one job by that job alone; the report and its tables by all jobs that are done."""
    plan = _read(folder / "plan.json") or {}
    made = str(path.relative_to(folder))
    every = plan.get("jobs", {})
    places = [place for place in every if made.startswith(f"{place}/")]
    if not places:
        places = [place for place in every if (folder / place / "done.json").is_file()]
    jobs = [every[place] for place in places]
    finished = [done for place in places if (done := _read(folder / place / "done.json"))]

    versions = finished[-1]["versions"] if finished else None
    commits = Counter(str(done.get("commit")) for done in finished)
    seeds = sorted({job["params"]["seed"] for job in jobs if "seed" in job["params"]})
    facts = {
        "seed": ", ".join(map(str, seeds)) or None,
        "commits": dict(commits) or None,
        "versions": versions,
        "machine": finished[0].get("machine") if finished else None,
        "inputs": _inputs(jobs, versions or {}) or None,
    }
    name = plan.get("sweep", folder.name)
    return Trace(path, "sweep", name, made, plan.get("definition"), facts)


def _inputs(jobs: list[dict], versions: dict) -> dict[str, str]:
    """What the jobs read, with checksums; their plan mixes it with versions of packages."""
    checksums: dict[str, str] = {}
    for job in jobs:
        inputs = job.get("inputs") or {}
        checksums |= {name: digest for name, digest in inputs.items() if name not in versions}
    # a digest of the code covers the checksums of assets, so a job's inputs do not name them
    for job in jobs:
        checksums |= wheels(Params.model_validate(job["params"]))
    return checksums


def _of_record(path: Path, folder: Path) -> Trace:
    records, name = _read(folder / RECORDS) or {}, str(path.relative_to(folder))
    entry = records.get("files", {}).get(name)
    if entry is None:
        raise InputError(f"{folder / RECORDS} says nothing about {name}")
    digest = sha256(path)
    if entry["sha256"] != digest:
        raise InputError(
            f"{path} was changed after it was released (sha256 {digest[:12]}, released"
            f" as {entry['sha256'][:12]}): its trace no longer holds"
        )
    record = records["records"][entry["record"]]
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
    changed = " with changes that were not committed"
    named = {name.replace("+changes", changed): count for name, count in commits.items()}
    if len(named) == 1:
        return next(iter(named))
    return ", ".join(f"{name} ({count} jobs)" for name, count in named.items())


def _pairs(values: dict | None) -> str | None:
    if not values:
        return None
    return ", ".join(f"{name} {value}" for name, value in values.items())
