"""A notebook's parameter cells become one validated object.

    params = from_notebook(globals())

What the cells say *now* counts: a cell that was changed and run again replaces what it said
before. Bad input raises InputError: one sentence that names the key, what was found and what was
expected.
"""

from __future__ import annotations

import ast
from typing import Any

from shfcas_lib.base.errors import InputError
from shfcas_lib.params.reading import validate
from shfcas_lib.params.schema import Params

_SAID = "_shfcas_parameters"  # in a notebook's namespace: cells that were read, what they set
_ORIGIN = "the notebook's parameters"


def from_notebook(namespace: dict[str, Any]) -> Params:
    """Validate the variables that a notebook's parameter cells set.

    Those are its own defaults, then what Papermill injected. The cells start with the word
    `# Parameters`, which is how Papermill heads its own. Where Papermill injected a whole run (it
    sets `run` and at least one block), only that counts, so that `papermill -f mine.yaml` and
    `shfcas run mine.yaml` mean the same; `papermill -p run mine` changes the name and nothing
    else. A name in them that is no parameter is an error here, where Papermill alone would only
    warn. Where the kernel keeps no history of cells (nbval), the variables of the parameters'
    names are taken as they are. Raises InputError as `validate` does, and where the cell has not
    been run.
    """
    history = [cell for cell in namespace.get("In", []) if cell.startswith("# Parameters")]
    values = _said(history, namespace)
    if not history:
        values = {name: namespace[name] for name in Params.model_fields if name in namespace}
    if not values:
        raise InputError("the notebook's parameter cell has not been run: run it first")
    return validate(values, _ORIGIN)


def _said(history: list[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """What the cells set, by name; kept in the namespace until one of them runs again.

    What a cell computes is in the variables alone, which later cells use for something else.
    """
    ran, values = namespace.get(_SAID, ([], {}))
    if ran != history:
        values = {}
        for source in _standing(history):
            new = _set_by(source, namespace)
            values = new if _is_whole(new) and _is_injected(source) else values | new
        namespace[_SAID] = history, values
    return values


def _standing(history: list[str]) -> list[str]:
    """The cells that count, in the notebook's order: of its own cell and of the one that
    Papermill put below it, each as it ran last. Where the own cell is headed as Papermill's is,
    the two cannot be told apart, and all count."""
    own = [source for source in history if not _is_injected(source)]
    injected = [source for source in history if _is_injected(source)]
    return [*own[-1:], *injected[-1:]] if own else injected


def _is_injected(source: str) -> bool:
    return source.partition("\n")[0].strip() == "# Parameters"


def _is_whole(values: dict[str, Any]) -> bool:
    """Is that a whole run? `papermill -p` sets no block, a parameter file does."""
    return "run" in values and any(isinstance(value, dict | list) for value in values.values())


def _set_by(source: str, namespace: dict[str, Any]) -> dict[str, Any]:
    """What one cell sets, by name.

    A name holds what the cell says literally; where it does more than that with a parameter
    (`prompts["n"] = 80`, `if quick: seed = 1`), what the variable holds.
    """
    values: dict[str, Any] = {}
    for node in ast.parse(source).body:
        literal = _literal(node)
        if literal is None:
            names = [name for name in _named(node) if name in namespace]
            values |= {name: namespace[name] for name in names}
        else:
            values |= literal
    return values


def _literal(node: ast.stmt) -> dict[str, Any] | None:
    """The names that a statement sets to one literal value; None where it is none of that kind."""
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    else:
        return None
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    if len(names) < len(targets) or node.value is None:
        return None
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        return None
    return dict.fromkeys(names, value)


def _named(node: ast.stmt) -> list[str]:
    """The parameters that a statement speaks of, and every name that it sets."""
    names = [part for part in ast.walk(node) if isinstance(part, ast.Name)]
    stored = [part.id for part in names if isinstance(part.ctx, ast.Store)]
    changed = [part.id for part in names if part.id in Params.model_fields]
    return list(dict.fromkeys(stored + changed))
