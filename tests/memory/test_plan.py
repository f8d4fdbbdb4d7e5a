"""What a run will need of memory: sizes against published counts, formulas against autograd, PEFT
and bitsandbytes, estimates against measured peaks."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from project import ROOT

from shfcas_lib.base.errors import InputError
from shfcas_lib.cli.program import main
from shfcas_lib.memory import estimate, known, plan, shapes
from shfcas_lib.memory.plan import UNKNOWN_PROMPT, _micro, longest_prompt, make_plan
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Lora

sys.path.insert(0, str(ROOT / "benchmarks"))
RUN = {
    "model": {"source": "somewhere/a-model", "device": "cuda"},
    "sampling": {"n": 8, "max_new_tokens": 256, "batch_size": 64},
    "reward": {"kind": "lora", "batch_size": 8},
    "policy": {"kind": "dpo", "batch_size": 8},
    "evaluation": {"replicates": 0},
}
# From the models' pages: parameters, as safetensors files count them.
PUBLISHED = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "EleutherAI/pythia-1b": 1_011_781_632,
    "smollm2-135m-instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    # with the output layer of the language model, which it shares with its embedding
    "Skywork/Skywork-Reward-V2-Qwen3-0.6B": 596_049_920,
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": 8_030_261_248,
    # the published 6,738,415,616 of LLaMA, and one more word on both sides
    "PKU-Alignment/beaver-7b-unified-cost": 6_738_415_616 + 2 * 4096,
}


def settings(**changes):
    return reading.validate(RUN | changes, "test")


@pytest.fixture(scope="module")
def llama_config(tmp_path_factory):
    """A folder with nothing but the config.json of an 8B Llama."""
    folder = tmp_path_factory.mktemp("config")
    known.described("meta-llama/Llama-3.1-8B-Instruct")[0].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def llama(llama_config):
    return shapes.shape_of(shapes.read_config("", config=llama_config).config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_counted_as_published(name):
    assert shapes.shape_of(known.described(name)[0]).parameters == PUBLISHED[name]


# the formulas, part by part


def small(family, layers=1):
    import memory_check

    return memory_check.config(
        family,
        layers,
        hidden_size=192,
        intermediate_size=640,
        num_attention_heads=3,
        vocab_size=512,
    )


def bytes_of(tensors):
    """Bytes of the distinct storages behind tensors."""
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


@pytest.mark.parametrize("quantisation", ["nf4", "int8", "none"])
def test_weights_and_adapters_are_what_a_model_holds(quantisation):
    import stages

    config = small("llama", 2)
    backbone, shape = stages.random_backbone(config, quantisation, "cpu"), shapes.shape_of(config)
    held = list(backbone.causal.parameters())
    for weight in backbone.causal.parameters():
        state = getattr(weight, "quant_state", None)
        held += [state.absmax, state.state2.absmax] if state else []
    assert estimate.weights(shape, quantisation, 4) == pytest.approx(bytes_of(held), rel=0.01)
    backbone.add_adapter("default", Lora(r=5))
    assert estimate.adapter(shape, 5) == sum(
        p.numel() for name, p in backbone.causal.named_parameters() if "lora_" in name
    )


@pytest.mark.parametrize(
    "family, quantisation, dtype, dropout",
    [
        ("llama", "none", "float32", 0.0),
        ("llama", "nf4", "float32", 0.1),
        ("llama", "nf4", "bfloat16", 0.0),
        ("llama", "none", "bfloat16", 0.0),
        ("qwen2", "nf4", "bfloat16", 0.0),
        ("qwen3", "nf4", "bfloat16", 0.0),
        ("mistral", "nf4", "bfloat16", 0.0),
        ("gemma2", "nf4", "bfloat16", 0.0),
        ("gpt_neox", "nf4", "float32", 0.1),
        ("gpt_neox", "nf4", "bfloat16", 0.0),
        ("gpt_neox", "none", "bfloat16", 0.0),
    ],
)
def test_what_autograd_keeps_of_a_layer_is_what_the_formula_says(
    family, quantisation, dtype, dropout
):
    """In bfloat16 under autocast, as trainers run on a GPU: what the CPU keeps for the backward
    pass is the same there, dropout's mask apart."""
    kept = {layers: _kept(family, layers, quantisation, dtype, dropout) for layers in (1, 2)}
    tokens = 4 * 64
    knobs = estimate.Knobs(
        quantisation=quantisation,
        compute=2 if dtype == "bfloat16" else 4,
        cuda=False,
        prompt=32,
        completion=32,
        n=1,
        sampling_rows=1,
    )
    expected = estimate.saved(shapes.shape_of(small(family)), knobs, dropout > 0)
    assert (kept[2] - kept[1]) / tokens == pytest.approx(expected, rel=0.06)


def _kept(family, layers, quantisation, dtype, dropout):
    import contextlib

    import stages
    import torch

    backbone = stages.random_backbone(small(family, layers), quantisation, "cpu", dtype)
    backbone.add_adapter("default", Lora(dropout=dropout))
    backbone.peft.train()
    if dtype == "bfloat16" and quantisation != "none":  # as TRL does it
        for weight in backbone.peft.parameters():
            weight.data = weight.data.bfloat16() if weight.requires_grad else weight.data
    weights = {p.untyped_storage().data_ptr() for p in backbone.causal.parameters()}
    found = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            found[tensor.untyped_storage().data_ptr()] = (
                tensor  # held, so that no address is used twice
            )
        return tensor

    tokens = torch.randint(0, 200, (4, 64))
    mask = torch.ones_like(tokens)
    mask[0, -3:] = 0
    narrow = (
        torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    )
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), narrow:
        base = getattr(backbone.causal, backbone.causal.base_model_prefix)
        out = base(input_ids=tokens, attention_mask=mask, use_cache=False)
    assert out.last_hidden_state.requires_grad
    return bytes_of(found.values())


# the whole, measured


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A process of its own runs the GPU check's small form and the memory check's short one: TRL
    is imported once."""
    folder = tmp_path_factory.mktemp("check")
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import gpu_check, memory_check\nsys.argv ="
        f" ['gpu_check', '--device', 'cpu', '--shape', 'tiny', '--out', {str(folder)!r}]\nout ="
        " sys.stdout\nassert gpu_check.main() == 0\nsys.stdout = out\nsys.argv = ['memory_check',"
        " '--quick', '--json']\nmemory_check.main()"
    )
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, done.stdout


@pytest.mark.timeout(1800)  # for a machine that does other things beside
def test_estimates_are_within_a_fifth_of_measured_peaks(measured):
    rows = [json.loads(line) for line in measured[1].splitlines() if line.startswith("{")]
    stages = ["sampling", "scoring", "reward training", "policy training"]
    assert [(row["model"], row["stage"]) for row in rows] == [
        ("llama", name) for name in ["sft training", *stages]
    ] + [("smollm2-135m-instruct", name) for name in stages[:3]]
    assert all(abs(row["ratio"] - 1) < 0.2 for row in rows), rows


@pytest.mark.timeout(1800)
def test_gpu_check_writes_its_tables(measured):
    import csv

    folder, printed = measured
    rows = list(csv.DictReader(open(folder / "gpu_check.csv", encoding="utf-8")))
    assert [row["stage"] for row in rows][:5] == [
        "building",
        "sampling",
        "scoring",
        "reward training",
        "policy training",
    ]
    assert all(float(row["tokens_per_second"]) > 0 for row in rows[1:5])
    text = (folder / "gpu_check.md").read_text(encoding="utf-8")
    assert (
        text in printed
        and "log-probabilities within 0.01 1.0000" in text
        and "times the backbone alone" in text
    )


def test_gpu_check_skips_loudly_without_a_gpu():
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu_check.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert (done.returncode, done.stdout) == (
        0,
        "gpu-check SKIPPED: this machine shows no CUDA GPU, nothing was measured\n",
    ), done.stderr


def test_four_roles_share_one_backbone(llama):
    """The goal for rank 16: policy, reference, proxy and refined reward in at most 1.15 times the
    quantised backbone."""
    alone = estimate.weights(llama, "nf4", 2)
    assert alone + 3 * 4 * estimate.adapter(llama, 16) <= 1.15 * alone


# the plan


def test_more_of_anything_never_needs_less(llama):
    asked = plan.knobs_of(settings(), 256)

    def peaks(knobs):
        return [stage.total for stage in estimate.stages(llama, knobs)]

    for name in (
        "prompt",
        "completion",
        "sampling_rows",
        "reward_rows",
        "policy_rows",
        "reward_rank",
        "policy_rank",
        "compute",
    ):
        more = replace(asked, **{name: 2 * getattr(asked, name)})
        assert all(
            high >= low for high, low in zip(peaks(more), peaks(asked), strict=True)
        ) and sum(peaks(more)) > sum(peaks(asked)), name
    less = [replace(asked, checkpointing=True), replace(asked, optimiser="adamw_8bit")]
    assert all(sum(peaks(knobs)) < sum(peaks(asked)) for knobs in less)
    wider = [estimate.weights(llama, kind, 2) for kind in ("nf4", "int8", "none")]
    assert wider == sorted(wider)


def with_key(values, key, value):
    block, name = key.split(".")
    return values | {block: values.get(block, {}) | {name: value}}


def test_each_knob_named_does_make_it_fit(llama_config):
    made = make_plan(settings(), "A100-80", llama_config)
    tight = make_plan(settings(), made.peak / 1e9 - 1, llama_config)
    assert made.fits and not tight.fits and len(tight.alone) >= 3 and not tight.together
    for turn in tight.alone:
        turned = make_plan(
            reading.validate(with_key(RUN, turn.key, turn.after), "test"),
            tight.gpu / 1e9,
            llama_config,
        )
        assert turned.fits and turned.peak == turn.peak, turn


def test_where_no_knob_is_enough_alone_several_are_named_together(llama_config):
    made = make_plan(settings(), 12, llama_config, prompt_tokens=256)
    assert not made.fits and not made.alone and len(made.together) > 1
    values = RUN
    for turn in made.together:
        values = with_key(values, turn.key, turn.after)
    turned = make_plan(reading.validate(values, "test"), 12, llama_config, prompt_tokens=256)
    assert turned.fits and turned.peak == made.together[-1].peak
    hopeless = make_plan(settings(), 2, llama_config)
    assert "cannot be made to fit" in hopeless.text()


def test_published_reward_models_are_stages_beside_the_backbone(llama_config):
    values = {
        "gold": {"kind": f"model:{llama_config}"},
        "reward": {"proxy": f"model:{llama_config}", "model": {"batch_size": 2}},
        "bias": [],
    }
    made = make_plan(settings(**values), 80, llama_config)
    assert [stage.name for stage in made.stages][-2:] == ["published proxy", "published gold"]
    proxy, gold = made.stages[-2:]
    both = estimate.weights(made.shape, "nf4", 2)
    # a classifier has no output layer
    assert 1.8 * both < proxy.parts["weights"] == gold.parts["weights"] < 2 * both
    widened = made.shape.largest * 2
    # 16 rows at once by default, and 2
    assert gold.parts["activations"] - widened == pytest.approx(
        8 * (proxy.parts["activations"] - widened)
    )


def test_a_published_reward_model_out_of_reach_is_left_out_and_named(llama_config, tmp_path):
    made = make_plan(settings(gold={"kind": f"model:{tmp_path}"}), 80, llama_config)
    assert "published gold" not in [stage.name for stage in made.stages]
    assert f"gold model left out: no config.json for '{tmp_path}'" in made.text()


def tuned(**changes):
    return settings(sft={"answers": "chosen"}, preferences={"recipe": "ultrafeedback"}, **changes)


def test_step_0_is_trained_alone_and_merged_into_an_unquantised_copy(llama_config):
    made = make_plan(tuned(), 80, llama_config)
    assert [stage.name for stage in made.stages][:3] == ["sft training", "sft merge", "sampling"]
    training, merge, sampling = made.stages[:3]
    assert (
        training.parts["weights"]
        == sampling.parts["weights"]
        == estimate.weights(made.shape, "nf4", 2)
    )
    assert (
        training.parts["adapters"]
        == 2 * estimate.adapter(made.shape, 8)
        < sampling.parts["adapters"]
    ), "no reward lies beside it yet"
    assert merge.parts["weights"] == estimate.weights(made.shape, "none", 2) == 2 * 8_030_261_248
    assert "sft training" not in [
        stage.name for stage in make_plan(settings(), 80, llama_config).stages
    ]


def test_where_the_merge_does_not_fit_only_leaving_it_out_helps(llama_config):
    smaller = {
        "training": {"gradient_checkpointing": True, "micro_batch": 1},
        "policy": {"kind": "tilt"},
        "reward": {"kind": "probe"},
        "sampling": {"n": 8, "max_new_tokens": 64, "batch_size": 8},
    }
    made = make_plan(tuned(**smaller), 16, llama_config, prompt_tokens=128)
    assert not made.fits and [(turn.key, turn.after) for turn in made.alone] == [
        ("sft.answers", "none")
    ]
    assert (
        make_plan(settings(**smaller), 16, llama_config, prompt_tokens=128).peak
        == made.alone[0].peak
    )


def test_micro_batches_help_step_0_too(llama_config):
    one, four = (
        make_plan(tuned(training={"micro_batch": size}), 80, llama_config).stages[0].total
        for size in (1, 4)
    )
    assert one < four == make_plan(tuned(), 80, llama_config).stages[0].total


def test_answers_of_the_users_own_whose_length_was_not_said_are_pointed_out(llama_config):
    told = (
        "the answers of your preferences are not cut and were not measured: taken to be 256 tokens"
        " long"
    )
    given = settings(preferences={"recipe": "ultrafeedback"})
    assert told in make_plan(given, 80, llama_config).text()
    assert (
        "answers of your preferences"
        not in make_plan(given, 80, llama_config, completion_tokens=700).text()
    )
    assert "answers of your preferences" not in make_plan(settings(), 80, llama_config).text()


def test_answers_in_a_file_at_hand_are_measured(llama_config, tmp_path):
    """By their letters, as prompts are; never shorter than what is sampled."""
    path = tmp_path / "pairs.jsonl"
    lengths = {"short": 30, "long": 6000}
    made = {}
    for name, letters in lengths.items():
        rows = [{"prompt": f"ask {k}", "chosen": "a" * letters, "rejected": "no"} for k in range(9)]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = settings(preferences={"file": str(path)})
        made[name] = make_plan(given, 80, llama_config)
    assert made["long"].knobs.completion == 2001 and made["short"].knobs.completion == 256
    assert made["long"].stages[1].total > made["short"].stages[1].total
    assert "answers of your preferences" not in made["long"].text()


def test_given_completions_are_read_and_not_sampled(llama_config, tmp_path):
    """Whatever `sampling` says; a trained policy writes its own answers all the same."""
    rows = [{"prompt": f"ask {k // 2}", "completion": "a" * (60 + k)} for k in range(20)]
    path = tmp_path / "completions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"completions": {"file": str(path)}, "reward": {"kind": "probe"}}
    made = make_plan(settings(**given, policy={"kind": "tilt"}), 80, llama_config)
    assert [stage.name for stage in made.stages] == ["scoring"]
    assert made.knobs.completion == 79 // plan.LETTERS_PER_TOKEN + 1
    given["completions"] |= {"logp": "backbone"}
    trained = make_plan(settings(**given), 80, llama_config)
    assert "sampling" in [stage.name for stage in trained.stages]


def test_in_float16_adapters_on_a_quantised_backbone_take_twice_as_much(llama_config):
    half, brain = (
        make_plan(settings(model=RUN["model"] | {"dtype": dtype}), 80, llama_config)
        for dtype in ("float16", "bfloat16")
    )
    policy = [
        next(stage for stage in made.stages if stage.name == "policy training")
        for made in (half, brain)
    ]
    assert (
        policy[0].parts["gradients"] == 2 * policy[1].parts["gradients"]
        and policy[0].parts["optimiser"] == 2 * policy[1].parts["optimiser"]
    )


@pytest.mark.parametrize("batch_size", [1, 2, 3, 6, 8, 9, 10])
def test_the_plan_takes_the_micro_batch_that_training_takes(batch_size):
    from types import SimpleNamespace

    import torch

    from shfcas_lib.training import trainer

    backbone = SimpleNamespace(
        device=torch.device("cpu"), causal=SimpleNamespace(dtype=torch.float32)
    )
    assert (
        _micro(batch_size)
        == trainer.arguments(trainer.PLAIN, backbone, batch_size, 4, 0)[
            "per_device_train_batch_size"
        ]
    )


def offline(monkeypatch, folder):
    """A machine with an empty cache whose hub does not answer."""
    from huggingface_hub import constants

    from shfcas_lib.models import hub

    hub._answers.cache_clear()
    monkeypatch.setenv("SHFCAS_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_is_planned_without_a_hub(path, monkeypatch, tmp_path):
    offline(monkeypatch, tmp_path)
    params = reading.load(path)
    made = make_plan(params, "A100-80")
    used = f"sizes of {params.model.source}: those of its published config.json"
    assert made.fits and used in made.text() and "left out" not in made.text()
    published = {params.gold.published, params.reward.published} - {None, ""}
    assert all(f"sizes of {source}:" in made.text() for source in published)


def test_without_a_hub_other_models_are_refused_at_once(monkeypatch, tmp_path):
    import time

    offline(monkeypatch, tmp_path)
    start = time.monotonic()
    with pytest.raises(InputError, match="no hub within reach: download that one file"):
        make_plan(settings(), 24)
    assert time.monotonic() - start < 5


def test_a_hub_that_is_silent_is_given_up_in_seconds(monkeypatch):
    """It takes the connection and says nothing."""
    import socket
    import time

    from huggingface_hub import constants

    from shfcas_lib.models import hub

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "PATIENCE", 0.3)
        start = time.monotonic()
        assert not hub.within_reach() and time.monotonic() - start < 2


@pytest.mark.parametrize(
    "family", ["gpt2", "opt", "gemma3", "mistral", "mixture/deepseek_v3", "composite/gemma3"]
)
@pytest.mark.parametrize("quantisation", ["nf4", "none"])
def test_the_plan_counts_what_a_loaded_model_holds(family, quantisation, tmp_path):
    """Weights, and adapters on whatever LoRA reaches."""
    import checkpoints
    import families

    from shfcas_lib.models import loading
    from shfcas_lib.params.schema import Model

    kind, _, name = family.rpartition("/")
    folder = (getattr(checkpoints, kind) if kind else families.save)(name, tmp_path)
    shape = shapes.shape_of(shapes.read_config(str(folder)).config)
    model = Model(source=str(folder), quantisation=quantisation, device="cpu")
    backbone = loading.load_backbone(model)
    held = list(backbone.causal.parameters())
    for module in backbone.causal.modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        state = state or getattr(module, "quant_state", None)
        held += [state.absmax, state.state2.absmax] if state else []
    # blocks of 64 weights do not always come out even in models so small
    assert estimate.weights(shape, quantisation, 4) == pytest.approx(bytes_of(held), rel=0.03)
    backbone.add_adapter("default", Lora(r=3, dropout=0))
    trained = [w for name, w in backbone.causal.named_parameters() if "lora_" in name]
    expected = estimate.adapter(shape, 3, experts=quantisation != "nf4")
    assert expected == sum(w.numel() for w in trained)


def test_a_mixture_is_planned_with_its_experts(tmp_path):
    import transformers

    config = transformers.MixtralConfig()  # of the sizes of Mixtral 8x7B
    config.save_pretrained(tmp_path)
    trained = {"gradient_checkpointing": True}
    plans = {
        kind: make_plan(
            settings(model=RUN["model"] | {"quantisation": kind}, training=trained), 80, tmp_path
        )
        for kind in ("nf4", "int8", "none")
    }
    assert plans["nf4"].shape.parameters == 46_702_792_704, "as published"
    weights = {kind: made.stages[-1].parts["weights"] / 1e9 for kind, made in plans.items()}
    assert 24 < weights["nf4"] < 28 and 90 < weights["int8"] < weights["none"] < 94
    assert [plans[kind].stages[0].name for kind in plans] == ["loading", "sampling", "sampling"]
    told = {kind: " ".join(made.notes) for kind, made in plans.items()}
    assert "are 97% of the weights: reward.lora does not adapt them" in told["nf4"]
    assert "model.quantisation int8 leaves them in the compute type" in told["int8"]
    assert "policy.lora adapts them only with dropout 0 (now 0.1)" in told["none"]


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8"])
def test_a_stored_checkpoint_is_planned_as_it_lies(method, llama_config, tmp_path):
    import shutil

    import checkpoints

    shutil.copytree(llama_config, tmp_path, dirs_exist_ok=True)
    stored = checkpoints.STORED.get(method, {"quant_method": "fp8"})
    checkpoints.configure(tmp_path, quantization_config=stored)
    with pytest.raises(InputError, match="is stored quantised .* set it to as_stored"):
        make_plan(settings(), 80, tmp_path)
    made = make_plan(settings(model=RUN["model"] | {"quantisation": "as_stored"}), 80, tmp_path)
    bits = 8 if method == "fp8" else 4
    assert f"is stored quantised ({method}): counted as {bits} bits a weight" in made.text()
    assert "model.quantisation: " not in "".join(turn.key for turn in made.alone)


@pytest.mark.parametrize("config", ["BertConfig", "T5Config", "MambaConfig", "ViTConfig"])
def test_what_no_run_can_use_is_not_planned(config, tmp_path):
    import transformers

    getattr(transformers, config)().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="expected a (decoder-only|model of attention)"):
        make_plan(settings(), 80, tmp_path)


def test_the_command_prints_the_table_and_its_status_is_the_verdict(llama_config, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(RUN))
    fits = subprocess.run(
        [
            sys.executable,
            "-m",
            "shfcas_lib",
            "plan",
            str(path),
            "--gpu-memory",
            "A100-80",
            "--config",
            str(llama_config / "config.json"),
            "--prompt-tokens",
            "128",
            "--completion-tokens",
            "64",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (
        fits.returncode == 0
        and "it fits" in fits.stdout
        and "reward training" in fits.stdout
        and "8.030 billion" in fits.stdout
    )
    assert (
        main(
            [
                "plan",
                str(path),
                "--gpu-memory",
                "24",
                "--config",
                str(llama_config),
                "--prompt-tokens",
                "256",
            ]
        )
        == 1
    )
    printed = capsys.readouterr().out
    assert "it does not fit" in printed and "training.micro_batch: " in printed


def test_a_configuration_that_cannot_be_had_is_one_sentence(tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(RUN))
    assert (
        main(["plan", str(path), "--gpu-memory", "24", "--config", str(tmp_path / "nowhere")]) == 2
    )
    said = capsys.readouterr().err
    assert "--config" in said and "nowhere" in said and len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("asked", ["zero", "-4", "0", "nan", "1e9"])
def test_a_card_that_is_none_is_refused(asked):
    with pytest.raises(InputError, match="--gpu-memory"):
        make_plan(settings(), asked)


def test_without_a_gpu_one_must_be_named(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="--gpu-memory.*T4"):
        make_plan(settings())


def test_prompts_at_hand_are_measured_and_others_assumed():
    assert longest_prompt(reading.validate({"prompts": {"n": 20}}, "test")) < 200
    assert longest_prompt(settings(preferences={"recipe": "pku-saferlhf"})) == UNKNOWN_PROMPT


def test_more_answers_of_a_trained_policy_than_a_batch_holds_are_decoded_at_once():
    many = {"replicates": 0, "answers": 100}
    assert plan.knobs_of(settings(evaluation=many), 256).sampling_rows == 100
    # nobody writes them
    assert (
        plan.knobs_of(settings(evaluation=many, policy={"kind": "tilt"}), 256).sampling_rows == 64
    )
