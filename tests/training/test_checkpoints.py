"""Trainings that stop and go on, in smaller batches, or with activations computed again: what
comes out is the same."""

import json

import numpy as np
import pytest
from toy import adapter_weights, load_tiny, make_pool, make_preferences

from shfcas_lib import loop, refine, rewards, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import checks
from shfcas_lib.models import loading
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Lora, Model, Policy, Reward, Sampling, Training
from shfcas_lib.pool import score
from shfcas_lib.storage import files
from shfcas_lib.storage.runs import Stage
from shfcas_lib.training import checkpoints, trainer
from shfcas_lib.training import policy as policy_training

REWARD = Reward(kind="lora", learning_rate=3e-3, epochs=2, batch_size=32, lora=Lora(dropout=0.1))
SAVE = checkpoints.Resumable._save_checkpoint
# two steps a pass
SIZES = {
    "kto": {"pairs": 8},
    "rloo": {"beta": 0.02, "generations": 4, "prompts": 4},
    "grpo": {"generations": 4, "prompts": 4},
}


@pytest.fixture(scope="module")
def scene(tiny_model):
    """Pool with features, preferences, and a probe."""
    pool = score(load_tiny(tiny_model), make_pool())
    preferences = make_preferences(pool)
    return pool, preferences, rewards.fit_probe(pool, preferences, 10.0)


def disputed(preferences):
    """Labels that say the reverse of one pair of each of the first eight prompts."""
    decided = preferences[preferences["label"] != 0.5].drop_duplicates("prompt_id")
    return decided.head(8).assign(label=1 - decided["label"])


def trained(what, tiny_model, scene, folder, **how):
    """Weights of a reward (`lora`, or one refined by `trust`) or of a policy trained on a backbone
    of its own, by the functions that the loop calls."""
    pool, preferences, probe = scene
    backbone, how = load_tiny(tiny_model), Training(**how)
    if what in ("lora", "trust"):
        stage, adapter = Stage(folder, None), refine.Adapter("proxy", backbone, how)
        data = refine.Data(pool, preferences, disputed(preferences))
        if what == "lora":
            reward = refine.kept(stage, REWARD, pool, preferences, 3, adapter=adapter)
        else:
            reward = trust.inner(refine.updated(stage, REWARD, data, 3, adapter=adapter))
        return adapter_weights(backbone, "proxy") | {"head": reward.head.weight.detach()}
    values = {
        "policy": {
            "kind": what,
            "pairs": 16,
            "learning_rate": 3.0e-3,
            "epochs": 2,
            "batch_size": 8,
            **SIZES.get(what, {}),
        },
        "sampling": {"max_new_tokens": 6},
        "evaluation": {"replicates": 0},
        "training": how.model_dump(),
    }
    setting = loop.Setting(
        reading.validate(values, "test"), 0, None, None, None, None, None, backbone
    )
    loop.train_policy(setting, probe, pool, folder)
    return adapter_weights(backbone, POLICY)


def assert_close(one, other, atol):
    assert list(one) == list(other) and one
    for name in one:
        np.testing.assert_allclose(
            one[name].float(), other[name].float(), rtol=0, atol=atol, err_msg=name
        )


class Killed(Exception):
    pass


@pytest.mark.parametrize("what", ["lora", "trust", "dpo", "kto", "rloo"])
def test_a_training_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
    what, tiny_model, scene, tmp_path, monkeypatch, capsys
):
    """Bitwise: weights, optimiser, schedule, order of the data and every random draw (dropout,
    sampling) are those of the undisturbed run."""
    undisturbed = trained(what, tiny_model, scene, tmp_path / "undisturbed")
    saved, save = [], checkpoints.Resumable._save_checkpoint

    def save_and_die(self, *given):
        save(self, *given)
        saved.append(self.state.global_step)
        if len(saved) == 3:  # in the middle of the second pass
            raise Killed

    monkeypatch.setattr(checkpoints.Resumable, "_save_checkpoint", save_and_die)
    folder = tmp_path / "killed"
    with pytest.raises(Killed):
        trained(what, tiny_model, scene, folder, checkpoint_every=1)
    kept = folder / "checkpoints" / "checkpoint-3"
    assert {path.suffix for path in kept.iterdir()} == {
        ".json",
        ".safetensors",
    }, "nothing that only pickle can read"
    assert [path.name for path in kept.parent.glob("*checkpoint-*")] == ["checkpoint-3"], (
        "older ones are gone"
    )
    monkeypatch.setattr(checkpoints.Resumable, "_save_checkpoint", save)
    resumed = trained(what, tiny_model, scene, folder, checkpoint_every=1)
    assert "goes on from step 3" in capsys.readouterr().err
    assert not (folder / "checkpoints").exists()
    assert_close(resumed, undisturbed, atol=0)


def test_a_checkpoint_half_written_is_not_gone_on_from(tmp_path):
    (tmp_path / ".checkpoint-9").mkdir()
    assert (
        checkpoints.latest(tmp_path, {}) is None
        and checkpoints.latest(tmp_path / "none", {}) is None
    )


@pytest.mark.parametrize("what", ["lora", "trust", "dpo"])
def test_checkpoints_that_a_kill_left_beside_a_finished_training_go(
    what, tiny_model, scene, tmp_path
):
    weights = trained(what, tiny_model, scene, tmp_path)
    (tmp_path / "checkpoints" / "checkpoint-4").mkdir(parents=True)
    assert_close(trained(what, tiny_model, scene, tmp_path), weights, atol=0)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("every", [0, 1])
def test_a_kill_before_the_trust_report_is_written_loses_nothing(
    every, tiny_model, scene, tmp_path, monkeypatch
):
    """The LoRA reward stands in its folder, but trust.json, which comes last, does not."""
    whole = trained("trust", tiny_model, scene, tmp_path / "whole")
    write = files.write_json

    def write_and_die(path, facts):
        if path.name == trust.Trusted.MARKER:
            raise Killed
        write(path, facts)

    folder, how = tmp_path / "killed", {"checkpoint_every": every} if every else {}
    monkeypatch.setattr(files, "write_json", write_and_die)
    with pytest.raises(Killed):
        trained("trust", tiny_model, scene, folder, **how)
    monkeypatch.setattr(files, "write_json", write)
    assert (folder / "quality" / "reward.json").exists()
    adapter = refine.Adapter("proxy", load_tiny(tiny_model))
    with pytest.raises(InputError, match="no finished reward"):
        refine.finished(REWARD, folder, adapter)

    assert_close(trained("trust", tiny_model, scene, folder, **how), whole, atol=0)
    assert sorted(path.name for path in folder.iterdir()) == ["quality", "taste", "trust.json"]
    again, other = (refine.finished(REWARD, f, adapter) for f in (folder, tmp_path / "whole"))
    assert str(again.report) == str(other.report)


def test_checkpoints_go_all_at_once(tmp_path, monkeypatch):
    """Killed while it removes files, a training must not find a checkpoint that lacks some."""
    place = tmp_path / "checkpoints"
    (place / "checkpoint-5").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", lambda *_, **__: None)
        trainer.forget(place)
    assert not place.exists() and len(list(tmp_path.rglob("checkpoint-5"))) == 1, (
        "only its name has changed"
    )
    files.clear(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_batches_is_not_gone_on_from(tmp_path, capsys):
    (tmp_path / "checkpoint-5").mkdir()
    (tmp_path / "checkpoint-5" / "layout.json").write_text(json.dumps({"micro_batch": 4}))
    assert checkpoints.latest(tmp_path, {"micro_batch": 4}).name == "checkpoint-5"
    assert checkpoints.latest(tmp_path, {"micro_batch": 2}) is None
    assert "training starts anew" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["lora", "dpo", "grpo"])
def test_activations_computed_again_change_nothing(what, tiny_model, scene, tmp_path):
    plain = trained(what, tiny_model, scene, tmp_path / "plain")
    again = trained(what, tiny_model, scene, tmp_path / "again", gradient_checkpointing=True)
    assert_close(again, plain, atol=1e-6)


def test_gradient_checkpointing_is_on_in_training_and_off_after_it(
    fresh_backbone, scene, monkeypatch
):
    """The layers are run twice as often; afterwards no flag, hook or patched method is left on
    the shared backbone."""
    pool, _, probe = scene
    policy = Policy(kind="dpo", pairs=8, lora=Lora(dropout=0.0))
    table = policy_training.examples(pool, probe.score(pool), policy, np.random.default_rng(0))
    layer, calls = fresh_backbone.causal.model.layers[0].mlp, []
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    embedding, counts = fresh_backbone.causal.get_input_embeddings(), []
    for how in (Training(), Training(gradient_checkpointing=True)):
        calls.clear()
        policy_training.train(fresh_backbone, table, policy, 0, how)
        counts.append(len(calls))
        assert (
            not fresh_backbone.causal.is_activation_checkpointing and not embedding._forward_hooks
        )
        assert (
            "forward" not in fresh_backbone.causal.__dict__
            and fresh_backbone.causal.config.use_cache
        )
        assert not fresh_backbone.causal.training and fresh_backbone.active is None
    assert counts[1] > counts[0]


def test_a_failed_training_leaves_the_backbone_as_it_was_too(fresh_backbone, scene, monkeypatch):
    pool, _, probe = scene
    policy = Policy(kind="rloo", batch_size=8)
    monkeypatch.setattr(policy_training, "reference_features", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        policy_training.train(
            fresh_backbone,
            policy_training.examples(pool, None, policy, np.random.default_rng(0)),
            policy,
            0,
            online=policy_training.Online(probe, Sampling(max_new_tokens=4)),
        )
    assert list(fresh_backbone.peft.peft_config) == [POLICY] and fresh_backbone.active is None
    assert "forward" not in fresh_backbone.causal.__dict__


@pytest.mark.parametrize("what", ["lora", "dpo"])
def test_micro_batches_change_nothing_but_rounding(what, tiny_model, scene, tmp_path, monkeypatch):
    # draws differ with the batch
    monkeypatch.setattr(
        "test_checkpoints.REWARD", REWARD.model_copy(update={"lora": Lora(dropout=0.0)})
    )
    whole = trained(what, tiny_model, scene, tmp_path / "whole")
    small = trained(what, tiny_model, scene, tmp_path / "small", micro_batch=2)
    assert_close(small, whole, atol=2e-4)


def test_eight_bit_adam_trains_and_goes_on(tiny_model, scene, tmp_path, monkeypatch):
    """Its state holds bytes and tables: they survive safetensors as well."""
    whole = trained("dpo", tiny_model, scene, tmp_path / "whole", optimiser="adamw_8bit")
    monkeypatch.setattr(
        checkpoints.Resumable, "_save_checkpoint", killing(checkpoints.Resumable._save_checkpoint)
    )
    with pytest.raises(Killed):
        trained(
            "dpo",
            tiny_model,
            scene,
            tmp_path / "killed",
            optimiser="adamw_8bit",
            checkpoint_every=2,
        )
    monkeypatch.undo()
    assert_close(
        trained(
            "dpo",
            tiny_model,
            scene,
            tmp_path / "killed",
            optimiser="adamw_8bit",
            checkpoint_every=2,
        ),
        whole,
        atol=0,
    )
    plain = trained("dpo", tiny_model, scene, tmp_path / "plain")
    assert any(bool((plain[name] != whole[name]).any()) for name in plain)


def test_a_checkpoint_that_cannot_be_gone_on_from_does_not_stand_in_the_way(
    tiny_model, scene, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        checkpoints.Resumable, "_save_checkpoint", killing(checkpoints.Resumable._save_checkpoint)
    )
    with pytest.raises(Killed):
        trained("dpo", tiny_model, scene, tmp_path / "one", checkpoint_every=1)
    monkeypatch.undo()
    trained("dpo", tiny_model, scene, tmp_path / "one", checkpoint_every=1, micro_batch=2)
    assert "training starts anew" in capsys.readouterr().err


def killing(save):
    def save_and_die(self, *given):
        save(self, *given)
        raise Killed

    return save_and_die


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_optimisers_are_checked_against_the_machine(device, monkeypatch):
    trainer.check_optimiser(Training(), device)
    trainer.check_optimiser(Training(optimiser="adamw_8bit"), device)
    if device == "cpu":
        with pytest.raises(InputError, match="paged_adamw_8bit.*the device is cpu"):
            trainer.check_optimiser(Training(optimiser="paged_adamw_8bit"), device)
    else:
        trainer.check_optimiser(Training(optimiser="paged_adamw_8bit"), device)
    if device == "cpu":  # and before any model is loaded
        values = {"model": {"device": "cpu"}, "training": {"optimiser": "paged_adamw_8bit"}}
        with pytest.raises(InputError, match="the device is cpu"):
            checks.check(reading.validate(values, "test"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError, match="needs the package bitsandbytes"):
        trainer.check_optimiser(Training(optimiser="adamw_8bit"), device)


def test_random_states_come_back_whole():
    import random

    import torch

    state = json.loads(json.dumps(checkpoints._random_state()))
    drawn = [random.random(), np.random.normal(), float(torch.rand(1)), random.gauss(0, 1)]
    checkpoints._set_random_state(state)
    assert [random.random(), np.random.normal(), float(torch.rand(1)), random.gauss(0, 1)] == drawn


@pytest.mark.parametrize("quantisation", ["nf4", "none"])
def test_half_precision_trains_float32_adapters_and_goes_on_with_its_loss_scale(
    quantisation, tiny_model, scene, tmp_path, monkeypatch
):
    """accelerate autocasts to float16 and scales the loss on GPUs alone; here torch's own CPU
    forms of both are put in their place. A scale that doubles at every step tells a resumed
    training from one that starts its scaler anew."""
    import accelerate
    import torch

    start = accelerate.Accelerator.__init__

    def scaled(self, *given, **named):
        start(self, *given, **named)
        self.native_amp, self.scaler = (
            True,
            torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=1),
        )

    monkeypatch.setattr(accelerate.Accelerator, "__init__", scaled)
    pool, _, probe = scene
    policy = Policy(kind="dpo", pairs=8, batch_size=4, learning_rate=3e-3, lora=Lora(dropout=0.0))
    table = policy_training.examples(pool, probe.score(pool), policy, np.random.default_rng(0))
    model = Model(source=str(tiny_model), quantisation=quantisation, device="cpu", dtype="float16")
    seen = []

    def run(folder, save=SAVE):
        def look(self, *given):
            seen.append(
                {weight.dtype for weight in checkpoints.trained_weights(self.model).values()}
            )
            save(self, *given)

        monkeypatch.setattr(checkpoints.Resumable, "_save_checkpoint", look)
        backbone = loading.load_backbone(model)
        policy_training.train(backbone, table, policy, 0, Training(checkpoint_every=1), folder)
        return adapter_weights(backbone, POLICY)

    whole = run(tmp_path / "whole")
    assert seen == [{torch.float32}] * 2 and all(
        bool(torch.isfinite(weight).all()) for weight in whole.values()
    )
    assert (
        max(float(weight.abs().max()) for name, weight in whole.items() if "lora_B" in name) > 1e-3
    )
    with pytest.raises(Killed):
        run(tmp_path / "killed", killing(SAVE))
    kept = json.loads((tmp_path / "killed" / "checkpoint-1" / "scaler.json").read_text())
    assert kept["scale"] == 128.0
    assert_close(run(tmp_path / "killed", SAVE), whole, atol=0)
    assert (
        json.loads((tmp_path / "killed" / "checkpoint-2" / "scaler.json").read_text())["scale"]
        == 256.0
    )
