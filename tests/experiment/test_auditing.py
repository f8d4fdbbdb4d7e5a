"""`shfcas audit`: from a file of pairs to rows that deserve a second opinion."""

import json
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from own_files import refusal, write

from shfcas_lib import pool as pools
from shfcas_lib.cli import main
from shfcas_lib.experiment import auditing, notebooks
from shfcas_lib.models import loading
from shfcas_lib.storage import runs

WORDS = ["a good answer", "the honest cat", "an honest user", "sat on the mat", "the dog ran"]


def pairs(path, count=40):
    """Preferences for words over figures; every fifth label is the wrong way round."""
    generator = np.random.default_rng(0)
    rows = []
    for k in range(count):
        word, figure = f"{WORDS[k % 5]} {k}", " ".join(map(str, generator.integers(0, 999, 4)))
        good, bad = (figure, word) if k % 5 == 0 else (word, figure)
        category = "odd" if k % 2 else "even"
        rows.append(
            {"prompt": f"question {k}", "chosen": good, "rejected": bad, "category": category}
        )
    return write(path, *rows)


@pytest.fixture
def settings(tiny_model, tmp_path):
    """A YAML file whose preferences block names the pairs."""
    values = {
        "run": "mine",
        "model": {"source": str(tiny_model), "quantisation": "none"},
        "preferences": {"file": str(pairs(tmp_path / "pairs.jsonl"))},
        "selection": {"budget": 30},
    }
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def test_an_audit_finds_wrong_labels_and_says_how_good_the_proxy_is(
    settings, tmp_path, runs_folder, capsys
):
    target = tmp_path / "rows.csv"
    assert main(["audit", str(settings), "-o", str(target)]) == 0
    told = capsys.readouterr().out
    assert "labels that agree, of 40 pairs that are no tie:" in told
    assert "the proxy, on pairs that it has not seen" in told and "length alone" in told
    assert f"{target}: 40 rows" in told

    rows = pd.read_csv(target)
    assert rows["rank"].tolist() == list(range(1, 41)) and set(rows["label"]) == {1.0}
    wrong = rows["prompt"].str.removeprefix("question ").astype(int) % 5 == 0
    assert wrong.head(8).sum() >= 6, "of 40 pairs 8 are wrong"
    assert rows["against_proxy"].is_monotonic_decreasing
    assert (rows["longer"] == rows["chosen"].str.len() - rows["rejected"].str.len()).all()

    # beside the run of the user's, not in it
    folder = runs_folder / "audit-mine" / "audit"
    assert not (runs_folder / "mine").exists()
    facts = json.loads((folder / "metrics.json").read_text())["accuracy"]
    groups = {(row["group"], row["judge"]) for row in facts}
    assert ("all pairs", "proxy") in groups and ("odd", "length") in groups
    facts = {row["judge"]: row for row in facts if row["group"] == "all pairs"}
    assert facts["proxy"]["low"] <= facts["proxy"]["value"] <= facts["proxy"]["high"]
    assert facts["proxy"]["value"] > facts["length"]["value"]


def test_a_killed_audit_goes_on_where_it_stopped(settings, runs_folder, monkeypatch):
    monkeypatch.setattr(auditing, "PART", 20)
    assert main(["audit", str(settings)]) == 0
    folder = runs_folder / "audit-mine" / "audit"
    whole = pd.read_parquet(folder / "pairs.parquet")
    first = (folder / "rows.csv").read_bytes()
    assert len(list((folder / "read").iterdir())) == 4

    # as if it had been killed in the middle
    (folder / "pairs.parquet").unlink()
    (folder / "read" / "0003.parquet").unlink()
    read, score = [], pools.score

    def counted(backbone, completions, **options):
        read.append(len(completions))
        return score(backbone, completions, **options)

    monkeypatch.setattr(pools, "score", counted)
    assert main(["audit", str(settings)]) == 0
    assert read == [20]
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "pairs.parquet"), whole)
    assert (folder / "rows.csv").read_bytes() == first

    # and where all is there no model is loaded
    monkeypatch.setattr(loading, "load_backbone", None)
    (folder / "pairs.parquet").unlink()
    assert main(["audit", str(settings)]) == 0


def test_parts_hold_whole_prompts_and_every_completion_once():
    rows = []
    for k in range(30):
        rows += [(f"p{k}", i, "x" * (k * 7 % 30), "y" * i) for i in range(2 + k % 5)]
    completions = pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion"])
    parts = list(auditing._parts(completions))
    key = ["prompt_id", "index"]
    together = pd.concat(parts)
    pd.testing.assert_frame_equal(
        together.sort_values(key, ignore_index=True),
        completions.sort_values(key, ignore_index=True),
    )
    auditing_part, auditing.PART = auditing.PART, 10
    try:
        parts = list(auditing._parts(completions))
    finally:
        auditing.PART = auditing_part
    assert len(parts) > 5
    for one, other in zip(parts, parts[1:], strict=False):
        assert not set(one["prompt_id"]) & set(other["prompt_id"])
        assert one["prompt"].str.len().min() <= other["prompt"].str.len().max()


def test_the_options_say_what_a_file_cannot(tiny_model, tmp_path, runs_folder):
    rows = pd.read_json(pairs(tmp_path / "pairs.jsonl"), lines=True)
    rows = rows.rename(columns={"prompt": "question", "chosen": "one", "rejected": "other"})
    path = tmp_path / "My pairs (2).csv"
    rows.assign(winner="first").to_csv(path, index=False)
    columns = ["prompt=question", "first=one", "second=other", "better=winner", "category=null"]
    words = ["audit", str(path), "--model", str(tiny_model), "--columns", *columns]
    quick = tmp_path / "quick.yaml"  # the tiny model has no quantisation
    block = {"file": str(path)}
    model = {"source": str(tiny_model), "quantisation": "none"}
    quick.write_text(yaml.safe_dump({"model": model, "preferences": block, "seed": 4}))
    words[1] = str(quick)
    target = tmp_path / "rows.parquet"
    assert main([*words, "--n", "30", "--by", "both", "--run", "second", "-o", str(target)]) == 0
    table = pd.read_parquet(target)
    assert len(table) == 30 and set(table["category"]) == {"all"}
    facts = json.loads((runs_folder / "second" / "run.json").read_text())["parameters"]
    assert facts["seed"] == 4 and facts["preferences"]["n"] == 30
    assert auditing.name_for(str(path)) == "audit-My-pairs-2"
    assert auditing.name_for("org/ää.b") == "audit-pairs"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--by", "margin"], "--by: found 'margin', expected one of proxy, policy, both"),
        (["-o", "rows.xlsx"], "rows.xlsx: expected a name that ends in .csv or .parquet"),
        (["-o", "nowhere/rows.csv"], "nowhere/rows.csv: the folder"),
        (["--columns", "question"], "--columns: found 'question', expected KEY=NAME"),
        (["--columns", "prompts=question"], "prompts"),
        (["--recipe", "xstest"], "holds prompts alone"),
        (["--n", "12"], "audit: found 12 pairs that are no tie"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_before_any_work(
    words, sentence, settings, runs_folder, capsys, monkeypatch
):
    monkeypatch.setattr(loading, "load_backbone", None)
    assert main(["audit", str(settings), *words]) == 2
    told = capsys.readouterr().err
    assert sentence in told and told.count("\n") == 1
    assert not list(runs_folder.rglob("pairs.parquet"))


def test_a_file_without_preferences_is_refused(tmp_path, capsys):
    path = tmp_path / "other.yaml"
    path.write_text("seed: 1\n")
    assert main(["audit", str(path)]) == 2
    assert "there is no preferences block to audit" in capsys.readouterr().err
    assert main(["audit", str(tmp_path / "gone.jsonl")]) == 2
    assert "gone.jsonl" in capsys.readouterr().err


def test_another_file_under_the_same_name_is_no_mix(settings, tmp_path, runs_folder):
    assert main(["audit", str(settings), "--run", "one"]) == 0
    pairs(tmp_path / "pairs.jsonl", 30)
    values = yaml.safe_load(settings.read_text()) | {"run": "one"}
    run = runs.open_run(auditing.settings(values, "test"))
    assert "was made with other parameters" in refusal(run.stage, auditing.STAGE)
    shutil.rmtree(runs_folder)


def test_the_notebook_runs_alone_under_papermill(settings, tmp_path, runs_folder):
    values = yaml.safe_load(settings.read_text())
    values = {key: values[key] for key in ("model", "preferences")} | {"by": "both", "run": "nb"}
    executed = tmp_path / "out.ipynb"
    assert notebooks.run_notebook("audit_your_labels", values, executed) is None
    cells = nbformat.read(executed, as_version=4).cells
    shown = "\n".join(
        output.get("text", "")
        for cell in cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert "labels that agree, of 40 pairs" in shown and "40 rows, " in shown
    folder = runs_folder / "nb" / "audit"
    rows = pd.read_csv(folder / "rows.csv")
    assert list(rows["rank"]) == list(range(1, 41))
    assert (folder / "figures" / "accuracy.png").stat().st_size > 1000
    assert json.loads((folder / "metrics.json").read_text())["accuracy"]
