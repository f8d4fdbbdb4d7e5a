"""Which labels deserve a second opinion: cross-fitting, ranks, and how good the proxy is."""

import numpy as np
import pandas as pd
import pytest

from shfcas_lib.analysis import audit
from shfcas_lib.base.errors import InputError
from shfcas_lib.rewards import fit_probe


@pytest.fixture(scope="module")
def world():
    """400 prompts with two answers each, whose quality is linear in what a probe reads; a fifth of
    the labels are the wrong way round: (pool, preferences with the column wrong)."""
    generator = np.random.default_rng(0)
    ids = np.repeat([f"p{k:03d}" for k in range(400)], 2)
    features = generator.normal(size=(800, 16))
    quality = features[:, :4].sum(1)
    pool = pd.DataFrame(
        {
            "prompt_id": ids,
            "index": np.tile([0, 1], 400),
            "completion": ["x" * int(k) for k in generator.integers(1, 90, 800)],
            "logp": generator.normal(-30, 5, 800) + quality,
            "features": list(features),
        }
    )
    right = quality[::2] > quality[1::2]
    wrong = generator.random(400) < 0.2
    preferences = pd.DataFrame(
        {"prompt_id": ids[::2], "i": 0, "j": 1, "label": 1.0 * (right ^ wrong)}
    )
    return pool, preferences.assign(wrong=wrong)


@pytest.fixture(scope="module")
def judged(world):
    return audit.cross_fitted(*world, seed=0)


def test_wrong_labels_come_first(judged):
    top = audit.ranked(judged, "proxy").head(60)
    assert top["wrong"].mean() > 0.8 and judged["wrong"].mean() < 0.25
    assert top["rank"].tolist() == list(range(1, 61))
    # the policy knows a little here, and both together no less than the worse of the two
    found = {by: audit.ranked(judged, by).head(60)["wrong"].mean() for by in audit.BY}
    assert found["policy"] > 0.3 and found["both"] > found["policy"]


def test_a_pair_is_judged_without_a_label_of_its_prompt(world):
    """Turn the labels of one prompt round: what its own fold's proxy says of it stays."""
    pool, preferences = world
    both = preferences.head(60)
    other_way = both.assign(i=1, j=0, label=1 - both["label"])
    twice = pd.concat([both, other_way], ignore_index=True)  # two pairs a prompt
    before = audit.cross_fitted(pool, twice, seed=3)
    assert before.groupby("prompt_id")["fold"].nunique().eq(1).all()
    here = (before["prompt_id"] == "p007").to_numpy()
    turned = twice.assign(label=np.where(here, 1 - twice["label"], twice["label"]))
    after = audit.cross_fitted(pool, turned, seed=3)
    np.testing.assert_array_equal(before.loc[here, "proxy"], after.loc[here, "proxy"])
    np.testing.assert_array_equal(before.loc[here, "length"], after.loc[here, "length"])
    other = ~here & (before["fold"] != before["fold"][here].iloc[0])
    assert (before.loc[other, "proxy"] != after.loc[other, "proxy"]).all()


def test_the_proxy_that_learnt_a_pair_does_not_contradict_it(judged):
    table = audit.accuracy(judged, dict.fromkeys(judged["prompt_id"], "all"), 0)
    value = table.set_index("judge")["value"]
    assert value["learnt"] > value["proxy"] > 0.65 and abs(value["length"] - 0.5) < 0.08
    assert set(table["group"]) == {"all pairs"} and (table["pairs"] == 400).all()


def test_it_is_a_probe_of_the_other_folds(world):
    pool, preferences = world
    found = audit.cross_fitted(pool, preferences, seed=1)
    here = found["fold"] == 2
    rest = preferences[~here.to_numpy()]
    best = np.inf
    for penalty in (10_000.0, 3_000.0, 1_000.0, 300.0):  # one of these, by evidence
        probe = fit_probe(pool, rest, penalty)
        odds = probe.score(pool).reshape(-1, 2) @ [1, -1] * probe.spread
        best = min(best, np.abs(odds[here] - found.loc[here, "proxy"]).max())
    assert best < 1e-4


@pytest.mark.parametrize("longer_wins", [True, False])
def test_the_rule_of_length_is_learnt_from_the_other_folds(world, longer_wins):
    pool, preferences = world
    size = pool["completion"].str.len().to_numpy()
    longer = size[::2] > size[1::2]
    by_length = preferences.assign(label=1.0 * (longer == longer_wins))
    table = audit.cross_fitted(pool, by_length, seed=0)
    differ = size[::2] != size[1::2]
    assert (np.sign(table["length"])[differ] == np.sign(by_length["label"] - 0.5)[differ]).all()
    assert (table["length"][~differ] == 0).all()


def test_ties_train_and_come_last_and_have_no_place_in_shares(world):
    pool, preferences = world
    ties = preferences["prompt_id"] < "p050"
    some = preferences.assign(label=preferences["label"].mask(ties, 0.5))
    judged = audit.cross_fitted(pool, some, seed=0)
    for by in audit.BY:
        assert set(audit.ranked(judged, by).tail(50)["prompt_id"]) == set(some[ties]["prompt_id"])
    assert audit.accuracy(judged, dict.fromkeys(some["prompt_id"], "a"), 0)["pairs"].eq(350).all()


def test_labels_between_are_contradicted_by_their_side(judged):
    """Votes: 0.75 is for i, 0.25 for j."""
    soft = judged.assign(label=np.where(judged["label"] == 1, 0.75, 0.25))
    for by in audit.BY:
        one, other = audit.ranked(judged, by), audit.ranked(soft, by)
        assert one["prompt_id"].tolist() == other["prompt_id"].tolist()


def test_equal_rows_come_in_an_order_of_the_seed(judged):
    alike = judged.assign(proxy=0.0)
    orders = [audit.ranked(alike, "proxy", seed)["prompt_id"].tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2] and orders[0] != sorted(orders[0])


def test_accuracy_by_category_resamples_prompts(judged):
    category = {p: "a" if p < "p100" else "b" for p in judged["prompt_id"]}
    table = audit.accuracy(judged, category, 0).set_index(["group", "judge"])
    assert table.loc[("a", "proxy"), "pairs"] == 100 and table.loc[("b", "proxy"), "prompts"] == 300
    right = (judged["proxy"] > 0) == (judged["label"] > 0.5)
    assert table.loc[("all pairs", "proxy"), "value"] == pytest.approx(right.mean())
    row = table.loc[("a", "proxy")]
    assert row["low"] < row["value"] < row["high"]
    # the same pairs twice are no more evidence
    twice = audit.accuracy(pd.concat([judged, judged]), category, 0).set_index(["group", "judge"])
    width = (table["high"] - table["low"]).loc[("all pairs", "proxy")]
    doubled = (twice["high"] - twice["low"]).loc[("all pairs", "proxy")]
    assert doubled == pytest.approx(width, rel=0.1)


def test_too_little_to_learn_from_is_refused(world):
    pool, preferences = world
    for few, found in (
        (preferences.head(19), "19 pairs that are no tie, on 19 prompts"),
        (preferences.assign(label=0.5), "0 pairs that are no tie, on 0 prompts"),
        (pd.concat([preferences.head(9)] * 3), "27 pairs that are no tie, on 9 prompts"),
    ):
        with pytest.raises(InputError, match=found):
            audit.cross_fitted(pool, few, seed=0)
    with pytest.raises(InputError, match="expected one of proxy, policy, both"):
        audit.ranked(preferences, "margin")
