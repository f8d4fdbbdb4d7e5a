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
    name = sweep["sweep"]
    folder = places.runs_dir().resolve() / "sweeps" / name
    return SweepPlan(name, folder, made, points, _whole(sweep, path.parent))


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
    crossed = {"cross": values.get("cross") or {}}
    for name, axes in (values.get("grids") or {}).items():
        crossed[f"grids.{name}"] = axes
    for name, axes in crossed.items():
        _check_axes(f"{path}: {name}", axes)
    return values


def _check_axes(where: str, axes) -> None:
    """Raises InputError where these are no axes to cross."""
    if not isinstance(axes, dict):
        raise InputError(
            f"{where}: found {axes!r}, expected axes, each a list of values or a mapping of cases"
        )
    for axis, cases in axes.items():
        if not isinstance(cases, (list, dict)) or not cases:
            raise InputError(
                f"{where}.{axis}: found {cases!r}, expected a list of values, or a mapping from a"
                " case's name to its parameters"
            )
        if isinstance(cases, list):
            names = {_text(value) for value in cases}
            if len(names) < len(cases):
                raise InputError(f"{where}.{axis}: a value is given twice")
        elif not all(isinstance(case, dict) for case in cases.values()):
            raise InputError(
                f"{where}.{axis}: every case must be a mapping of parameters, such as"
                " {selection.budget: 40}"
            )


def _cross(path: Path, sweep: dict):
    """Every combination as (label, validated parameters).

    label: axis to the name of the case, and `grid` where the sweep has several.
    """
    grids = {
        name: {"grid": {name: {}}, **(sweep.get("cross") or {}), **axes}
        for name, axes in (sweep.get("grids") or {}).items()
    }
    every = list(grids.values()) or [sweep["cross"]]
    points = sum(math.prod(map(len, grid.values())) for grid in every)
    if points > MOST_POINTS:
        raise InputError(f"{path}: crosses to {points} points, expected at most {MOST_POINTS}")
    for grid in every:
        axes = {axis: _cases(axis, cases) for axis, cases in grid.items()}
        # an axis goes by the last part of its name where that tells it from the others
        last = [axis.rpartition(".")[2] for axis in axes]
        names = zip(axes, last, strict=True)
        short = [axis if last.count(name) > 1 else name for axis, name in names]
        for chosen in itertools.product(*axes.values()):
            label = dict(zip(short, map(str, chosen), strict=True))
            overrides = dict(sweep.get("set") or {})
            for axis, name in zip(axes, chosen, strict=True):
                overrides |= axes[axis][name]
            yield label, _point_params(path, sweep, label, overrides)


def _cases(axis: str, cases: list | dict) -> dict:
    """The cases of an axis by name, each a mapping of parameters."""
    if isinstance(cases, dict):
        return cases
    return {_text(value): {axis: value} for value in cases}


def _point_params(path: Path, sweep: dict, label: dict[str, str], overrides: dict) -> Params:
    base = overrides.pop("base", sweep.get("base"))
    if not isinstance(base, (str, dict)):
        raise InputError(
            f"{path}: base: found {base!r}, expected a parameter file, relative to the sweep file"
        )
    values = base if isinstance(base, dict) else reading.read_yaml(path.parent / base)
    values = copy.deepcopy(values) | {"run": sweep["sweep"]}
    for key, value in overrides.items():
        _override(values, key, value, path)
    cases = ", ".join(f"{axis} {name}" for axis, name in label.items())
    return reading.validate(values, f"{path}, point {cases}")


def _whole(value, folder: Path):
    """A sweep file with what the parameter files hold that it names under `base`."""
    if not isinstance(value, dict):
        return value
    whole = {}
    for key, part in value.items():
        if key == "base" and isinstance(part, str):
            whole[key] = reading.read_yaml(folder / part)
        elif key == "base" and isinstance(part, list):
            whole[key] = {name: {"base": reading.read_yaml(folder / name)} for name in part}
        else:
            whole[key] = _whole(part, folder)
    return whole


def _override(values: dict, key: str, value, path: Path) -> None:
    """Set a dotted key; the blocks on the way are made."""
    *blocks, last = str(key).split(".")
    for block in blocks:
        values = values.setdefault(block, {})
        if not isinstance(values, dict):
            raise InputError(f"{path}: {key}: {block} is no block of parameters")
    # a later key may change what lies in this block: of this point alone
    values[last] = copy.deepcopy(value)


def _text(value) -> str:
    """A value as a case's name: `shf_cas,random` for a list."""
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


# --- from points to jobs
def _add_point(
    made: dict[str, dict], label: dict[str, str], params: Params, most: dict[str, int]
) -> str:
    reward, given = params.reward, params.preferences.given
    simulated = reward.kind == "probe" and reward.proxy == "trained"
    simulated = simulated and params.feedback.kind == "gold"
    trained = params.policy.kind != "tilt"
    if params.completions.given or not simulated or (trained and given):
        return _add(made, "run", label, params, {})
    if given or not (trained or params.evaluation.replicates):
        raise InputError(
            "a sweep point with reward probe and policy tilt needs evaluation.replicates above 0"
            " and no preferences of your own"
        )
    # Completion k of a prompt is the same whatever N is: points that differ in N alone share the
    # largest pool.
    sampling = params.sampling.model_copy(update={"n": most[_but_n(params)]})
    wide = params.model_copy(update={"sampling": sampling})
    pool = _add(made, "pool", label, wide, {})
    cases = _add(made, "cases", label, _closed(params) if trained else params, {"pool": pool})
    kind = "policies" if trained else "point"
    return _add(made, kind, label, params, {"pool": pool, "cases": cases})


def _closed(params: Params) -> Params:
    """The closed form of a point whose policies are trained, at the first seed of replicates.

    It has the same pool and proxy.
    """
    policy = Policy(beta=params.policy.beta)
    evaluation = params.evaluation.model_copy(update={"replicates": 1})
    return params.model_copy(update={"policy": policy, "evaluation": evaluation})


def _add(
    made: dict[str, dict], kind: str, label: dict[str, str], params: Params, needs: dict[str, str]
) -> str:
    """Put a job into `made` unless it is there; returns its place."""
    everything = params.model_dump(mode="json")
    values = {key: value for key, value in everything.items() if key in _KEYS[kind]}
    if kind == "cases":  # the one part of selection that the full-label ceiling depends on
        values["selection"] = {"prompts": params.selection.prompts}
    code, inputs = dict(code_of(digests.NOTEBOOKS[kind])), _inputs(params, kind)
    digest = reading.fingerprint(kind, values, code, inputs, needs)
    name = list(label.values())
    if kind in ("pool", "cases"):
        name = [params.task, str(params.seed)]
    same = next((place for place, job in made.items() if job["digest"] == digest), None)
    if same:
        return same
    readable = re.sub(r"[^A-Za-z0-9,.=-]+", "_", ".".join(name))[:60]
    place = f"{kind}/{readable}-{digest[:10]}"
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
    everything = params.model_dump(mode="json")
    values = {key: value for key, value in everything.items() if key in _POOL}
    values["sampling"] = {key: value for key, value in values["sampling"].items() if key != "n"}
    return reading.fingerprint(values)


def _inputs(params: Params, kind: str) -> dict[str, str]:
    """What else decides a job's result.

    Versions of packages, and the contents of files and modules of the user's that it reads.
    """
    inputs = {}
    for file in _files(params, kind):
        digest = places.content_hash(file)
        if digest:
            inputs[file] = digest
    for module in _modules(params, kind):
        spec = importlib.util.find_spec(module)
        if spec and spec.origin and Path(spec.origin).is_file():
            inputs[module] = file_digest(Path(spec.origin))
    for source in (params.model.source, params.gold.published, params.reward.published):
        if not source:
            continue
        model = places.user_path(source)
        if model.is_dir():  # by names and sizes: weights are large
            sizes = [(path.name, path.stat().st_size) for path in model.iterdir() if path.is_file()]
            inputs[source] = reading.fingerprint(sorted(sizes))
    if kind in jobs.BACKBONE:
        inputs |= vllm_engine.engine_facts(params.sampling)
    return dict(sorted((inputs | machine.versions()).items()))


def _files(params: Params, kind: str) -> set[str]:
    """The files of prompts, preferences, completions and answers that a job reads."""
    named = [params.completions.requests]
    for block in (params.prompts, params.preferences, params.completions):
        named += [block.file, block.source]
    if kind in ("point", "policies", "run"):
        named.append(params.feedback.file)
    return {file for file in named if file}


def _modules(params: Params, kind: str) -> list[str]:
    """The user's modules whose functions stand in for gold or for an attribute."""
    named = [params.gold.kind]
    if kind != "pool":
        named += [getattr(mechanism, "attribute", "") for mechanism in params.bias]
        named += [params.evaluation.remedy_attribute] if params.evaluation.remedies else []
    functions = [name for name in named if re.fullmatch(r"[\w.]+:\w+", name)]
    prefixes = ("model:", "keyword:")
    return [name.partition(":")[0] for name in functions if not name.startswith(prefixes)]
