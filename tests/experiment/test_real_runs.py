"""The parameter files for real models and data, and the example of docs/models.md: every stage
through the notebooks' cells, with local stand-ins for what hubs hold."""

import json
import re
from pathlib import Path

import cells
import pandas as pd
import pytest
import stand_ins
import yaml
from project import ROOT

from shfcas_lib import trust
from shfcas_lib.params import reading

FILES = [
    path
    for path in sorted((ROOT / "params").glob("*.yaml"))
    if "/" in reading.load(path).model.source
]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_the_issue_names_six_recipes():
    assert {path.stem for path in FILES} == {
        "paper_safety_pythia1b",
        "paper_helpfulness_pythia1b",
        "safety_llama8b_qlora",
        "helpfulness_qwen7b_qlora",
        "colab_t4_smollm2",
        "colab_t4_1b",
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_takes_one_step_of_every_stage(path, tmp_path, runs_folder, monkeypatch):
    # drawing takes longer than all stages
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig", lambda figure, target, **more: Path(target).touch()
    )
    settings = reading.load(path)
    values = stand_ins.localised(yaml.safe_load(path.read_text()), tmp_path)
    left = cells.run(values)
    run = runs_folder / settings.run
    assert {"base", "proxy", settings.selection.strategies[0], "clean"} <= set(
        pd.read_parquet(run / "04_evaluation/summary.parquet")["policy"]
    )
    asked = run / "03_feedback" / settings.selection.strategies[0]
    assert len(pd.read_parquet(asked / "round_1/labels.parquet")) > 0
    last = asked / f"round_{settings.selection.rounds}"
    if settings.reward.refinement == "trust":
        report = json.loads((last / "trust.json").read_text())
        published = settings.reward.published is not None
        assert ("proxy" in report["about"]) == published and report["decided"] >= trust.FEWEST
    quantised = (
        any(type(module).__name__ == "Linear4bit" for module in left["backbone"].causal.modules())
        if left["backbone"]
        else None
    )
    assert quantised in (None, settings.model.quantisation == "nf4")
    if settings.policy.kind != "tilt":
        assert {"base", "proxy", settings.selection.strategies[0]} == set(
            pd.read_parquet(run / "04_evaluation/trained_summary.parquet")["policy"]
        )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_needs_and_what_is_not_pinned(path):
    header = re.match(r"(# .*\n|#\n)+", path.read_text())[0]
    assert f"python -m shfcas_lib run params/{path.name}" in header
    assert "GB" in header and "hour" in header and "estimate" in header and "not measured" in header
    assert "revision" in header and "none is pinned" in header


def test_the_example_of_the_docs_reaches_a_conflict_map(tmp_path, runs_folder):
    text = re.search(
        r"```yaml\n(run: .*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL
    )[1]
    assert len(text.splitlines()) == 9
    (tmp_path / "mine.yaml").write_text(text)
    settings = reading.load(tmp_path / "mine.yaml")
    cells.run(
        stand_ins.localised(yaml.safe_load(text), tmp_path),
        ["01_proxy_bias_injection", "02_conflict_analysis"],
    )
    assert (runs_folder / settings.run / "02_conflict/figures/pacs_plane.png").stat().st_size > 1000
    assert (
        pd.read_parquet(runs_folder / settings.run / "02_conflict/conflict.parquet")["pacs"]
        .abs()
        .max()
        > 0.5
    )


def test_every_yaml_of_the_page_on_models_is_valid():
    for text in re.findall(
        r"```yaml\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL
    ):
        reading.validate(yaml.safe_load(text), "docs/models.md")
