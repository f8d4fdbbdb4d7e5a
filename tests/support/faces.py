"""The library's modules and public faces as their files say them, nothing imported."""

import ast
from pathlib import Path

from project import ROOT

LIBRARY = "shfcas_lib"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Dotted name of every module and package of the library, and its file."""
    found = {}
    for path in sorted((root / LIBRARY).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def faces(root: Path = ROOT) -> dict[str, dict[str, str]]:
    """Package to its public names, each with `module` or `module:name`, what it stands for."""
    return {
        ".".join(stub.parent.relative_to(root).parts): dict(_named(stub, root))
        for stub in sorted((root / LIBRARY).rglob("__init__.pyi"))
    }


def _named(stub: Path, root: Path):
    package = ".".join(stub.parent.relative_to(root).parts)
    for node in ast.parse(stub.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            home = f"{package}.{node.module}" if node.module else package
            for alias in node.names:
                whole = f"{home}.{alias.name}" if not node.module else f"{home}:{alias.name}"
                yield alias.asname or alias.name, whole


def through_faces(root: Path = ROOT) -> list[str]:
    """Imports of library modules that go through a package's face instead of the module that
    holds the name, each as `file:line name`."""
    known = modules(root)
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    found = []
    for module, path in known.items():
        if module in packages:
            continue  # a face may be what it likes
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                home = _absolute(node, module)
                named = {alias.name: f"{home}.{alias.name}" for alias in node.names}
                wrong = [n for n, whole in named.items() if home in packages and whole not in known]
                wrong += [name for name, whole in named.items() if whole in packages]
                wrong = [name for name in wrong if name != "__version__"]
            elif isinstance(node, ast.Import):
                wrong = [alias.name for alias in node.names if alias.name in packages]
            else:
                continue
            found += [f"{path.relative_to(root)}:{node.lineno} {name}" for name in wrong]
    return found


def reached(module: str, root: Path = ROOT) -> set[str]:
    """The modules that a library module imports, directly or not, inside functions too, with
    itself; imports for type checkers alone do not count."""
    known, found, ahead = modules(root), set(), [module]
    while ahead:
        here = ahead.pop()
        if here not in found:
            found.add(here)
            ahead += _imported(here, known)
    return found


def _imported(module: str, known: dict[str, Path]) -> set[str]:
    tree = ast.parse(known[module].read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    whole = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            home = _absolute(node, module)
            whole |= {home} | {f"{home}.{alias.name}" for alias in node.names}
    return {name for name in whole if name in known and known[name].name != "__init__.py"}


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")[: -node.level]
    return ".".join([*parts, *([node.module] if node.module else [])])
