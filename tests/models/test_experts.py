"""Mixtures of experts: NF4 and LoRA reach the fused experts where the pinned packages can; where
they do not, their share is said."""

import checkpoints
import numpy as np
import pytest

from shfcas_lib.experiment import checks
from shfcas_lib.models import experts, inspection, loading
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Lora, Model

IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return checkpoints.mixture("mixtral", tmp_path_factory.mktemp("mixtral"))


def asked(folder, quantisation="none"):
    return Model(source=str(folder), quantisation=quantisation, device="cpu")


def logits(backbone, name=None):
    import torch

    with torch.inference_mode(), backbone.using(name):
        return backbone.causal(input_ids=torch.tensor([IDS])).logits[0].float().numpy()


def perturb(backbone, name):
    """Give every matrix of an adapter weights, as training would; how many there are."""
    import torch

    touched = []
    with torch.no_grad():
        for key, weight in backbone.causal.named_parameters():
            if f"lora_B.{name}." in key:
                weight.normal_(std=0.1)
                touched.append(key)
    return touched


@pytest.mark.parametrize("name", checkpoints.MIXTURES)
def test_nf4_reaches_the_experts(name, tmp_path):
    folder = checkpoints.mixture(name, tmp_path)
    found = inspection.policy(asked(folder, "nf4")).experts
    whole, small = (loading.load_backbone(asked(folder, kind)) for kind in ("none", "nf4"))
    numbers = {key: weight.numel() for key, weight in whole.causal.named_parameters()}
    fused = sum(numbers[key] for key in found.names)
    assert found.share == pytest.approx(fused / sum(numbers.values()), abs=1e-6)
    assert small.experts.share == pytest.approx(found.share, abs=1e-6)
    assert found.quantised and small.experts.quantised and not whole.experts.quantised
    held = [key for key, w in small.causal.named_parameters() if w.ndim > 2]
    assert not held, "no tensor of experts is left whole"
    one, other = logits(whole), logits(small)
    assert 0 < np.abs(one - other).mean() < 0.6 * one.std()


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "jetmoe", "qwen2_moe"])
def test_lora_without_dropout_reaches_experts_that_are_not_quantised(name, tmp_path):
    """Two adapters side by side, switched, saved and read again, taken off."""
    backbone = loading.load_backbone(asked(checkpoints.mixture(name, tmp_path / "model")))
    base = logits(backbone)
    for adapter in ("policy", "proxy"):
        backbone.add_adapter(adapter, Lora(dropout=0), seed=1)
        np.testing.assert_allclose(logits(backbone, adapter), base, atol=1e-5)
    touched = perturb(backbone, "policy")
    experts_touched = [key for key in touched if "expert" in key or "_linear" in key]
    assert len(experts_touched) >= len(backbone.experts.names) > 0
    moved = logits(backbone, "policy")
    assert np.abs(moved - base).max() > 0.05
    np.testing.assert_allclose(logits(backbone, "proxy"), base, atol=1e-5)
    np.testing.assert_array_equal(logits(backbone), base)
    backbone.save_adapter("policy", tmp_path / "policy")
    fresh = loading.load_backbone(asked(tmp_path / "model"))
    fresh.load_adapter("policy", tmp_path / "policy")
    np.testing.assert_allclose(logits(fresh, "policy"), moved, atol=1e-5)
    for adapter in ("policy", "proxy"):
        backbone.drop_adapter(adapter)
    np.testing.assert_array_equal(logits(backbone), base)


@pytest.mark.parametrize(
    "quantisation, dropout, words",
    [
        ("nf4", 0.0, "lora does not adapt them, which PEFT cannot do on NF4"),
        ("none", 0.1, "lora adapts them only with dropout 0 (now 0.1)"),
        ("int8", 0.0, "model.quantisation int8 leaves them in the compute type"),
    ],
)
def test_what_is_not_reached_is_said_when_it_is_loaded(
    quantisation, dropout, words, mixtral, capsys
):
    backbone = loading.load_backbone(asked(mixtral, quantisation))
    base = logits(backbone)
    for adapter in ("policy", "proxy"):  # said once
        backbone.add_adapter(adapter, Lora(dropout=dropout))
    told = capsys.readouterr().err
    assert told.count(words) == 1
    assert "the experts (model.layers.0.mlp.experts.gate_up_proj and 3 more) are 66%" in told
    perturb(backbone, "policy")
    assert np.abs(logits(backbone, "policy") - base).max() > 0.01, "the other layers are adapted"
    np.testing.assert_array_equal(logits(backbone), base)


def test_the_check_says_it_of_every_adapter_that_the_run_trains(mixtral):
    values = {
        "model": asked(mixtral, "nf4").model_dump(),
        "reward": {"kind": "lora"},
        "policy": {"kind": "dpo"},
        "evaluation": {"replicates": 0},
    }
    (line,) = checks.check_models(reading.validate(values, "test"))
    assert "reward.lora does not adapt" in line and "policy.lora does not adapt" in line
    values |= {"reward": {"kind": "probe"}, "policy": {"kind": "tilt"}}
    assert checks.check_models(reading.validate(values, "test")) == []


def test_convolutions_are_no_experts():
    import torch

    model = torch.nn.ModuleDict({"mix": torch.nn.Conv1d(4, 4, 3), "in": torch.nn.Linear(4, 4)})
    assert experts.find_names(model) == []


def test_a_missing_expert_is_one_sentence(mixtral, tmp_path):
    import shutil

    from own_files import refusal

    shutil.copytree(mixtral, tmp_path, dirs_exist_ok=True)
    checkpoints.without("experts.1.w2")(tmp_path)
    for look in (inspection.policy, loading.load_backbone):
        assert refusal(look, asked(tmp_path)).startswith("model.source")
