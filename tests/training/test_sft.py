"""Step 0: the fine-tuned model is a model of its own, and with it everything that is called the
base policy."""

import gc
import json
import weakref

import numpy as np
import pytest
from toy import make_pool

from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import checks
from shfcas_lib.models import loading as model_loading
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.models.loading import load_backbone
from shfcas_lib.params import reading
from shfcas_lib.pool import score
from shfcas_lib.storage import runs
from shfcas_lib.training import sft


@pytest.fixture
def run(tiny_model, tmp_path):
    """A run whose preferences say that words are better than figures; one pair is a tie."""
    pool = make_pool()
    pairs = pool[pool["index"] == 0].merge(pool[pool["index"] == 1], on="prompt")
    rows = [
        {"prompt": row.prompt, "chosen": row.completion_x, "rejected": row.completion_y}
        for row in pairs.itertuples()
    ]
    (tmp_path / "pairs.jsonl").write_text(
        "\n".join(json.dumps(row) for row in [*rows, rows[0] | {"chosen": "tied", "label": 0.5}])
    )

    def make(quantisation="none", **changes):
        values = {
            "run": f"sft_{quantisation}",
            "model": {"source": str(tiny_model), "quantisation": quantisation, "device": "cpu"},
            "preferences": {"file": str(tmp_path / "pairs.jsonl")},
            "prompts": {"n": 40},
            "evaluation": {"replicates": 0},
            "sft": {
                "answers": "chosen",
                "learning_rate": 5.0e-3,
                "epochs": 4,
                "lora": {"dropout": 0.0},
            },
        }
        return runs.open_run(reading.validate(values | changes, "test"))

    return make


def imitated(backbone, run):
    """Mean log-probability of the answers that are imitated."""
    rows = sft.imitated(run.params, checks.check(run.params))
    return score(backbone, rows.assign(prompt_id="p", index=range(len(rows))))["logp"].mean()


@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_the_fine_tuned_model_imitates_and_is_found_again(run, quantisation, monkeypatch):
    this = run(quantisation)
    prompts = checks.check(this.params)
    with pytest.raises(InputError, match="base is missing: run notebook 01"):
        sft.base(this)
    before = imitated(load_backbone(this.params.model), this)
    model = sft.base(this, prompts)
    backbone = load_backbone(model)
    assert backbone.peft is None and model.quantisation == quantisation, (
        "no adapter: with all of them off, this is the reference"
    )
    assert imitated(backbone, this) > before + 10
    folder = this.folder / "01_proxy" / "base"
    assert not list(folder.glob(".*")) and not (folder / "checkpoints").exists()
    monkeypatch.setattr(sft, "_train", None)
    assert sft.base(this) == sft.base(this, prompts) == model
    if quantisation == "none":  # the merged weights do what the adapter did
        start = load_backbone(this.params.model)
        start.load_adapter(POLICY, folder / "adapter")
        pool = make_pool().head(8)
        with start.using(POLICY):
            np.testing.assert_allclose(
                score(backbone, pool)["logp"], score(start, pool)["logp"], atol=1e-3
            )


def test_only_training_prompts_are_imitated_and_ties_are_not(run):
    this = run()
    prompts = checks.check(this.params)
    rows = sft.imitated(this.params, prompts)
    assert set(rows["prompt"]) == set(
        prompts.loc[prompts["split"] == "train", "prompt"]
    ) and "tied" not in set(rows["completion"])
    assert rows["completion"].str.contains("a").all()


def test_a_merge_that_was_interrupted_is_done_again_without_training(run, monkeypatch):
    this = run()
    prompts, merge = checks.check(this.params), sft._merge
    monkeypatch.setattr(sft, "_merge", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sft.base(this, prompts)
    monkeypatch.setattr(sft, "_merge", merge)
    monkeypatch.setattr(sft.trainer, "run_trainer", None)
    left = this.folder / "01_proxy" / "base" / "checkpoints"
    left.mkdir()  # killed before it removed them
    assert sft.base(this, prompts).source.endswith("base") and not left.exists()


def test_an_adapter_half_saved_is_no_finished_training(run, monkeypatch):
    this = run()
    adapter = this.folder / "01_proxy" / "base" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    monkeypatch.setattr(sft, "_merge", lambda *_: None)
    sft.base(this, checks.check(this.params))
    assert (adapter / "adapter_model.safetensors").exists()


def test_two_backbones_never_stand_side_by_side(run, monkeypatch):
    """The one that was trained is gone when the copy to merge into is loaded, and that one when
    the caller loads what came out."""
    alive, load = [], load_backbone

    def loading(model):
        assert [ref for ref in alive if ref() is not None] == []
        backbone = load(model)
        alive.append(weakref.ref(backbone.causal))
        return backbone

    monkeypatch.setattr(model_loading, "load_backbone", loading)
    this = run()
    prompts = checks.check(this.params)
    gc.collect()
    gc.disable()  # when it would run by itself is luck
    try:
        model_loading.load_backbone(sft.base(this, prompts))
    finally:
        gc.enable()
    assert len(alive) == 3


def test_without_it_the_model_is_the_base_policy(run):
    this = run(sft={})
    assert sft.base(this) == this.params.model
