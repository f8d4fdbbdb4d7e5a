"""Whom to trust: the fits equal an independent solver's, merge is a special case, and what was
planted is found again."""

import time

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.special import expit

from shfcas_lib import pool as pools
from shfcas_lib import refine, rewards, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Reward
from shfcas_lib.storage.runs import Memory, Stage

KEY = ["prompt_id", "i", "j"]
L2 = 30.0


def comparisons(pool, score, count, seed, sharpness=1.0, flip=0.0):
    """Random pairs of one prompt, answered by a Bradley-Terry annotator who follows `score`."""
    generator = np.random.default_rng(seed)
    rows = []
    groups = list(pool.assign(score=score).groupby("prompt_id")["score"])
    for k in generator.integers(0, len(groups), count):
        prompt, own = groups[k]
        i, j = sorted(generator.choice(len(own), 2, replace=False).tolist())
        says = generator.random() < expit(sharpness * (own.iloc[i] - own.iloc[j]))
        rows.append((prompt, i, j, float(says != (generator.random() < flip))))
    return pd.DataFrame(rows, columns=[*KEY, "label"]).drop_duplicates(KEY, ignore_index=True)


@pytest.fixture(scope="module")
def world():
    """Completions whose quality and whose annotators' taste are linear in the features: a pool,
    quality and taste, both of unit spread within prompts."""
    generator = np.random.default_rng(3)
    features = generator.normal(size=(480, 32))
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:02d}" for k in range(60)], 8),
            "index": np.tile(range(8), 60),
            "logp": generator.normal(-40, 8, 480),
            "features": list(features),
        }
    )
    ids = pool["prompt_id"].to_numpy()
    quality, taste = features[:, :8].sum(1), features[:, 8:16].sum(1)
    return pool, quality / rewards.spread(quality, ids), taste / rewards.spread(taste, ids)


def correlation(one, other):
    return np.corrcoef(one, other)[0, 1]


# --- the fits


def primal(belief, pool, labels, rho, kappa):
    """The same minimum in the weights themselves, by L-BFGS: w."""
    columns = belief.columns(pool)
    rows = [rewards.locate(pool, labels, side) for side in ("i", "j")]
    given, asked = belief.difference, kappa * (columns[rows[0]] - columns[rows[1]])
    label = labels["label"].to_numpy()
    weight = np.where(label == 0.5, trust.TIE, 1.0)
    size, length = given.shape[1], belief.l2 / belief.tau
    stiff = np.array([length / rho, length / (1 - rho) if rho < 1 else np.inf])

    def loss(x):
        w, v = x[:size], x[size:] if rho < 1 else np.zeros(size)
        said, margin = given @ (w + v), asked @ w
        value = (np.logaddexp(0, said) - belief.label * said).sum()
        value += weight @ (np.logaddexp(0, margin) - label * margin)
        value += stiff[0] / 2 * w @ w + (stiff[1] / 2 * v @ v if rho < 1 else 0)
        pull = given.T @ (expit(said) - belief.label)
        towards = asked.T @ (weight * (expit(margin) - label))
        slope = [pull + towards + stiff[0] * w]
        return value, np.concatenate([*slope, pull + stiff[1] * v] if rho < 1 else slope)

    start = np.zeros(size * (2 if rho < 1 else 1))
    options = {"maxiter": 20000, "ftol": 1e-16, "gtol": 1e-9}
    return minimize(loss, start, jac=True, method="L-BFGS-B", options=options).x[:size]


@pytest.mark.parametrize("rho, kappa", [(1.0, 1.0), (0.5, 3.0), (0.3, 0.3), (0.1, 3.0)])
def test_each_fit_is_the_minimum_that_another_solver_finds(world, rho, kappa):
    pool, quality, taste = world
    belief = trust.believe(pool, comparisons(pool, quality + taste, 200, 1), L2)
    labels = comparisons(pool, quality, 60, 2)
    labels.loc[:9, "label"] = 0.5
    asked = trust._read(belief, pool, labels)
    (found,) = trust._joint(belief, asked, [(rho, kappa)])
    pull = belief.difference.T @ found.pairs + kappa * asked.difference.T @ found.labels
    ours = rho * belief.tau / belief.l2 * pull
    np.testing.assert_allclose(ours, primal(belief, pool, labels, rho, kappa), atol=2e-6)


def test_without_taste_at_size_one_it_is_merge(world, monkeypatch):
    pool, quality, taste = world
    biased, labels = comparisons(pool, quality + taste, 200, 1), comparisons(pool, quality, 60, 2)
    known = pd.MultiIndex.from_frame(biased[KEY])
    labels = labels[~pd.MultiIndex.from_frame(labels[KEY]).isin(known)].reset_index(drop=True)
    monkeypatch.setattr(trust, "TAUS", (1.0,))
    monkeypatch.setattr(trust, "_GRID", [(1.0, 1.0)])
    # both read the design on the completions that the pairs name
    belief = trust.believe(pool, biased, L2)
    ours = trust.fit(belief, pool, labels).score(pool)
    merged = refine.merge(biased, labels, 1.0)
    first, second = (rewards.locate(pool, merged, side) for side in ("i", "j"))
    columns = belief.columns(pool)
    difference = columns[first] - columns[second]
    label = merged["label"].to_numpy()

    def loss(w):
        margin = difference @ w
        value = (np.logaddexp(0, margin) - label * margin).sum() + L2 / 2 * w @ w
        return value, difference.T @ (expit(margin) - label) + L2 * w

    options = {"maxiter": 5000, "ftol": 1e-16, "gtol": 1e-10}
    w = minimize(loss, np.zeros(len(columns[0])), jac=True, method="L-BFGS-B", options=options).x
    used = np.unique(np.concatenate([first, second]))
    unit = rewards.spread(columns[used] @ w, pool["prompt_id"].to_numpy()[used])
    np.testing.assert_allclose(ours, columns @ w / unit, atol=1e-6)


def test_the_evidence_is_that_of_a_gaussian_integral():
    # one pair and one weight: the evidence is an integral that quadrature knows
    covariance, label = np.array([[2.0]]), np.array([1.0])
    found = trust._mode(covariance, label, np.zeros(1))
    node, weight = np.polynomial.hermite_e.hermegauss(60)
    exact = np.log(expit(np.sqrt(2.0) * node) @ weight / weight.sum())
    assert found.evidence == pytest.approx(exact, abs=0.02)


# --- what was planted is found


def test_labels_that_agree_with_the_pairs_are_believed_to_contradict_little(world):
    pool, quality, _ = world
    belief = trust.believe(pool, comparisons(pool, 2 * quality, 400, 1), L2)
    report = trust.fit(belief, pool, comparisons(pool, 2 * quality, 120, 2)).report
    assert report.disbelieved < 0.45


def test_labels_tell_a_taste_from_quality(world):
    pool, quality, taste = world
    belief = trust.believe(pool, comparisons(pool, quality + 3 * taste, 400, 1), L2)
    labels = comparisons(pool, 3 * quality, 150, 2)
    trusted = trust.fit(belief, pool, labels)
    merged = refine.fit(Reward(l2=L2), pool, refine.merge(belief.biased, labels, 3.0), 0)
    assert trusted.report.disbelieved > 0.5
    assert correlation(trusted.taste.score(pool), taste) > 0.6
    assert (
        correlation(trusted.score(pool), quality) > correlation(merged.score(pool), quality) + 0.08
    )


def test_quality_and_taste_together_are_the_pairs_log_odds(world):
    """Where rho and kappa are known, taste and quality are the two parts of what pairs say."""
    pool, quality, taste = world
    belief = trust.believe(pool, comparisons(pool, quality + taste, 300, 1), L2)
    labels = comparisons(pool, 3 * quality, 100, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trust, "_GRID", [(0.3, 3.0)])
        trusted = trust.fit(belief, pool, labels)
    w = primal(belief, pool, labels, 0.3, 3.0)
    (found,) = trust._joint(belief, trust._read(belief, pool, labels), [(0.3, 3.0)])
    margin = belief.covariance @ found.pairs
    margin += 0.3 * 3.0 * trust._read(belief, pool, labels).cross @ found.labels
    np.testing.assert_allclose(belief.difference @ (w + trusted.taste.weight), margin, atol=1e-4)
    assert trusted.taste.spread == 1.0


def test_a_sharper_human_has_a_higher_kappa(world):
    pool, quality, _ = world
    belief = trust.believe(pool, comparisons(pool, quality, 400, 1), L2)
    means = []
    for sharpness in (0.2, 8.0):
        labels = comparisons(pool, quality, 150, 2, sharpness)
        means.append(trust.fit(belief, pool, labels).report.mean("kappa"))
    assert means[0] < 1 < means[1]


def test_noise_in_the_pairs_makes_everything_smaller(world):
    pool, quality, _ = world
    clear = trust.believe(pool, comparisons(pool, 6 * quality, 400, 1), L2)
    noisy = trust.believe(pool, comparisons(pool, 6 * quality, 400, 1, flip=0.4), L2)
    assert noisy.tau < clear.tau
    assert clear.evidence.keys() == set(trust.TAUS)


def test_an_erring_human_is_found_out_by_labels_and_by_repeats(world):
    pool, quality, _ = world
    belief = trust.believe(pool, comparisons(pool, 4 * quality, 400, 1), L2)
    right, wrong = (comparisons(pool, 9 * quality, 200, 2, 1.0, flip) for flip in (0.0, 0.3))
    errors = [trust.fit(belief, pool, labels).report.mean("error") for labels in (right, wrong)]
    assert errors[0] < 0.08 < errors[1]
    told = trust.fit(belief, pool, wrong, trust.doubt(20, 20)).report.mean("error")
    assert told > errors[1]


def test_doubt_follows_the_answers_given_twice():
    values = np.array(list(trust.ERRORS))
    means = [float(values @ trust.doubt(*counts)) for counts in ((30, 0), (0, 0), (18, 12))]
    assert means == sorted(means)
    assert trust.doubt(0, 0) == pytest.approx(list(trust.ERRORS.values()))


# --- a published proxy


def test_a_published_proxy_is_believed_as_far_as_labels_say(world):
    pool, quality, taste = world
    labels = comparisons(pool, 4 * quality, 120, 5)
    shares = []
    for given in (quality, -taste):
        share, correction, report = trust.correct(pool, labels, given, L2)
        shares.append(report.mean("rho"))
        score = share * given + correction.score(pool)
        assert correlation(score, quality) > 0.5
    assert shares[0] > shares[1] + 0.3


# --- what is kept, and bad input


def test_a_trusted_reward_is_kept_whole_and_read_back(world, tmp_path):
    pool, quality, taste = world
    biased, labels = comparisons(pool, quality + taste, 200, 1), comparisons(pool, quality, 60, 2)
    settings, data = Reward(l2=L2), refine.Data(pool, biased, labels)
    first = refine.updated(Stage(tmp_path, None), settings, data, 0)
    again = refine.finished(settings, tmp_path)
    np.testing.assert_array_equal(first.score(pool), again.score(pool))
    pd.testing.assert_frame_equal(first.report.candidates, again.report.candidates)
    assert str(again.report) == str(first.report)
    assert refine.updated(Memory(), settings, data, 0).score(pool).tolist() == (
        first.score(pool).tolist()
    )


def test_shares_sum_to_one_and_the_order_of_labels_does_not_matter(world):
    pool, quality, taste = world
    belief = trust.believe(pool, comparisons(pool, quality + taste, 200, 1), L2)
    labels = comparisons(pool, quality, 60, 2)
    one, other = (trust.fit(belief, pool, table) for table in (labels, labels.iloc[::-1]))
    assert one.report.candidates["share"].sum() == pytest.approx(1)
    np.testing.assert_allclose(one.score(pool), other.score(pool), atol=1e-8)


TIES = pd.DataFrame([("p00", 0, k, 0.5) for k in range(1, 8)], columns=[*KEY, "label"])


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda labels: TIES, id="ties alone"),
        pytest.param(lambda labels: labels.head(4), id="four labels"),
        pytest.param(lambda labels: labels.assign(label=np.nan), id="all skipped"),
        pytest.param(
            lambda labels: TIES.assign(label=[1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0]), id="one prompt"
        ),
    ],
)
def test_labels_that_cannot_tell_are_merged(world, change):
    pool, quality, taste = world
    biased, labels = comparisons(pool, quality + taste, 200, 1), comparisons(pool, quality, 60, 2)
    few = change(labels)
    assert not trust.enough(few)
    settings = Reward(l2=L2)
    ours = refine.update(settings, refine.Data(pool, biased, few), 0)
    merged = refine.merge(biased, few.dropna(subset=["label"]), settings.feedback_weight)
    assert isinstance(ours, rewards.Probe)
    np.testing.assert_array_equal(ours.score(pool), rewards.fit_probe(pool, merged, L2).score(pool))


def test_no_biased_pair_is_refused_in_one_sentence(world):
    with pytest.raises(InputError, match="no biased preferences"):
        trust.believe(world[0], comparisons(world[0], world[1], 5, 1).head(0), L2)


def test_labels_alone_forget_the_pairs(world):
    pool, quality, taste = world
    labels = comparisons(pool, quality, 60, 2)
    settings = Reward(l2=L2, refinement="labels_alone")
    one, other = (
        refine.update(settings, refine.Data(pool, comparisons(pool, taste, 100, k), labels), 0)
        for k in (1, 2)
    )
    np.testing.assert_array_equal(one.score(pool), other.score(pool))


def test_of_very_many_pairs_evenly_spaced_ones_are_read(world, monkeypatch):
    pool, quality, _ = world
    biased = comparisons(pool, quality, 300, 1)
    monkeypatch.setattr(trust, "LARGEST", 50)
    assert len(trust.believe(pool, biased, L2).biased) == 50


# --- covariances


def test_covariances_are_those_of_the_weights_posterior(world):
    pool, quality, taste = world
    belief = trust.believe(pool, comparisons(pool, quality + taste, 100, 1), L2)
    labels = comparisons(pool, quality, 40, 2)
    report = trust.fit(belief, pool, labels).report
    few = pool.head(24)
    ours = trust.covariances(belief, few, pool, labels, report)

    # by hand: w and v with their joint precision, the pairs' curvature at the belief's mode
    rho, kappa = report.best
    (found,) = trust._joint(belief, trust._read(belief, pool, labels), [(rho, kappa)])
    asked = kappa * trust._read(belief, pool, labels).difference
    given, size = belief.difference, belief.l2 / belief.tau
    pairs = (given.T * belief.root**2) @ given
    own = np.eye(given.shape[1])
    w_w = pairs + (asked.T * found.curvature) @ asked + size / rho * own
    if rho < 1:
        v_v = pairs + size / (1 - rho) * own
        precision = np.block([[w_w, pairs], [pairs, v_v]])
    else:
        precision = w_w
    covariance = np.linalg.inv(precision)[: given.shape[1], : given.shape[1]]
    columns = belief.columns(few)
    np.testing.assert_allclose(ours, columns @ covariance @ columns.T, atol=1e-8)
    assert pools.features(few).shape == (24, 32)


def test_a_fit_at_quickstart_size_takes_under_three_seconds():
    generator = np.random.default_rng(0)
    count, width = 1280, 2304
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:03d}" for k in range(count // 8)], 8),
            "index": np.tile(range(8), count // 8),
            "features": list(generator.normal(size=(count, width)).astype(np.float32)),
        }
    )
    score = generator.normal(size=count)
    belief = trust.believe(pool, comparisons(pool, 2 * score, 1000, 1), 300.0)
    labels = comparisons(pool, score, 80, 2)
    start = time.process_time()
    trust.fit(belief, pool, labels)
    assert time.process_time() - start < 3
