"""The pages speak of this checkout: what they name is there."""

import importlib
import re
from functools import cache

import numpy as np
import pandas as pd
import pytest
from project import ROOT
from scipy.special import expit

from shfcas_lib import trust
from shfcas_lib.base.randomness import rng
from shfcas_lib.cli import program
from shfcas_lib.params import reading

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Where a page may mean a file from: the checkout, the page's own folder, and these.
FOLDERS = ["params", "params/sweeps", "shfcas_lib", "docs"]
# Files that a reader makes.
PLACEHOLDERS = {"mine.yaml", "params/mine.yaml", "params/new.yaml", "again.yaml", "out.ipynb"}
# Names of variables in examples that are spelt like a room, and what they hold.
VARIABLES = {"screen": "shfcas_lib.screen.Screen"}
NO_CODE = {"csv", "json", "jsonl", "md", "parquet", "py", "sqlite", "txt", "xml", "yaml"}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "shfcas_lib").rglob("*.py")
}
KEYS = {name for name, _, _ in reading.keys()}


def paths(text):
    """The words of a page that are spelt like a path of the checkout."""
    text = re.sub(r"https?://\S+", "", text)
    words = re.findall(r"(?<![\w./-])[\w./*-]+", text)
    return {
        word.rstrip(".")
        for word in words
        if re.search(r"\.(py|ipynb|yaml|yml|md)$", word.rstrip("."))
        or word.startswith(("tests/", "shfcas_lib/"))
    }


def there(word, page):
    """Is it a file or a folder of the checkout, or of a run? A star stands for any letters."""
    if word in PLACEHOLDERS or word.startswith("runs/"):
        return True
    places = [ROOT, page.parent, *(ROOT / folder for folder in FOLDERS)]
    if "*" in word:
        return any(any(place.glob(word)) for place in places)
    return any((place / word).exists() for place in places)


def dotted(text):
    """The names with dots in what a page sets as code, without file names."""
    code = re.findall(r"`([^`\n]+)`", text)
    names = {name for part in code for name in re.findall(r"(?<![\w./-])[a-z]\w*(?:\.\w+)+", part)}
    return {name for name in names if name.rpartition(".")[2] not in NO_CODE}


def imports(text):
    """The names that a page's examples import from this library, with their modules."""
    lines = re.findall(r"^ *from (shfcas_lib[\w.]*) import ([\w, ]+)", text, re.MULTILINE)
    return {f"{module}.{name.strip()}" for module, names in lines for name in names.split(",")}


def is_key(name):
    """Is it a parameter, or a group of them?"""
    return name in KEYS or any(key.startswith(f"{name}.") for key in KEYS)


@cache
def found(name):
    """Is there such a module, or such a name in one?"""
    parts = name.split(".")
    cut = next((k for k in range(len(parts), 0, -1) if ".".join(parts[:k]) in MODULES), None)
    if cut is None:
        return False
    thing = importlib.import_module(".".join(parts[:cut]))
    for part in parts[cut:]:
        if not hasattr(thing, part):
            return False
        thing = getattr(thing, part)
    return True


def candidates(name):
    """What a dotted name may mean: its first part is the library, or a room or a module of it;
    nothing where it is neither."""
    first, _, rest = name.partition(".")
    if first == "shfcas_lib":
        return [name]
    named = sorted(module for module in MODULES if module.rpartition(".")[2] == first)
    return [f"{start}.{rest}" for start in [*named, *filter(None, [VARIABLES.get(first)])]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_of_a_page_is_there(page):
    assert sorted(word for word in paths(page.read_text()) if not there(word, page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_name_of_a_page_is_there(page):
    text = page.read_text()
    wrong = [
        name
        for name in sorted(dotted(text))
        if candidates(name) and not is_key(name) and not any(map(found, candidates(name)))
    ]
    assert wrong + [name for name in sorted(imports(text)) if not found(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_there(page, capsys):
    text = page.read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^ +|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    for command in sorted(set(re.findall(r"(?:-m shfcas_lib|`shfcas) ([a-z]+)", text))):
        with pytest.raises(SystemExit) as end:
            program.main([command, "--help"])
        assert end.value.code == 0, f"{command}: {capsys.readouterr().err}"


def answers(pool, score, pairs_per_prompt, name):
    """Pairs of a pool, answered by somebody who follows a score."""
    generator, rows = rng(0, name), []
    for prompt, part in pool.assign(score=score).groupby("prompt_id"):
        for _ in range(pairs_per_prompt):
            i, j = sorted(generator.choice(len(part), 2, replace=False).tolist())
            first, second = part["score"].iloc[[i, j]]
            rows.append((prompt, i, j, float(generator.random() < expit(first - second))))
    return pd.DataFrame(rows, columns=["prompt_id", "i", "j", "label"])


def test_the_example_about_trust_runs_and_says_what_the_page_says(planted, capsys):
    page = (ROOT / "docs" / "trust.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    pool, quality = planted
    taste = np.stack(pool["features"])[:, 8:16].sum(1)
    spoilt = answers(pool, quality + taste, 12, "biased")
    tables = {"pool": pool, "preferences": spoilt, "labels": answers(pool, quality, 2, "labels")}
    exec(example, tables)  # noqa: S102 (an example of this repository)
    assert np.corrcoef(tables["scores"], quality)[0, 1] > 0.5
    assert capsys.readouterr().out.strip() in page

    # what the prior says before any label
    prior = np.exp(list(trust.RHOS.values()))
    contradicted = 1 - np.array(list(trust.RHOS)) @ (prior / prior.sum())
    assert f"it would say {contradicted:.0%}**" in page
    assert ", ".join(f"{share:.0%}" for share in prior / prior.sum()) in page
    assert f"and {np.array(list(trust.ERRORS)) @ trust.doubt(0, 0):.0%} errors" in page


def test_what_is_gone_is_found_missing():
    page = ROOT / "docs" / "data.md"
    words = paths("see `tests/test_formats.py`, gone.py, [here](no.md) and tests/data/.")
    assert {word for word in words if not there(word, page)} == {
        "tests/test_formats.py",
        "gone.py",
        "no.md",
    }
    names = dotted("`gold.safety`, `loop.run(x)`, `runs.rng`, `loop.run_rounds`, `gold.kind`")
    wrong = {name for name in names if not is_key(name) and not any(map(found, candidates(name)))}
    assert wrong == {"gold.safety", "loop.run", "runs.rng"}
    assert not found("shfcas_lib.labels.LabelStore") and found("shfcas_lib.storage.LabelStore")
