"""Do I need labels at all? Remedies beside strategies in a run's tables, its replicates and a
sweep's points."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from cells import run
from tiny_notebooks import settings

from shfcas_lib.base.errors import InputError
from shfcas_lib.data.prompts import split
from shfcas_lib.experiment import checks, judging, replication, without_labels
from shfcas_lib.params import reading
from shfcas_lib.remedies import REMEDIES
from shfcas_lib.rewards import Published
from shfcas_lib.storage import inputs
from shfcas_lib.storage.runs import Memory
from shfcas_lib.tasks.embedded import embedded_prompts

EVERY = list(REMEDIES)


@pytest.fixture(scope="module")
def experiment():
    """Parameters, prompts, and a pool of random features whose gold is one of them."""
    values = reading.validate(
        {
            "bias": [{"kind": "attribute", "attribute": "length", "strength": 0.9}],
            "selection": {"budget": 12, "rounds": 1},
            "reward": {"l2": 10.0},
            "policy": {"beta": 0.2},
            "evaluation": {"replicates": 2, "remedies": EVERY},
        },
        "test",
    )
    generator = np.random.default_rng(0)
    prompts = split(embedded_prompts("helpfulness").head(120), values.split, 0)
    rows = []
    for prompt in prompts["prompt_id"]:
        for i in range(4):
            length, features = int(generator.integers(1, 40)), generator.normal(size=16)
            features[1] = (length - 20) / 12
            text, logp = "x" * length, generator.normal()
            rows.append((prompt, i, "prompt", text, length, features, logp))
    columns = ["prompt_id", "index", "prompt", "completion", "n_tokens", "features", "logp"]
    pool = pd.DataFrame(rows, columns=columns).sort_values(columns[:2], ignore_index=True)
    return values, prompts, pool.assign(gold=np.stack(pool["features"])[:, 0])


def test_replicates_hold_every_remedy_and_a_sweep_gives_the_same(experiment, tmp_path):
    params, prompts, pool = experiment
    table = replication.replicates(params, prompts, pool, pool["gold"].to_numpy())["replicates"]
    by_seed = table.pivot(index="seed", columns="policy", values="gold")
    assert set(by_seed) == {"base", "proxy", "clean", "shf_cas", "random", *EVERY}
    assert by_seed.notna().all(axis=None)
    # gold has nothing to do with length, which nine labels of ten follow
    assert (by_seed["attribute_out"] > by_seed["proxy"]).all()

    shared = replication.references(params, prompts, pool, tmp_path)
    own = replication.strategies(params, prompts, pool, tmp_path)
    swept = pd.concat([shared["measures"], own["measures"]])
    assert not swept.duplicated(["seed", "policy"]).any()
    both = table.merge(swept, on=["seed", "policy"], suffixes=("", "_swept"))
    assert len(both) == len(table)
    np.testing.assert_allclose(both["gold"], both["gold_swept"], rtol=1e-9)
    assert set(shared["curves"]["policy"]) >= set(EVERY) - {"conservative_kl"}
    assert set(own["measures"]["policy"]) == {"shf_cas", "random", "conservative_kl"}
    assert set(own["timing"]["policy"]) == {"shf_cas", "random"}
    kept = {path.name for path in (tmp_path / "0" / "remedies").iterdir()}
    assert kept == set(EVERY) - {"conservative_kl"}


def test_the_cautious_proxy_is_as_far_from_the_base_policy_as_the_leading_strategy(experiment):
    params, prompts, pool = experiment
    merge = params.reward.model_copy(update={"refinement": "merge"})
    more = params.selection.model_copy(update={"budget": 40})
    params = params.model_copy(update={"reward": merge, "selection": more})
    table = replication.replicates(params, prompts, pool, pool["gold"].to_numpy())["replicates"]
    kl = table.pivot(index="seed", columns="policy", values="kl")
    expected = kl[["proxy", "shf_cas"]].min(axis=1)
    np.testing.assert_allclose(kl["conservative_kl"], expected, atol=1e-6)
    assert (kl["conservative_kl"] < kl["proxy"] - 1e-3).any(), "it had something to do"


def test_a_run_shows_them_in_its_tables_and_answers_the_question(tiny_model, runs_folder):
    values = settings(
        tiny_model,
        run="remedies",
        prompts={"n": 40},
        selection={"budget": 8, "rounds": 1},
        evaluation={"replicates": 0, "bootstrap": 100, "remedies": EVERY},
    )
    left = run(values)
    folder = runs_folder / "remedies" / "04_evaluation"
    assert list(left["rewards"]) == ["proxy", *EVERY, "random", "shf_cas", "clean"]
    summary = pd.read_parquet(folder / "summary.parquet")
    gold = summary[summary["measure"] == "gold"]["policy"]
    assert set(EVERY) <= set(gold)
    curve = set(pd.read_parquet(folder / "over_optimisation.parquet")["policy"])
    assert curve == {*left["rewards"], "merged"} - {"conservative_kl"}
    answer = left["summary"].without_labels(left["judged"], left["run"].params)
    asked = {(row.better, row.than) for row in answer[answer["measure"] == "gold"].itertuples()}
    over = {("shf_cas", name) for name in EVERY}
    assert asked == over | {(name, "proxy") for name in EVERY}
    stamps = {path: path.stat().st_mtime_ns for path in (folder / "remedies").rglob("*.*")}
    assert {path.parent.name for path in stamps} >= {"ensemble_mean", "probe"}
    again = judging.rewards(left["run"], None)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    for name in EVERY:
        np.testing.assert_array_equal(again[name].score(left["pool"]), left["scores"][name])


def test_a_run_without_remedies_makes_none(experiment):
    params, prompts, pool = experiment
    plain = params.model_copy(
        update={"evaluation": params.evaluation.model_copy(update={"remedies": []})}
    )
    table = replication.replicates(plain, prompts, pool, pool["gold"].to_numpy())["replicates"]
    assert set(table["policy"]) == {"base", "proxy", "random", "shf_cas", "clean"}


# --- bad input


@pytest.mark.parametrize("reward", [{"kind": "lora"}, {"proxy": "model:somebody/else"}])
def test_remedies_of_another_reward_than_a_probe_are_refused_in_one_sentence(reward):
    values = {
        "reward": reward,
        "evaluation": {"replicates": 0, "remedies": ["ensemble_min"]},
    }
    with pytest.raises(InputError, match="ensemble_min mends a probe that is trained here"):
        reading.validate(values, "mine.yaml")


@pytest.mark.parametrize(
    "evaluation, words",
    [
        ({"remedies": ["projection", "projection"]}, "a remedy is named twice"),
        ({"remedies": ["length_out"]}, "evaluation.remedies.0: found"),
    ],
)
def test_a_list_of_remedies_that_cannot_be_is_refused(evaluation, words):
    with pytest.raises(InputError, match=words):
        reading.validate({"evaluation": evaluation}, "mine.yaml")


def test_an_attribute_that_leads_nowhere_stops_the_run_before_any_work():
    evaluation = {"remedies": ["projection"], "remedy_attribute": "girth"}
    with pytest.raises(InputError, match="attribute 'girth': choose length, compliance"):
        checks.check(reading.validate({"evaluation": evaluation}, "mine.yaml"))


def test_an_attribute_of_the_users_own_is_part_of_what_a_run_reads():
    own = {"remedies": ["projection"], "remedy_attribute": "tiny_gold:consonants"}
    asked, unasked = (
        inputs.of_run(reading.validate({"evaluation": own | change}, "mine.yaml"))
        for change in ({}, {"remedies": []})
    )
    assert asked.keys() - unasked.keys() == {"tiny_gold"}


def test_a_reward_that_is_no_probe_cannot_be_mended(experiment):
    params, prompts, pool = experiment
    setting = replication.build_case(params, prompts, pool, 0).setting
    with pytest.raises(InputError, match="mend a probe that is trained here"):
        without_labels.mended(replace(setting, proxy=Published()), Memory())
