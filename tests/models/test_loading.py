"""The backbone is the model that was asked for: files, kinds of models, every weight, the stored
quantisation. What is wrong is one sentence, from the check as from loading."""

import json
import re
import shutil

import checkpoints
import families
import numpy as np
import pytest
from own_files import refusal

from shfcas_lib.models import checkpoint, inspection, loading, published, trial
from shfcas_lib.params.schema import Classifier, Model

IDS = list(range(5, 25))


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Folder of the Llama twin, whole."""
    return families.save("llama", tmp_path_factory.mktemp("llama"))


def asked(folder, **keys):
    return Model(source=str(folder), **{"quantisation": "none", "device": "cpu"} | keys)


def logits(backbone):
    import torch

    with torch.inference_mode():
        return backbone.causal(input_ids=torch.tensor([IDS])).logits[0].float().numpy()


@pytest.mark.parametrize("kind", checkpoints.DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence_from_check_and_from_loading(kind, llama, tmp_path):
    folder = checkpoints.damaged(kind, llama, tmp_path)
    words = checkpoints.DAMAGES[kind][1]
    for model in (asked(folder), asked(folder, quantisation="nf4")):
        for look in (inspection.policy, loading.load_backbone):
            told = refusal(look, model)
            assert told.startswith("model.source ") and str(folder) in told
            assert re.search(words, told), told


def test_the_twins_themselves_pass_the_check(llama):
    assert inspection.policy(asked(llama)).how.method is None


@pytest.mark.parametrize("family", ["smollm", "gemma2", "gpt_neox"])
def test_what_is_absent_or_left_over_by_right_is_no_fault(family, tmp_path):
    """Tied output layers are in no file; tables that were once stored are in many."""
    import torch

    folder = families.save(family, tmp_path)
    tensors = checkpoints.read(folder)
    layer = "gpt_neox.layers.0.attention" if family == "gpt_neox" else "model.layers.0.self_attn"
    tensors[f"{layer}.rotary_emb.inv_freq"] = torch.ones(2)
    if family == "gpt_neox":
        tensors[f"{layer}.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
        tensors[f"{layer}.masked_bias"] = torch.tensor(-1e9)
    checkpoints.write(folder, tensors)
    assert inspection.policy(asked(folder))
    assert np.isfinite(logits(loading.load_backbone(asked(folder)))).all()


def test_shards_are_read_as_one(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    checkpoints.shards(tmp_path)
    assert inspection.policy(asked(tmp_path))
    whole, cut = (logits(loading.load_backbone(asked(folder))) for folder in (llama, tmp_path))
    np.testing.assert_array_equal(whole, cut)


def test_random_bytes_in_place_of_a_header_are_one_sentence(tmp_path):
    generator = np.random.default_rng(0)
    path = tmp_path / "model.safetensors"
    for _ in range(200):
        body = generator.bytes(int(generator.integers(0, 200)))
        length = int(generator.integers(0, 220)).to_bytes(8, "little")
        path.write_bytes(body if generator.random() < 0.3 else length + body)
        assert refusal(checkpoint.read_header, path, "a model").startswith("a model: model.safet")
    for header in ("[]", '{"a": 1}', '{"a": {"dtype": "F32", "shape": [1]}}', "null", '"x"'):
        text = header.encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        assert "header that cannot be read" in refusal(checkpoint.read_header, path, "a model")


def test_a_tokenizer_may_name_tokens_that_no_text_can_hold(tmp_path):
    """Gemma 3's text models know the name of a token for pictures, one number past the last."""
    from transformers import AutoTokenizer

    folder = families.save("gemma3", tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image_soft_token>"]})
    tokenizer.save_pretrained(folder)
    assert inspection.policy(asked(folder))
    loading.load_backbone(asked(folder))
    tokenizer.add_tokens(["antidisestablishmentarianism"])
    tokenizer.save_pretrained(folder)
    assert "antidisestablishmentarianism" in refusal(inspection.policy, asked(folder))
    assert "do not belong together" in refusal(loading.load_backbone, asked(folder))


# kinds of models


@pytest.mark.parametrize("name", checkpoints.OTHERS)
def test_what_is_no_decoder_is_refused(name, tmp_path):
    folder = checkpoints.other(name, tmp_path)
    for look in (inspection.policy, loading.load_backbone, loading.load_reader):
        assert "expected a decoder-only language model" in refusal(look, asked(folder))


def test_an_encoder_in_disguise_is_seen_when_it_reads_backwards(llama):
    """As a class of the model's own may be, which no list knows."""
    backbone = loading.load_backbone(asked(llama))
    for layer in backbone.causal.model.layers:
        layer.self_attn.is_causal = False
    assert "changes what it says of a text's start" in refusal(trial.run, backbone, "a model")


def test_weights_that_are_no_numbers_are_seen(llama, tmp_path):
    shutil.copytree(llama, tmp_path, dirs_exist_ok=True)
    tensors = checkpoints.read(tmp_path)
    tensors["model.norm.weight"] *= float("nan")
    checkpoints.write(tmp_path, tensors)
    assert "no finite log-probabilities" in refusal(loading.load_backbone, asked(tmp_path))


@pytest.mark.parametrize(
    "config, keys",
    [
        ("MambaConfig", {"state_size": 4}),
        ("Qwen3NextConfig", {"layer_types": ["linear_attention", "full_attention"]}),
        ("RecurrentGemmaConfig", {}),
        ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    ],
)
def test_running_states_are_refused_before_anything_is_sampled(config, keys):
    import transformers

    from shfcas_lib.models import architecture

    made = getattr(transformers, config)(**checkpoints.SIZES | keys)
    assert "keeps a running state" in refusal(architecture.check_policy, made, "a model")


@pytest.mark.parametrize("name", checkpoints.COMPOSITES)
def test_of_a_multimodal_model_the_text_model_is_used_or_it_is_refused(name, tmp_path):
    import torch
    import transformers

    folder = checkpoints.composite(name, tmp_path)
    if name.startswith("qwen"):
        told = refusal(inspection.policy, asked(folder))
        assert told == refusal(loading.load_backbone, asked(folder))
        assert "transformers has no causal language model" in told or "running state" in told
        return
    assert inspection.policy(asked(folder))
    backbone = loading.load_backbone(asked(folder))
    kind = getattr(transformers, checkpoints.COMPOSITES[name][3])
    whole = kind.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = whole(input_ids=torch.tensor([IDS])).logits[0].numpy()
    np.testing.assert_allclose(logits(backbone), expected, atol=1e-4)
    held = sum(weight.numel() for weight in backbone.causal.parameters())
    assert held < sum(weight.numel() for weight in whole.parameters())
    assert backbone.stop_ids[0] == 2 and not hasattr(backbone.causal.config, "vision_config")


# quantised already


def stored_as(settings, llama, folder):
    shutil.copytree(llama, folder, dirs_exist_ok=True)
    return checkpoints.configure(folder, quantization_config=settings)


def kinds_of(model):
    return {type(module).__name__ for module in model.modules()}


@pytest.mark.parametrize("bits, same, other", [(4, "nf4", "int8"), (8, "int8", "nf4")])
def test_bitsandbytes_files_are_what_the_parameters_say(bits, same, other, llama, tmp_path):
    import torch

    folder = checkpoints.bitsandbytes(llama, tmp_path, bits)
    layer = {4: "Linear4bit", 8: "Linear8bitLt"}[bits]
    found = {}
    for wanted in (same, "as_stored", "none"):
        assert inspection.policy(asked(folder, quantisation=wanted)).how.method
        for dtype in ("float32", "bfloat16"):
            backbone = loading.load_backbone(asked(folder, quantisation=wanted, dtype=dtype))
            assert (layer in kinds_of(backbone.causal)) == (wanted != "none")
            whole = {w.dtype for w in backbone.causal.parameters() if w.is_floating_point()}
            assert whole == {getattr(torch, dtype)}, "the compute type, not that of the files"
            for module in backbone.causal.modules():
                if type(module).__name__ == "Linear4bit":
                    assert module.compute_dtype == getattr(torch, dtype)
            found[wanted, dtype] = logits(backbone)
            assert not getattr(backbone.causal, "is_loaded_in_4bit", False) or wanted != "none"
    np.testing.assert_array_equal(found[same, "float32"], found["as_stored", "float32"])
    gap = {4: 1e-4, 8: 0.05}[bits]
    spread = found["none", "float32"].std()
    assert np.abs(found[same, "float32"] - found["none", "float32"]).mean() < gap * spread
    told = refusal(inspection.policy, asked(folder, quantisation=other))
    assert told.startswith(f"model.quantisation: found '{other}'")
    assert f"set it to as_stored, {same}, or to none" in told


def test_8_bit_floats_are_widened_to_what_they_stand_for(llama, tmp_path):
    import torch

    folder = checkpoints.fp8(llama, tmp_path)
    tensors = checkpoints.read(folder)
    small = tensors["model.layers.0.mlp.up_proj.weight"].float()
    scale = tensors["model.layers.0.mlp.up_proj.weight_scale_inv"]
    expected = small * scale.repeat_interleave(16, 0).repeat_interleave(16, 1)
    causal = loading.load_backbone(asked(folder)).causal
    torch.testing.assert_close(causal.model.layers[0].mlp.up_proj.weight.data, expected)
    assert not hasattr(causal.config, "quantization_config"), "saved, it is a plain model"
    told = refusal(inspection.policy, asked(folder, quantisation="nf4"))
    assert "set it to as_stored, or to none to widen its weights" in told
    assert "on a GPU alone" in refusal(inspection.policy, asked(folder, quantisation="as_stored"))


def test_4_bit_floats_of_experts_are_widened_to_what_they_stand_for(tmp_path):
    import torch

    folder = checkpoints.mxfp4(tmp_path)
    blocks = checkpoints.read(folder)["model.layers.0.mlp.experts.down_proj_blocks"]
    halves = [0.0, 0.5, 1, 1.5, 2, 3, 4, 6]
    table = torch.tensor(halves + [-half for half in halves])
    values = torch.stack([table[(blocks & 15).long()], table[(blocks >> 4).long()]], -1)
    expected = values.flatten(2).transpose(1, 2) * 2.0 ** (124 - 127)
    causal = loading.load_backbone(asked(folder)).causal
    torch.testing.assert_close(causal.model.layers[0].mlp.experts.down_proj.data, expected)
    told = refusal(loading.load_backbone, asked(folder, quantisation="nf4"))
    assert "is stored quantised (mxfp4): set it to as_stored, or to none" in told


@pytest.mark.parametrize("method", checkpoints.STORED)
def test_other_methods_are_one_sentence_whatever_is_asked_for(method, llama, tmp_path):
    folder = stored_as(checkpoints.STORED[method], llama, tmp_path)
    for wanted in ("none", "nf4", "int8", "as_stored"):
        for look in (inspection.policy, loading.load_backbone):
            told = refusal(look, asked(folder, quantisation=wanted))
            assert "is stored quantised" in told
            way = "set it to as_stored" in told or "cannot be used here" in told
            assert way or "transformers does not read" in told
            assert len(told) < 600, told


def test_an_unquantised_checkpoint_as_stored_is_itself(llama):
    np.testing.assert_array_equal(
        logits(loading.load_backbone(asked(llama, quantisation="as_stored"))),
        logits(loading.load_backbone(asked(llama))),
    )


# the same of published reward models


def heads(folder, **more):
    return families.save("llama", folder, head=True, **more)


@pytest.mark.parametrize(
    "damage, words",
    [
        (checkpoints.without("layers.1."), "lack model.layers.1.input_layernorm.weight"),
        (checkpoints.packed("gptq"), "GPTQ or AWQ packed"),
        (checkpoints.cut("model.safetensors", -9), "was not copied or downloaded whole"),
        (checkpoints.pointer("model.safetensors"), "is a Git LFS pointer"),
        (
            lambda folder: checkpoints.configure(folder, num_hidden_layers=1),
            "for which a LlamaForSequenceClassification has no place",
        ),
    ],
)
def test_a_damaged_reward_model_is_refused(damage, words, tmp_path):
    folder = heads(tmp_path)
    damage(folder)
    for look in (inspection.classifier, published.load_classifier):
        told = refusal(look, str(folder), Classifier(), asked("x"), "gold.kind")
        assert words in told and told.startswith("gold.kind ")


def test_a_reward_model_may_keep_a_language_models_output_layer(tmp_path):
    folder = heads(tmp_path)
    tensors = checkpoints.read(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    checkpoints.write(folder, tensors)
    inspection.classifier(str(folder), Classifier(), asked("x"), "gold.kind")
    published.load_classifier(str(folder), Classifier(), asked("x"), "gold.kind")


def test_a_stored_reward_model_beside_a_backbone_of_another_quantisation(llama, tmp_path):
    folder = heads(tmp_path)
    stored = {"quant_method": "gptq", "bits": 4}
    checkpoints.configure(folder, quantization_config=stored)
    told = refusal(
        inspection.classifier, str(folder), Classifier(quantisation="nf4"), asked("x"), "gold.kind"
    )
    assert told.startswith("gold.model.quantisation: found 'nf4'")
    told = refusal(published.load_classifier, str(folder), Classifier(), asked("x"), "reward.proxy")
    assert told.startswith("model.quantisation: found 'none'")
    config = json.loads((folder / "config.json").read_text())
    assert config["quantization_config"] == stored
