"""Rewards written for others score what they score here: every model family, both kinds, adapter
and merged weights, padded on either side, with and without quantisation."""

import families
import numpy as np
import pytest

from shfcas_lib.base.errors import InputError
from shfcas_lib.models.decoding import read_states
from shfcas_lib.models.loading import load_backbone
from shfcas_lib.out import reward_model, templates
from shfcas_lib.params.schema import Lora, Model
from shfcas_lib.pool import reference_features
from shfcas_lib.rewards import Corrected, Probe, Published
from shfcas_lib.training.reward import LoraReward

PROMPTS = ["who ran in the rain?", "hi", "name three good answers " * 4]
ANSWERS = ["the dog", "a cat sat on the mat and the dog ran in the rain", "x\n\ny"]


@pytest.fixture(scope="module")
def texts():
    import pandas as pd

    rows = [(p, i, p, a) for p in PROMPTS for i, a in enumerate(ANSWERS)]
    return pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion"])


def loaded(folder, **changes):
    values = {"source": str(folder), "quantisation": "none", "device": "cpu"} | changes
    return load_backbone(Model(**values))


def lora(backbone):
    """An adapter and a head with random weights, of a size that moves scores."""
    import torch

    backbone.add_adapter("refined", Lora(r=4, dropout=0.0))
    generator = torch.Generator().manual_seed(1)
    for name, weight in backbone.causal.named_parameters():
        if ".refined." in name:
            weight.data.normal_(std=0.1, generator=generator)
    width = backbone.causal.get_output_embeddings().weight.shape[1]
    head = torch.nn.Linear(width, 1, bias=False)
    head.weight.data.normal_(generator=generator)
    backbone.use(None)
    return LoraReward(backbone, "refined", head.requires_grad_(False), spread=0.7)


def probe(backbone):
    size = 4 * backbone.causal.config.get_text_config().hidden_size
    generator = np.random.default_rng(2)
    std = generator.uniform(0.5, 2, (2, size))
    return Probe(generator.normal(size=(2, size)), std, generator.normal(size=size), 3.0)


def there(written, backbone, texts, side="right", through_chat=False):
    """Raw logits as transformers gives them, and the token ids that went in."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

    known = {"torch": torch, "BitsAndBytesConfig": BitsAndBytesConfig}
    arguments = {name: eval(text, known) for name, text in written.arguments.items()}  # noqa: S307
    model = AutoModelForSequenceClassification.from_pretrained(written.folder, **arguments).eval()
    tokenizer = AutoTokenizer.from_pretrained(written.folder, trust_remote_code=True)
    assert tokenizer.padding_side == "right"
    rows = []
    for row in texts.itertuples():
        chat = [{"role": "user", "content": row.prompt}]
        if through_chat:
            chat.append({"role": "assistant", "content": row.completion})
            rows.append(tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"])
        else:
            rows.append(backbone.prompt_ids(row.prompt) + backbone.completion_ids(row.completion))
    pad = backbone.tokenizer.pad_token_id
    longest = max(map(len, rows))
    fill = [[pad] * (longest - len(row)) for row in rows]
    seen = [[0] * (longest - len(row)) for row in rows]
    ones = [[1] * len(row) for row in rows]
    left = side == "left"
    ids = [f + r if left else r + f for f, r in zip(fill, rows, strict=True)]
    mask = [s + o if left else o + s for s, o in zip(seen, ones, strict=True)]
    with torch.inference_mode():
        out = model(input_ids=torch.tensor(ids), attention_mask=torch.tensor(mask))
    assert out.logits.shape == (len(texts), 1) and model.config.id2label == {0: "reward"}
    return out.logits[:, 0].double().numpy()


@pytest.mark.parametrize("family", families.FAMILIES)
def test_every_family_leaves_as_it_is(family, texts, tmp_path):
    families.save(family, tmp_path / "base")
    backbone = loaded(tmp_path / "base")
    reward, linear = lora(backbone), probe(backbone)
    expected = {"probe": linear.score(reference_features(backbone, texts))}
    expected |= dict.fromkeys(("adapter", "merged"), reward.score(texts, quiet=True))
    for form, inside in expected.items():
        (tmp_path / form).mkdir()
        given = linear if form == "probe" else reward
        written = reward_model.write_reward(backbone, given, tmp_path / form, form == "merged")
        assert written.form == form and np.ptp(inside) > 0.5
        if form == "probe" and not templates.answer_start(backbone):
            continue  # tested below
        # transformers' GPT-2 counts positions from the left, padding or not
        counts = family == "gpt2" and form != "probe"
        for side in ("right",) if counts else ("left", "right"):
            outside = there(written, backbone, texts, side)
            np.testing.assert_allclose(outside, inside, atol=1e-3, err_msg=f"{form} {side}")


@pytest.mark.parametrize("quantisation", ["nf4", "int8"])
def test_the_quantised_base_is_the_one_that_leaves(quantisation, tiny_model, texts, tmp_path):
    """Merged weights are the numbers that the quantised ones stand for; an adapter asks for its
    base quantised alike. (int8 also rounds activations, which no weights can say.)"""
    backbone = loaded(tiny_model, quantisation=quantisation)
    reward, linear = lora(backbone), probe(backbone)
    inside = reward.score(texts, quiet=True)
    (tmp_path / "adapter").mkdir(), (tmp_path / "merged").mkdir(), (tmp_path / "probe").mkdir()
    written = reward_model.write_reward(backbone, reward, tmp_path / "adapter")
    np.testing.assert_allclose(there(written, backbone, texts), inside, atol=1e-3)
    merged = reward_model.write_reward(backbone, reward, tmp_path / "merged", merged=True)
    far = 1e-3 if quantisation == "nf4" else 0.3 * inside.std()
    np.testing.assert_allclose(there(merged, backbone, texts), inside, atol=far)
    as_probe = reward_model.write_reward(backbone, linear, tmp_path / "probe")
    shown = linear.score(reference_features(backbone, texts))
    far = 1e-3 if quantisation == "nf4" else 0.3 * shown.std()
    np.testing.assert_allclose(there(as_probe, backbone, texts), shown, atol=far)


def test_another_quantisation_is_another_reward(tiny_model, texts, tmp_path):
    """Why the card names it."""
    reward = lora(loaded(tiny_model, quantisation="nf4"))
    other = LoraReward(loaded(tiny_model), "refined", reward.head, reward.spread)
    lora(other.backbone)
    inside = reward.score(texts, quiet=True)
    assert np.abs(other.score(texts, quiet=True) - inside).max() > 0.1


@pytest.mark.parametrize("prompt", ["", 'be "good"\nand {{ brief }} \U0001f600'])
@pytest.mark.parametrize("family", ["smollm", "qwen2", "llama", "qwen3", "deepseek_r1", "gpt_oss"])
def test_a_chat_with_an_answer_is_written_as_the_reward_reads_it(family, prompt, texts, tmp_path):
    """Also where the template writes more after an answer, where the end is the pad token, where it
    lets the model think unless it is told otherwise, and where it reads the clock."""
    families.save(family, tmp_path / "base")
    told = "" if family == "llama" else prompt
    backbone = loaded(tmp_path / "base", system_prompt=told, date="2024-02-03")
    reward = lora(backbone)
    (tmp_path / "merged").mkdir()
    written = reward_model.write_reward(backbone, reward, tmp_path / "merged", merged=True)
    outside = there(written, backbone, texts, through_chat=True)
    np.testing.assert_allclose(outside, reward.score(texts, quiet=True), atol=1e-3)
    linear = probe(backbone)
    (tmp_path / "probe").mkdir()
    written = reward_model.write_reward(backbone, linear, tmp_path / "probe")
    inside = linear.score(reference_features(backbone, texts))
    outside = there(written, backbone, texts, through_chat=True)
    np.testing.assert_allclose(outside, inside, atol=1e-3)


def test_a_plain_model_gets_a_template_that_writes_what_is_sampled_from(tiny_model):
    from shfcas_lib.base import dialogues

    backbone = loaded(tiny_model, template="plain", system_prompt="be brief")
    tokenizer = templates.for_reward(backbone, classifier=True)
    turns = [("user", "hi"), ("assistant", "yes?"), ("user", "no {{ x }}")]
    chat = [{"role": role, "content": content} for role, content in turns]
    for messages in (chat[:1], chat):
        prompt = dialogues.encode(messages)
        written = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False
        )
        assert written == backbone.writer.text(prompt)
        answered = [*messages, {"role": "assistant", "content": "so"}]
        assert tokenizer.apply_chat_template(answered, tokenize=False) == written + "so"


def test_without_a_marked_start_a_probe_is_told_where_completions_start(
    tiny_model, texts, tmp_path
):
    import torch
    from transformers import AutoModelForSequenceClassification

    backbone = loaded(tiny_model, template="plain")
    linear = probe(backbone)
    written = reward_model.write_reward(backbone, linear, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert model.config.answer_start == [] and written.form == "probe"
    inside = linear.score(reference_features(backbone, texts))
    for row, expected in zip(texts.itertuples(), inside, strict=True):
        start = backbone.prompt_ids(row.prompt)
        ids = torch.tensor([start + backbone.completion_ids(row.completion)])
        logit = model(input_ids=ids, completion_start=[len(start)]).logits[0, 0]
        assert float(logit) == pytest.approx(expected, abs=1e-3)
    with pytest.raises(ValueError, match="completion_start"):
        model(input_ids=ids)
    with pytest.raises(ValueError, match="one is empty"):
        model(input_ids=ids, completion_start=[ids.shape[1]])


def test_bfloat16_is_near_and_its_head_exact(tiny_model, texts, tmp_path):
    from safetensors.torch import load_file

    backbone = loaded(tiny_model)
    linear = probe(backbone)
    written = reward_model.write_reward(backbone, linear, tmp_path, dtype="bfloat16")
    found = load_file(tmp_path / "model.safetensors")
    kinds = {str(found[name].dtype) for name in found if not name.startswith("head.")}
    assert kinds == {"torch.bfloat16"}
    np.testing.assert_allclose(found["head.weight"], linear.weight / linear.spread, rtol=1e-6)
    inside = linear.score(reference_features(backbone, texts))
    far = np.abs(there(written, backbone, texts) - inside).max()
    assert 1e-4 < far < 0.2 * inside.std()


def test_a_probe_leaves_without_the_layers_above_it(tmp_path, texts):
    import json

    families.save("smollm", tmp_path / "base", num_hidden_layers=6)
    backbone = loaded(tmp_path / "base")
    linear = probe(backbone)
    (tmp_path / "probe").mkdir()
    written = reward_model.write_reward(backbone, linear, tmp_path / "probe")
    config = json.loads((tmp_path / "probe/config.json").read_text())
    assert (config["layer"], config["backbone"]["num_hidden_layers"]) == (4, 5)
    inside = linear.score(reference_features(backbone, texts))
    np.testing.assert_allclose(there(written, backbone, texts), inside, atol=1e-3)


def test_the_code_does_not_run_unasked(tiny_model, tmp_path):
    from transformers import AutoModelForSequenceClassification

    backbone = loaded(tiny_model)
    reward_model.write_reward(backbone, probe(backbone), tmp_path)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=False)


def test_two_models_are_no_classifier(tiny_model, tmp_path):
    backbone = loaded(tiny_model)
    for reward in (Published(), Corrected(Published(), probe(backbone))):
        with pytest.raises(InputError, match="no single classifier holds"):
            reward_model.write_reward(backbone, reward, tmp_path)


def test_states_without_a_head_are_those_of_the_pool(backbone, texts):
    from shfcas_lib import pool

    expected = pool.features(reference_features(backbone, texts))
    np.testing.assert_allclose(read_states(backbone, texts), expected, atol=1e-5)
