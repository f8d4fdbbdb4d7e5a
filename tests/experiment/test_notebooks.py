"""The four notebooks and the command line, end to end on a tiny model; then once more under
nbval."""

import ast
import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from canaries import CANARIES, leaks
from judge_server import Server
from project import ROOT, environment
from tiny_notebooks import settings

from shfcas_lib.params import cells as parameter_cells
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Params
from shfcas_lib.sweeps.digests import NOTEBOOKS as KINDS

NOTEBOOKS = KINDS["run"]


def command(*words, runs_folder, check=True):
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment(runs_folder),
        capture_output=True,
        text=True,
    )
    assert not any(
        value in done.stdout + done.stderr
        for value in [*CANARIES.values(), os.environ.get("SHFCAS_JUDGE_KEY") or "-no key-"]
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """A run made by the command line: (yaml, runs folder, what the command printed)."""
    folder = tmp_path_factory.mktemp("finished")
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model)))
    command("-m", "shfcas_lib", "check", str(path), runs_folder=folder)
    done = command("-m", "shfcas_lib", "run", str(path), runs_folder=folder)
    return path, folder, done.stdout


def test_run_leaves_every_artifact(finished):
    _, folder, _ = finished
    run = folder / "tiny"
    for stage in ("01_proxy", "02_conflict", "03_feedback", "04_evaluation"):
        assert json.loads((run / stage / "metrics.json").read_text())
    # the labels of random pairs speak for the whole pool, those of chosen pairs do not
    accuracy = json.loads((run / "03_feedback" / "metrics.json").read_text())["accuracy"]
    rounds = (run / "03_feedback" / "random").glob("round_*/labels.parquet")
    labels = pd.concat([pd.read_parquet(path) for path in rounds])
    assert list(accuracy) == ["random"] and len(labels) == 12 and labels["drawn"].all()
    assert accuracy["random"]["drawn"] == labels["label"].isin([0, 1]).sum() >= 5
    assert 0 <= accuracy["random"]["proxy"]["low"] <= accuracy["random"]["proxy"]["high"] <= 1
    for figure in (
        "01_proxy/figures/proxy_errors",
        "02_conflict/figures/pacs_plane",
        "03_feedback/figures/contradictions",
        "04_evaluation/figures/gold_reward",
        "04_evaluation/figures/over_optimisation",
        "04_evaluation/figures/seeds",
    ):
        for suffix in (".png", ".svg", ".csv"):
            assert (run / f"{figure}{suffix}").stat().st_size > 100
    facts = json.loads((run / "run.json").read_text())
    assert (
        facts["seed"] == 0
        and facts["versions"]["torch"]
        and any("replicates" in k for k in facts["seconds"])
    )
    assert not list(run.rglob(".*")), "a temporary file was left behind"


def test_run_prints_the_numbers_and_so_does_numbers(finished):
    path, folder, printed = finished
    again = command("-m", "shfcas_lib", "numbers", str(path), runs_folder=folder).stdout
    assert again in printed
    # five, the cost of the flaw, and what labels of two strategies bring back by two refinements,
    # or that of so small a run the cost is not clear of 0
    undone = 0 if "nothing to undo: the cost is not clear of 0" in again else 4
    assert sum("[" in line for line in again.splitlines()) == 5 + 1 + undone


def test_a_figure_is_made_again_from_its_trace_in_an_empty_folder(finished, tmp_path):
    """The parameters come out of the trace alone; notebooks 01 and 02 then give the same bytes."""
    _, folder, _ = finished
    figure = folder / "tiny" / "02_conflict" / "figures" / "pacs_plane.png"
    told = command(
        "-m",
        "shfcas_lib",
        "trace",
        str(figure),
        "--params",
        str(tmp_path / "again.yaml"),
        runs_folder=folder,
    ).stdout
    assert (
        "made by     run tiny, as 02_conflict/figures/pacs_plane.png" in told
        and "python -m shfcas_lib run again.yaml" in told
    )
    for notebook in NOTEBOOKS[:2]:
        command(
            "-m",
            "papermill",
            f"notebooks/{notebook}.ipynb",
            str(tmp_path / f"{notebook}.ipynb"),
            "-f",
            str(tmp_path / "again.yaml"),
            runs_folder=tmp_path / "again",
        )
    for stage, name in (("02_conflict", "pacs_plane"), ("01_proxy", "proxy_errors")):
        for suffix in (".png", ".svg", ".csv"):
            again = tmp_path / "again" / "tiny" / stage / "figures" / f"{name}{suffix}"
            assert (
                again.read_bytes()
                == (folder / "tiny" / stage / "figures" / again.name).read_bytes()
            ), again.name
    first, second = (
        json.loads((place / "tiny" / "run.json").read_text())
        for place in (folder, tmp_path / "again")
    )
    assert {key: first[key] for key in ("parameters", "versions", "inputs")} == {
        key: second[key] for key in ("parameters", "versions", "inputs")
    }


def test_no_key_of_the_environment_is_in_a_finished_run(finished):
    _, folder, _ = finished
    assert leaks(folder) == [] and len(list(folder.rglob("*"))) > 50


def test_splits_of_a_finished_run_are_disjoint(finished):
    _, folder, _ = finished
    ids = [
        set(pd.read_parquet(folder / "tiny" / t)["prompt_id"])
        for t in (
            "01_proxy/pool_train.parquet",
            "02_conflict/pool_feedback.parquet",
            "01_proxy/pool_evaluate.parquet",
        )
    ]
    assert (
        ids[0] and ids[1] and ids[2] and not (ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2])
    )
    asked = pd.read_parquet(folder / "tiny" / "03_feedback/shf_cas/round_1/labels.parquet")
    assert set(asked["prompt_id"]) <= ids[1]


def test_nbval_finds_the_same_outputs_in_a_fresh_run(finished, tmp_path):
    """The executed notebooks hold the outputs of the first run; nbval runs them again in an empty
    folder and compares."""
    _, folder, _ = finished
    notebooks = [str(folder / "tiny" / "notebooks" / f"{name}.ipynb") for name in NOTEBOOKS]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval-lax",
            "--nbval-cell-timeout=300",
            "-p",
            "no:cacheprovider",
            "-q",
            *notebooks,
        ],
        cwd=tmp_path,
        env=environment(tmp_path / "runs"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert (tmp_path / "runs" / "tiny" / "04_evaluation" / "metrics.json").exists()


def papermill(notebook, path, tmp_path, runs):
    """The command of the README, ended. path: the parameter file; runs: folder of the runs."""
    command = [str(Path(sys.executable).parent / "papermill"), f"notebooks/{notebook}.ipynb"]
    return subprocess.run(
        [*command, str(tmp_path / "out.ipynb"), "-f", str(path)],
        cwd=ROOT,
        env=environment(runs),
        capture_output=True,
        text=True,
    )


def test_one_notebook_alone_with_papermill(finished, tmp_path):
    path, folder, _ = finished
    done = papermill("02_conflict_analysis", path, tmp_path, folder)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "PACS" in (tmp_path / "out.ipynb").read_text()


def test_a_notebook_before_its_turn_says_which_one_is_missing(tiny_model, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, run="unborn")))
    done = papermill("02_conflict_analysis", path, tmp_path, tmp_path)
    assert done.returncode != 0 and "run notebook 01" in done.stderr


def test_papermill_refuses_a_misspelt_parameter(tiny_model, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model) | {"sampling": {"tempratur": 1.0}}))
    done = papermill("01_proxy_bias_injection", path, tmp_path, tmp_path)
    assert done.returncode != 0 and "did you mean 'temperature'" in done.stderr


def test_other_parameters_in_the_same_folder_are_refused_before_any_kernel(
    finished, tiny_model, tmp_path
):
    _, folder, _ = finished
    path = tmp_path / "other.yaml"
    path.write_text(yaml.safe_dump(settings(tiny_model, seed=1)))
    done = command("-m", "shfcas_lib", "run", str(path), runs_folder=folder, check=False)
    assert done.returncode == 2
    assert "seed: 0 there, 1 now" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_lora_reward_and_dpo_policy_through_the_notebooks(tiny_model, tmp_path):
    """The trained kinds take the same four notebooks: a LoRA reward, then policies trained
    against it. What the command `stage` has made before them they find done."""
    path = tmp_path / "lora.yaml"
    path.write_text(
        yaml.safe_dump(
            settings(
                tiny_model,
                run="lora",
                prompts={"n": 40},
                reward={"kind": "lora", "learning_rate": 1.0e-3, "epochs": 1},
                selection={"budget": 6, "rounds": 2, "strategies": ["shf_cas"]},
                policy={"kind": "dpo", "pairs": 8},
                evaluation={"replicates": 0, "bootstrap": 200},
            )
        )
    )
    command(
        "-m",
        "shfcas_lib",
        "stage",
        "pools",
        "proxy",
        "rounds",
        "policies",
        str(path),
        runs_folder=tmp_path,
    )
    made = {
        file: file.stat().st_mtime_ns
        for file in (tmp_path / "lora").rglob("*")
        if file.suffix in (".parquet", ".safetensors")
    }
    assert len(made) > 20
    command("-m", "shfcas_lib", "run", str(path), runs_folder=tmp_path)
    assert {file: file.stat().st_mtime_ns for file in made} == made
    summary = pd.read_parquet(tmp_path / "lora" / "04_evaluation" / "trained_summary.parquet")
    assert {"base", "proxy", "shf_cas"} == set(summary["policy"])
    second = pd.read_parquet(
        tmp_path / "lora" / "03_feedback" / "shf_cas" / "round_1" / "next_pool.parquet"
    )
    assert second["index"].min() == 4, "completions of the second round have indices of their own"


def test_a_judge_and_a_team_share_a_round_through_the_commands(tiny_model, tmp_path, monkeypatch):
    """`run` stops when the judge is done and the team is not; `export`, a filled-in sheet,
    `import`, and `run` goes on to the end."""
    server = Server()
    for name, value in {"URL": server.url, "MODEL": "tiny-judge", "KEY": "sk-canary"}.items():
        monkeypatch.setenv(f"SHFCAS_JUDGE_{name}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    path, sheet = tmp_path / "mixed.yaml", tmp_path / "sheet.csv"
    path.write_text(
        yaml.safe_dump(
            settings(
                tiny_model,
                run="mixed",
                feedback={"kind": "mixed", "person": "team", "person_share": 0.3},
                evaluation={"replicates": 0, "bootstrap": 200},
                selection={"budget": 10, "rounds": 1, "strategies": ["shf_cas"]},
            )
        )
    )
    stopped = command("-m", "shfcas_lib", "run", str(path), runs_folder=tmp_path, check=False)
    assert (
        stopped.returncode == 3
        and "3 comparisons of this round wait for the team" in stopped.stderr
        and "stopped in cell" not in stopped.stderr
        and "Traceback" not in (tmp_path / "mixed/notebooks/03_targeted_feedback.ipynb").read_text()
    )
    command("-m", "shfcas_lib", "export", str(path), str(sheet), runs_folder=tmp_path)
    table = pd.read_csv(sheet, dtype=str, keep_default_na=False)
    table.assign(answer="tie").to_csv(sheet, index=False)
    assert (
        "3 answers added"
        in command("-m", "shfcas_lib", "import", str(path), str(sheet), runs_folder=tmp_path).stdout
    )
    asked = len(server.payloads)
    command("-m", "shfcas_lib", "run", str(path), runs_folder=tmp_path)
    server.close()
    labels = pd.read_parquet(tmp_path / "mixed/03_feedback/shf_cas/round_1/labels.parquet")
    assert (
        labels["annotator"].value_counts().to_dict() == {"judge:tiny-judge": 7, "spreadsheet": 3}
        and len(server.payloads) == asked <= 20
    )
    assert (
        json.loads((tmp_path / "mixed/03_feedback/metrics.json").read_text())["agreement"][
            "shf_cas"
        ]["comparisons"]
        == 3
    )
    assert not any(
        b"sk-canary" in file.read_bytes()
        for file in (tmp_path / "mixed").rglob("*")
        if file.is_file()
    )


def test_annotate_makes_everything_ready_and_takes_over_what_another_run_has_finished(
    tiny_model, tmp_path
):
    """From nothing: notebooks 01 and 02, then notebook 03 with the parameters in it. A second run
    of the same kind takes 01 and 02 over."""
    person = {"feedback": {"kind": "person"}, "evaluation": {"replicates": 0}, "prompts": {"n": 40}}
    for name in ("one", "two"):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(settings(tiny_model, run=name, **person)))
        done = command("-m", "shfcas_lib", "annotate", str(path), "--prepare", runs_folder=tmp_path)
        assert ("01_proxy_bias_injection" in done.stderr) == (name == "one"), (
            "the second run had nothing to compute"
        )
        notebook = nbformat.read(done.stdout.strip(), as_version=4)
        injected = next(
            cell.source
            for cell in notebook.cells
            if "injected-parameters" in cell.metadata.get("tags", [])
        )
        assert f'run = "{name}"' in injected and not any(
            cell.get("outputs") for cell in notebook.cells
        )
        assert (tmp_path / name / "02_conflict" / "metrics.json").exists() and not list(
            (tmp_path / name).glob(".*")
        )


def test_annotate_wants_a_run_in_which_a_person_answers(tmp_path):
    done = command(
        "-m",
        "shfcas_lib",
        "annotate",
        "params/quickstart.yaml",
        "--prepare",
        runs_folder=tmp_path,
        check=False,
    )
    assert done.returncode == 2 and "feedback.kind: found 'gold', expected 'person'" in done.stderr


EVERY = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "notebooks").rglob("*.ipynb"))


@pytest.mark.parametrize("path", EVERY)
def test_notebooks_are_thin_and_committed_without_outputs(path):
    """At most 15 code cells of 12 lines (the list of parameters may be longer), and at most five
    names of this library: what a reader sees is the method."""
    notebook = nbformat.read(ROOT / path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and len(code) <= 15
    lines = [cell.source.splitlines() for cell in code if cell not in tagged]
    assert max(map(len, lines)) <= 12
    assert not any(line.startswith(("def ", "class ")) for line in chain(*lines))
    trees = [ast.parse(cell.source) for cell in code]
    imports = [
        node
        for node in chain(*map(ast.walk, trees))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("shfcas_lib")
    ]
    taken = [alias.asname or alias.name for node in imports for alias in node.names]
    assert len(taken) == len(set(taken)) <= 5


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_defaults_are_the_quickstart(name):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    source = next(
        cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    namespace = {"In": ["", source]}
    exec(source, namespace)  # noqa: S102 (a cell of this repository)
    assert parameter_cells.from_notebook(namespace) == reading.load(
        ROOT / "params" / "quickstart.yaml"
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_validating_cell_runs_again_after_cells_that_use_the_names_of_parameters(name):
    """`run` is a name before that cell and the run after it; later ones call tables by the names
    of what made them."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    source = next(
        cell.source for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])
    )
    used = dict.fromkeys(Params.model_fields, object())
    found = parameter_cells.from_notebook({"In": ["", source], **used})
    assert found == reading.load(ROOT / "params" / "quickstart.yaml")
