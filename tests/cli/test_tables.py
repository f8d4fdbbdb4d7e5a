"""From a table of completions to preferences with neither model nor torch: the commands that a
newcomer types, each in a process of its own where what is heavy cannot be imported."""

import csv
import io
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny_completions
from project import ROOT, environment

from shfcas_lib.base import extras
from shfcas_lib.cli import program
from shfcas_lib.params import reading

# Python's own error for everything that a core without models does not need
BARE = """
import sys

REFUSED = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate",
           "matplotlib", "anywidget", "jupyterlab", "IPython"}


class Refuses:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in REFUSED:
            raise ModuleNotFoundError(f"{name} is not to be imported", name=name)


sys.meta_path.insert(0, Refuses)
from shfcas_lib.base import extras
from shfcas_lib.cli import program

status = program.main(sys.argv[1:])
assert not REFUSED & set(sys.modules), REFUSED & set(sys.modules)
sys.exit(status)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a newcomer works: a table that this project did not make, under the user's names."""
    table = tiny_completions.table().rename(columns={"completion": "response", "reward": "score"})
    table.drop(columns="gold").to_parquet(tmp_path / "completions.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bare(folder, *words, typed=""):
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words],
        cwd=folder,
        env=environment(folder / "runs"),
        input=typed,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def transcript():
    """The commands of the page for a newcomer, in their order."""
    page = (ROOT / "docs" / "completions.md").read_text()
    block = page.split("<!-- transcript -->")[1].split("```")[1]
    lines = [line for line in block.splitlines() if line.startswith("$ ")]
    return [line.removeprefix("$ ").partition("#")[0].split() for line in lines]


def fill(path):
    """What a person does in a spreadsheet: left in every second row, right in the others."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    for number, row in enumerate(rows):
        row["answer"] = ("left", "right")[number % 2]
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_the_newcomers_transcript_runs_as_the_page_has_it(folder):
    """Completions, conflicts, questions, a filled spreadsheet, preferences."""
    said = {}
    for program_name, *words in transcript():
        assert program_name == "shfcas"
        if words[0] == "answers":
            fill(folder / "questions.csv")
        said[words[0]] = bare(folder, *words)
    assert list(said) == ["conflicts", "choose", "answers"]
    conflicts = pd.read_parquet(folder / "conflicts.parquet")
    assert len(conflicts) == len(tiny_completions.table()) and conflicts["pacs"].notna().all()
    assert "mean K" in said["conflicts"] and "20 questions" in said["choose"]
    made = pd.read_json(folder / "preferences.jsonl", lines=True)
    assert list(made) == ["prompt", "chosen", "rejected"] and len(made) == 20
    # and the file is one that a run takes
    values = {
        "preferences": {"file": str(folder / "preferences.jsonl")},
        "evaluation": {"replicates": 0},
    }
    assert reading.validate(values, "a test").preferences.given


def test_two_lines_of_python_choose_what_the_command_chooses(folder):
    code = (
        "import sys, shfcas_lib as shf\n"
        "names = {'completion': 'response', 'reward': 'score'}\n"
        "completions = shf.read_completions('completions.parquet', names)\n"
        "shf.choose(completions, 20).to_csv('chosen.csv', index=False)\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment(folder), check=True)
    chosen = pd.read_csv(folder / "chosen.csv")
    columns = ["--columns", "completion=response", "reward=score"]
    assert program.main(["choose", "completions.parquet", *columns, "--budget", "20"]) == 0
    rows = csv.DictReader(io.StringIO(Path("questions.csv").read_text(encoding="utf-8-sig")))
    asked = [tuple(row["question"].split("-")[1:4]) for row in rows]
    expected = [(row.prompt_id, {str(row.i), str(row.j)}) for row in chosen.itertuples()]
    assert [(prompt, {left, right}) for prompt, left, right in asked] == expected


def test_questions_are_answered_in_the_terminal_without_the_screens_packages(folder):
    columns = ["--columns", "completion=response", "reward=score"]
    program.main(["choose", "completions.parquet", *columns, "--budget", "4"])
    first = bare(folder, "label", "questions.csv", "--terminal", typed="l\nr\n")
    assert "2 of 4 questions answered" in first
    second = bare(folder, "label", "questions.csv", "--terminal", typed="=\ns\n")
    assert "4 of 4 questions answered" in second
    assert "2 preferences, 1 ties, 1 skipped, of 4" in bare(folder, "answers", "questions.csv")


def test_where_the_screen_cannot_be_opened_the_terminal_asks(folder, monkeypatch, capsys):
    columns = ["--columns", "completion=response", "reward=score"]
    program.main(["choose", "completions.parquet", *columns, "--budget", "4"])
    monkeypatch.setitem(extras.EXTRAS, "screen", ("not_installed_anywhere",))
    monkeypatch.setattr("sys.stdin", io.StringIO("q\n"))
    assert program.main(["label", "questions.csv"]) == 0
    out = capsys.readouterr()
    assert "not_installed_anywhere is not installed" in out.err and "0 of 4" in out.out


def test_the_screens_notebook_shows_the_questions(folder, capsys):
    """Its one cell, run here: the screen stands at the first question."""
    import nbformat

    columns = ["--columns", "completion=response", "reward=score"]
    program.main(["choose", "completions.parquet", *columns, "--budget", "4"])
    assert program.main(["label", "questions.csv", "--name", "anna", "--prepare"]) == 0
    path = capsys.readouterr().out.splitlines()[-1]
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    names = {}
    exec(notebook.cells[0].source, names)  # noqa: S102
    screen = names["screen"]
    assert screen.view["state"] == "ask" and screen.view["total"] == 4
    for _ in range(4):
        screen.handle({"do": "answer", "turn": screen.view["turn"], "answer": "left"})
    assert (
        screen.view["state"] == "review" and "shfcas answers questions.csv" in screen.view["words"]
    )
    assert screen.export(folder / "export").empty
    assert len(pd.read_parquet(folder / "export" / "preferences.parquet")) == 4


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["conflicts", "nowhere.parquet"], "does not exist"),
        (["conflicts", "completions.parquet"], "is it 'response'?"),
        (["conflicts", "completions.parquet", "-o", "c.xlsx"], ".parquet or .csv"),
        (["choose", "completions.parquet", "-o", "q.txt"], ".json (Label Studio) or .csv"),
        (["choose", "completions.parquet", "--strategy", "targeted"], "needs a model's features"),
        (["choose", "completions.parquet", "--strategy", "bald"], "choose shf_cas, "),
        (["choose", "completions.parquet", "--strategy", "best"], "unknown strategy 'best'"),
        (["choose", "T", "--budget", "0"], "found 0, expected 1 or more"),
        (["choose", "T", "--budget", "100000"], "pairs are left to ask"),
        (["choose", "T", "--random-share", "1"], "--random-share: found 1.0"),
        (["conflicts", "T", "--columns", "response"], "expected KEY=NAME"),
        (["conflicts", "T", "--columns", "answer=response"], "expected one of prompt, completion"),
        (["conflicts", "T", "--columns", "logp="], "have no logp"),
        (["conflicts", "T", "--per-token"], "needs token_logps"),
        (["label", "nowhere.csv"], "does not exist"),
        (["answers", "questions.txt"], ".json (Label Studio) or .csv"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_status_2(folder, capsys, words, sentence):
    table = pd.read_parquet("completions.parquet")
    table = table.rename(columns={"response": "completion", "score": "reward"})
    table.to_parquet("T.parquet")
    words = ["T.parquet" if word == "T" else word for word in words]
    assert program.main(words) == 2
    *_, said = capsys.readouterr().err.splitlines()
    assert said.startswith("shfcas: ") and sentence in said


def test_rows_that_cannot_be_compared_are_counted(folder, capsys):
    table = pd.DataFrame(
        {
            "prompt": ["one"] + ["tied"] * 2 + ["fine"] * 3 + ["hole"] * 2,
            "completion": list("abcdefgh"),
            "logp": [-1.0, -2, -3, -4, -5, -6, -7, None],
            "reward": [1.0, 2, 2, 1, 2, 3, 1, 2],
        }
    )
    table.to_parquet("t.parquet")
    assert program.main(["conflicts", "t.parquet"]) == 2
    said = capsys.readouterr().err
    assert "1 of 8 completions have no logp" in said and "--drop" in said
    assert program.main(["conflicts", "t.parquet", "--drop", "-o", "c.csv"]) == 0
    out = capsys.readouterr()
    assert "1 rows left out: no logp" in out.err
    assert "2 prompts have one completion, nothing to compare" in out.err
    assert "3 prompts have one completion, or rewards" in out.err
    assert len(pd.read_csv("c.csv")) == 7


def test_two_completions_of_one_text_are_never_compared(folder, capsys):
    table = pd.DataFrame(
        {
            "prompt": "p",
            "completion": ["same", "same", "other", "same"],
            "logp": [-1.0, -9.0, -3.0, -4.0],
            "reward": [9.0, 1.0, 2.0, 3.0],
        }
    )
    table.to_parquet("t.parquet")
    assert program.main(["choose", "t.parquet", "--budget", "4"]) == 2
    assert "only 3 pairs" in capsys.readouterr().err
    assert program.main(["choose", "t.parquet", "--budget", "3"]) == 0
    rows = csv.DictReader(io.StringIO(Path("questions.csv").read_text(encoding="utf-8-sig")))
    assert all({row["left"], row["right"]} == {"same", "other"} for row in rows)
