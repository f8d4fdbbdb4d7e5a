"""Checkpoints that people bring by mistake, and whole ones of unusual kinds, made in the process.

folder = damaged("a missing shard", twin, tmp_path)     # a copy of a twin with one fault
folder = composite("gemma3", tmp_path)                  # a multimodal twin
"""

import json
import shutil

import families

SIZES = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.2,
)


def read(folder):
    """The tensors of a folder with one safetensors file."""
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def write(folder, tensors):
    from safetensors.torch import save_file

    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def configure(folder, **changes):
    """Change keys of config.json; None takes a key away."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return folder


def shards(folder):
    """Cut the weights into two files with an index."""
    tensors = read(folder)
    names = sorted(tensors)
    half = len(names) // 2
    index = {}
    for number, part in enumerate((names[:half], names[half:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        write(folder, {name: tensors[name] for name in part})
        (folder / "model.safetensors").rename(folder / file)
        index |= dict.fromkeys(part, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (folder / "model.safetensors.index.json").write_text(text)


def without(*endings):
    def change(folder):
        tensors = read(folder)
        write(folder, {k: v for k, v in tensors.items() if not any(end in k for end in endings)})

    return change


def renamed(old, new):
    def change(folder):
        write(folder, {k.replace(old, new): v for k, v in read(folder).items()})

    return change


def packed(kind):
    """Linear layers as GPTQ or AWQ pack them, in a folder whose config.json does not say so."""

    def change(folder):
        import torch

        tensors = {}
        for name, weight in read(folder).items():
            if "proj.weight" not in name:
                tensors[name] = weight
                continue
            base, (rows, columns) = name.removesuffix("weight"), weight.shape
            packed_in = (columns // 8, rows) if kind == "gptq" else (columns, rows // 8)
            tensors[base + "qweight"] = torch.zeros(packed_in, dtype=torch.int32)
            tensors[base + "qzeros"] = torch.zeros((1, rows // 8), dtype=torch.int32)
            tensors[base + "scales"] = torch.ones((1, rows), dtype=torch.float16)
            if kind == "gptq":
                tensors[base + "g_idx"] = torch.zeros(columns, dtype=torch.int32)
        write(folder, tensors)
        name = {"gptq": "quantize_config.json", "awq": "quant_config.json"}[kind]
        (folder / name).write_text(json.dumps({"bits": 4, "group_size": 128}))

    return change


def cut(name, count):
    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:count])

    return change


def pointer(name):
    def change(folder):
        (folder / name).write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 12\n"
        )

    return change


def moved(old, new):
    def change(folder):
        (folder / old).rename(folder / new)

    return change


def sharded(then):
    def change(folder):
        shards(folder)
        then(folder)

    return change


def taken(name):
    def change(folder):
        (folder / name).unlink()

    return change


def another_vocabulary(rows):
    """Embedding and output layer of so many rows, config.json told of it."""

    def change(folder):
        tensors = read(folder)
        for name, weight in tensors.items():
            if "embed_tokens" in name or "lm_head" in name:
                tensors[name] = weight[:rows]
        write(folder, tensors)
        configure(folder, vocab_size=rows)

    return change


# what is wrong: how it is done to a copy of the Llama twin, and words of the sentence about it
DAMAGES = {
    "a layer is missing": (without("layers.1."), "lack model.layers.1.* and 8 more weights"),
    "a norm is missing": (without("model.norm"), "lack model.norm.weight of a LlamaForCausalLM"),
    "the embedding is missing": (without("embed_tokens"), "lack model.embed_tokens.weight"),
    "no output layer": (without("lm_head"), "lack lm_head.weight of a LlamaForCausalLM"),
    "names of another project": (renamed("model.", "transformer."), "is left over instead"),
    "one layer too many": (
        lambda folder: configure(folder, num_hidden_layers=1),
        "holds model.layers.1.* and 8 more weights, for which a LlamaForCausalLM has no place",
    ),
    "sizes of another model": (
        lambda folder: configure(folder, intermediate_size=96),
        r"has the shape .* and .* by its config.json",
    ),
    "fewer key heads": (
        lambda folder: configure(folder, num_key_value_heads=1),
        r"has the shape .* and .* by its config.json",
    ),
    "GPTQ without a word": (packed("gptq"), "GPTQ or AWQ packed"),
    "AWQ without a word": (packed("awq"), "GPTQ or AWQ packed"),
    "a missing shard": (
        sharded(taken("model-00002-of-00002.safetensors")),
        "names model-00002-of-00002.safetensors, which is not in the folder",
    ),
    "shards without an index": (
        sharded(taken("model.safetensors.index.json")),
        "but no model.safetensors.index.json",
    ),
    "a truncated shard": (
        sharded(cut("model-00001-of-00002.safetensors", 5000)),
        "model-00001-of-00002.safetensors has 5,000 bytes where its header announces",
    ),
    "an index of something else": (
        lambda folder: (
            taken("model.safetensors")(folder),
            (folder / "model.safetensors.index.json").write_text('["a"]'),
        ),
        "is no list of weights by file",
    ),
    "truncated weights": (cut("model.safetensors", -7), "was not copied or downloaded whole"),
    "only the header": (cut("model.safetensors", 200), "is cut short, or no safetensors file"),
    "an empty file": (cut("model.safetensors", 0), "is cut short, or no safetensors file"),
    "a page instead of weights": (
        lambda folder: (folder / "model.safetensors").write_text("<html>" + "not found " * 50),
        "is cut short, or no safetensors file",
    ),
    "weights as an LFS pointer": (pointer("model.safetensors"), "is a Git LFS pointer"),
    "a tokenizer as an LFS pointer": (pointer("tokenizer.json"), "tokenizer.json is a Git LFS"),
    "a config as an LFS pointer": (pointer("config.json"), "config.json is a Git LFS pointer"),
    "weights of PyTorch": (
        moved("model.safetensors", "pytorch_model.bin"),
        r"in PyTorch's format \(pytorch_model.bin\), expected safetensors",
    ),
    "a GGUF file alone": (
        moved("model.safetensors", "model.Q4_K_M.gguf"),
        r"in GGUF's format",
    ),
    "no weights": (taken("model.safetensors"), "the folder holds no weights"),
    "a LoRA adapter beside": (
        lambda folder: (folder / "adapter_config.json").write_text("{}"),
        "holds a LoRA adapter",
    ),
    "a vocabulary too small": (
        another_vocabulary(200),
        "as number 200, but the model knows the numbers below 200",
    ),
    "a classifier": (
        lambda folder: families.save("llama", folder, head=True),
        "is a LlamaForSequenceClassification, which writes no text",
    ),
    "a classifier that does not say so": (
        lambda folder: configure(families.save("llama", folder, head=True), architectures=None),
        r"lack lm_head.weight of a LlamaForCausalLM \(score.weight is left over instead\)",
    ),
    "a classifier with tied embeddings": (
        lambda folder: configure(families.save("qwen3", folder, head=True), architectures=None),
        "holds score.weight, for which a Qwen3ForCausalLM has no place",
    ),
    "a value head beside": (
        lambda folder: write(
            folder, read(folder) | {"v_head.summary.weight": read(folder)["lm_head.weight"]}
        ),
        "holds v_head.summary.weight",
    ),
}


def damaged(kind, twin, folder):
    """A copy of a twin with one of the DAMAGES."""
    shutil.copytree(twin, folder, dirs_exist_ok=True)
    DAMAGES[kind][0](folder)
    return folder


# Kinds of models beside the language models of `families`: configuration class, its keys, and the
# class that writes it.
OTHERS = {
    "bert": ("BertConfig", {}, "BertForMaskedLM"),
    "bert as a language model": ("BertConfig", {}, "BertLMHeadModel"),
    "roberta": ("RobertaConfig", {"max_position_embeddings": 514}, "RobertaForMaskedLM"),
    "modernbert": ("ModernBertConfig", {}, "ModernBertForMaskedLM"),
    "electra": ("ElectraConfig", {"embedding_size": 32}, "ElectraForMaskedLM"),
    "deberta": ("DebertaV2Config", {}, "DebertaV2ForMaskedLM"),
    "t5": (
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
        "T5ForConditionalGeneration",
    ),
    "bart": (
        "BartConfig",
        {
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
        },
        "BartForConditionalGeneration",
    ),
    "vit": ("ViTConfig", {"image_size": 32, "patch_size": 16}, "ViTForImageClassification"),
}
_VISION = dict(
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    image_size=28,
    patch_size=14,
)
_TEXT = SIZES | {"head_dim": 8}
# Multimodal families: configuration class, its keys, keys of the text part, the class that writes
COMPOSITES = {
    "gemma3": (
        "Gemma3Config",
        {"vision_config": _VISION, "mm_tokens_per_image": 4},
        _TEXT | {"sliding_window": 12, "query_pre_attn_scalar": 8},
        "Gemma3ForConditionalGeneration",
    ),
    "llava": (
        "LlavaConfig",
        {"vision_config": _VISION | {"model_type": "clip_vision_model"}},
        _TEXT | {"model_type": "llama"},
        "LlavaForConditionalGeneration",
    ),
    "mistral3": (
        "Mistral3Config",
        {"vision_config": _VISION | {"model_type": "pixtral"}},
        _TEXT | {"model_type": "mistral"},
        "Mistral3ForConditionalGeneration",
    ),
    "internvl": (
        "InternVLConfig",
        {"vision_config": _VISION | {"image_size": [28, 28], "patch_size": [14, 14]}},
        _TEXT | {"model_type": "qwen2"},
        "InternVLForConditionalGeneration",
    ),
    "smolvlm": (
        "SmolVLMConfig",
        {"vision_config": _VISION, "scale_factor": 1},
        _TEXT | {"model_type": "llama"},
        "SmolVLMForConditionalGeneration",
    ),
    "llama4": (
        "Llama4Config",
        {
            "vision_config": _VISION
            | {"vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16}
        },
        _TEXT
        | {"intermediate_size_mlp": 64, "num_local_experts": 2, "interleave_moe_layer_step": 1},
        "Llama4ForConditionalGeneration",
    ),
    "qwen2_5_vl": (
        "Qwen2_5_VLConfig",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 32,
            }
        },
        SIZES | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
        "Qwen2_5_VLForConditionalGeneration",
    ),
    "qwen3_5": (
        "Qwen3_5Config",
        {
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 32,
                "depth": 1,
                "num_heads": 2,
                "out_hidden_size": 32,
            }
        },
        SIZES | {"head_dim": 16, "layer_types": ["linear_attention", "full_attention"]},
        "Qwen3_5ForConditionalGeneration",
    ),
}
_ROUTED = SIZES | {"num_experts_per_tok": 2, "initializer_range": 0.2}
# Mixtures of experts: configuration class and its keys
MIXTURES = {
    "mixtral": ("MixtralConfig", _ROUTED | {"num_local_experts": 4}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        _ROUTED | {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 8},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        _ROUTED
        | {
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "olmoe": ("OlmoeConfig", _ROUTED | {"num_experts": 4}),
    "gpt_oss": (
        "GptOssConfig",
        _ROUTED | {"num_local_experts": 4, "head_dim": 8, "sliding_window": 12},
    ),
    "deepseek_v3": (
        "DeepseekV3Config",
        _ROUTED
        | {
            "n_routed_experts": 4,
            "moe_intermediate_size": 32,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "num_key_value_heads": 4,
        },
    ),
    "granitemoe": ("GraniteMoeConfig", _ROUTED | {"num_local_experts": 4}),
    "jetmoe": ("JetMoeConfig", _ROUTED | {"num_local_experts": 4, "kv_channels": 8}),
}


def save(config, writer, folder, family="llama"):
    """Write a model of random weights beside a twin's tokenizer; returns the folder."""
    import torch
    import transformers

    families.save(family, folder)
    (folder / "generation_config.json").unlink()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = getattr(transformers, writer) if isinstance(writer, str) else writer
        model = kind(config)
        head = model.get_output_embeddings()
        if head is not None:
            with torch.no_grad():  # sharp enough that completions differ, and sometimes end
                head.weight.normal_(std=0.4)
                head.weight[2] *= 1.5
    model.save_pretrained(folder)
    return folder


def _tokens():
    """Numbers of the Llama twin's vocabulary and special tokens."""
    return {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}


def other(name, folder):
    """A checkpoint of one of OTHERS."""
    import transformers

    config, keys, writer = OTHERS[name]
    sizes = {} if name in ("t5", "bart") else SIZES
    tokens = {} if name == "vit" else _tokens() | {"pad_token_id": 1}
    return save(getattr(transformers, config)(**sizes | tokens | keys), writer, folder)


def composite(name, folder):
    """A checkpoint of one of COMPOSITES."""
    import transformers

    config, keys, text, writer = COMPOSITES[name]
    made = getattr(transformers, config)(text_config=text | _tokens(), **keys)
    return save(made, writer, folder, "qwen3" if name.startswith("qwen") else "llama")


def mixture(name, folder):
    """A checkpoint of one of MIXTURES."""
    import transformers

    config, keys = MIXTURES[name]
    made = getattr(transformers, config)(**keys | _tokens())
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
    return save(made, kind, folder)


# --- checkpoints that are quantised already


def bitsandbytes(twin, folder, bits):
    """A twin that bitsandbytes quantised, as transformers writes it (compute type bfloat16)."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    settings = {"load_in_8bit": True}
    if bits == 4:
        settings = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": torch.bfloat16,
        }
    shutil.copytree(twin, folder, dirs_exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(
        twin, quantization_config=BitsAndBytesConfig(**settings), device_map={"": "cpu"}
    )
    model.save_pretrained(folder)
    return folder


def fp8(twin, folder):
    """A twin whose linear layers lie in 8-bit floats, with one scale a block of 16 x 16."""
    import torch

    shutil.copytree(twin, folder, dirs_exist_ok=True)
    tensors = {}
    for name, weight in read(twin).items():
        if "proj.weight" not in name:
            tensors[name] = weight
            continue
        rows, columns = weight.shape
        blocks = weight.float().reshape(rows // 16, 16, columns // 16, 16)
        scale = blocks.abs().amax((1, 3)) / 448
        small = blocks / scale[:, None, :, None]
        tensors[name] = small.reshape(rows, columns).to(torch.float8_e4m3fn)
        tensors[name.replace("weight", "weight_scale_inv")] = scale
    write(folder, tensors)
    stored = {"quant_method": "fp8", "weight_block_size": [16, 16], "activation_scheme": "dynamic"}
    return configure(folder, quantization_config=stored)


def mxfp4(folder):
    """The twin of gpt-oss, its experts packed in 4-bit floats as published."""
    import torch

    mixture("gpt_oss", folder)
    tensors = {}
    for name, weight in read(folder).items():
        if not name.endswith(("gate_up_proj", "down_proj")):
            tensors[name] = weight
            continue
        experts, columns, rows = weight.shape  # transposed: inputs before outputs
        packed_in = (experts, rows, columns // 32, 16)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, packed_in, dtype=torch.uint8)
        scales = torch.full((experts, rows, columns // 32), 124, dtype=torch.uint8)
        tensors[f"{name}_scales"] = scales
    write(folder, tensors)
    return configure(folder, quantization_config={"quant_method": "mxfp4"})


# What stands in the config.json of published checkpoints, by method. Their packages are not
# installed here, or need a GPU.
STORED = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True},
    "awq": {
        "quant_method": "awq",
        "bits": 4,
        "group_size": 128,
        "version": "gemm",
        "zero_point": True,
    },
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}}},
        "ignore": ["lm_head"],
    },
    "hqq": {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4}}},
    "torchao": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}},
    },
    "aqlm": {"quant_method": "aqlm", "in_group_size": 8},
    "quanto": {"quant_method": "quanto", "weights": "int8"},
    "eetq": {"quant_method": "eetq", "weights": "int8"},
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0},
    "higgs": {"quant_method": "higgs", "bits": 4},
    "vptq": {"quant_method": "vptq"},
    "auto-round": {"quant_method": "auto-round", "bits": 4, "group_size": 128},
    "modelopt": {"quant_method": "modelopt", "quant_algo": "NVFP4"},
    "exl2": {"quant_method": "exl2", "bits": 4.0},
    "no method": {"bits": 4},
}
