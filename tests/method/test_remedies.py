"""Remedies without labels: each helps where its reason holds, and does nothing where it does
not."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pandas as pd
import pytest

from shfcas_lib import policies, remedies, rewards
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.bias import attribute_values
from shfcas_lib.params.schema import RemedyName
from shfcas_lib.remedies import REMEDIES, Given, Scaled, Target, apply, read
from shfcas_lib.rewards import fit_probe
from shfcas_lib.tasks.attributes import ATTRIBUTES

L2 = 5.0
BETA = 0.5
every_remedy = pytest.mark.parametrize("name", list(REMEDIES))


def centred(values, pool):
    return values - pd.Series(values).groupby(pool["prompt_id"]).transform("mean").to_numpy()


def correlation(values, score, pool):
    """Within prompts, over all of them."""
    values, score = centred(values, pool), centred(score, pool)
    return values @ score / np.sqrt((values @ values) * (score @ score))


def kl(reward, pool):
    """Mean KL of the tilted policy from equal weights, prompt by prompt."""
    parts = []
    for score in pd.Series(reward.score(pool)).groupby(pool["prompt_id"]).apply(np.array):
        weight = np.exp((score - score.max()) / BETA)
        weight /= weight.sum()
        parts.append((weight * np.log(weight * len(weight) + 1e-300)).sum())
    return np.mean(parts)


def ragged(prompts=60, seed=0):
    """A pool whose prompts have 1 to 7 completions, of any length; (pool, quality). The features
    tell quality and length, which have nothing to do with each other."""
    generator = np.random.default_rng(seed)
    rows = []
    for k in range(prompts):
        for i in range(1 + k % 7):
            length, features = int(generator.integers(1, 80)), generator.normal(size=32)
            features[8] = (length - 40) / 23 + generator.normal(scale=0.1)
            rows.append((f"p{k:02d}", i, "prompt", "x" * length, features))
    pool = pd.DataFrame(rows, columns=["prompt_id", "index", "prompt", "completion", "features"])
    return pool, np.stack(pool["features"])[:, 0]


def biased_pairs(pool, quality, pull):
    """Every pair, labelled by quality plus `pull` times length."""
    taste = quality + pull * (attribute_values(pool, "length") - 40) / 23
    rows = []
    for prompt, own in pool.assign(taste=taste).groupby("prompt_id"):
        value = own["taste"].to_numpy()
        for i, j in zip(*np.triu_indices(len(own), 1), strict=True):
            rows.append((prompt, i, j, float(value[i] > value[j])))
    return pd.DataFrame(rows, columns=["prompt_id", "i", "j", "label"])


def make(pool, observed, **changes):
    """What remedies start from; the target is a policy that goes less far than the proxy."""
    proxy = fit_probe(pool, observed, L2)
    held_out = ragged(40, seed=9)[0]
    given = Given(proxy, pool, observed, L2, 0, target=Target(Scaled(proxy, 0.5), held_out, BETA))
    return replace(given, **changes)


@pytest.fixture(scope="module")
def flawed():
    """Annotators who look at length twice as much as at quality: (given, held-out pool, its
    quality)."""
    pool, quality = ragged()
    return make(pool, biased_pairs(pool, quality, 2.0)), *ragged(seed=1)


def test_the_schema_names_every_remedy():
    assert list(get_args(RemedyName)) == list(REMEDIES)


# --- where they help


@pytest.mark.parametrize("name", ["attribute_out", "projection"])
def test_the_attribute_is_out_of_the_reward_and_quality_is_left(flawed, name):
    given, pool, quality = flawed
    length, before = attribute_values(pool, "length"), given.proxy.score(pool)
    mended = apply(name, given)
    assert correlation(length, before, pool) > 0.7
    assert abs(correlation(length, mended.score(pool), pool)) < 0.15
    assert correlation(quality, mended.score(pool), pool) > 0.7
    assert correlation(quality, before, pool) < 0.6


def test_what_is_regressed_out_is_gone_from_the_training_completions(flawed):
    given, _, _ = flawed
    mended = apply("attribute_out", given)
    length = attribute_values(given.pool, "length")
    assert abs(correlation(length, mended.score(given.pool), given.pool)) < 1e-9


def test_the_slope_is_least_squares_with_a_constant_for_each_prompt(flawed):
    given, _, _ = flawed
    constants = pd.get_dummies(given.pool["prompt_id"]).to_numpy(float)
    length = attribute_values(given.pool, "length")
    columns = np.column_stack([length, constants])
    expected = np.linalg.lstsq(columns, given.proxy.score(given.pool), rcond=None)[0][0]
    assert apply("attribute_out", given).slope == pytest.approx(expected)


def test_one_direction_is_that_of_the_ridge_regression(flawed, monkeypatch):
    """By the normal equations; both systems of equations give the same."""
    given, _, _ = flawed
    monkeypatch.setattr(remedies, "DIRECTIONS", 1)
    columns = given.proxy.columns(given.pool)
    columns = np.column_stack([centred(column, given.pool) for column in columns.T])
    length = centred(attribute_values(given.pool, "length"), given.pool)
    normal = columns.T @ columns + L2 * np.eye(columns.shape[1])
    direction = np.linalg.solve(normal, columns.T @ length)
    direction /= np.linalg.norm(direction)
    found = apply("projection", given).weight
    weight = given.proxy.weight
    assert found @ direction == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(found, weight - direction * (direction @ weight), atol=1e-9)
    few = rng(0, "wide").normal(size=(20, 32))
    wide, tall = (remedies._direction(part, part[:, 0], L2) for part in (few, few[:, :8]))
    for part, answer in ((few, wide), (few[:, :8], tall)):
        gram = part.T @ part + L2 * np.eye(part.shape[1])
        ridge = np.linalg.solve(gram, part.T @ part[:, 0])
        np.testing.assert_allclose(answer, ridge / np.linalg.norm(ridge), atol=1e-9)


def test_the_mean_knows_more_of_quality_than_its_members_where_labels_are_noise():
    pool, quality = ragged(120)
    pairs = biased_pairs(pool, quality, 0.0)
    flipped = np.random.default_rng(2).random(len(pairs)) < 0.35
    pairs["label"] = np.where(flipped, 1 - pairs["label"], pairs["label"])
    given, (held_out, truth) = make(pool, pairs), ragged(200, seed=3)
    each = given.members.score(held_out).T
    alone = [correlation(truth, member, held_out) for member in each]
    together = correlation(truth, apply("ensemble_mean", given).score(held_out), held_out)
    assert together > max(alone) > min(alone) > 0.3


def test_the_minimum_holds_down_what_the_members_disagree_about(flawed):
    given, pool, _ = flawed
    each = np.column_stack([centred(member, pool) for member in given.members.score(pool).T])
    lowest = apply("ensemble_min", given)
    held_down = each.mean(1) - lowest.score(pool) * lowest.spread
    assert np.corrcoef(held_down, each.std(1))[0, 1] > 0.7


def test_the_mean_of_an_ensemble_is_the_mean_of_its_members(flawed):
    given, pool, _ = flawed
    mean, each = apply("ensemble_mean", given), given.members.score(pool)
    assert each.shape == (len(pool), remedies.MEMBERS)
    np.testing.assert_allclose(mean.score(pool) * mean.spread, each.mean(1), atol=1e-9)


def test_the_minimum_of_an_ensemble_is_below_every_member(flawed):
    given, pool, _ = flawed
    lowest = apply("ensemble_min", given)
    each = np.column_stack([centred(member, pool) for member in given.members.score(pool).T])
    below = lowest.score(pool) * lowest.spread
    assert (below[:, None] <= each + 1e-9).all()
    np.testing.assert_allclose(below, each.min(1), atol=1e-9)


def test_a_member_is_the_probe_of_its_bootstrap_sample(flawed):
    """Rows drawn with replacement and weights that count them are one loss."""
    given, pool, _ = flawed
    count = len(given.observed)
    drawn = rng(0, "remedies/ensemble").integers(0, count, count)
    missing = np.setdiff1d(np.arange(count), drawn)
    rows = given.observed.iloc[np.concatenate([drawn, missing])]
    rows = rows.assign(weight=np.repeat([1.0, 0.0], [count, len(missing)]))
    expected = fit_probe(given.pool, rows, L2).score(pool)
    np.testing.assert_allclose(given.members.score(pool)[:, 0], expected, atol=1e-3)
    ids = given.pool["prompt_id"].to_numpy()
    for member in given.members.score(given.pool).T:
        used = given.pool.groupby("prompt_id")["index"].transform("size").to_numpy() > 1
        assert rewards.spread(member[used], ids[used]) == pytest.approx(1)


def test_the_proxy_goes_as_far_as_the_target_and_no_further(flawed):
    given, _, _ = flawed
    pool = given.target.pool
    mended = apply("conservative_kl", given)
    assert 0 < mended.factor < 1 and kl(given.proxy, pool) > kl(given.target.reward, pool)
    assert kl(mended, pool) == pytest.approx(kl(given.target.reward, pool), abs=1e-6)
    assert mended.factor == pytest.approx(0.5)
    ids = pool["prompt_id"].to_numpy()
    raised = policies.tilt(ids, given.proxy.score(pool), BETA / mended.factor)
    np.testing.assert_allclose(policies.tilt(ids, mended.score(pool), BETA), raised)


# --- where they do nothing


@pytest.mark.parametrize("name", ["attribute_out", "projection"])
def test_an_attribute_that_never_varies_changes_no_score(flawed, name):
    given, pool, _ = flawed
    same = given.pool.assign(completion="always alike")
    mended = apply(name, replace(given, pool=same))
    np.testing.assert_allclose(mended.score(pool), given.proxy.score(pool), rtol=1e-12)


@pytest.mark.parametrize("name", ["attribute_out", "projection"])
def test_an_attribute_that_varies_between_prompts_alone_changes_no_score(flawed, name):
    """A reward compares completions of one prompt."""
    given, pool, _ = flawed
    same = given.pool.assign(completion=given.pool["prompt_id"].map(lambda p: "x" * int(p[1:])))
    mended = apply(name, replace(given, pool=same))
    score = given.proxy.score(pool)
    np.testing.assert_allclose(mended.score(pool), score, rtol=1e-9, atol=1e-12)


def test_a_proxy_that_goes_less_far_than_the_target_is_left_alone(flawed):
    given, pool, _ = flawed
    bold = Scaled(given.proxy, 2.0)
    mended = apply("conservative_kl", replace(given, target=replace(given.target, reward=bold)))
    assert mended == Scaled(given.proxy, 1.0)
    np.testing.assert_array_equal(mended.score(pool), given.proxy.score(pool))


def test_a_target_that_stays_at_the_base_policy_leaves_nothing_of_the_proxy(flawed):
    given, _, _ = flawed
    still = Scaled(given.proxy, 0.0)
    mended = apply("conservative_kl", replace(given, target=replace(given.target, reward=still)))
    assert mended.factor == 0 and kl(mended, given.target.pool) == 0


# --- any pool, any time, any place


@every_remedy
def test_scores_are_finite_on_ragged_pools_and_of_unit_spread(flawed, name):
    given, pool, _ = flawed
    alone = (pool.groupby("prompt_id")["index"].transform("size") == 1).to_numpy()
    mended = apply(name, given)
    assert alone.sum() > 3 and np.isfinite(mended.score(pool)).all()
    if name != "conservative_kl":
        used = given.pool.merge(rewards.named(given.observed), on=["prompt_id", "index"])
        ids = used["prompt_id"].to_numpy()
        assert rewards.spread(mended.score(used), ids) == pytest.approx(1)


@every_remedy
def test_a_remedy_gives_the_same_bits_again_and_reads_itself_back(flawed, name, tmp_path):
    given, pool, _ = flawed
    first, again = apply(name, given), apply(name, replace(given))
    np.testing.assert_array_equal(first.score(pool), again.score(pool))
    assert read(tmp_path / name) is None
    first.save(tmp_path / name)
    kept = read(tmp_path / name)
    assert type(kept) is type(first)
    np.testing.assert_array_equal(kept.score(pool), first.score(pool))
    suffixes = {path.suffix for path in (tmp_path / name).rglob("*.*")}
    assert suffixes <= {".safetensors", ".json"}


def test_another_seed_draws_another_ensemble(flawed):
    given, pool, _ = flawed
    one, other = (apply("ensemble_mean", replace(given, seed=seed)) for seed in (0, 1))
    assert not np.array_equal(one.score(pool), other.score(pool))


@every_remedy
def test_the_order_of_completions_does_not_matter(flawed, name):
    given, pool, _ = flawed
    mended, shuffled = apply(name, given), pool.sample(frac=1, random_state=1)
    expected = pd.Series(centred(mended.score(pool), pool))[shuffled.index].to_numpy()
    np.testing.assert_allclose(
        centred(mended.score(shuffled), shuffled.reset_index(drop=True)), expected, atol=1e-9
    )


# --- bad input


def test_unknown_remedies_and_attributes_are_refused_in_one_sentence(flawed, monkeypatch):
    given, _, _ = flawed
    with pytest.raises(InputError, match="unknown remedy 'prayer': choose attribute_out, "):
        apply("prayer", given)
    with pytest.raises(InputError, match="attribute 'girth': choose length, "):
        apply("attribute_out", replace(given, attribute="girth"))
    with pytest.raises(InputError, match="meets the KL of a target policy: none was given"):
        apply("conservative_kl", replace(given, target=None))
    monkeypatch.setitem(ATTRIBUTES, "heat", lambda text: float("nan"))
    with pytest.raises(InputError, match="attribute 'heat' gives nan for completion 0 of prompt p"):
        apply("projection", replace(given, attribute="heat"))
