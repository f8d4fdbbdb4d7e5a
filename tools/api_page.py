"""The functions that most programs need, in docs/api.md: signatures and docstrings.

    python tools/api_page.py

Fills the page below its mark. A test compares it with what this makes: what a function takes and
returns is said once, in its docstring.
"""

import importlib
import inspect
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
MARK = "<!-- from here on written by `make api` -->"
# Heading, and the public names below it.
PARTS = {
    "Without a model": (
        "conflict_table",
        "pacs",
        "kendall_distance",
        "select",
        "choose",
        "LabelStore",
        "ask",
        "load_pairs",
        "read_completions",
        "tilt",
        "believe",
        "fit",
        "update",
    ),
    "With a model": ("load_backbone", "sample", "score"),
    "Numbers with intervals": ("analysis.mean_interval",),
}


def signature(name: str, thing: object) -> str:
    """`shf.name(a, b=1)`, with short names of types: what an editor would show."""
    parts = []
    for parameter in inspect.signature(thing).parameters.values():
        text = parameter.name
        if parameter.annotation is not parameter.empty:
            text += f": {parameter.annotation}"
        if parameter.default is not parameter.empty:
            text += f" = {_default(parameter.default)}"
        parts.append(text)
    returned = inspect.signature(thing).return_annotation
    arrow = "" if returned is inspect.Signature.empty or inspect.isclass(thing) else returned
    lines = "".join(f"    {part},\n" for part in parts)
    return f"shf.{name}(\n{lines})" + (f" -> {arrow}" if arrow else "")


def _default(value: object) -> str:
    """A default as a reader would write it: objects of the library by what they are called."""
    if inspect.isfunction(value):
        return value.__name__
    plain = value is None or isinstance(value, (bool, int, float, str))
    return repr(value) if plain else f"{type(value).__name__}(...)"


def entry(name: str) -> str:
    """The part of the page about one public name."""
    thing: object = importlib.import_module("shfcas_lib")
    for part in name.split("."):
        thing = getattr(thing, part)
    text = [f"### {name}", "```python\n" + signature(name, thing) + "\n```", inspect.getdoc(thing)]
    if inspect.isclass(thing):
        public = {key: value for key, value in vars(thing).items() if not key.startswith("_")}
        told = [key for key, value in public.items() if inspect.isfunction(value)]
        text += [f"- `{key}`: {_first(public[key])}" for key in told]
    return "\n\n".join(text[:3]) + "".join(f"\n{line}" for line in ["", *text[3:]] if text[3:])


def _first(function: object) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())


def page() -> str:
    """The whole page."""
    head, _, _ = PAGE.read_text().partition(MARK)
    parts = [head + MARK]
    for heading, names in PARTS.items():
        parts += [f"## {heading}", *map(entry, names)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE)
