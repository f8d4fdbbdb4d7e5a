"""A policy is watched while it learns: numbers in the log, a warning, and the same weights."""

import numpy as np
import pandas as pd
import pytest
from toy import KEY, adapter_weights, assert_same_weights, load_tiny, make_pool, make_preferences

from shfcas_lib import loop, rewards
from shfcas_lib.base.errors import InputError
from shfcas_lib.models.backbone import POLICY
from shfcas_lib.params import reading
from shfcas_lib.params.schema import Training
from shfcas_lib.pool import score
from shfcas_lib.training import trainer
from shfcas_lib.training.watch import Held, Moment, Watch, as_text

MEASURES = {"reward", "kl", "mean_abs_pacs", "kendall", "length", "agreement", "gold"}


@pytest.fixture(scope="module")
def scene(tiny_model):
    """A backbone, a pool with features, a probe that likes words, and labels that say so."""
    backbone, pool = load_tiny(tiny_model), make_pool()
    pool = score(backbone, pool)
    preferences = make_preferences(pool)
    probe = rewards.fit_probe(pool, preferences, 10.0)
    labels = preferences[preferences["label"] != 0.5].groupby("prompt_id").head(2)
    return backbone, pool, probe, labels.reset_index(drop=True)


def setting(backbone, pool, policy, **training):
    prompts = pool[["prompt_id", "prompt"]].drop_duplicates().assign(harmful=False)
    prompts["split"] = np.where(np.arange(len(prompts)) < 10, "train", "evaluate")
    values = {
        "policy": {"lora": {"dropout": 0.0}, **policy},
        "sampling": {"n": 4, "max_new_tokens": 12, "temperature": 1.0},
        "gold": {"kind": "tiny_gold:vowels"},
        "evaluation": {"replicates": 0},
        "training": training,
    }
    params = reading.validate(values, "test")
    return loop.Setting(params, 0, prompts, None, None, None, None, backbone)


# six steps; a log is written every five
DPO = {"kind": "dpo", "pairs": 24, "batch_size": 4, "learning_rate": 5.0e-3}


class Recorder:
    """Stands where a reporter of transformers' stands."""

    logs: list[dict] = []

    def __new__(cls):
        from transformers import TrainerCallback

        class Recording(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **_):
                cls.logs.append({"step": state.global_step, "name": args.run_name, **logs})

        return Recording()


def test_the_log_has_the_measures_and_the_weights_are_the_same(scene, tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Recorder)
    monkeypatch.setattr(Recorder, "logs", [])
    backbone, pool, probe, labels = scene
    weights = []
    for name, how in (("plain", {}), ("watched", {"report_to": "tensorboard", "watch_every": 5})):
        here = setting(backbone, pool, DPO, **how)
        loop.train_policy(here, probe, pool, tmp_path / name, labels)
        weights.append(adapter_weights(backbone, POLICY))
    assert_same_weights(*weights)
    assert not (tmp_path / "plain/watch.csv").exists()

    looked = [log for log in Recorder.logs if "watch/reward" in log]
    assert [log["step"] for log in looked] == [5, 6] and "loss" in looked[0]
    assert {f"watch/{name}" for name in MEASURES} <= set(looked[0])
    assert looked[0]["name"].endswith("/watched")
    kept = pd.read_csv(tmp_path / "watched/watch.csv")
    assert kept["step"].tolist() == [0, 5, 6]
    assert kept.loc[0, ["kl", "agreement"]].tolist() == pytest.approx([0, 0.5], abs=1e-3)
    for name in MEASURES:
        logged = [log[f"watch/{name}"] for log in looked]
        assert kept[name].tolist()[1:] == pytest.approx(logged)


def test_what_is_measured_is_what_a_plain_computation_gives(scene, tmp_path):
    """Agreement: which side of a label the adapter has made more probable, by two passes."""
    backbone, pool, probe, labels = scene
    here = setting(backbone, pool, DPO, watch_every=1)
    loop.train_policy(here, probe, pool, tmp_path, labels)
    watch = loop._watch(here, probe, pool, tmp_path, labels)
    moment = watch.look()
    assert backbone.active == POLICY
    with backbone.using(POLICY):
        policy = score(backbone, pool)["logp"].to_numpy()
    with backbone.using(None):
        reference = score(backbone, pool)["logp"].to_numpy()
    ratio = pool.assign(ratio=policy - reference).set_index(["prompt_id", "index"])["ratio"]
    right = []
    for row in labels.itertuples():
        i, j = ratio[row.prompt_id, row.i], ratio[row.prompt_id, row.j]
        right.append((i > j) == (row.label > 0.5))
    assert moment.numbers["agreement"] == pytest.approx(np.mean(right))
    assert 0 < moment.numbers["length"] <= 12
    assert set(moment.reward.index) == set(here.prompts.query("split == 'evaluate'")["prompt_id"])


def moment(reward, agreement):
    by_prompt = pd.Series(reward, index=[f"p{k}" for k in range(len(reward))])
    numbers = {"reward": float(by_prompt.mean()), "agreement": float(np.mean(agreement or [0]))}
    return Moment(numbers, by_prompt, np.array(agreement, float))


def judged(*moments):
    """Does a watch that saw these warn?"""
    held = Held(
        pd.DataFrame({"prompt_id": [], "prompt": []}), None, None, pd.DataFrame({"prompt_id": []})
    )
    watch = Watch(None, held, 1, 0, None)
    for step, found in enumerate(moments):
        watch._judge(found, step)
    return watch.warned


LOW, HIGH = [0.1, 0.2, 0.0, 0.3], [1.1, 1.3, 0.9, 1.2]
MOST, HALF = [1.0] * 14 + [0.0] * 2, [1.0] * 6 + [0.0] * 10


@pytest.mark.parametrize(
    "moments, warns",
    [
        ([(LOW, MOST), (HIGH, HALF)], True),
        ([(LOW, HALF), (LOW, MOST), (HIGH, HALF)], True),  # fallen from its best
        ([(LOW, MOST), (LOW, HALF)], False),  # the reward has not risen
        ([(LOW, HALF), (HIGH, MOST)], False),  # both have
        ([(LOW, MOST), (HIGH, MOST)], False),
        ([(LOW, MOST), (HIGH, [1.0] * 13 + [0.0] * 3)], False),  # one label is no fall
        ([(LOW, MOST[-9:]), (HIGH, [0.0] * 9)], False),  # too few labels to say
        ([(LOW, []), (HIGH, [])], False),
    ],
)
def test_it_warns_where_the_reward_rises_and_agreement_falls(moments, warns, capsys):
    assert judged(*[moment(*found) for found in moments]) == warns
    assert capsys.readouterr().err.count("exploit the reward") == warns


def test_a_policy_that_people_disagree_with_more_and_more_is_told(scene, tmp_path, capsys):
    """The reward likes words; the people, here, like figures."""
    backbone, pool, probe, labels = scene
    against = labels.assign(label=1 - labels["label"])
    policy = DPO | {"learning_rate": 2.0e-2, "epochs": 2}
    here = setting(backbone, pool, policy, watch_every=1)
    loop.train_policy(here, probe, pool, tmp_path, against)
    kept = pd.read_csv(tmp_path / "watch.csv")
    assert kept["agreement"].iloc[-1] < 0.3 and kept["reward"].iloc[-1] > kept["reward"].iloc[0]


def test_labels_about_completions_that_are_gone_are_left_out(scene):
    _, pool, _, labels = scene
    far = labels.head(1).assign(j=99)
    both = pd.concat([labels.head(3), far, labels.head(1).assign(label=0.5)])
    told = as_text(both[[*KEY, "label"]], pool)
    assert len(told) == 3
    texts = pool.set_index(["prompt_id", "index"])["completion"]
    for row, label in zip(told.itertuples(), labels.head(3).itertuples(), strict=True):
        won, lost = (label.i, label.j) if label.label > 0.5 else (label.j, label.i)
        assert row.chosen == texts[label.prompt_id, won]
        assert row.rejected == texts[label.prompt_id, lost]


def test_a_log_whose_package_is_not_there_is_refused(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package wandb"):
        trainer.check_report(Training(report_to="wandb"))
    trainer.check_report(Training())
