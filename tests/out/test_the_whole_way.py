"""From completions and pairs that this project did not make to a refined reward in a process
without it, and a benchmark before and after: the commands and the parameter file of
docs/completions.md."""

import csv
import io

import nbformat
import numpy as np
import outside
import own_files
import pandas as pd
import tiny_completions
import yaml
from project import ROOT

from shfcas_lib.cli import program
from shfcas_lib.experiment import stages
from shfcas_lib.pool import reference_features
from shfcas_lib.storage.runs import find_run
from shfcas_lib.tasks.embedded import embedded_prompts

WAITS = 3  # the status of a run that stops for people


def block(mark):
    """The block of code under a mark of the page."""
    page = (ROOT / "docs" / "completions.md").read_text()
    return page.split(f"<!-- {mark} -->")[1].split("```")[1].partition("\n")[2]


def commands():
    lines = [line.removeprefix("$ shfcas ") for line in block("the whole way").splitlines()]
    return [line.partition("#")[0].split() for line in lines]


def bring(folder, tiny_model):
    """The user's files, in the folder of a study."""
    table = tiny_completions.table().rename(columns={"completion": "response", "reward": "score"})
    table.drop(columns=["gold", "logp"]).to_parquet(folder / "completions.parquet")
    asked = embedded_prompts("helpfulness")["prompt"].tail(40)
    texts = [("the dog ran in the rain and sat", "a cat"), ("good honest answer is", "dog")]
    pairs = []
    for k, prompt in enumerate(asked):
        chosen, rejected = texts[k % 2]
        pairs.append({"prompt": prompt, "chosen": f"{chosen} {k}", "rejected": f"{rejected} {k}"})
    own_files.write(folder / "my_pairs.jsonl", *pairs)
    values = yaml.safe_load(block("parameters"))
    values["model"] = {"source": str(tiny_model), "quantisation": "none", "device": "cpu"}
    values["selection"]["budget"] = 16
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    outside.styled(folder / "rm_bench")


def answer(path):
    """What a person does in the spreadsheet: the text with more vowels is better."""
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    for row in rows:
        left, right = (sum(map(row[side].count, "aeiou")) for side in ("left", "right"))
        row["answer"] = "tie" if left == right else "left" if left > right else "right"
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return len(rows)


def said_by_notebooks(folder):
    """What the cells of executed notebooks wrote to stderr."""
    said = []
    for path in folder.glob("*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            outputs = cell.get("outputs", [])
            said += [out.text for out in outputs if out.get("name") == "stderr"]
    return "".join(said)


def test_the_commands_of_the_page_lead_to_a_reward_that_transformers_loads(
    tiny_model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SHFCAS_RUNS", raising=False)
    monkeypatch.delenv("SHFCAS_HOME", raising=False)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("TQDM_DELAY", "0")  # bars of seconds, on a model of milliseconds
    first, *rest = commands()
    assert program.main(first) == 0
    study = tmp_path / "my-study"
    bring(study, tiny_model)
    monkeypatch.chdir(study)

    statuses, bars = [], ""
    for words in rest:
        if words[0] == "import":
            assert answer(study / "questions.csv") == 16
        statuses.append((words[0], program.main(words)))
        if words[0] == "run":
            bars += said_by_notebooks(study / "runs" / "mine" / "notebooks")
    expected = [("check", 0), ("run", WAITS), ("export", 0), ("import", 0), ("run", 0)]
    assert statuses == [*expected, ("export-model", 0), ("benchmark", 0)], capsys.readouterr().err

    # every step that takes its time with a real model shows a bar, in the executed notebooks too
    asked = "completions of feedback prompts"
    for title in ("completions of the preferences", asked, "rounds"):
        assert f"{title}: 100%" in bars, title

    # the refined reward, where this library cannot be imported
    run = find_run("mine")
    texts = run.require("01_proxy", "pool_evaluate").head(6)
    reward = stages.refined_rewards(run)["targeted"]
    inside = reward.score(reference_features(stages.policy(run), texts))
    pairs = texts[["prompt", "completion"]].to_numpy().tolist()
    given = {"texts": pairs, "folders": {"reward": str(study / "my_reward")}}
    for scores in outside.read_cleanly(tmp_path, given).values():
        np.testing.assert_allclose(scores, inside, atol=1e-3)

    # before and after
    table = pd.read_csv(run.folder / "benchmarks" / "rm_bench.csv")
    assert set(table["reward"]) == {"proxy", "targeted"} and table["value"].notna().all()
    assert set(table["style"]) == {"all", "easy", "normal", "hard"}
