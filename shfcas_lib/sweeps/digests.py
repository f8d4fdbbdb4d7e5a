"""Digests of the code that a job uses: notebooks go in, digests of all that they reach come out.

    code_of(("sweep/point",))  # {"shfcas_lib.conflict": "1f2e...", "sweep/point.ipynb": "...", ...}

A job is named by them: a change anywhere makes exactly the jobs that depend on it new. grimp
reads the library's own imports, those inside functions too; what a notebook uses of a room's
public face is looked up in the face's stub.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from pathlib import Path

from shfcas_lib.experiment.notebooks import RUN, located

LIBRARY = __name__.partition(".")[0]
NOTEBOOKS = {
    "pool": ("sweep/pool",),
    "cases": ("sweep/cases",),
    "point": ("sweep/point",),
    "policies": ("sweep/policies",),
    "run": RUN,
}
# What runs a job, whatever it does.
_RUNNERS = (f"{LIBRARY}.sweeps.jobs", f"{LIBRARY}.experiment.notebooks")


def file_digest(path: Path) -> str:
    """Twelve hex digits of a file's sha256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


@functools.cache
def code_of(notebooks: tuple[str, ...]) -> dict[str, str]:
    """Digests of notebooks, of the library modules that they use, and of the library's data.

    A module is used directly or through others. Comments do not count.
    """
    digests, used = {}, set()
    for name in notebooks:
        source = "\n".join(_cells(located(name)))
        digests[f"{name}.ipynb"] = hashlib.sha256(source.encode()).hexdigest()[:12]
        used |= modules_of(source)
    reached = used.union(_RUNNERS, *(_graph().find_upstream_modules(module) for module in used))
    for module in reached:
        path = _file(module)
        if path.name != "__init__.py":
            digests[module] = _digest_of(path)
    prompts = _file(f"{LIBRARY}.tasks").parent / "prompts"
    for path in prompts.glob("*.jsonl"):
        digests[f"prompts/{path.name}"] = file_digest(path)
    return dict(sorted(digests.items()))


def modules_of(source: str) -> set[str]:
    """The modules of this library that a source text names.

    It names them by an import, or through the public face of a package.
    """
    tree = ast.parse(source)
    used = set()
    faces: dict[str, str] = {}  # what the text calls a package, and which one it is
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and _ours(node.module or ""):
            for alias in node.names:
                used.add(_home(str(node.module), alias.name))
                faces[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if _ours(alias.name):
                    used.add(alias.name)
                    faces[alias.asname or LIBRARY] = alias.name if alias.asname else LIBRARY
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            root, *names = _dotted(node)
            if root in faces:
                used.add(_reached(faces[root], names))
    return used & _graph().modules


def _dotted(node: ast.expr) -> list[str]:
    """The names of `a.b.c`; of anything else that ends in them, an empty name first."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return [node.id if isinstance(node, ast.Name) else "", *names]


def _reached(package: str, names: list[str]) -> str:
    """The module that a dotted name leads to, through packages and their faces."""
    for name in names:
        home = _home(package, name)
        if home == package or _file(home).name != "__init__.py":
            return home
        package = home
    return package


def _ours(module: str) -> bool:
    return module.partition(".")[0] == LIBRARY


def _home(package: str, name: str) -> str:
    """The module that `name` of a package is: a submodule, or where its face takes it from."""
    if f"{package}.{name}" in _graph().modules:
        return f"{package}.{name}"
    return _face(package).get(name, package)


@functools.cache
def _face(package: str) -> dict[str, str]:
    """Public name to module, as the stub of a package lists them.

    Empty for what is no package with a face.
    """
    stub = _file(package).with_suffix(".pyi")
    if stub.name != "__init__.pyi" or not stub.is_file():
        return {}
    face: dict[str, str] = {}
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            face |= {alias.name: f"{package}.{node.module}" for alias in node.names}
    return face


@functools.cache
def _graph():
    """The library's imports, those for type checkers alone left out."""
    import grimp

    return grimp.build_graph(LIBRARY, exclude_type_checking_imports=True, cache_dir=None)


def _file(module: str) -> Path:
    """The source file of a module of this library, `__init__.py` for a package."""
    place = Path(__file__).parents[1].joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


@functools.cache
def _cells(notebook: Path) -> tuple[str, ...]:
    """The code cells; IPython's magics are left out."""
    cells = json.loads(notebook.read_text())["cells"]
    return tuple(_code(cell["source"]) for cell in cells if cell["cell_type"] == "code")


def _code(lines: list[str]) -> str:
    return "".join(line for line in lines if not line.startswith(("%", "!")))


@functools.cache
def _digest_of(path: Path) -> str:
    tree = ast.dump(ast.parse(path.read_text()))
    return hashlib.sha256(tree.encode()).hexdigest()[:12]
