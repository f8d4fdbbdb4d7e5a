"""Tiny random twins of published model families: the family's own configuration class, template
and special tokens, weights at random.

    folder = save("gemma2", tmp_path)

leaves there what a download would: config, generation config, safetensors, tokenizer.
The tokenizers are byte-level, learnt in the process; each has its family's special tokens, and
its habits (a start token, no pad token...). Templates that TRL ships are the published ones."""

import importlib.util
import re
from pathlib import Path

from tiny_model import CORPUS

_TRL = Path(importlib.util.find_spec("trl").submodule_search_locations[0], "chat_templates")


def published(name):
    """A chat template as a model card has it."""
    return (_TRL / f"{name}.jinja").read_text()


def published_names():
    """One of each family, of those that write messages of text (not lists of images and texts)."""
    left_out = r".*_training|.*_v\d|.*_vl|idefics3|llava_next|smolvlm|lfm2_2.*|nemotron_3_[su5].*"
    names = sorted(path.stem for path in _TRL.glob("*.jinja"))
    return [name for name in names if not re.fullmatch(left_out, name)]


_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}"
    " [/INST]{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% else %}{{"
    " raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
_ZEPHYR = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}{%"
    " if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_SMALL = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=512,
    initializer_range=0.2,
)
_GROUPED = _SMALL | {"num_key_value_heads": 2}

# name: configuration class, its keys, special tokens (ids 0, 1, ...), what the tokenizer is told,
# ids that end a completion, chat template
FAMILIES = {
    "llama": (
        "LlamaConfig",
        _GROUPED | {"tie_word_embeddings": False},
        [
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|eot_id|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
        ],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
        [1, 2],
        published("llama3_2"),  # writes today's date
    ),
    "zephyr": (
        "LlamaConfig",
        _GROUPED | {"tie_word_embeddings": False},
        ["<unk>", "<s>", "</s>"],  # TinyLlama: roles in plain text
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"},
        2,
        _ZEPHYR,
    ),
    "smollm": (
        "LlamaConfig",
        _GROUPED | {"tie_word_embeddings": True},
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
        2,
        _CHATML,
    ),
    "qwen2": (
        "Qwen2Config",
        _GROUPED | {"tie_word_embeddings": False},
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        [2, 0],
        _CHATML,
    ),
    "qwen3": (
        "Qwen3Config",
        _GROUPED | {"head_dim": 16, "tie_word_embeddings": True},
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        [2, 0],
        published("qwen3"),  # thinks before it answers
    ),
    "deepseek_r1": (
        "Qwen2Config",
        _GROUPED | {"tie_word_embeddings": False},
        [
            "<｜begin▁of▁sentence｜>",
            "<｜end▁of▁sentence｜>",
            "<｜User｜>",
            "<｜Assistant｜>",
            "<|endoftext|>",  # Qwen2's tokenizer class has it, whatever a folder says
        ],
        {
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
            "pad_token": "<｜end▁of▁sentence｜>",
        },
        1,
        published("deepseek_r1_distill"),  # opens a block of thinking
    ),
    "gpt_oss": (
        "LlamaConfig",  # the experts are another matter
        _GROUPED | {"tie_word_embeddings": False},
        [
            "<|startoftext|>",
            "<|endoftext|>",
            "<|return|>",
            "<|start|>",
            "<|end|>",
            "<|message|>",
            "<|channel|>",
            "<|call|>",
        ],
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"},
        [2, 1, 7],
        published("gptoss"),  # channels, today's date, another end than between turns
    ),
    "mistral": (
        "MistralConfig",
        _GROUPED | {"sliding_window": 12},
        ["<unk>", "<s>", "</s>"],
        {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
        2,
        _MISTRAL,
    ),
    "gemma2": (
        "Gemma2Config",
        _GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 12,
            "query_pre_attn_scalar": 8,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
        },
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        1,
        published("gemma"),
    ),
    "gemma3": (
        "Gemma3TextConfig",
        _GROUPED
        | {
            "head_dim": 8,
            "sliding_window": 12,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
        [1, 4],
        published("gemma3"),
    ),
    "gpt2": (
        "GPT2Config",  # linear layers of a kind of their own; positions that are learnt
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "initializer_range": 0.2},
        ["<|endoftext|>"],
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
        0,
        None,
    ),
    "opt": (
        "OPTConfig",  # hidden states that are narrowed before the output layer
        {
            "hidden_size": 32,
            "ffn_dim": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "init_std": 0.2,
        },
        ["<s>", "<pad>", "</s>", "<unk>"],
        {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        2,
        None,
    ),
    "gpt_neox": (
        "GPTNeoXConfig",
        _SMALL | {"rotary_pct": 0.25, "tie_word_embeddings": False},
        ["<|endoftext|>"],
        {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
        0,
        None,
    ),
}


def save(family, folder, head=False, labels=1, **changes):
    """Write a twin into `folder`: a causal model, or with `head` a sequence classifier with
    `labels` outputs. changes: configuration keys."""
    import torch
    import transformers

    name, keys, special, told, stop, template = FAMILIES[family]
    tokenizer = _tokenizer(special, told, template)
    tokenizer.save_pretrained(folder)
    first = stop if isinstance(stop, int) else stop[0]
    bos = special.index(told["bos_token"]) if "bos_token" in told else None
    config = getattr(transformers, name)(
        **keys
        | {
            "vocab_size": len(tokenizer),
            "bos_token_id": bos,
            "eos_token_id": stop,
            "pad_token_id": tokenizer.pad_token_id,
        }
        | changes
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if head:
            config.num_labels = labels
            model = transformers.AutoModelForSequenceClassification.from_config(config)
        else:
            model = transformers.AutoModelForCausalLM.from_config(config)
            with torch.no_grad():  # sharp enough that completions differ, and sometimes end
                out = model.get_output_embeddings().weight
                out.normal_(std=0.4)
                out[first] *= 1.5
    model.save_pretrained(folder)
    return folder


def _tokenizer(special, told, template):
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=300,
            special_tokens=[AddedToken(token, special=True) for token in special],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    if (
        "bos_token" in told and template and "bos_token" in template
    ):  # Llama, Mistral and Gemma start every text with it
        start = told["bos_token"]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{start} $A", special_tokens=[(start, special.index(start))]
        )
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **told)
    wrapped.chat_template = template
    if template and "</think>" in template:  # ordinary tokens, as they are published
        wrapped.add_tokens(["<think>", "</think>"])
    return wrapped


def tokenizer_for(name):
    """A tokenizer with a published template, whose marks are tokens of it."""
    template = published(name)
    marks = re.findall(r"<[|｜]?[a-zA-Z_▁][\w▁|｜]*>|<\w+\|>|<\|\w+>", template)
    marks = [mark for mark in dict.fromkeys(marks) if "think" not in mark]
    told = {"bos_token": "<BOS>", "eos_token": "<EOS>", "pad_token": "<EOS>"}
    return _tokenizer(["<BOS>", "<EOS>", *marks], told, template)
