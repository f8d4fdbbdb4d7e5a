"""Means, contrasts and headlines of figures of merit, against values made by hand."""

from typing import get_args

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.analysis import stats, summary
from shfcas_lib.params import reading
from shfcas_lib.params.schema import StrategyName

SETTINGS = reading.validate({"selection": {"strategies": ["shf_cas", "random"]}}, "test")
POLICIES = {"base": 0.0, "proxy": -0.2, "random": 0.1, "shf_cas": 0.3, "clean": 0.5}


@pytest.fixture
def per_prompt():
    """Gold of five policies on 40 prompts: a prompt's own level, and what the policy adds."""
    draw = np.random.default_rng(3)
    level = draw.normal(size=40)
    parts = []
    for policy, gain in POLICIES.items():
        gold = level + gain + draw.normal(scale=0.05, size=40)
        prompts = [f"p{k:02d}" for k in range(40)]
        parts.append(pd.DataFrame({"policy": policy, "prompt_id": prompts, "gold": gold}))
    return pd.concat(parts, ignore_index=True)


def gold_of(per_prompt, policy):
    return per_prompt.loc[per_prompt["policy"] == policy, "gold"].to_numpy()


def test_contrasts_are_paired_differences_with_their_verdict(per_prompt):
    table = summary.contrasts(per_prompt, SETTINGS).set_index(["better", "than"])
    assert list(table.index) == [
        ("shf_cas", "random"),
        ("shf_cas", "proxy"),
        ("random", "proxy"),
        ("proxy", "base"),
    ]
    for (better, than), row in table.iterrows():
        difference = gold_of(per_prompt, better) - gold_of(per_prompt, than)
        assert row["difference"] == pytest.approx(difference.mean())
        error = difference.std() / np.sqrt(40)
        assert row["high"] - row["low"] == pytest.approx(2 * 1.96 * error, rel=0.15)
        assert (row["units"], row["measure"]) == (40, "gold")
    assert table["verdict"].tolist() == ["higher", "higher", "higher", "lower"]


def test_remedies_are_compared_with_the_leading_strategy_and_the_proxy(per_prompt):
    named = {"evaluation": {"remedies": ["projection", "ensemble_min"]}}
    asked = SETTINGS.model_copy(update={"evaluation": reading.validate(named, "test").evaluation})
    shf_cas = per_prompt[per_prompt["policy"] == "shf_cas"]
    remedy = shf_cas.assign(policy="projection", gold=shf_cas["gold"] - 0.2)
    table = summary.contrasts(pd.concat([per_prompt, remedy]), asked)
    answer = summary.without_labels(table, asked).set_index(["better", "than"])
    assert list(answer.index) == [("shf_cas", "projection"), ("projection", "proxy")]
    assert answer["difference"].tolist() == pytest.approx([0.2, 0.3], abs=0.02)
    assert answer["verdict"].tolist() == ["higher", "higher"]
    assert summary.without_labels(table, SETTINGS) is None


def test_contrasts_leave_out_what_a_unit_lacks(per_prompt):
    some = per_prompt.drop(per_prompt.index[(per_prompt["policy"] == "random")][:15])
    table = summary.contrasts(some, SETTINGS).set_index(["better", "than"])
    assert table.at[("shf_cas", "random"), "units"] == 25
    assert table.at[("shf_cas", "proxy"), "units"] == 40


def test_a_difference_that_may_be_nothing_is_not_significant(per_prompt):
    same = per_prompt.assign(gold=np.tile(np.random.default_rng(0).normal(size=40), 5))
    noise = np.random.default_rng(1).normal(scale=0.1, size=len(same))
    table = summary.contrasts(same.assign(gold=same["gold"] + noise), SETTINGS)
    assert (table["verdict"] == "not significant").sum() >= 3
    assert ((table["low"] > 0) | (table["verdict"] != "higher")).all()


def test_among_many_contrasts_of_nothing_one_small_p_is_not_significant():
    """Twelve strategies that are all alike: 78 contrasts with one another and the proxy. Some
    interval is clear of 0 by luck, which the correction knows."""
    names = list(get_args(StrategyName))[:12]
    settings = reading.validate({"selection": {"strategies": names}}, "test")
    draw = np.random.default_rng(1)
    rows = [(name, f"p{k:02d}", draw.normal()) for name in [*names, "proxy"] for k in range(40)]
    table = summary.contrasts(pd.DataFrame(rows, columns=["policy", "prompt_id", "gold"]), settings)
    assert len(table) == 78
    lucky = (table["p"] < 0.05) & ((table["low"] > 0) | (table["high"] < 0))
    assert lucky.any() and (table["verdict"] == "not significant").all()


def test_contrasts_are_corrected_over_those_of_one_measure(per_prompt):
    gap = np.random.default_rng(4).normal(size=len(per_prompt))
    table = summary.contrasts(per_prompt.assign(gap=gap), SETTINGS)
    for _, part in table.groupby("measure"):
        np.testing.assert_allclose(part["p_holm"], stats.holm(part["p"]))
    alone = summary.contrasts(per_prompt, SETTINGS)
    pd.testing.assert_frame_equal(table[table["measure"] == "gold"], alone)


def test_the_headline_over_prompts_and_over_seeds(per_prompt):
    name = "wrong pairs found by |PACS|, area under ROC"
    found = {"measure": name, "value": 0.6, "low": 0.5, "high": 0.7}
    placebo = {"chance": 0.47, "chance_low": 0.45, "chance_high": 0.49, "verdict": "higher"}
    predicts = pd.DataFrame([found | placebo])
    numbers = summary.headline(per_prompt, None, predicts, SETTINGS)
    assert list(numbers) == [
        "gold reward, base policy (40 prompts)",
        "gain of the proxy over the base policy",
        "gain of shf_cas over the proxy",
        "gain of shf_cas over random at the same budget",
        name,
    ]
    gain = gold_of(per_prompt, "shf_cas") - gold_of(per_prompt, "proxy")
    assert numbers["gain of shf_cas over the proxy"].startswith(f"{gain.mean():.3f} [")
    assert numbers[name] == "0.600 [0.500, 0.700]; placebo 0.470 [0.450, 0.490]: higher"

    repeats = per_prompt.rename(columns={"prompt_id": "seed"})
    over_seeds = summary.headline(per_prompt, repeats, predicts, SETTINGS)
    assert list(over_seeds)[0] == "gold reward, base policy (40 seeds)"
    alone = reading.validate({"selection": {"strategies": ["random"]}}, "test")
    assert "gain of random over the proxy" in summary.headline(per_prompt, None, predicts, alone)


def test_the_ceiling_is_high_where_gold_can_be_learnt_and_low_where_it_cannot(planted):
    pool, gold = planted
    ids = np.sort(pool["prompt_id"].unique())
    train = pool[pool["prompt_id"].isin(ids[:20])].reset_index(drop=True)
    held_out = pool["prompt_id"].isin(ids[20:]).to_numpy()
    rows = []
    for prompt in ids[:20]:
        own = gold[(pool["prompt_id"] == prompt).to_numpy()]
        rows += [(prompt, i, j, float(own[i] > own[j])) for i in range(6) for j in range(i + 1, 6)]
    clean = pd.DataFrame(rows, columns=["prompt_id", "i", "j", "label"])
    settings = reading.validate({"reward": {"l2": 10.0}}, "test")
    args = (settings, train, clean, pool[held_out].reset_index(drop=True))
    high = summary.ceiling(*args, gold[held_out])
    low = summary.ceiling(*args, np.random.default_rng(0).normal(size=held_out.sum()))
    assert high["needed"].tolist()[:2] == [0.5, 0.5] and np.isnan(high["needed"][2])
    assert high["value"][0] == 1.0 and high["value"][1] > 0.7 > 0.4 > abs(low["value"][1])
    assert high["value"][2] > 0.75 > 0.6 > low["value"][2]
    assert (high["low"] <= high["value"]).all() and (high["value"] <= high["high"]).all()
    flat = summary.ceiling(*args, np.where(np.arange(held_out.sum()) < 30, 0.0, gold[held_out]))
    assert flat["value"][0] == 0.5
