"""Heavy stages as a command, in one process and in two that accelerate launches (gloo): the same
tables and adapters come out."""

import json
import os
import subprocess
import sys

import families
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from canaries import CANARIES, leaks
from project import PATHS, ROOT
from safetensors.numpy import load_file

from shfcas_lib.base import processes
from shfcas_lib.base.errors import InputError
from shfcas_lib.cli import program
from shfcas_lib.experiment import stages
from shfcas_lib.params import reading
from shfcas_lib.storage import runs

NAMES = ["pools", "proxy", "rounds", "policies"]


def settings(tiny_model, **changes):
    lora = {"dropout": 0.0}  # what a process drops depends on how many there are
    return {
        "run": "staged",
        "model": {"source": str(tiny_model), "quantisation": "none", "device": "cpu"},
        "prompts": {"n": 30},
        "sampling": {"n": 4, "max_new_tokens": 8, "batch_size": 16},
        "gold": {"kind": "tiny_gold:vowels"},
        "preferences": {"per_prompt": 2},
        "reward": {
            "kind": "lora",
            "learning_rate": 1.0e-3,
            "epochs": 1,
            "batch_size": 2,
            "lora": dict(lora),
        },
        "selection": {"strategies": ["shf_cas"], "budget": 24, "rounds": 1},
        "evaluation": {"replicates": 0, "bootstrap": 200},
        "policy": {"kind": "dpo", "pairs": 8, "batch_size": 4, "lora": dict(lora)},
    } | changes


def write(folder, values):
    (folder / "mine.yaml").write_text(yaml.safe_dump(values))
    return str(folder / "mine.yaml")


@pytest.fixture(scope="module")
def both(tiny_model, tmp_path_factory):
    """The same run made by one process and by two: (folder, folder)."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    path = write(one, settings(tiny_model))
    threads = torch.get_num_threads()
    # as the launcher gives each of two processes; another number sums in another order
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHFCAS_RUNS", str(one))
        assert program.main(["stage", *NAMES, path]) == 0
    torch.set_num_threads(threads)
    environment = os.environ | {
        "SHFCAS_RUNS": str(two),
        "PYTHONPATH": PATHS,
        "TQDM_DISABLE": "1",
        "OMP_NUM_THREADS": "1",
    }
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
    ]
    # accelerate's --cpu starts one process whatever --num_processes says; --multi_gpu starts
    # them, and the run's model.device makes them gloo's.
    done = subprocess.run(
        [*launch, "-m", "shfcas_lib", "stage", *NAMES, path],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert not any(value in done.stdout + done.stderr for value in CANARIES.values())
    return one / "staged", two / "staged"


def files(folder, suffix):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob(f"*{suffix}"))


def test_two_processes_write_the_same_files_as_one(both):
    one, two = both
    for suffix in (".parquet", ".safetensors", "done.json", "labels.sqlite", "trust.json"):
        assert files(one, suffix) == files(two, suffix) != []
    assert [json.loads((folder / "run.json").read_text())["processes"] for folder in both] == [1, 2]
    assert not list(two.rglob(".*")) and not list(two.rglob("checkpoint*"))


def test_pools_labels_and_preferences_do_not_depend_on_the_number_of_processes(both):
    one, two = both
    exact = [name for name in files(one, ".parquet") if not name.endswith("conflict.parquet")]
    for name in exact:
        tables = [
            pd.read_parquet(folder / name).drop(columns="time", errors="ignore") for folder in both
        ]
        pd.testing.assert_frame_equal(*tables, obj=name)


def test_adapters_do_not_depend_on_the_number_of_processes(both):
    one, two = both
    for name in files(one, ".safetensors"):
        mine, other = load_file(one / name), load_file(two / name)
        for key in mine:
            np.testing.assert_allclose(
                other[key], mine[key], rtol=0, atol=1e-4, err_msg=f"{name} {key}"
            )
    assert len(pd.read_parquet(one / "01_proxy" / "preferences_biased.parquet")) % 2 == 0, (
        "an odd pair would be filled up with the first"
    )


@pytest.mark.parametrize("kind", ["kto", "rloo", "grpo"])
def test_no_key_is_in_what_stages_plan_and_trace_write_and_print(
    kind, tiny_model, tmp_path, runs_folder, capfd
):
    """With fine-tuning, checkpoints, and, where the policy allows it, published models as proxy
    and gold; a failure too."""
    answers = [
        {"prompt": f"question {k}", "chosen": f"an honest answer {k}", "rejected": f"{k} 42"}
        for k in range(16)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, answers)))
    values = settings(
        tiny_model,
        preferences={"file": str(tmp_path / "pairs.jsonl")},
        prompts={"n": 16},
        sft={"answers": "chosen", "epochs": 1},
        training={"checkpoint_every": 1},
        policy={
            "kind": kind,
            "pairs": 4,
            "prompts": 4,
            "epochs": 1,
            "batch_size": 4,
            "lora": {"dropout": 0.0},
        },
    )
    if kind == "kto":
        proxy, known = (
            f"model:{families.save(family, tmp_path / family, head=True)}"
            for family in ("qwen2", "mistral")
        )
        values["gold"], values["reward"]["proxy"] = {"kind": known}, proxy
    path = write(tmp_path, values)
    assert program.main(["stage", *NAMES, path]) == 0
    assert program.main(["plan", path, "--gpu-memory", "24", "--config", str(tiny_model)]) == 0
    done = runs_folder / "staged" / "03_feedback" / "policy_shf_cas" / "done.json"
    assert json.loads(done.read_text())["kind"] == kind
    assert program.main(["trace", str(done)]) == 0
    assert program.main(["stage", "proxy", write(tmp_path, values | {"seed": 1})]) != 0
    printed = "".join(capfd.readouterr())
    assert (
        "made by     run staged" in printed
        and "it fits" in printed
        and "other parameters (seed" in printed
    )
    assert not any(value in printed for value in CANARIES.values()) and leaks(tmp_path) == []


def test_what_is_done_is_not_done_again(both, tiny_model, monkeypatch, tmp_path):
    _, two = both
    before = {
        path: path.stat().st_mtime_ns
        for path in two.rglob("*")
        if path.suffix in (".parquet", ".safetensors")
    }
    monkeypatch.setenv("SHFCAS_RUNS", str(two.parent))
    assert program.main(["stage", *NAMES, write(tmp_path, settings(tiny_model))]) == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_stage_before_its_turn_says_what_is_missing(tiny_model):
    values = reading.validate(settings(tiny_model, run="unborn"), "test")
    with pytest.raises(InputError, match="prompts.parquet is missing: run notebook 01"):
        stages.run_stages(["proxy"], values)


def test_a_closed_form_has_no_policy_to_train(tiny_model):
    values = reading.validate(settings(tiny_model, policy={"kind": "tilt"}), "test")
    with pytest.raises(InputError, match="nothing to train"):
        stages.STAGES["policies"](runs.open_run(values), None)


def test_several_processes_wait_for_nobody(tiny_model, monkeypatch):
    values = reading.validate(settings(tiny_model, feedback={"kind": "person"}), "test")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="feedback.kind person asks one by one"):
        stages.STAGES["rounds"](runs.open_run(values), None)


def test_the_command_knows_every_stage(capsys):
    with pytest.raises(SystemExit):
        program.main(["stage", "nonsense", "x.yaml"])
    printed = capsys.readouterr().err
    assert all(name in printed for name in stages.STAGES)


def test_items_are_shared_out_whole_and_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    shares = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(processes.share(list(range(8))))
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]
