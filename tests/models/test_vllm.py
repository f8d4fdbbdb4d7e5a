"""Sampling by vLLM: the question and the answer, the pool that comes of it, and what is said
where it cannot be had.

The package is stood in for (vllm_stand_in), in a process of its own as vLLM is; docs/models.md
says what was tried with vLLM itself."""

import os
import shutil

import pandas as pd
import pytest
from project import ROOT

from shfcas_lib.base.errors import InputError
from shfcas_lib.memory import estimate
from shfcas_lib.memory.plan import make_plan
from shfcas_lib.models import vllm_engine
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Lora, Sampling
from shfcas_lib.pool import COLUMNS, features, sample, sample_adapted, score
from shfcas_lib.storage import runs

SAMPLING = Sampling(n=4, temperature=0.8, max_new_tokens=12, engine="vllm")
PROMPTS = pd.DataFrame(
    {"prompt_id": ["c", "a", "b"], "prompt": ["the cat", "hi", "who ran in the rain?"]}
)


@pytest.fixture(autouse=True)
def nothing_remembered(monkeypatch):
    monkeypatch.delenv(vllm_engine.PYTHON, raising=False)
    vllm_engine._version.cache_clear()
    yield
    vllm_engine._version.cache_clear()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The stand-in as an installed package, version and all."""
    package, facts = tmp_path / "site" / "vllm", tmp_path / "site" / "vllm-0.32.0.dist-info"
    package.mkdir(parents=True)
    facts.mkdir()
    shutil.copy(ROOT / "tests" / "support" / "vllm_stand_in.py", package / "__init__.py")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")
    (facts / "top_level.txt").write_text("vllm\n")
    monkeypatch.setenv(
        "PYTHONPATH",
        os.pathsep.join(filter(None, [str(package.parent), os.environ.get("PYTHONPATH")])),
    )


def test_the_pool_has_the_same_columns_and_order_and_the_backbones_numbers(installed, backbone):
    pool = sample(backbone, PROMPTS, SAMPLING, seed=0)
    assert list(pool) == [*COLUMNS, "logp_vllm"]
    assert list(zip(pool["prompt_id"], pool["index"], strict=True)) == [
        (p, i) for p in "abc" for i in range(4)
    ]
    assert pool["completion"].nunique() > 8 and 0 < pool["ended"].sum() < len(pool)
    assert all(
        ended == (tokens[-1] in backbone.stop_ids) and (ended or len(tokens) == 12)
        for ended, tokens in zip(pool["ended"], pool["tokens"], strict=True)
    )
    assert (pool["logp"] - pool["logp_vllm"]).abs().max() < 1e-3
    plain = score(backbone, pool)
    assert list(pool["logp"]) == list(plain["logp"]) and (features(pool) == features(plain)).all()

    fewer = sample(backbone, PROMPTS.iloc[::-1], SAMPLING.model_copy(update={"n": 2}), seed=0)
    assert list(fewer["tokens"]) == list(pool.loc[pool["index"] < 2, "tokens"]), (
        "neither N nor the order of prompts changes a completion"
    )
    other = sample(backbone, PROMPTS, SAMPLING, seed=1)
    assert list(other["tokens"]) != list(pool["tokens"])


def test_an_adapter_is_sampled_by_the_backbone(fresh_backbone):
    fresh_backbone.add_adapter("default", Lora())
    pool = sample_adapted(fresh_backbone, "default", PROMPTS, SAMPLING, seed=0, label="policy")
    same = sample_adapted(
        fresh_backbone,
        "default",
        PROMPTS,
        SAMPLING.model_copy(update={"engine": "backbone"}),
        seed=0,
        label="policy",
    )
    assert "logp_vllm" not in pool and list(pool["tokens"]) == list(same["tokens"])


def test_how_far_the_engines_agree_is_told():
    pool = pd.DataFrame({"logp": [-10.0, -20.0], "n_tokens": [10, 10], "logp_vllm": [-10.1, -19.7]})
    assert vllm_engine.logp_gap(pool).endswith(
        "2 completions: mean -0.0100, mean size 0.0200, largest 0.0300"
    )
    assert "more than 0.05 on average" in vllm_engine.logp_gap(
        pool.assign(logp_vllm=[-12.0, -18.0])
    )
    assert vllm_engine.logp_gap(pool.drop(columns="logp_vllm")) == ""


@pytest.mark.parametrize(
    "python, said",
    [(None, "needs the package vllm, and .* has none"), ("/no/such/python", "cannot be run")],
)
def test_without_vllm_one_sentence_says_so(python, said, monkeypatch, backbone):
    if python:
        monkeypatch.setenv(vllm_engine.PYTHON, python)
    with pytest.raises(InputError, match=said):
        sample(backbone, PROMPTS, SAMPLING, seed=0)
    assert vllm_engine.engine_facts(Sampling()) == {}


def test_which_vllm_it_was_goes_into_the_runs_record(installed, monkeypatch):
    assert vllm_engine.engine_facts(SAMPLING) == {"engine": "vllm 0.32.0"}
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="takes one process"):
        vllm_engine.engine_facts(SAMPLING)


def test_what_vllm_stumbles_over_is_one_sentence(installed, fresh_backbone, tiny_model, tmp_path):
    shutil.copy(tiny_model / "config.json", tmp_path)
    fresh_backbone.model = fresh_backbone.model.model_copy(update={"source": str(tmp_path)})
    with pytest.raises(
        InputError,
        match="sampling.engine vllm: vLLM ended with code 1: OSError: .*model.safetensors",
    ):
        sample(fresh_backbone, PROMPTS, SAMPLING, seed=0)


def test_the_engine_belongs_to_a_runs_parameters():
    before = runs.open_run(reading.validate({"run": "one"}, "test"))
    before.stage("01_proxy")
    with pytest.raises(InputError, match="sampling.engine"):
        runs.open_run(
            reading.validate({"run": "one", "sampling": {"engine": "vllm"}}, "test")
        ).stage("01_proxy")


def test_the_plan_counts_the_unquantised_weights_beside_the_backbone(tiny_model):
    def planned(engine):
        made = make_plan(
            reading.validate(
                {
                    "model": {"source": str(tiny_model), "device": "cpu"},
                    "sampling": {"engine": engine},
                },
                "test",
            ),
            1.0,
        )
        return made, {stage.name: stage for stage in made.stages}

    (_, plain), (made, beside) = planned("backbone"), planned("vllm")
    assert set(beside) - set(plain) == {"sampling by vLLM"} and "nine tenths" in made.text()
    whole = estimate.weights(made.shape, "none", made.knobs.compute)
    assert beside["sampling by vLLM"].parts["weights"] == plain["sampling"].parts["weights"] + whole


def test_policies_are_not_compared_across_quantisations():
    values = {
        "sampling": {"engine": "vllm"},
        "policy": {"kind": "dpo"},
        "evaluation": {"replicates": 0},
    }
    with pytest.raises(
        InputError,
        match="vllm writes with unquantised weights.*model.quantisation nf4: set that to none",
    ):
        reading.validate(values, "test")
    assert (
        reading.validate(values | {"model": {"quantisation": "none"}}, "test").sampling.engine
        == "vllm"
    )
