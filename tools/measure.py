"""The habits of the library's code, counted: one column of a table for each checkout.

    python tools/measure.py                        this checkout
    python tools/measure.py --mypy OLDER NEWER     two checkouts, and the errors that mypy finds

A code line holds a token that is no comment and no part of a docstring. A token is a name, an
operator, a number or a string. Lengths of functions include their docstrings."""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "shfcas_lib"
WIDE = 100  # characters
DENSE = 30  # tokens a code line
Function = ast.FunctionDef | ast.AsyncFunctionDef
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
HOLDERS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# What f-strings are made of since Python 3.12; before, one is a single string.
FSTRING_START = getattr(tokenize, "FSTRING_START", None)
FSTRING_END = getattr(tokenize, "FSTRING_END", None)
COUNTED = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}


@dataclass
class Habits:
    """What was counted in the modules of one checkout."""

    lengths: list[int] = field(default_factory=list)
    functions: dict[str, int] = field(default_factory=dict)
    public: int = 0
    documented: int = 0
    wide: int = 0
    comments: int = 0
    tokens: list[int] = field(default_factory=list)
    crowded: int = 0

    def add(self, name: str, text: str) -> None:
        """Count one module. name: its path, which the longest function is told with."""
        lines = text.splitlines()
        tree = ast.parse(text)
        self.lengths.append(len(lines))
        self.wide += sum(len(line) > WIDE for line in lines)
        for node in ast.walk(tree):
            if isinstance(node, Function):
                self.functions[f"{name}:{node.name}"] = node.end_lineno - node.lineno + 1
        for node in public_functions(tree):
            self.public += 1
            self.documented += ast.get_docstring(node) is not None
        starts = Counter(n.lineno for n in ast.walk(tree) if isinstance(n, COMPREHENSIONS))
        self.crowded += sum(number > 1 for number in starts.values())
        per_line, comments = tokens_by_line(text, docstring_lines(tree))
        self.tokens += per_line.values()
        self.comments += comments

    def rows(self) -> dict[str, str]:
        """The column of the table: what was counted, by its name."""
        lines = sum(self.lengths)
        longest = max(self.functions, key=lambda name: self.functions[name])
        ninth_decile = statistics.quantiles(self.functions.values(), n=10)[-1]
        dense = sum(number > DENSE for number in self.tokens)
        return {
            "modules": f"{len(self.lengths)}",
            "lines": f"{lines:,}",
            "lines per module, median": f"{statistics.median(self.lengths):.0f}",
            "function length, 90th percentile": f"{ninth_decile:.0f}",
            "function length, longest": f"{self.functions[longest]} ({longest})",
            "public functions with a docstring": share(self.documented, self.public),
            f"lines over {WIDE} characters": share(self.wide, lines),
            "tokens per code line": f"{statistics.mean(self.tokens):.1f}",
            f"code lines over {DENSE} tokens": share(dense, len(self.tokens)),
            "comments per 100 lines": f"{100 * self.comments / lines:.1f}",
            "lines with more than one comprehension": f"{self.crowded}",
        }


def share(part: int, whole: int) -> str:
    """A share as a percentage, with the two numbers behind it."""
    return f"{100 * part / whole:.1f}% ({part:,} of {whole:,})"


def public_functions(node: ast.AST) -> Iterator[Function]:
    """Functions of a module and methods of its classes whose names, and whose class's, do not
    start with an underscore. Functions inside functions are not public."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*HOLDERS,)) and child.name.startswith("_"):
            continue
        if isinstance(child, Function):
            yield child
        elif not isinstance(child, ast.expr):
            yield from public_functions(child)


def docstring_lines(tree: ast.Module) -> set[int]:
    """The numbers of all lines that belong to a docstring."""
    numbers: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, HOLDERS) and ast.get_docstring(node) is not None:
            numbers |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return numbers


def tokens_by_line(text: str, left_out: set[int]) -> tuple[Counter[int], int]:
    """How many tokens start on each code line, and how many comments there are. left_out: lines
    whose tokens do not count."""
    found: Counter[int] = Counter()
    comments = 0
    inside = 0  # f-strings that are open
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        comments += token.type == tokenize.COMMENT
        if token.type == FSTRING_END:
            inside -= 1
        counts = token.type in COUNTED or token.type == FSTRING_START
        if counts and not inside and token.start[0] not in left_out:
            found[token.start[0]] += 1
        if token.type == FSTRING_START:
            inside += 1
    return found, comments


def habits(checkout: Path) -> Habits:
    """The habits of the library in a checkout. Raises SystemExit where it holds none."""
    paths = sorted((checkout / PACKAGE).rglob("*.py"))
    if not paths:
        raise SystemExit(f"{checkout / PACKAGE}: no module found")
    found = Habits()
    for path in paths:
        found.add(str(path.relative_to(checkout / PACKAGE)), path.read_text(encoding="utf-8"))
    return found


def mypy_errors(checkout: Path) -> str:
    """How many errors mypy finds in a checkout, under this checkout's configuration."""
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), PACKAGE]
    done = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    if done.returncode == 0:
        return "0"
    told = re.search(r"Found (\d+) errors?", done.stdout)
    return told[1] if told else f"mypy failed: {(done.stderr or done.stdout).strip()[:200]}"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkouts", nargs="*", type=Path, default=[ROOT])
    parser.add_argument("--mypy", action="store_true", help="count the errors of mypy, too")
    asked = parser.parse_args()
    columns = [habits(checkout).rows() for checkout in asked.checkouts]
    if asked.mypy:
        for checkout, column in zip(asked.checkouts, columns, strict=True):
            column["errors of mypy"] = mypy_errors(checkout)
    print("| |", " | ".join(str(checkout) for checkout in asked.checkouts), "|")
    print("|---" * (1 + len(columns)) + "|")
    for name in columns[0]:
        print(f"| {name} |", " | ".join(column[name] for column in columns), "|")


if __name__ == "__main__":
    main()
