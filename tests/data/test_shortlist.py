"""n of many by the seed: the same whatever the order of rows, evenly over groups, in memory for
about 2n."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas_lib.base.errors import InputError
from shfcas_lib.data import shortlist
from shfcas_lib.data.shortlist import Shortlist


def chosen(rows, n, seed=0):
    found = Shortlist(n, seed, "prompts.n")
    for name, group in rows:
        found.offer(name, (group,), name)
    return found.values()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from("abc"), max_size=60),
    st.integers(1, 30),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_the_choice_depends_on_rows_and_seed_and_not_on_order_or_on_forgetting(
    groups, n, seed, random
):
    rows = [(str(k), group) for k, group in enumerate(groups)]
    shuffled = random.sample(rows, len(rows))
    before, shortlist.BATCH = shortlist.BATCH, 0
    try:
        forgetful = chosen(shuffled, n, seed)
    finally:
        shortlist.BATCH = before
    assert sorted(forgetful) == sorted(chosen(rows, n, seed)) and len(forgetful) == min(
        n, len(rows)
    )


def test_groups_have_equal_shares_as_far_as_they_go():
    rows = [(f"{g}{k}", g) for g, size in (("a", 500), ("b", 50), ("c", 3)) for k in range(size)]
    assert Counter(name[0] for name in chosen(rows, 43)) == {"a": 20, "b": 20, "c": 3}


def test_seeds_choose_differently_and_evenly():
    rows = [(str(k), "a") for k in range(200)]
    often = Counter(name for seed in range(200) for name in chosen(rows, 20, seed))
    assert len(often) == 200 and 5 <= min(often.values()) and max(often.values()) <= 40


def test_without_n_everything_is_kept_in_order():
    rows = [(str(k), "a") for k in range(5000)]
    assert chosen(rows, None) == [name for name, _ in rows]


def test_without_n_a_large_set_is_refused(monkeypatch):
    monkeypatch.setattr(shortlist, "MOST", 10)
    with pytest.raises(InputError, match="prompts.n: the data holds more than 10 rows"):
        chosen([(str(k), "a") for k in range(11)], None)


def test_no_more_is_held_than_twice_n():
    found = Shortlist(50, 0, "prompts.n")
    for k in range(20_000):
        found.offer(str(k), (k % 7,), k)
        assert len(found._rows) <= 100 + shortlist.BATCH
