"""Sweeps: one YAML file goes in, a plan of many jobs comes out; module driver runs it.

    plan = compile_plan("params/sweeps/label_efficiency.yaml")
    driver.drive(plan)

A sweep crosses lists. Points that the closed forms can answer (reward probe, policy tilt,
simulated human) share what they can: one `pool` per (task, model, sampling, seed), one set of
`cases` per (pool, bias, split, reward), and a `point` for what is left. Where the policies are
trained, `policies` stands for `point`: it starts from the same pools and proxies. Any other point
is a `run` of the four notebooks. Every job's folder is named by the digest of its parameters, of
the library modules and notebooks that it uses, and of the jobs it needs: a change anywhere makes
exactly the jobs that depend on it new, and what is done stays done.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import checks
from shfcas_lib.models import vllm_engine
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params, Policy
from shfcas_lib.storage import machine
from shfcas_lib.sweeps import digests, jobs
from shfcas_lib.sweeps.digests import code_of, file_digest

MOST_POINTS = 100_000
# The blocks of parameters that each kind of job depends on; whatever else a point sets does not
# make a new one.
_POOL = ("seed", "task", "model", "prompts", "sampling", "gold")
_CASES = (*_POOL, "split", "preferences", "bias", "reward", "policy", "evaluation")
_KEYS = {"pool": _POOL, "cases": _CASES} | dict.fromkeys(
    ("point", "policies", "run"), tuple(Params.model_fields)
)


@dataclass(frozen=True)
class SweepPlan:
    """A sweep made explicit.

    jobs: place (kind/name-digest, below the folder) to job; points: what the sweep asked for,
    each its label (axis to case) and the place of its job. Two points that mean the same share
    one job. definition: the sweep file, with the parameter files that it names in their places.
    """

    name: str
    folder: Path
    jobs: dict[str, dict]
    points: list[dict]
    definition: dict


def compile_plan(path: str | Path) -> SweepPlan:
    """Read a sweep file and cross its lists.

    Raises InputError for a bad sweep or a point whose parameters are bad, before any work.
    """
    path = Path(path)
    sweep = _read(path)
    made: dict[str, dict] = {}
    points = []
    crossed = list(_cross(path, sweep))
    most = _largest_n([params for _, params in crossed])
    for label, params in crossed:
        if params.feedback.kind in ("person", "team", "mixed"):
            raise InputError(
                f"{path}: a sweep cannot wait for people: feedback.kind must be gold, replay or"
                " judge"
            )
        if not params.gold.known:
            raise InputError(
                f"{path}: the report of a sweep compares by gold, but gold.kind is none: set a gold"
                " reward, or run the points one by one"
            )
        checks.check(params)
        points.append({"label": label, "place": _add_point(made, label, params, most)})
    return SweepPlan(
        sweep["sweep"],
        places.runs_dir().resolve() / "sweeps" / sweep["sweep"],
        made,
        points,
        _whole(sweep, path.parent),
    )


# --- from a file to points
def _read(path: Path) -> dict:
    values = reading.read_yaml(path)
    unknown = sorted(set(values) - {"sweep", "base", "set", "cross", "grids"})
    if unknown:
        raise InputError(
            f"{path}: unknown key {unknown[0]!r} (valid: sweep, base, set, cross, grids)"
        )
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", str(values.get("sweep", ""))):
        raise InputError(
            f"{path}: sweep: found {values.get('sweep')!r}, expected a name of letters, digits,"
            " dots and dashes"
        )
    for key in ("set", "cross", "grids"):
        if not isinstance(values.get(key) or {}, dict):
            raise InputError(f"{path}: {key}: found {values[key]!r}, expected a mapping")
    if not values.get("cross") and not values.get("grids"):
        raise InputError(
            f"{path}: expected axes to cross under `cross`, or several such under `grids`"
        )
    for name, axes in {
        "cross": values.get("cross") or {},
        **{f"grids.{n}": a for n, a in (values.get("grids") or {}).items()},
    }.items():
        if not isinstance(axes, dict):
            raise InputError(
                f"{path}: {name}: found {axes!r}, expected axes, each a list of values or a mapping"
                " of cases"
            )
        for axis, cases in axes.items():
            if not isinstance(cases, (list, dict)) or not cases:
                raise InputError(
                    f"{path}: {name}.{axis}: found {cases!r}, expected a list of values, or a"
                    " mapping from a case's name to its parameters"
                )
            if isinstance(cases, list) and len({_text(value) for value in cases}) < len(cases):
                raise InputError(f"{path}: {name}.{axis}: a value is given twice")
            if isinstance(cases, dict) and not all(
                isinstance(case, dict) for case in cases.values()
            ):
                raise InputError(
                    f"{path}: {name}.{axis}: every case must be a mapping of parameters, such as"
                    " {selection.budget: 40}"
                )
    return values


def _cross(path: Path, sweep: dict):
    """Every combination as (label, validated parameters).

    label: axis to the name of the case, and `grid` where the sweep has several.
    """
    grids = {
        name: {"grid": {name: {}}, **(sweep.get("cross") or {}), **axes}
        for name, axes in (sweep.get("grids") or {}).items()
    }
    every = list(grids.values()) or [sweep["cross"]]
    if (points := sum(math.prod(map(len, grid.values())) for grid in every)) > MOST_POINTS:
        raise InputError(f"{path}: crosses to {points} points, expected at most {MOST_POINTS}")
    for grid in every:
        axes = {
            axis: (
                cases
                if isinstance(cases, dict)
                else {_text(value): {axis: value} for value in cases}
            )
            for axis, cases in grid.items()
        }
        last = [axis.rpartition(".")[2] for axis in axes]
        short = [axis if last.count(name) > 1 else name for axis, name in zip(axes, last)]
        for names in itertools.product(*axes.values()):
            label = dict(zip(short, map(str, names)))
            overrides = dict(sweep.get("set") or {})
            for axis, name in zip(axes, names):
                overrides |= axes[axis][name]
            yield label, _point_params(path, sweep, label, overrides)


def _point_params(path: Path, sweep: dict, label: dict[str, str], overrides: dict) -> Params:
    base = overrides.pop("base", sweep.get("base"))
    if not isinstance(base, (str, dict)):
        raise InputError(
            f"{path}: base: found {base!r}, expected a parameter file, relative to the sweep file"
        )
    values = copy.deepcopy(
        base if isinstance(base, dict) else reading.read_yaml(path.parent / base)
    ) | {"run": sweep["sweep"]}
    for key, value in overrides.items():
        _override(values, key, value, path)
    return reading.validate(
        values, f"{path}, point {', '.join(f'{a} {n}' for a, n in label.items())}"
    )


def _whole(value, folder: Path):
    """A sweep file with what the parameter files hold that it names under `base`."""
    if not isinstance(value, dict):
        return value
    files = {
        k: [v] if isinstance(v, str) else v
        for k, v in value.items()
        if k == "base" and isinstance(v, (str, list))
    }
    read = {name: reading.read_yaml(folder / name) for names in files.values() for name in names}
    return {
        k: (
            (read[v] if isinstance(v, str) else {name: {"base": read[name]} for name in v})
            if k in files
            else _whole(v, folder)
        )
        for k, v in value.items()
    }


def _override(values: dict, key: str, value, path: Path) -> None:
    """Set a dotted key; the blocks on the way are made."""
    *blocks, last = str(key).split(".")
    for block in blocks:
        values = values.setdefault(block, {})
        if not isinstance(values, dict):
            raise InputError(f"{path}: {key}: {block} is no block of parameters")
    values[last] = value


def _text(value) -> str:
    """A value as a case's name: `shf_cas,random` for a list."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


# --- from points to jobs
def _add_point(
    made: dict[str, dict], label: dict[str, str], params: Params, most: dict[str, int]
) -> str:
    simulated = (params.reward.kind, params.reward.proxy, params.feedback.kind) == (
        "probe",
        "trained",
        "gold",
    )
    trained = params.policy.kind != "tilt"
    if not simulated or (trained and params.preferences.given):
        return _add(made, "run", label, params, {})
    if params.preferences.given or not (trained or params.evaluation.replicates):
        raise InputError(
            "a sweep point with reward probe and policy tilt needs evaluation.replicates above 0"
            " and no preferences of your own"
        )
    # Completion k of a prompt is the same whatever N is: points that differ in N alone share the
    # largest pool.
    wide = params.model_copy(
        update={"sampling": params.sampling.model_copy(update={"n": most[_but_n(params)]})}
    )
    pool = _add(made, "pool", label, wide, {})
    cases = _add(made, "cases", label, _closed(params) if trained else params, {"pool": pool})
    return _add(
        made, "policies" if trained else "point", label, params, {"pool": pool, "cases": cases}
    )


def _closed(params: Params) -> Params:
    """The closed form of a point whose policies are trained: the same pool and proxy, the first
    seed of replicates.
    """
    return params.model_copy(
        update={
            "policy": Policy(beta=params.policy.beta),
            "evaluation": params.evaluation.model_copy(update={"replicates": 1}),
        }
    )


def _add(
    made: dict[str, dict], kind: str, label: dict[str, str], params: Params, needs: dict[str, str]
) -> str:
    """Put a job into `made` unless it is there; returns its place."""
    values = {
        key: value for key, value in params.model_dump(mode="json").items() if key in _KEYS[kind]
    }
    if kind == "cases":  # the one part of selection that the full-label ceiling depends on
        values["selection"] = {"prompts": params.selection.prompts}
    code, inputs = dict(code_of(digests.NOTEBOOKS[kind])), _inputs(params, kind)
    digest = reading.fingerprint(kind, values, code, inputs, needs)
    name = {"pool": [params.task, str(params.seed)], "cases": [params.task, str(params.seed)]}.get(
        kind, list(label.values())
    )
    same = next((place for place, job in made.items() if job["digest"] == digest), None)
    if same:
        return same
    place = f"{kind}/{re.sub(r'[^A-Za-z0-9,.=-]+', '_', '.'.join(name))[:60]}-{digest[:10]}"
    made[place] = {
        "kind": kind,
        "label": label,
        "params": values | {"run": "sweep"},
        "needs": needs,
        "code": code,
        "inputs": inputs,
        "digest": digest,
    }
    return place


def _largest_n(points: list[Params]) -> dict[str, int]:
    most: dict[str, int] = {}
    for params in points:
        most[_but_n(params)] = max(params.sampling.n, most.get(_but_n(params), 0))
    return most


def _but_n(params: Params) -> str:
    """What the pools of two points must share so that they may differ in N alone."""
    values = {key: value for key, value in params.model_dump(mode="json").items() if key in _POOL}
    values["sampling"] = {key: value for key, value in values["sampling"].items() if key != "n"}
    return reading.fingerprint(values)


def _inputs(params: Params, kind: str) -> dict[str, str]:
    """What else decides a job's result: versions of packages, and the contents of files and
    modules of the user's that it reads.
    """
    files = {
        place
        for block in (params.prompts, params.preferences)
        for place in (block.file, block.source)
        if place
    }
    if kind in ("point", "policies", "run") and params.feedback.file:
        files.add(params.feedback.file)
    named = [params.gold.kind] + (
        [getattr(m, "attribute", "") for m in params.bias] if kind != "pool" else []
    )
    modules = [
        name.partition(":")[0]
        for name in named
        if re.fullmatch(r"[\w.]+:\w+", name) and not name.startswith(("model:", "keyword:"))
    ]
    found = {file: digest for file in files if (digest := places.content_hash(file))}
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec and spec.origin and Path(spec.origin).is_file():
            found[module] = file_digest(Path(spec.origin))
    for source in filter(
        None, (params.model.source, params.gold.published, params.reward.published)
    ):
        model = places.user_path(source)
        if model.is_dir():  # by names and sizes: weights are large
            found[source] = reading.fingerprint(
                sorted((p.name, p.stat().st_size) for p in model.iterdir() if p.is_file())
            )
    if kind in jobs.BACKBONE:
        found |= vllm_engine.engine_facts(params.sampling)
    return dict(sorted((found | machine.versions()).items()))
