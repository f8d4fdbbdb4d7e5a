"""Where a file comes from: run folders, sweep folders, and what was released from them."""

import json
import shutil
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from project import ROOT

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.places import content_hash
from shfcas_lib.params import reading
from shfcas_lib.storage import assets, files, inputs, provenance, runs
from shfcas_lib.sweeps import plan as sweep_plan

RELEASED = [
    path
    for folder in ("figures", "docs/results")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".png", ".svg", ".csv", ".gz") and not path.name.startswith("annotation_")
]


@pytest.fixture
def figure(tmp_path):
    """A figure in a run folder, made with data of the user's."""
    data = tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "q?"}\n')
    run = runs.open_run(
        reading.validate({"run": "mine", "seed": 3, "prompts": {"file": str(data)}}, "test")
    )
    folder = run.stage("02_conflict").folder / "figures"
    folder.mkdir()
    for suffix in (".png", ".svg", ".csv"):
        (folder / f"plane{suffix}").write_text(f"made {suffix}")
    run.record()
    return folder / "plane.png"


def refusal(path):
    with pytest.raises(InputError) as caught:
        provenance.trace(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["figures/plane.png", "figures/plane.csv", "parameters.json"])
def test_every_file_of_a_run_is_traced(figure, name):
    found = provenance.trace(figure.parent.parent / name)
    assert (found.kind, found.name, found.made, found.facts["seed"]) == (
        "run",
        "mine",
        f"02_conflict/{name}",
        3,
    )
    assert found.facts["versions"]["pandas"] == pd.__version__ and "cores" in found.facts["machine"]


def test_the_definition_gives_back_the_parameters(figure, tmp_path):
    found = provenance.trace(figure)
    (tmp_path / "again.yaml").write_text(provenance.definition_text(found))
    assert reading.load(tmp_path / "again.yaml") == reading.validate(
        json.loads((figure.parents[2] / "run.json").read_text())["parameters"], "test"
    )
    told = provenance.trace_text(found)
    assert (
        "mine.jsonl" in told
        and content_hash(tmp_path / "mine.jsonl") in told
        and "again/mine/02_conflict/figures/plane.png" in told
    )


def test_checksums_of_what_a_run_reads_are_noted(tmp_path, monkeypatch):
    monkeypatch.setenv("SHFCAS_HOME", str(tmp_path))
    (tmp_path / "answers.csv").write_text("prompt_id,i,j,answer\n")
    wanted = reading.validate(
        {
            "task": "safety",
            "gold": {"kind": "tiny_gold:vowels"},
            "bias": [{"kind": "attribute", "attribute": "length", "strength": 1.0}],
            "feedback": {"kind": "replay", "file": "answers.csv"},
            "evaluation": {"replicates": 0},
        },
        "test",
    )
    found = inputs.of_run(wanted)
    assert (
        found["smollm2-135m-instruct"] == f"wheel {assets.ASSETS['smollm2-135m-instruct'].sha256}"
        and "do-not-answer" in found
    )
    assert found["answers.csv"] == content_hash("answers.csv") and found[
        "tiny_gold"
    ] == content_hash(ROOT / "tests" / "support" / "tiny_gold.py")
    (tmp_path / "answers.csv").write_text("prompt_id,i,j,answer\nx,0,1,tie\n")
    assert inputs.of_run(wanted)["answers.csv"] != found["answers.csv"]


def test_a_released_figure_keeps_its_trace(figure, tmp_path):
    written = provenance.release(figure, tmp_path / "out" / "conflict.png")
    assert sorted(path.name for path in written) == ["conflict.csv", "conflict.png", "conflict.svg"]
    before = provenance.trace(figure)
    shutil.rmtree(figure.parents[2])
    after = provenance.trace(tmp_path / "out" / "conflict.svg")
    assert (after.definition, after.facts, after.made) == (
        before.definition,
        before.facts,
        "02_conflict/figures/plane.svg",
    )


def test_a_released_figure_that_was_changed_has_no_trace(figure, tmp_path):
    provenance.release(figure, tmp_path / "conflict.png")
    (tmp_path / "conflict.png").write_text("prettier")
    assert "was changed after it was released" in refusal(tmp_path / "conflict.png")
    (tmp_path / "other.png").write_text("of nobody")
    assert "says nothing about other.png" in refusal(tmp_path / "other.png")


def test_what_has_no_trace_is_said_in_one_sentence(tmp_path):
    (tmp_path / "alone.png").write_text("x")
    assert "lies in no folder of a run or a sweep" in refusal(tmp_path / "alone.png")
    assert "is no file" in refusal(tmp_path / "nowhere.png") and "is no file" in refusal(tmp_path)
    for hostile in ("[1]", "{", "\ud800".encode("utf-8", "surrogatepass"), "[" * 100_000):
        (tmp_path / "run.json").write_bytes(
            hostile if isinstance(hostile, bytes) else hostile.encode()
        )
        assert "run.json" in refusal(tmp_path / "alone.png")


def test_a_table_of_a_sweep_is_traced_to_its_job_and_the_report_to_all(tmp_path, runs_folder):
    (tmp_path / "base.yaml").write_text(
        "prompts: {n: 60}\nsampling: {n: 4}\nselection: {budget: 12}\nevaluation: {replicates: 2}\n"
    )
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"sweep": "s", "base": "base.yaml", "cross": {"seed": [0, 1]}})
    )
    plan = sweep_plan.compile_plan(tmp_path / "sweep.yaml")
    places = list(plan.jobs)
    for number, place in enumerate(places):
        files.write_json(
            plan.folder / place / "done.json",
            {"commit": f"c{number}", "versions": {"shfcas": "0"}, "machine": "m"},
        )
        (plan.folder / place / "measures.parquet").write_text("x")
    files.write_json(
        plan.folder / "plan.json",
        {"sweep": "s", "definition": plan.definition, "points": plan.points, "jobs": plan.jobs},
    )
    one = provenance.trace(plan.folder / places[1] / "measures.parquet")
    assert one.facts["commits"] == {"c1": 1} and one.made == f"{places[1]}/measures.parquet"
    assert len(provenance.of_sweep(plan.folder).facts["commits"]) == len(places)
    shutil.move(tmp_path / "base.yaml", tmp_path / "gone.yaml")
    (tmp_path / "again.yaml").write_text(provenance.definition_text(one))
    assert sweep_plan.compile_plan(tmp_path / "again.yaml").jobs == plan.jobs, (
        "the sweep file holds what it named"
    )


def test_a_sweep_over_parameter_files_holds_them_too(tmp_path):
    for n in (40, 60):
        (tmp_path / f"{n}.yaml").write_text(
            f"prompts: {{n: {n}}}\nevaluation: {{replicates: 2}}\nselection: {{budget: 12}}\n"
        )
    (tmp_path / "sweep.yaml").write_text(
        yaml.safe_dump({"sweep": "s", "cross": {"base": ["40.yaml", "60.yaml"]}})
    )
    plan = sweep_plan.compile_plan(tmp_path / "sweep.yaml")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "again.yaml").write_text(yaml.safe_dump(plan.definition))
    again = sweep_plan.compile_plan(tmp_path / "other" / "again.yaml")
    assert again.jobs == plan.jobs and again.points == plan.points


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_released_figure_and_table_has_a_trace(path):
    found = provenance.trace(path)
    assert (
        found.definition
        and found.facts["commits"]
        and found.facts["inputs"]
        and found.facts["versions"]["torch"]
    )


def test_the_figure_of_the_readme_is_what_its_table_draws(tmp_path):
    from shfcas_lib.analysis import figures

    figures.pacs_plane(pd.read_csv(ROOT / "figures" / "pacs_plane.csv"), tmp_path / "pacs_plane")
    assert (tmp_path / "pacs_plane.csv").read_bytes() == (
        ROOT / "figures" / "pacs_plane.csv"
    ).read_bytes()


def test_trace_and_release_from_the_command_line(figure, tmp_path):
    def command(*words):
        return subprocess.run(
            [sys.executable, "-m", "shfcas_lib", *words], cwd=ROOT, capture_output=True, text=True
        )

    assert command("release", str(figure), str(tmp_path / "p.png")).stdout.count("\n") == 3
    told = command("trace", str(tmp_path / "p.png"), "--params", str(tmp_path / "again.yaml"))
    assert (
        told.returncode == 0
        and "made by     run mine" in told.stdout
        and reading.load(tmp_path / "again.yaml").run == "mine"
    )
    refused = command("trace", str(tmp_path / "again.yaml"))
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1


def test_a_sweep_names_the_embedded_assets_that_it_read(tmp_path):
    (tmp_path / "pool" / "a").mkdir(parents=True)
    (tmp_path / "pool" / "a" / "done.json").write_text(
        '{"commit": "c", "versions": {"torch": "2"}}'
    )
    (tmp_path / "plan.json").write_text(
        '{"sweep": "s", "jobs": {"pool/a": {"params": {"run": "sweep", "seed": 0, "task":'
        ' "safety"}, "inputs": {"torch": "2"}}}}'
    )
    assert set(provenance.of_sweep(tmp_path).facts["inputs"]) == {
        "do-not-answer",
        "smollm2-135m-instruct",
    }
