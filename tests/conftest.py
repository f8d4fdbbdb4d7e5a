"""A tiny language model built in the process (no download, the real code path), and small synthetic tables."""

import os

import numpy as np
import pandas as pd
import pytest

# Keys that a user's shell may hold. Every test runs with them, and none may find its way into a file or a message.
CANARIES = {name: f"canary-{name.lower()}-5b1cf0" for name in (
    "OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "WANDB_API_KEY", "LABEL_STUDIO_API_KEY")}
os.environ.update(CANARIES)

CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")
# What the tokenizer learns its few merges from; completions of the tiny model are made of such pieces and of single bytes.
CORPUS = ["the cat sat on the mat and the dog ran in the rain", "assistant and user", "a good answer is an honest answer"]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a two-layer Llama with random weights and a byte-level tokenizer with a chat template."""
    return make_tiny_model(tmp_path_factory.mktemp("tiny_model"))


def make_tiny_model(folder):
    """Write the tiny model into an empty folder; returns the folder."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>")]
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    wrapped.chat_template = CHATML
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(wrapped), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=1, pad_token_id=1, tie_word_embeddings=False, initializer_range=0.2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        with torch.no_grad():  # sharp enough that completions differ, and sometimes end
            model.lm_head.weight.normal_(std=0.4)
            model.lm_head.weight[1] *= 1.5
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(tiny_model):
    """The tiny model, loaded as a run would load it, unquantised. For tests that add no adapters."""
    return _load(tiny_model)


@pytest.fixture
def fresh_backbone(tiny_model):
    """A backbone of the test's own, to put adapters on."""
    return _load(tiny_model)


def _load(folder):
    from shfcas_lib.models import load_backbone
    from shfcas_lib.params import Model

    return load_backbone(Model(source=str(folder), quantisation="none", device="cpu"))


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    """No test writes into the project's runs/."""
    monkeypatch.setenv("SHFCAS_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_secret_is_left(tmp_path):
    """Whatever a test wrote, no key out of the environment is in it."""
    yield
    assert leaks(tmp_path) == []


@pytest.fixture(scope="module", autouse=True)
def no_secret_is_left_between_tests(tmp_path_factory):
    """The same of the folders that the tests of a module share."""
    place = tmp_path_factory.getbasetemp()
    before = set(place.iterdir())
    yield
    shared = [folder for folder in place.iterdir() if folder not in before and not folder.is_symlink() and not folder.name.startswith("test_")]
    assert [leak for folder in shared for leak in leaks(folder)] == []


def leaks(folder):
    """The files below a folder that hold a canary."""
    values = [value.encode() for value in CANARIES.values()]
    return [str(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and path.stat().st_size < 1e8
            and any(value in path.read_bytes() for value in values)]


@pytest.fixture
def planted():
    """A pool of 30 prompts x 6 completions whose gold is linear in its features: (pool, gold)."""
    generator = np.random.default_rng(7)
    features = generator.normal(size=(180, 32))
    pool = pd.DataFrame({
        "prompt_id": np.repeat([f"p{k:02d}" for k in range(30)], 6), "index": np.tile(range(6), 30), "prompt": "prompt",
        "completion": [f"text {k}" for k in range(180)], "logp": generator.normal(-40, 8, 180), "features": list(features)})
    return pool, features[:, :8].sum(1)
