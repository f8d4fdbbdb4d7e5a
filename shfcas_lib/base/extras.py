"""Packages that not everybody installs, and the one sentence that says how to get them.

    extras.need("models")    # InputError: ... pip install 'shfcas[models]'

The extras are those of pyproject.toml. The core, without any, has tables, conflict, selection,
labels and statistics.
"""

from __future__ import annotations

import importlib.util

from shfcas_lib.base.errors import InputError

# What of each extra the library imports. bitsandbytes is not among them: a run that is not
# quantised needs none, and loading and training say so themselves.
EXTRAS = {
    "models": (
        "torch",
        "transformers",
        "trl",
        "peft",
        "accelerate",
        "datasets",
        "gguf",
        "if_verifiable",
        "jinja2",
    ),
    "screen": ("anywidget", "ipywidgets", "jupyterlab"),
    "notebooks": ("matplotlib", "papermill", "seaborn"),
    "sweep": ("snakemake", "grimp", "nbconvert", "nbformat"),
}

_NAMED = 3  # packages that a long sentence names
# what an extra brings along besides, as pyproject.toml has it
_BRINGS = {"notebooks": ("models", "screen"), "sweep": ("models", "screen", "notebooks")}


def need(*extras: str, what: str = "this") -> None:
    """Raise InputError where a package of one of these extras is not installed.

    what: what needs them, for the sentence, as `shfcas run`.
    """
    missing = {}
    for extra in extras:
        absent = [name for name in EXTRAS[extra] if importlib.util.find_spec(name) is None]
        if absent:
            missing[extra] = absent
    if missing:
        names = [name for absent in missing.values() for name in absent]
        raise InputError(_sentence(what, names, list(missing)))


def of(module: str | None) -> str | None:
    """The extra that brings a module, None for a module of no extra. module: dotted."""
    top = (module or "").partition(".")[0]
    return next((extra for extra, names in EXTRAS.items() if top in names), None)


def lacking(error: ModuleNotFoundError, what: str = "this") -> InputError | None:
    """The sentence about a package that an import did not find, None where no extra brings it."""
    extra = of(error.name)
    if extra is None:
        return None
    return InputError(_sentence(what, [str(error.name)], [extra]))


def _sentence(what: str, names: list[str], extras: list[str]) -> str:
    brought = {part for extra in extras for part in _BRINGS.get(extra, ())}
    wanted = ",".join(extra for extra in extras if extra not in brought)
    verb, named = "is" if len(names) == 1 else "are", ", ".join(names)
    if len(names) > _NAMED + 1:
        named = f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more packages"
    return f"{what} needs {named}, which {verb} not installed: pip install 'shfcas[{wanted}]'"
