"""Every selection strategy: the budget, the order of ties, determinism, and what each one may
see."""

import dataclasses
import functools
import inspect
import time

import numpy as np
import pandas as pd
import pytest

from shfcas_lib import policies, selection, strategies, trust
from shfcas_lib.base.errors import InputError
from shfcas_lib.conflict import by_prompt, cannot_rank, conflict_table, shuffled
from shfcas_lib.params.schema import Params, Selection
from shfcas_lib.rewards import fit_probe, locate
from shfcas_lib.selection import all_pairs, select
from shfcas_lib.strategies import SIGHTED, STRATEGIES, Fitted, View

KEY = ["prompt_id", "i", "j"]
SETTINGS = Selection(top_share=0.5, delta=0.6, tau=0.4)
every_strategy = pytest.mark.parametrize("strategy", list(STRATEGIES))


@pytest.fixture
def conflict():
    """Conflict of 12 prompts x 5 completions with random rewards; there is no gold anywhere in
    it."""
    generator = np.random.default_rng(0)
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:02d}" for k in range(12)], 5),
            "index": np.tile(range(5), 12),
            "logp": generator.normal(-30, 5, 60),
        }
    )
    return conflict_table(pool, generator.normal(size=60))


@functools.cache
def fitted(l2=2.0):
    """A probe on random features of the same 12 prompts x 5 completions, trained on one pair a
    prompt."""
    generator = np.random.default_rng(1)
    ids = [f"p{k:02d}" for k in range(12)]
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat(ids, 5),
            "index": np.tile(range(5), 12),
            "features": list(generator.normal(size=(60, 16))),
        }
    )
    training = pd.DataFrame(
        {
            "prompt_id": ids,
            "i": 0,
            "j": 1,
            "label": generator.integers(0, 2, 12).astype(float),
            "weight": generator.uniform(1, 3, 12),
        }
    )
    belief, none = trust.believe(pool, training, l2), training.head(0)
    return Fitted(fit_probe(pool, training, l2), pool, training, l2, pool, none, belief, None, 0.5)


def table(prompts):
    """Conflict of hand-made prompts: prompt id -> (rewards, logps)."""
    rows = [
        (prompt, i, logp) for prompt, (_, logps) in prompts.items() for i, logp in enumerate(logps)
    ]
    pool = pd.DataFrame(rows, columns=["prompt_id", "index", "logp"])
    return conflict_table(
        pool, np.concatenate([rewards for rewards, _ in prompts.values()]).astype(float)
    )


def choose(strategy, conflict, budget, settings=SETTINGS, asked=None, seed=0):
    return select(
        strategy, conflict, budget, np.random.default_rng(seed), settings, asked, fitted()
    )


def in_turn(conflict):
    """All pairs, their turn that of their ids."""
    pairs = all_pairs(conflict)
    return pairs.assign(turn=range(len(pairs)), prompt_turn=range(len(pairs)))


def keys(chosen):
    return list(chosen[KEY].itertuples(index=False, name=None))


def test_all_pairs_are_the_unordered_pairs_of_each_prompt():
    pairs = all_pairs(
        table({"a": ([1, 2, 3], [-1, -3, -2]), "b": ([1, 2], [-2, -1]), "c": ([1], [-1])})
    )
    assert keys(pairs) == [("a", 0, 1), ("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]


def test_pairs_carry_the_pacs_of_their_own_completions(conflict):
    score = conflict.set_index(["prompt_id", "index"])["pacs"]
    for row in all_pairs(conflict).itertuples():
        assert (row.pacs_i, row.pacs_j) == (
            score[row.prompt_id, row.i],
            score[row.prompt_id, row.j],
        )


@every_strategy
def test_the_budget_is_kept_and_ranks_count_from_one(conflict, strategy):
    chosen = choose(strategy, conflict, 7)
    assert len(chosen) == 7
    assert chosen["rank"].tolist() == list(range(1, 8)) and set(chosen["strategy"]) == {strategy}


@every_strategy
def test_no_pair_is_chosen_twice(conflict, strategy):
    assert not choose(strategy, conflict, 30).duplicated(KEY).any()


@every_strategy
def test_chosen_pairs_exist_and_are_ordered(conflict, strategy):
    chosen = choose(strategy, conflict, 20)
    assert set(keys(chosen)) <= set(keys(all_pairs(conflict))) and (chosen["i"] < chosen["j"]).all()


@every_strategy
def test_pairs_that_were_asked_are_never_asked_again(conflict, strategy):
    first = choose(strategy, conflict, 15)
    second = choose(strategy, conflict, 15, asked=first)
    assert not set(keys(first)) & set(keys(second))


@every_strategy
def test_the_same_generator_chooses_the_same_pairs(conflict, strategy):
    pd.testing.assert_frame_equal(choose(strategy, conflict, 12), choose(strategy, conflict, 12))


@every_strategy
def test_the_order_of_input_rows_does_not_matter(conflict, strategy):
    asked = choose("random", conflict, 10, seed=5)
    shuffled = conflict.sample(frac=1, random_state=3)
    expected = choose(strategy, conflict, 12, asked=asked)
    pd.testing.assert_frame_equal(
        choose(strategy, shuffled, 12, asked=asked.sample(frac=1, random_state=4)), expected
    )


@every_strategy
def test_a_budget_larger_than_what_is_left_is_an_error(conflict, strategy):
    asked = choose("random", conflict, 20)
    with pytest.raises(
        InputError, match=r"selection\.budget: 101 comparisons.*only 100 pairs are left"
    ):
        choose(strategy, conflict, 101, asked=asked)


def test_an_unknown_strategy_lists_the_valid_names(conflict):
    with pytest.raises(InputError) as error:
        choose("entropy", conflict, 5)
    assert "'entropy'" in str(error.value) and all(name in str(error.value) for name in STRATEGIES)


@every_strategy
def test_no_strategy_is_handed_gold(conflict, strategy, monkeypatch):
    seen, chosen_by = [], STRATEGIES[strategy]

    def spy(pairs, budget, generator, view):
        seen.extend(pairs.columns)
        assert "gold" not in view.scores
        return chosen_by(pairs, budget, generator, view)

    monkeypatch.setitem(STRATEGIES, strategy, spy)
    choose(strategy, conflict.assign(gold=1.0), 5)
    both = {f"{name}_{side}" for name in ("pacs", "reward", "z_reward", "z_logp") for side in "ij"}
    of_prompt = {"kendall", "mean_abs_pacs", "degenerate", "size"}
    assert set(seen) == {*KEY, *both, *of_prompt, "turn", "prompt_turn"}


@every_strategy
def test_every_strategy_has_a_docstring_that_says_what_it_does(strategy):
    assert inspect.getdoc(STRATEGIES[strategy])


def of_pairs(count, first=0):
    """Prompts with two completions each that proxy and policy rank in opposite order, so that
    every strategy but chance finds them alike: conflict, and the probe's equal features."""
    ids = [f"q{k:03d}" for k in range(first, first + count)]
    return table({prompt: ([1.0, 0.0], [-9.0, -8.0]) for prompt in ids})


def blind_to(conflict):
    """A fitted probe to which all completions at one index are the same."""
    ids = conflict["prompt_id"].unique()
    pool = conflict[["prompt_id", "index"]].assign(
        features=[np.eye(4)[k % 2] for k in conflict["index"]]
    )
    training = pd.DataFrame({"prompt_id": ids, "i": 0, "j": 1, "label": 1.0, "weight": 1.0})
    belief, none = trust.believe(pool, training, 2.0), training.head(0)
    probe = fit_probe(pool, training, 2.0)
    return Fitted(probe, pool, training, 2.0, pool, none, belief, None, 0.5)


@every_strategy
def test_ties_are_broken_by_the_seed_and_not_by_the_alphabet(strategy):
    """Forty prompts that nothing tells apart: each is chosen as often as any."""
    conflict = of_pairs(40)
    fit, times = blind_to(conflict), pd.Series(0, conflict["prompt_id"].unique())
    for seed in range(10):
        drawn = np.random.default_rng(seed)
        chosen = select(strategy, conflict, 8, drawn, SETTINGS, fitted=fit)
        times[chosen["prompt_id"]] += 1
    # of 80, 40 expected in either half of the alphabet: within four standard deviations
    assert abs(times.iloc[:20].sum() - 40) < 4 * np.sqrt(80 * 0.25)
    assert (times > 0).sum() > 25


@pytest.mark.parametrize("strategy", ["shf_cas", "kendall", "placebo"])
def test_ties_in_kendall_are_broken_by_the_seed_when_prompts_are_kept(strategy):
    reversed_ = ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0])
    same = table(dict.fromkeys("abcdef", reversed_))
    kept = [
        set(choose(strategy, same, 3, Selection(top_share=0.1), seed=seed)["prompt_id"])
        for seed in range(20)
    ]
    if strategy != "placebo":  # which shuffles, and so has no ties
        assert all(len(one) == 1 for one in kept)
    assert len({min(one) for one in kept}) >= 3


def test_without_ties_the_draws_of_a_strategy_are_what_they_were(conflict):
    """The random order comes from a generator aside: `random` draws as its own generator says."""
    pairs = all_pairs(conflict)
    expected = pairs.iloc[np.random.default_rng(3).permutation(len(pairs))[:12]]
    assert keys(choose("random", conflict, 12, seed=3)) == keys(expected)


# pairs of the user's own beside sampled completions


@pytest.mark.parametrize(
    "strategy",
    ["shf_cas", "pacs", "pacs_difference", "extreme_reward", "low_conflict", "shf_cas_threshold"],
)
@pytest.mark.parametrize("own", [40, 400])
def test_pairs_and_sampled_completions_get_the_share_that_they_are(conflict, strategy, own):
    """At two completions |PACS| is 0 or 2 each: on one scale these would come first, or last,
    all of them."""
    generator = np.random.default_rng(0)
    prompts = {
        f"q{k:03d}": (generator.normal(size=2), generator.normal(size=2)) for k in range(own)
    }
    both = pd.concat([conflict, table(prompts)], ignore_index=True)
    settings = Selection(top_share=1.0, delta=0.0, tau=0.0)
    if strategy == "shf_cas_threshold":
        total = len(choose(strategy, both, None, settings))
        chosen = choose(strategy, both, total // 3, settings)
        every = choose(strategy, both, None, settings)
        share = every["prompt_id"].str.startswith("q").mean()
    else:
        chosen = choose(strategy, both, (own + 120) // 3, settings)
        share = own / (own + 120)
    assert chosen["prompt_id"].str.startswith("q").mean() == pytest.approx(share, abs=0.05)


def test_within_each_kind_the_order_of_conflict_stays(conflict):
    generator = np.random.default_rng(1)
    prompts = {f"q{k:03d}": (generator.normal(size=2), generator.normal(size=2)) for k in range(60)}
    pairs = table(prompts)
    both = pd.concat([conflict, pairs], ignore_index=True)
    chosen = choose("pacs", both, 90)
    theirs, ours = (
        chosen[chosen["prompt_id"].str.startswith(name)].reset_index(drop=True) for name in "qp"
    )
    assert keys(ours) == keys(choose("pacs", conflict, len(ours)))
    apart = pairs.set_index("prompt_id")["pacs"].abs().round(12)
    found = [apart[prompt].max() for prompt in theirs["prompt_id"]]
    assert found == sorted(found, reverse=True) and set(found) <= {0.0, 2.0}


def test_where_conflict_cannot_rank_a_sentence_says_so(conflict):
    assert cannot_rank(conflict) is None
    alone = cannot_rank(of_pairs(3))
    assert alone.startswith("conflict cannot rank here: with two completions PACS is 0 or 2")
    some = cannot_rank(pd.concat([conflict, of_pairs(3)]))
    assert some.startswith("conflict cannot rank 3 of 15 prompts among each other")


# SHF-CAS, budget form


def in_order(conflict, seed=0):
    """Prompts by K, ties in the random order of the seed, which is that of their first pairs."""
    pairs = all_pairs(conflict)
    aside = np.random.Generator(np.random.default_rng(seed).bit_generator.jumped())
    pairs = pairs.assign(turn=aside.permutation(len(pairs)))
    prompts = pairs.groupby("prompt_id")[["kendall", "turn"]].first().round(12)
    ranked = prompts.sort_values(["kendall", "turn"], ascending=[False, True])
    return list(ranked.index)


def expected_shf_cas(conflict, budget, share):
    """Straight from the method: rank prompts by K, keep the top share, spend the budget on the
    largest |PACS|."""
    prompts = in_order(conflict)
    kept = set(prompts[: int(np.ceil(share * len(prompts)))])
    score = conflict.set_index(["prompt_id", "index"])["pacs"].abs()
    pairs = [key for key in keys(all_pairs(conflict)) if key[0] in kept]
    return sorted(pairs, key=lambda k: (-(score[k[0], k[1]] + score[k[0], k[2]]), k))[:budget]


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 1.0])
def test_shf_cas_is_the_method(conflict, share):
    chosen = choose("shf_cas", conflict, 20, Selection(top_share=share))
    assert keys(chosen) == expected_shf_cas(conflict, 20, share)


def test_shf_cas_leaves_out_a_prompt_of_low_kendall_whatever_its_pacs():
    conflict = table(
        {
            "agrees": ([0, 1, 2, 30], [-9, -8, -7, -6.9]),
            "reversed": ([1, 2, 3, 4], [-1, -2, -3, -4]),
        }
    )
    assert set(choose("shf_cas", conflict, 2)["prompt_id"]) == {"reversed"}


def test_shf_cas_widens_to_more_prompts_where_the_top_share_holds_too_few_pairs(conflict):
    # 2 of 12 prompts hold 20 pairs, 4 hold 40
    chosen = choose("shf_cas", conflict, 35, Selection(top_share=0.1))
    assert len(chosen) == 35
    assert set(chosen["prompt_id"]) == set(in_order(conflict)[:4])


def test_shf_cas_widens_only_as_far_as_needed(conflict):
    chosen = choose("shf_cas", conflict, 20, Selection(top_share=0.1))
    assert set(chosen["prompt_id"]) == set(in_order(conflict)[:2])


def test_the_whole_pool_can_be_asked(conflict):
    assert sorted(keys(choose("shf_cas", conflict, 120, Selection(top_share=0.1)))) == keys(
        all_pairs(conflict)
    )


# degenerate prompts: one side finds all completions alike, and ties give them K 1/2


@pytest.fixture
def with_degenerate():
    """Three degenerate prompts, first by id, and four in which K is 0 or 1/6: below theirs."""
    flat, falling = [1.0, 1.0, 1.0, 1.0], [-1.0, -2.0, -3.0, -4.0]
    prompts = {"a": (flat, falling), "b": (falling, flat), "c": (flat, flat)}
    agreeing, almost = [4.0, 3.0, 2.0, 1.0], [4.0, 3.0, 1.0, 2.0]
    prompts |= {"w": (agreeing, falling), "x": (almost, falling)}
    prompts |= {"y": (agreeing, falling), "z": (almost, falling)}
    return table(prompts)


@pytest.mark.parametrize("strategy", ["shf_cas", "kendall", "placebo"])
def test_degenerate_prompts_come_last_whatever_their_kendall(with_degenerate, strategy):
    ranked = by_prompt(with_degenerate).set_index("prompt_id")["kendall"]
    assert (ranked[["a", "b", "c"]] == 0.5).all() and (ranked[list("wxyz")] < 0.5).all()
    chosen = choose(strategy, with_degenerate, 24, Selection(top_share=0.01))
    assert set(chosen["prompt_id"]) == set("wxyz")  # all their pairs, although the others rank 1/2
    beyond = choose(strategy, with_degenerate, 25, Selection(top_share=0.01))
    others = set(beyond["prompt_id"]) - set("wxyz")
    assert len(others) == 1 and others < set("abc")  # the turn decides among them


@pytest.mark.parametrize("strategy", ["shf_cas", "kendall"])
def test_the_top_share_is_one_of_the_prompts_that_can_be_ranked(with_degenerate, strategy):
    """Half of four prompts, not half of seven; prompts of one completion have no pair at all."""
    chosen = choose(strategy, with_degenerate, 12, Selection(top_share=0.5))
    assert set(chosen["prompt_id"]) == {"x", "z"}
    single = table({"s": ([1.0], [-1.0])})
    both = pd.concat([with_degenerate, single], ignore_index=True)
    assert keys(choose(strategy, both, 12, Selection(top_share=0.5))) == keys(chosen)


def test_the_threshold_form_never_asks_about_a_degenerate_prompt(with_degenerate):
    chosen = choose("shf_cas_threshold", with_degenerate, None, Selection(delta=0.0, tau=0.0))
    assert set(chosen["prompt_id"]) == {"x", "z"}  # of w and y every PACS is 0, too


# the arms that tell luck from knowledge


def test_the_placebo_is_shf_cas_on_shuffled_log_probabilities(conflict):
    asked = choose("random", conflict, 30, seed=5)
    for seed in range(3):
        luck = shuffled(conflict, np.random.default_rng(seed))
        for before in (None, asked):
            expected = choose("shf_cas", luck, 20, asked=before, seed=seed)
            chosen = choose("placebo", conflict, 20, asked=before, seed=seed)
            assert keys(chosen) == keys(expected)
            assert chosen["reason"].tolist() == expected["reason"].tolist()


def test_the_placebo_is_not_shf_cas_and_draws_anew_for_another_seed(conflict):
    found = [keys(choose("placebo", conflict, 20, seed=seed)) for seed in range(3)]
    assert keys(choose("shf_cas", conflict, 20)) not in found
    assert found[0] != found[1] != found[2]


def test_the_placebo_is_shf_cas_where_there_is_nothing_to_shuffle():
    """One log-probability for all completions of a prompt: dealt out anew, it is the same."""
    generator = np.random.default_rng(0)
    prompts = {f"p{k}": (generator.normal(size=4), np.full(4, -9.0 - k)) for k in range(6)}
    same = table(prompts)
    assert keys(choose("placebo", same, 10)) == keys(choose("shf_cas", same, 10))


def test_extreme_reward_takes_the_largest_rewards_and_ignores_the_policy(conflict):
    z = conflict.set_index(["prompt_id", "index"])["z_reward"].abs()
    pairs = keys(all_pairs(conflict))
    expected = sorted(pairs, key=lambda k: (-(z[k[0], k[1]] + z[k[0], k[2]]), k))[:15]
    assert keys(choose("extreme_reward", conflict, 15)) == expected
    luck = shuffled(conflict, np.random.default_rng(4))
    assert keys(choose("extreme_reward", luck, 15)) == expected


# SHF-CAS, threshold form


def test_threshold_asks_all_pairs_of_the_prompts_over_both_thresholds(conflict):
    prompts = by_prompt(conflict)
    kept = set(
        prompts.loc[(prompts["mean_abs_pacs"] > 0.6) & (prompts["kendall"] >= 0.4), "prompt_id"]
    )
    assert 0 < len(kept) < 12
    chosen = choose("shf_cas_threshold", conflict, None)
    assert sorted(keys(chosen)) == [key for key in keys(all_pairs(conflict)) if key[0] in kept]


def test_threshold_spends_a_budget_on_the_most_conflicted_prompts_first(conflict):
    order = choose("shf_cas_threshold", conflict, None)["prompt_id"].map(
        by_prompt(conflict).set_index("prompt_id")["mean_abs_pacs"]
    )
    assert order.is_monotonic_decreasing
    assert (
        keys(choose("shf_cas_threshold", conflict, 6))
        == keys(choose("shf_cas_threshold", conflict, None))[:6]
    )


@pytest.mark.parametrize(
    "delta, tau, asked", [(1.99, 1.0, 1), (2.0, 1.0, 0), (2.0, 0.0, 0), (0.0, 1.0, 1)]
)
def test_threshold_wants_pacs_above_delta_and_kendall_of_at_least_tau(delta, tau, asked):
    conflict = table({"reversed": ([0, 1], [-1, -2])})  # mean |PACS| is 2 and K is 1, both exactly
    assert (
        len(choose("shf_cas_threshold", conflict, None, Selection(delta=delta, tau=tau))) == asked
    )


def test_threshold_that_no_prompt_reaches_asks_nothing(conflict):
    chosen = choose("shf_cas_threshold", conflict, 5, Selection(delta=1000.0))
    assert len(chosen) == 0 and list(chosen) == [
        *KEY,
        "rank",
        "strategy",
        "reason",
        "drawn",
    ]


# a random share of the budget


def sharing(share):
    return SETTINGS.model_copy(update={"random_share": share})


@every_strategy
@pytest.mark.parametrize(("share", "count"), [(0.2, 3), (0.1, 2), (0.5, 8)])
def test_the_random_share_is_part_of_the_budget_and_of_no_other_pair(
    conflict, strategy, share, count
):
    asked = choose("random", conflict, 20)
    chosen = choose(strategy, conflict, 15, sharing(share), asked)
    assert chosen["rank"].tolist() == list(range(1, 16)) and set(chosen["strategy"]) == {strategy}
    assert not pd.concat([asked, chosen]).duplicated(KEY).any()
    assert chosen["drawn"].sum() == (15 if strategy == "random" else count)
    if strategy != "random":
        assert set(chosen.loc[chosen["drawn"], "reason"]) == {"drawn by chance"}
        assert not chosen.loc[~chosen["drawn"], "reason"].str.contains("chance").any()
    pd.testing.assert_frame_equal(choose(strategy, conflict, 15, sharing(share), asked), chosen)


def test_without_a_share_chance_draws_nothing_and_the_strategy_is_what_it_was(conflict):
    assert not choose("best_of", conflict, 15)["drawn"].any()
    assert choose("random", conflict, 15)["drawn"].all()
    expected = keys(choose("random", conflict, 15))
    assert keys(choose("random", conflict, 15, sharing(0.4))) == expected


def test_the_rest_is_what_the_strategy_wants_most_of_what_chance_left(conflict):
    chosen = choose("pacs", conflict, 20, sharing(0.25))
    drawn, rest = chosen[chosen["drawn"]], chosen[~chosen["drawn"]]
    assert keys(rest) == keys(choose("pacs", conflict, 15, asked=drawn)), "and in its own order"


def test_chance_draws_every_pair_equally_often_and_puts_it_anywhere(conflict):
    """Those that the strategy would take, too: else the labels would speak for the others alone."""
    drawn, places = [], []
    for seed in range(400):
        chosen = choose("pacs", conflict, 10, sharing(0.4), seed=seed)
        drawn += keys(chosen[chosen["drawn"]])
        places += chosen.loc[chosen["drawn"], "rank"].tolist()
    for found, kinds in ((drawn, 120), (places, 10)):
        count = pd.Series(found).value_counts()
        expected = len(found) / kinds
        statistic = ((count - expected) ** 2).sum() / expected + (kinds - len(count)) * expected
        assert statistic < kinds + 5 * np.sqrt(2 * kinds), "chi-square, five standard deviations"


def test_a_share_needs_a_budget():
    with pytest.raises(ValueError, match="a random_share is a share of the budget"):
        Selection(strategies=["shf_cas_threshold"], budget=None, random_share=0.2)


# ablations and baseline


def test_pacs_only_takes_the_largest_pacs_anywhere(conflict):
    assert keys(choose("pacs", conflict, 20)) == expected_shf_cas(conflict, 20, 1.0)


def test_kendall_only_stays_in_the_top_share_and_ignores_pacs(conflict):
    ranked = by_prompt(conflict).sort_values(["kendall", "prompt_id"], ascending=[False, True])[
        "prompt_id"
    ]
    chosen = choose("kendall", conflict, 30)
    assert set(chosen["prompt_id"]) <= set(ranked.head(6))
    other = conflict.assign(pacs=np.random.default_rng(9).normal(size=len(conflict)))
    assert keys(choose("kendall", other, 30)) == keys(chosen)


def test_random_draws_every_pair_equally_often(conflict):
    counts = pd.Series(0, index=keys(all_pairs(conflict)))
    generator = np.random.default_rng(0)
    for _ in range(300):
        counts[keys(select("random", conflict, 30, generator, SETTINGS))] += 1
    assert counts.between(
        75 - 5 * 7.5, 75 + 5 * 7.5
    ).all()  # binomial: 300 draws at 1/4, five standard deviations


def test_random_differs_between_seeds(conflict):
    assert keys(choose("random", conflict, 10, seed=0)) != keys(
        choose("random", conflict, 10, seed=1)
    )


def test_random_prompts_spends_the_budget_prompt_by_prompt(conflict):
    chosen = choose("random_prompts", conflict, 25)  # ten pairs a prompt
    assert chosen["prompt_id"].value_counts().tolist() == [10, 10, 5]
    assert set(chosen["prompt_id"]) != set(
        choose("random_prompts", conflict, 25, seed=1)["prompt_id"]
    )


def test_low_conflict_is_the_reverse_of_pacs(conflict):
    weight = (
        all_pairs(conflict).set_index(KEY).pipe(lambda p: p["pacs_i"].abs() + p["pacs_j"].abs())
    )
    assert weight[keys(choose("low_conflict", conflict, 10))].max() <= weight.nsmallest(10).max()


def test_pacs_difference_takes_the_pairs_on_whose_difference_proxy_and_policy_differ_most(conflict):
    z = conflict.set_index(["prompt_id", "index"])
    gap = {
        key: abs(
            (z["z_reward"][key[0], key[1]] - z["z_reward"][key[0], key[2]])
            - (z["z_logp"][key[0], key[1]] - z["z_logp"][key[0], key[2]])
        )
        for key in keys(all_pairs(conflict))
    }
    assert (
        keys(choose("pacs_difference", conflict, 15))
        == sorted(gap, key=lambda k: (-round(gap[k], 12), k))[:15]
    )


def test_margin_takes_the_pairs_whose_rewards_differ_least(conflict):
    reward = conflict.set_index(["prompt_id", "index"])["reward"]
    gap = {
        key: abs(reward[key[0], key[1]] - reward[key[0], key[2]])
        for key in keys(all_pairs(conflict))
    }
    assert set(keys(choose("margin", conflict, 15))) == set(sorted(gap, key=gap.get)[:15])


def test_best_of_prefers_what_the_proxy_likes(conflict):
    z = conflict.set_index(["prompt_id", "index"])["z_reward"]
    chosen = pd.concat([choose("best_of", conflict, 15, seed=seed) for seed in range(20)])
    mean = np.mean([z[p, i] + z[p, j] for p, i, j in keys(chosen)])
    assert mean > 1.0  # of random pairs it is 0


# strategies that weigh the probe's uncertainty, against the definition written out


def exact(pairs):
    """Mean, covariance (by the inverse Hessian itself) and differences of all pairs, and the
    Hessian."""
    fit = fitted()
    columns = fit.probe.columns(fit.pool)
    trained = (
        columns[locate(fit.pool, fit.training, "i")] - columns[locate(fit.pool, fit.training, "j")]
    )
    p = 1 / (1 + np.exp(-trained @ fit.probe.weight))
    hessian = (
        fit.l2 * np.eye(trained.shape[1])
        + (trained * (fit.training["weight"].to_numpy() * p * (1 - p))[:, None]).T @ trained
    )
    difference = columns[locate(fit.pool, pairs, "i")] - columns[locate(fit.pool, pairs, "j")]
    return (
        difference @ fit.probe.weight,
        difference @ np.linalg.inv(hessian) @ difference.T,
        difference,
        hessian,
    )


def test_the_posterior_is_the_inverse_hessian(conflict):
    pairs = all_pairs(conflict)
    mean, covariance, _, _ = exact(pairs)
    found_mean, variance, column = strategies._posterior(pairs, fitted())
    np.testing.assert_allclose(found_mean, mean)
    np.testing.assert_allclose(variance, np.diag(covariance))
    np.testing.assert_allclose(column(7), covariance[7])


def test_d_optimal_raises_the_log_determinant_most_at_every_step(conflict):
    pairs = all_pairs(conflict)
    mean, _, difference, hessian = exact(pairs)
    p = 1 / (1 + np.exp(-mean))
    taken = []
    for _ in range(6):
        value = {
            k: np.linalg.slogdet(
                hessian + p[k] * (1 - p[k]) * np.outer(difference[k], difference[k])
            )[1]
            for k in range(len(pairs))
            if k not in taken
        }
        taken.append(max(value, key=value.get))
        hessian = hessian + p[taken[-1]] * (1 - p[taken[-1]]) * np.outer(
            difference[taken[-1]], difference[taken[-1]]
        )
    assert keys(choose("d_optimal", conflict, 6)) == keys(pairs.iloc[taken])


def test_bald_is_the_mutual_information_by_monte_carlo(conflict):
    pairs = all_pairs(conflict)
    mean, covariance, _, _ = exact(pairs)
    draws = mean[:, None] + np.sqrt(np.diag(covariance))[:, None] * np.random.default_rng(0).normal(
        size=40000
    )
    p = 1 / (1 + np.exp(-draws))
    entropy = lambda q: -q * np.log(q) - (1 - q) * np.log(1 - q)  # noqa: E731
    information = pd.Series(entropy(p.mean(1)) - entropy(p).mean(1), index=keys(pairs)).sort_values(
        ascending=False
    )
    # neighbours may swap under Monte Carlo error
    assert set(keys(choose("bald", conflict, 5))) <= set(information.index[:7])


def test_uncertainty_is_lowest_where_every_bootstrap_agrees(conflict):
    fit = fitted()
    members = []
    generator = np.random.default_rng(3)
    for _ in range(60):
        member = fit_probe(fit.known, fit.training.iloc[generator.integers(0, 12, 12)], fit.l2)
        members.append(
            pd.Series(
                member.columns(fit.pool) @ member.weight,
                index=pd.MultiIndex.from_frame(fit.pool[["prompt_id", "index"]]),
            )
        )
    spread = {
        key: np.std([1 / (1 + np.exp(m[key[0], key[2]] - m[key[0], key[1]])) for m in members])
        for key in keys(all_pairs(conflict))
    }
    chosen = [spread[key] for key in keys(choose("uncertainty", conflict, 20))]
    assert np.mean(chosen) > np.quantile(list(spread.values()), 0.7)


@pytest.mark.parametrize("strategy", SIGHTED)
def test_a_strategy_that_needs_a_probe_says_so(conflict, strategy):
    with pytest.raises(
        InputError,
        match=f"strategy {strategy} weighs the uncertainty of a probe: set reward.kind to probe",
    ):
        STRATEGIES[strategy](
            in_turn(conflict), 5, np.random.default_rng(0), View(SETTINGS, strategy)
        )


@pytest.mark.parametrize("strategy", SIGHTED)
def test_parameters_refuse_such_a_strategy_with_another_reward(strategy):
    with pytest.raises(ValueError, match=f"strategy {strategy} needs reward.kind probe"):
        Params.model_validate(
            {
                "reward": {"kind": "lora"},
                "selection": {"strategies": [strategy]},
                "evaluation": {"replicates": 0},
            }
        )


# --- targeted


def worth(fit, pairs, taken, gamma):
    """The criterion of every pair after the pairs `taken`, from the definition: invert the
    covariance anew with every label, (pairs,)."""
    pool, ids = fit.pool, fit.pool["prompt_id"].to_numpy()
    rho, kappa = trust.START
    covariance = fit.belief.covariances(fit.belief.columns(pool), rho)
    rows = [locate(pool, pairs, side) for side in ("i", "j")]
    contrast = np.eye(len(pool))[rows[0]] - np.eye(len(pool))[rows[1]]
    noise = 4 / kappa**2
    if taken:
        asked = contrast[taken]
        within = asked @ covariance @ asked.T + noise * np.eye(len(taken))
        covariance = covariance - covariance @ asked.T @ np.linalg.inv(within) @ asked @ covariance
    weight = policies.tilt(ids, fit.probe.score(pool), fit.beta)
    mean = pd.get_dummies(ids).to_numpy(float)
    above = np.eye(len(pool)) - mean @ mean.T / mean.sum(0).max()
    shared = above @ covariance @ contrast.T
    variance = np.einsum("pc,cd,pd->p", contrast, covariance, contrast)
    apart = (pairs["pacs_i"] - pairs["pacs_j"]).abs().to_numpy()
    return weight @ shared**2 / (variance + noise) * (apart + 0.1) ** gamma


@pytest.mark.parametrize("gamma", [0.0, 0.25, 2.0])
def test_targeted_takes_what_its_definition_values_most(conflict, gamma):
    fit, settings = fitted(), Selection(gamma=gamma)
    pairs = in_turn(conflict)
    chosen = STRATEGIES["targeted"](
        pairs, 8, np.random.default_rng(0), View(settings, "targeted", fit)
    )
    taken = []
    for row in chosen.index:
        value = worth(fit, pairs, taken, gamma)
        value[taken] = -1
        assert value[row] == pytest.approx(value.max(), rel=1e-9)
        taken.append(row)


def test_targeted_does_not_ask_again_what_labels_have_told(conflict):
    fit = fitted()
    told = all_pairs(conflict).query("prompt_id == 'p03'")[["prompt_id", "i", "j"]]
    labels = told.assign(label=(told["i"] < 2).astype(float))
    others = fit.training[["prompt_id", "i", "j", "label"]]
    labels = pd.concat([labels, others], ignore_index=True)
    report = trust.fit(fit.belief, fit.known, labels).report
    knowing = dataclasses.replace(fit, labels=labels, report=report)
    drawn = np.random.default_rng(0)
    chosen = [
        STRATEGIES["targeted"](in_turn(conflict), 12, drawn, View(SETTINGS, "targeted", part))
        for part in (fit, knowing)
    ]
    again = [(table["prompt_id"] == "p03").sum() for table in chosen]
    assert again[1] == 0 or again[1] < again[0]


def test_of_very_many_pairs_targeted_weighs_those_of_some_prompts(conflict, monkeypatch):
    monkeypatch.setattr(strategies, "MOST_PAIRS", 30)
    chosen = STRATEGIES["targeted"](
        in_turn(conflict), 20, np.random.default_rng(0), View(SETTINGS, "targeted", fitted())
    )
    assert len(chosen.drop_duplicates(["prompt_id", "i", "j"])) == 20
    assert chosen["prompt_id"].nunique() <= 3
    many = STRATEGIES["targeted"](
        in_turn(conflict), 70, np.random.default_rng(0), View(SETTINGS, "targeted", fitted())
    )
    assert len(many) == 70


def pool_of(prompts):
    generator = np.random.default_rng(0)
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:05d}" for k in range(prompts)], 5),
            "index": np.tile(range(5), prompts),
            "logp": generator.normal(-30, 5, 5 * prompts),
            "features": list(generator.normal(size=(5 * prompts, 16))),
        }
    )
    return pool, conflict_table(pool, generator.normal(size=len(pool)))


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "d_optimal"])
def test_selection_time_grows_no_worse_than_linearly_in_the_pool(strategy):
    def seconds(prompts):
        pool, conflict = pool_of(prompts)
        pairs, view = (
            in_turn(conflict),
            View(SETTINGS, strategy, dataclasses.replace(fitted(), pool=pool), conflict),
        )
        best = np.inf
        for _ in range(3):
            start = time.process_time()
            STRATEGIES[strategy](pairs, 50, np.random.default_rng(0), view)
            best = min(best, time.process_time() - start)
        return best

    small, large = seconds(500), seconds(4000)  # 5,000 and 40,000 pairs
    assert large / small < 8 * 3, f"8 times the pool took {large / small:.1f} times as long"


def test_targeted_chooses_160_of_1344_pairs_in_under_five_seconds():
    generator = np.random.default_rng(0)
    pool = pd.DataFrame(
        {
            "prompt_id": np.repeat([f"p{k:02d}" for k in range(48)], 8),
            "index": np.tile(range(8), 48),
            "logp": generator.normal(-30, 5, 384),
            "features": list(generator.normal(size=(384, 2304)).astype(np.float32)),
        }
    )
    ids = pool["prompt_id"].unique()
    answers = generator.integers(0, 2, 48).astype(float)
    training = pd.DataFrame({"prompt_id": ids, "i": 0, "j": 1, "label": answers, "weight": 1.0})
    belief, proxy = trust.believe(pool, training, 300.0), fit_probe(pool, training, 300.0)
    none = training.head(0)
    fit = Fitted(proxy, pool, training, 300.0, pool, none, belief, None, 0.5)
    pairs = in_turn(conflict_table(pool, proxy.score(pool)))
    assert len(pairs) == 1344
    start = time.process_time()
    chosen = STRATEGIES["targeted"](pairs, 160, generator, View(SETTINGS, "targeted", fit))
    assert time.process_time() - start < 5
    assert len(chosen) == 160


@pytest.mark.parametrize("strategy", selection._BY_KEY)
@pytest.mark.parametrize("budget", [1, 7, 60])
def test_a_large_table_looked_at_in_parts_gives_what_it_gives_as_a_whole(
    strategy, budget, monkeypatch
):
    """Prompts with one to six completions, ties, degenerate prompts and texts that stand twice."""
    generator = np.random.default_rng(3)
    rows = []
    for k in range(40):
        for n in range(1 + k % 6):
            logp = -float(generator.integers(1, 6))
            reward = 1.0 if k % 7 == 0 else float(generator.integers(0, 4))
            rows.append((f"p{k:02d}", n, f"text {n % 4}", logp, reward))
    columns = ["prompt_id", "index", "completion", "logp", "reward"]
    table = pd.DataFrame(rows, columns=columns)
    whole = selection.choose(table, budget, strategy)
    monkeypatch.setattr(selection, "MOST_PAIRS", 12)
    pd.testing.assert_frame_equal(selection.choose(table, budget, strategy), whole)
