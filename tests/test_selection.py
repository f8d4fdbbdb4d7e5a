"""Every selection strategy: the budget, the order of ties, determinism, and what each one may see."""

import inspect

import numpy as np
import pandas as pd
import pytest

from shfcas_lib import selection
from shfcas_lib.conflict import by_prompt, conflict_table
from shfcas_lib.params import InputError, Selection
from shfcas_lib.selection import STRATEGIES, all_pairs, select

KEY = ["prompt_id", "i", "j"]
SETTINGS = Selection(top_share=0.5, delta=0.6, tau=0.4)
every_strategy = pytest.mark.parametrize("strategy", list(STRATEGIES))


@pytest.fixture
def conflict():
    """Conflict of 12 prompts x 5 completions with random rewards; there is no gold anywhere in it."""
    generator = np.random.default_rng(0)
    pool = pd.DataFrame({"prompt_id": np.repeat([f"p{k:02d}" for k in range(12)], 5), "index": np.tile(range(5), 12),
                         "logp": generator.normal(-30, 5, 60)})
    return conflict_table(pool, generator.normal(size=60))


def table(prompts):
    """Conflict of hand-made prompts: prompt id -> (rewards, logps)."""
    rows = [(prompt, i, logp) for prompt, (_, logps) in prompts.items() for i, logp in enumerate(logps)]
    pool = pd.DataFrame(rows, columns=["prompt_id", "index", "logp"])
    return conflict_table(pool, np.concatenate([rewards for rewards, _ in prompts.values()]).astype(float))


def choose(strategy, conflict, budget, settings=SETTINGS, asked=None, seed=0):
    return select(strategy, conflict, budget, np.random.default_rng(seed), settings, asked)


def keys(chosen):
    return list(chosen[KEY].itertuples(index=False, name=None))


def test_all_pairs_are_the_unordered_pairs_of_each_prompt():
    pairs = all_pairs(table({"a": ([1, 2, 3], [-1, -3, -2]), "b": ([1, 2], [-2, -1]), "c": ([1], [-1])}))
    assert keys(pairs) == [("a", 0, 1), ("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]


def test_pairs_carry_the_pacs_of_their_own_completions(conflict):
    score = conflict.set_index(["prompt_id", "index"])["pacs"]
    for row in all_pairs(conflict).itertuples():
        assert (row.pacs_i, row.pacs_j) == (score[row.prompt_id, row.i], score[row.prompt_id, row.j])


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
    pd.testing.assert_frame_equal(choose(strategy, shuffled, 12, asked=asked.sample(frac=1, random_state=4)), expected)


@every_strategy
def test_a_budget_larger_than_what_is_left_is_an_error(conflict, strategy):
    asked = choose("random", conflict, 20)
    with pytest.raises(InputError, match=r"selection\.budget: 101 comparisons.*only 100 pairs are left"):
        choose(strategy, conflict, 101, asked=asked)


def test_an_unknown_strategy_lists_the_valid_names(conflict):
    with pytest.raises(InputError) as error:
        choose("entropy", conflict, 5)
    assert "'entropy'" in str(error.value) and all(name in str(error.value) for name in STRATEGIES)


@every_strategy
def test_no_strategy_is_handed_gold(conflict, strategy, monkeypatch):
    seen, chosen_by = [], STRATEGIES[strategy]

    def spy(pairs, *rest):
        seen.extend(pairs.columns)
        return chosen_by(pairs, *rest)

    monkeypatch.setitem(selection.STRATEGIES, strategy, spy)
    choose(strategy, conflict.assign(gold=1.0), 5)
    assert set(seen) == {*KEY, "pacs_i", "pacs_j", "kendall", "mean_abs_pacs", "degenerate"}


@every_strategy
def test_every_strategy_has_a_docstring_that_says_what_it_does(strategy):
    assert inspect.getdoc(STRATEGIES[strategy])


@pytest.mark.parametrize("strategy", ["shf_cas", "pacs"])
def test_ties_are_broken_by_id(strategy):
    same = ([1.0, 1.0, 1.0], [-3.0, -3.0, -3.0])  # degenerate: every PACS is 0
    chosen = choose(strategy, table({"b": same, "a": same, "c": same}), 4)
    assert keys(chosen) == [("a", 0, 1), ("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]


def test_ties_in_kendall_are_broken_by_id_when_prompts_are_kept():
    reversed_ = ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0])
    chosen = choose("shf_cas", table({"c": reversed_, "a": reversed_, "b": reversed_}), 3, Selection(top_share=0.3))
    assert set(chosen["prompt_id"]) == {"a"}


def test_ties_in_the_threshold_form_are_broken_by_id():
    reversed_ = ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0])
    chosen = choose("shf_cas_threshold", table({"b": reversed_, "a": reversed_}), 4)
    assert keys(chosen) == [("a", 0, 1), ("a", 0, 2), ("a", 1, 2), ("b", 0, 1)]


# SHF-CAS, budget form


def expected_shf_cas(conflict, budget, share):
    """Straight from the method: rank prompts by K, keep the top share, spend the budget on the largest |PACS|."""
    prompts = by_prompt(conflict).sort_values(["kendall", "prompt_id"], ascending=[False, True])
    kept = set(prompts["prompt_id"].head(int(np.ceil(share * len(prompts)))))
    score = conflict.set_index(["prompt_id", "index"])["pacs"].abs()
    pairs = [key for key in keys(all_pairs(conflict)) if key[0] in kept]
    return sorted(pairs, key=lambda k: (-(score[k[0], k[1]] + score[k[0], k[2]]), k))[:budget]


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 1.0])
def test_shf_cas_is_the_method(conflict, share):
    chosen = choose("shf_cas", conflict, 20, Selection(top_share=share))
    assert keys(chosen) == expected_shf_cas(conflict, 20, share)


def test_shf_cas_leaves_out_a_prompt_of_low_kendall_whatever_its_pacs():
    conflict = table({"agrees": ([0, 1, 2, 30], [-9, -8, -7, -6.9]), "reversed": ([1, 2, 3, 4], [-1, -2, -3, -4])})
    assert set(choose("shf_cas", conflict, 2)["prompt_id"]) == {"reversed"}


def test_shf_cas_widens_to_more_prompts_where_the_top_share_holds_too_few_pairs(conflict):
    chosen = choose("shf_cas", conflict, 35, Selection(top_share=0.1))  # 2 of 12 prompts hold 20 pairs, 4 hold 40
    ranked = by_prompt(conflict).sort_values(["kendall", "prompt_id"], ascending=[False, True])["prompt_id"]
    assert len(chosen) == 35
    assert set(chosen["prompt_id"]) == set(ranked.head(4))


def test_shf_cas_widens_only_as_far_as_needed(conflict):
    chosen = choose("shf_cas", conflict, 20, Selection(top_share=0.1))
    ranked = by_prompt(conflict).sort_values(["kendall", "prompt_id"], ascending=[False, True])["prompt_id"]
    assert set(chosen["prompt_id"]) == set(ranked.head(2))


def test_the_whole_pool_can_be_asked(conflict):
    assert sorted(keys(choose("shf_cas", conflict, 120, Selection(top_share=0.1)))) == keys(all_pairs(conflict))


# SHF-CAS, threshold form


def test_threshold_asks_all_pairs_of_the_prompts_over_both_thresholds(conflict):
    prompts = by_prompt(conflict)
    kept = set(prompts.loc[(prompts["mean_abs_pacs"] > 0.6) & (prompts["kendall"] >= 0.4), "prompt_id"])
    assert 0 < len(kept) < 12
    chosen = choose("shf_cas_threshold", conflict, None)
    assert sorted(keys(chosen)) == [key for key in keys(all_pairs(conflict)) if key[0] in kept]


def test_threshold_spends_a_budget_on_the_most_conflicted_prompts_first(conflict):
    order = choose("shf_cas_threshold", conflict, None)["prompt_id"].map(by_prompt(conflict).set_index("prompt_id")["mean_abs_pacs"])
    assert order.is_monotonic_decreasing
    assert keys(choose("shf_cas_threshold", conflict, 6)) == keys(choose("shf_cas_threshold", conflict, None))[:6]


@pytest.mark.parametrize("delta, tau, asked", [(1.99, 1.0, 1), (2.0, 1.0, 0), (2.0, 0.0, 0), (0.0, 1.0, 1)])
def test_threshold_wants_pacs_above_delta_and_kendall_of_at_least_tau(delta, tau, asked):
    conflict = table({"reversed": ([0, 1], [-1, -2])})  # mean |PACS| is 2 and K is 1, both exactly
    assert len(choose("shf_cas_threshold", conflict, None, Selection(delta=delta, tau=tau))) == asked


def test_threshold_that_no_prompt_reaches_asks_nothing(conflict):
    chosen = choose("shf_cas_threshold", conflict, 5, Selection(delta=1000.0))
    assert len(chosen) == 0 and list(chosen) == selection.COLUMNS


# ablations and baseline


def test_pacs_only_takes_the_largest_pacs_anywhere(conflict):
    assert keys(choose("pacs", conflict, 20)) == expected_shf_cas(conflict, 20, 1.0)


def test_kendall_only_stays_in_the_top_share_and_ignores_pacs(conflict):
    ranked = by_prompt(conflict).sort_values(["kendall", "prompt_id"], ascending=[False, True])["prompt_id"]
    chosen = choose("kendall", conflict, 30)
    assert set(chosen["prompt_id"]) <= set(ranked.head(6))
    other = conflict.assign(pacs=np.random.default_rng(9).normal(size=len(conflict)))
    assert keys(choose("kendall", other, 30)) == keys(chosen)


def test_random_draws_every_pair_equally_often(conflict):
    counts = pd.Series(0, index=keys(all_pairs(conflict)))
    generator = np.random.default_rng(0)
    for _ in range(300):
        counts[keys(select("random", conflict, 30, generator, SETTINGS))] += 1
    assert counts.between(75 - 5 * 7.5, 75 + 5 * 7.5).all()  # binomial: 300 draws at 1/4, five standard deviations


def test_random_differs_between_seeds(conflict):
    assert keys(choose("random", conflict, 10, seed=0)) != keys(choose("random", conflict, 10, seed=1))
