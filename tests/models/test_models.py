"""One backbone, many adapters: which one is in use, what switching leaves alone, and what
survives saving."""

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.base.errors import InputError
from shfcas_lib.models.loading import load_backbone
from shfcas_lib.params.schema import Lora, Model
from shfcas_lib.pool import score

TEXT = "<|im_start|>user\nthe cat<|im_end|>\n<|im_start|>assistant\n"


def logits(backbone, name=None):
    """Next-token logits with adapter `name` (None: the reference)."""
    with backbone.using(name):
        return current(backbone)


def current(backbone):
    """Next-token logits with whatever is in use now, dropout off."""
    import torch

    backbone.causal.eval()
    ids = torch.tensor([backbone.tokenizer(TEXT)["input_ids"]])
    with torch.inference_mode():
        return backbone.causal(input_ids=ids).logits[0, -1].numpy()


def perturb(backbone, name, seed):
    """Give adapter `name` weights, as training would."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, weight in backbone.causal.named_parameters():
            if f"lora_B.{name}." in key:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)


def differ(one, other):
    return np.abs(one - other).max() > 0.05


@pytest.fixture
def base(backbone):
    """Logits of a model that never had an adapter."""
    return current(backbone)


@pytest.fixture
def two(fresh_backbone):
    """A backbone with two perturbed adapters, `policy` and `proxy`; none in use."""
    for seed, name in enumerate(("policy", "proxy")):
        fresh_backbone.add_adapter(name, Lora(), seed=seed)
        perturb(fresh_backbone, name, seed)
    fresh_backbone.use(None)
    return fresh_backbone


# adapters


def test_a_new_adapter_changes_nothing_and_is_in_use(fresh_backbone, base):
    fresh_backbone.add_adapter("policy", Lora())
    assert fresh_backbone.active == "policy"
    np.testing.assert_array_equal(current(fresh_backbone), base)


def test_a_trained_adapter_changes_the_output(two, base):
    assert differ(logits(two, "policy"), base) and differ(logits(two, "proxy"), base)
    assert differ(logits(two, "policy"), logits(two, "proxy"))


def test_the_reference_is_the_model_without_adapters(two, base):
    np.testing.assert_array_equal(logits(two, None), base)


def test_switching_back_and_forth_is_exact(two, base):
    policy, proxy = logits(two, "policy"), logits(two, "proxy")
    for name, expected in (
        ("proxy", proxy),
        (None, base),
        ("policy", policy),
        (None, base),
        ("proxy", proxy),
    ):
        np.testing.assert_array_equal(logits(two, name), expected)


def test_using_goes_back_to_what_was_in_use(two):
    policy = logits(two, "policy")
    two.use("policy")
    with two.using("proxy"):
        assert two.active == "proxy"
        with two.using(None):
            assert two.active is None
        assert two.active == "proxy"
    assert two.active == "policy"
    np.testing.assert_array_equal(current(two), policy)


def test_using_goes_back_after_an_error(two, base):
    with pytest.raises(RuntimeError), two.using("proxy"):
        raise RuntimeError
    assert two.active is None
    np.testing.assert_array_equal(current(two), base)


def test_using_puts_the_model_into_eval_mode(two):
    two.causal.train()
    with two.using("policy"):
        assert not any(module.training for module in two.causal.modules())


def test_adapters_share_the_weights_of_the_backbone(fresh_backbone):
    """No weight is copied: the base weights lie where they lay before."""
    before = {weight.data_ptr() for weight in fresh_backbone.causal.parameters()}
    for name in ("policy", "proxy"):
        fresh_backbone.add_adapter(name, Lora())
    assert before <= {weight.data_ptr() for weight in fresh_backbone.causal.parameters()}


def test_only_the_adapter_in_use_can_be_trained(two):
    two.use("proxy")
    trainable = [name for name, weight in two.causal.named_parameters() if weight.requires_grad]
    assert trainable and all(".proxy." in name for name in trainable)


def test_a_new_adapter_leaves_the_others_alone(two):
    policy = logits(two, "policy")
    two.add_adapter("third", Lora())
    np.testing.assert_array_equal(logits(two, "policy"), policy)


def test_adding_under_a_name_in_use_starts_afresh(two, base):
    two.add_adapter("policy", Lora())
    np.testing.assert_array_equal(logits(two, "policy"), base)


def test_the_seed_decides_the_start_of_an_adapter(fresh_backbone):
    starts = []
    for seed in (0, 0, 1):
        fresh_backbone.add_adapter("policy", Lora(), seed=seed)
        starts.append(
            next(
                w.detach().clone().numpy()
                for n, w in fresh_backbone.causal.named_parameters()
                if "lora_A.policy" in n
            )
        )
    np.testing.assert_array_equal(starts[0], starts[1])
    assert (starts[0] != starts[2]).any()


def test_adding_an_adapter_leaves_the_global_generator_alone(fresh_backbone):
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fresh_backbone.add_adapter("policy", Lora(), seed=9)
    assert torch.equal(torch.rand(3), expected)


def test_scores_with_a_trained_adapter_in_use_repeat(fresh_backbone):
    """Scoring is no training: the adapter's dropout is off, also outside of `using`."""
    fresh_backbone.add_adapter("policy", Lora(dropout=0.5))
    perturb(fresh_backbone, "policy", 0)
    given = pd.DataFrame(
        {
            "prompt_id": ["p"],
            "index": [0],
            "prompt": ["hi"],
            "completion": ["the cat sat on the mat"],
        }
    )
    assert score(fresh_backbone, given).at[0, "logp"] == score(fresh_backbone, given).at[0, "logp"]


@pytest.mark.parametrize("prepare", ["none", "two"])
def test_an_unknown_adapter_is_an_error(request, fresh_backbone, prepare):
    backbone = fresh_backbone if prepare == "none" else request.getfixturevalue("two")
    with pytest.raises(InputError, match="no adapter 'judge'"):
        backbone.use("judge")


# dropping


def test_dropping_an_unknown_adapter_is_ignored(two):
    policy = logits(two, "policy")
    two.drop_adapter("judge")
    np.testing.assert_array_equal(logits(two, "policy"), policy)


def test_a_dropped_adapter_is_gone_and_the_other_stays(two):
    policy = logits(two, "policy")
    two.drop_adapter("proxy")
    with pytest.raises(InputError, match="no adapter 'proxy' .*policy"):
        two.use("proxy")
    np.testing.assert_array_equal(logits(two, "policy"), policy)
    assert not any(".proxy." in name for name, _ in two.causal.named_parameters())


def test_dropping_all_adapters_gives_the_plain_model_back(two, base):
    two.drop_adapter("policy")
    two.drop_adapter("proxy")
    np.testing.assert_array_equal(current(two), base)
    assert not any("lora" in name for name, _ in two.causal.named_parameters())
    with pytest.raises(InputError):
        two.use("proxy")


def test_an_adapter_can_be_added_after_all_were_dropped(two, base):
    two.drop_adapter("policy")
    two.drop_adapter("proxy")
    two.add_adapter("proxy", Lora())
    perturb(two, "proxy", 7)
    assert differ(logits(two, "proxy"), base)


def test_dropping_the_adapter_in_use_leaves_the_reference(two, base):
    two.use("proxy")
    two.drop_adapter("proxy")
    assert two.active is None
    np.testing.assert_array_equal(current(two), base)


def test_dropping_another_adapter_leaves_the_one_in_use(two):
    policy = logits(two, "policy")
    two.use("policy")
    two.drop_adapter("proxy")
    np.testing.assert_array_equal(current(two), policy)
    assert two.active == "policy"


# files


@pytest.mark.parametrize("name", ["default", "proxy"])
def test_a_saved_adapter_is_the_same_on_a_fresh_backbone(two, tiny_model, tmp_path, name):
    two.add_adapter("default", Lora())
    perturb(two, "default", 4)
    expected = logits(two, name)
    two.save_adapter(name, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} == {
        p.name for p in (tmp_path / "adapter").iterdir() if p.suffix != ".md"
    }
    other = load_backbone(Model(source=str(tiny_model), quantisation="none"))
    other.load_adapter("again", tmp_path / "adapter")
    np.testing.assert_array_equal(logits(other, "again"), expected)


def test_a_loaded_adapter_is_not_in_use(two, tiny_model, tmp_path, base):
    two.save_adapter("proxy", tmp_path / "adapter")
    other = load_backbone(Model(source=str(tiny_model), quantisation="none"))
    for name in ("first", "second"):
        other.load_adapter(name, tmp_path / "adapter")
        assert other.active is None
        np.testing.assert_array_equal(current(other), base)


def test_loading_replaces_an_adapter_of_that_name(two, tmp_path):
    proxy, policy = logits(two, "proxy"), logits(two, "policy")
    two.save_adapter("proxy", tmp_path / "adapter")
    perturb(two, "proxy", 11)
    assert differ(logits(two, "proxy"), proxy)
    two.load_adapter("proxy", tmp_path / "adapter")
    np.testing.assert_array_equal(logits(two, "proxy"), proxy)
    np.testing.assert_array_equal(logits(two, "policy"), policy)


def test_saving_again_replaces_the_folder(two, fresh_backbone, tmp_path):
    two.save_adapter("proxy", tmp_path / "adapter")
    (tmp_path / "adapter" / "left over").write_text("x")
    two.save_adapter("policy", tmp_path / "adapter")
    expected = logits(two, "policy")
    two.load_adapter("again", tmp_path / "adapter")
    np.testing.assert_array_equal(logits(two, "again"), expected)
    assert not (tmp_path / "adapter" / "left over").exists()
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_saving_changes_nothing_in_memory(two, tmp_path):
    two.use("policy")
    policy = current(two)
    two.save_adapter("proxy", tmp_path / "adapter")
    assert two.active == "policy"
    np.testing.assert_array_equal(current(two), policy)


# loading a backbone


def test_the_backbone_is_frozen_and_in_eval_mode(fresh_backbone):
    assert not fresh_backbone.causal.training
    assert not any(weight.requires_grad for weight in fresh_backbone.causal.parameters())


def test_prompt_and_completion_ids_follow_the_chat_template(backbone):
    assert backbone.prompt_ids("the cat") == backbone.tokenizer(TEXT)["input_ids"]
    assert backbone.completion_ids("a dog") == [
        *backbone.tokenizer("a dog")["input_ids"],
        backbone.tokenizer.eos_token_id,
    ]
    assert backbone.stop_ids == [backbone.tokenizer.eos_token_id]
    assert backbone.context == 512


def test_a_folder_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no config.json"):
        load_backbone(Model(source=str(tmp_path), quantisation="none"))


def test_a_source_that_leads_nowhere_is_an_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="model.source 'no/such-model'"):
        load_backbone(Model(source="no/such-model", quantisation="none"))


def test_a_gpu_that_is_not_there_is_an_error(tiny_model, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match="model.device: found 'cuda'"):
        load_backbone(Model(source=str(tiny_model), quantisation="none", device="cuda"))
