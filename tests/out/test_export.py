"""What leaves a finished run, read in a process that cannot import this library: the programs of
the cards, the policy, the data set, a hub, the benchmark."""

import json

import finished_run
import hub_stand_in
import numpy as np
import outside
import own_files
import pandas as pd
import pytest
from project import ROOT

from shfcas_lib import cli, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.experiment import stages
from shfcas_lib.out import cards, labels, models
from shfcas_lib.pool import reference_features, score
from shfcas_lib.storage import runs


@pytest.fixture(scope="module")
def finished(tiny_model, tmp_path_factory):
    """A run with a LoRA reward and DPO policies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHFCAS_RUNS", str(tmp_path_factory.mktemp("runs")))
        policy = {"kind": "dpo", "pairs": 8, "batch_size": 8, "lora": {"r": 4}}
        changes = {"run": "mine", "reward": finished_run.LORA, "policy": policy}
        yield finished_run.finish(tiny_model, **changes)


@pytest.fixture(scope="module")
def probed(tiny_model, tmp_path_factory):
    """A run with a probe on a 4-bit backbone, whose system prompt must not get lost."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHFCAS_RUNS", str(tmp_path_factory.mktemp("runs")))
        model = {"source": str(tiny_model), "quantisation": "nf4", "system_prompt": "be brief"}
        yield finished_run.finish(tiny_model, model=model)


def texts_of(run):
    pool = run.require("01_proxy", "pool_evaluate")
    return models._some(pool, stages.policy(run)).head(6)


def test_a_clean_process_finds_the_same_rewards_and_policy(finished, probed, tmp_path):
    """Reward adapter, merged reward, probe, policy adapter and merged policy, each loaded by the
    program that its card shows, in one process that cannot import this library."""
    said = [
        *models.export_reward(finished, None, tmp_path / "adapter"),
        *models.export_reward(finished, "proxy", tmp_path / "merged", merged=True),
        *models.export_reward(probed, "shf_cas", tmp_path / "probe"),
        *models.export_policy(finished, "shf_cas", tmp_path / "policy"),
        *models.export_policy(finished, "shf_cas", tmp_path / "policy_merged", merged=True),
    ]
    assert f"{tmp_path / 'adapter'}: the reward of shf_cas, adapter, float32" in said
    texts = texts_of(finished)
    backbone, other = stages.policy(finished), stages.policy(probed)
    expected = {
        "adapter": stages.refined_rewards(finished, backbone)["shf_cas"].score(texts),
        "merged": stages.proxy(finished, backbone).score(texts),
        "probe": stages.refined_rewards(probed)["shf_cas"].score(reference_features(other, texts)),
    }
    ids = backbone.prompt_ids("who ran?")
    given = {
        "texts": texts[["prompt", "completion"]].to_numpy().tolist(),
        "ids": ids,
        "folders": {path.name: str(path) for path in tmp_path.iterdir()},
    }
    found = outside.read_cleanly(tmp_path, given)
    for form, inside in expected.items():
        for side in ("left", "right"):
            scores = found.pop(f"{form} {side}")
            np.testing.assert_allclose(scores, inside, atol=1e-3, err_msg=f"{form} {side}")
    assert set(found) == {"policy", "policy_merged"}
    # the policy's next token, and not the reference's
    backbone.load_adapter("default", finished.folder / "03_feedback/policy_shf_cas/adapter")
    inside = {name: next_token(backbone, ids, name) for name in ("default", None)}
    for logp in found.values():
        np.testing.assert_allclose(logp, inside["default"], atol=1e-3)
        assert np.abs(np.array(logp) - inside[None]).max() > 1e-2


def next_token(backbone, ids, adapter):
    import torch

    with backbone.using(adapter), torch.inference_mode():
        logits = backbone.causal(torch.tensor([ids])).logits[0, -1].double()
    return torch.log_softmax(logits, -1).numpy()


def test_the_card_says_what_was_measured(finished, tmp_path):
    models.export_reward(finished, None, tmp_path / "reward")
    card = (tmp_path / "reward/README.md").read_text()
    facts = json.loads((tmp_path / "reward/facts.json").read_text())
    biased = finished.require("01_proxy", "preferences_biased")
    given = cards.labels_of(finished, "shf_cas")
    ties = int((given["label"] == 0.5).sum())
    assert f"trained on {len(biased)} preferences" in card
    assert f"12 labels in 2 rounds, on pairs that the strategy shf_cas chose: {12 - ties}" in card
    assert "a simulated human" in card and "contradict" in card
    assert "quantised as none, computing in float32" in card
    assert "Licence of the base: not recorded here" in card
    assert facts["largest_difference"] < 1e-3 and facts["completions"] > 10
    gain = {row["reward"]: row for row in facts["accuracy"]}
    difference = gain["shf_cas"]["value"] - gain["proxy"]["value"]
    assert gain["shf_cas - proxy"]["value"] == pytest.approx(difference, abs=1e-9)
    assert gain["proxy"]["low"] <= gain["proxy"]["value"] <= gain["proxy"]["high"]
    assert f"| proxy | {gain['proxy']['value']:.3f} |" in card
    assert str(tmp_path) not in card, "a card may become public"


def test_a_reward_that_scores_otherwise_is_not_written(finished, tmp_path, monkeypatch):
    """The check is real: a head that is off by a tenth does not leave."""
    from shfcas_lib.out import reward_model

    right = reward_model._head
    monkeypatch.setattr(reward_model, "_head", lambda reward: right(reward) * 1.1)
    with pytest.raises(InputError, match="nothing was written"):
        models.export_reward(finished, None, tmp_path / "reward")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda run, folder: models.export_reward(run, "margin", folder), "expected one of proxy"),
        (lambda run, folder: models.export_policy(run, None, folder), "policy.kind tilt"),
        (lambda run, folder: models.export_reward(run, None, folder.parent), "not empty"),
    ],
)
def test_what_cannot_leave_is_told_before_any_work(probed, tmp_path, call, words):
    (tmp_path / "something").mkdir()
    with pytest.raises(InputError, match=words):
        call(probed, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["something"]


# --- which run


def test_a_run_is_found_by_file_folder_and_name(probed, tmp_path, monkeypatch):
    import yaml

    monkeypatch.setenv("SHFCAS_RUNS", str(probed.folder.parent))
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(probed.params.model_dump(mode="json")))
    for named in (str(file), str(probed.folder), "tiny"):
        found = runs.find_run(named)
        assert (found.params, found.folder) == (probed.params, probed.folder)
    with pytest.raises(InputError, match=r"no parameter file.*: tiny\)"):
        runs.find_run("quickstart")


# --- labels and completions


def test_labels_and_completions_are_dataset_dicts(finished, tmp_path):
    import datasets

    labels.export_data(finished, tmp_path / "data")
    found = {}
    for name in ("labels", "preferences", "completions"):
        loaded = datasets.load_dataset(
            str(tmp_path / "data"), name, cache_dir=str(tmp_path / "cache")
        )
        assert isinstance(loaded, datasets.DatasetDict)
        found[name] = {split: part.to_pandas() for split, part in loaded.items()}
    assert list(found["completions"]) == ["train", "feedback", "evaluate"]
    told = found["labels"]["shf_cas"]
    given = cards.labels_of(finished, "shf_cas")
    assert told["label"].tolist() == given["label"].tolist()
    assert told["round"].tolist() == given["round"].tolist()
    decided = told[told["label"] != 0.5]
    better = decided["first"].where(decided["label"] > 0.5, decided["second"])
    assert decided["chosen"].tolist() == better.tolist()
    assert told.loc[told["label"] == 0.5, "chosen"].isna().all()
    assert set(told["who"]) == {"person_1"}
    for table in found["completions"].values():
        assert "features" not in table and "gold" not in table


def test_names_of_people_stay_in_the_run():
    given = {"random": pd.DataFrame({"annotator": ["Zoe, Ann", "Ann", "Bob"]})}
    assert labels._pseudonyms(given) == {"Ann": "person_1", "Bob": "person_2", "Zoe": "person_3"}


# --- a hub


def test_a_folder_is_pushed_with_the_token_of_the_environment(
    finished, tmp_path, monkeypatch, capsys
):
    token = "hf_only_in_the_environment"
    with hub_stand_in.running(token) as (address, hub):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", token)
        folder = tmp_path / "data"
        command = ["export-data", str(finished.folder), str(folder), "--push-to-hub", "me/labels"]
        assert cli.main(command) == 0
        assert f"{address}/datasets/me/labels" in capsys.readouterr().out
        files = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
        assert set(hub.repositories["me/labels"]) == set(files)
        for name, path in files.items():
            assert hub.repositories["me/labels"][name] == path.read_bytes()
        assert hub.private == {"me/labels": True}

        monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
        command = ["export-data", str(finished.folder), str(tmp_path / "two")]
        assert cli.main([*command, "--push-to-hub", "me/labels"]) == 2
        said = capsys.readouterr().err
        assert "401" in said and said.count("\n") == 1
        assert "hf_of_somebody_else" not in said and (tmp_path / "two/README.md").exists()


@pytest.mark.parametrize(
    "repository, token, words", [("me", "x", "owner/name"), ("me/it", "", "HF_TOKEN")]
)
def test_a_push_that_cannot_be_is_told_before_the_work(
    finished, tmp_path, monkeypatch, capsys, repository, token, words
):
    monkeypatch.setenv("HF_TOKEN", token)
    command = ["export-data", str(finished.folder), str(tmp_path / "data")]
    assert cli.main([*command, "--push-to-hub", repository]) == 2
    assert words in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_an_adapter_whose_base_nobody_else_has_is_not_pushed(
    finished, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("HF_TOKEN", "x")
    command = ["export-model", str(finished.folder), "reward", str(tmp_path / "reward")]
    assert cli.main([*command, "--push-to-hub", "me/it"]) == 2
    assert "--merged" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


# --- the benchmark


@pytest.mark.parametrize("which", ["finished", "probed"])
def test_a_benchmark_compares_proxy_and_refined_reward(which, tmp_path, capsys, request):
    run = request.getfixturevalue(which)
    place = outside.styled(tmp_path / "styles")
    assert cli.main(["benchmark", str(run.folder), str(place)]) == 0
    table = pd.read_csv(run.folder / "benchmarks/styles.csv")
    assert set(table["subset"]) == {"all", "chat", "safety"}
    assert set(table["style"]) == {"all", "easy", "normal", "hard"}
    # by hand: the scores of every completion, straight from the rewards
    backbone = stages.policy(run)
    rewards = {"proxy": stages.proxy(run, backbone), **stages.refined_rewards(run, backbone)}
    entries = [row for file in sorted(place.iterdir()) for row in json.loads(file.read_text())]
    for name, reward in rewards.items():
        right = {"easy": [], "normal": [], "hard": []}
        for row in entries:
            texts = row["chosen"] + row["rejected"]
            one = pd.DataFrame({"prompt": row["prompt"], "completion": texts}).assign(
                prompt_id="x", index=range(6)
            )
            if which == "probed":
                one = score(backbone, one)
            scores = trust.inner(reward).score(one)
            for i in range(3):
                for j in range(3):
                    style = "easy" if i > j else "hard" if i < j else "normal"
                    right[style].append(scores[i] > scores[3 + j])
        rows = table[(table["reward"] == name) & (table["subset"] == "all")].set_index("style")
        for style, beats in right.items():
            assert rows.at[style, "value"] == pytest.approx(np.mean(beats))
    said = capsys.readouterr().out
    assert "| all | hard | 12 |" in said and "shf_cas - proxy" in said


# --- the page


def test_the_commands_of_the_page_run(finished, tmp_path, monkeypatch, capsys):
    """docs/out.md, as it stands, on the tiny model."""
    page = (ROOT / "docs/out.md").read_text()
    start = "    python -m shfcas_lib "
    commands = [line.removeprefix(start) for line in page.splitlines() if line.startswith(start)]
    assert len(commands) == 8 and sum("--push-to-hub" in command for command in commands) == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHFCAS_HOME", str(tmp_path))
    monkeypatch.setenv("SHFCAS_RUNS", str(finished.folder.parent))
    pair = {"prompt": "Name a bird.", "chosen": "a wren", "rejected": "no"}
    own_files.write(tmp_path / "my_pairs.jsonl", pair, pair | {"prompt": "Name a cat."})
    with hub_stand_in.running("hf_page") as (address, hub):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_TOKEN", "hf_page")
        for command in commands:
            assert cli.main(command.split()) == 0, capsys.readouterr().err
    assert set(hub.repositories) == {"me/my-reward", "me/my-labels"}
    assert "model.safetensors" in hub.repositories["me/my-reward"]
    said = capsys.readouterr().out
    assert "vllm serve" in said and "--enable-lora --max-lora-rank 8" in said
    assert "| my_pairs | all | 2 |" in said
