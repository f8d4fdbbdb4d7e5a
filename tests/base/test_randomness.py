"""Seeds give named streams, the same on every machine."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shfcas_lib.base.randomness import derive, rng

# --- seeds


def test_derived_seeds_are_the_same_on_every_machine():
    """First bits of sha256("0/split") and sha256("12/bias/1/noise"): computed apart, by
    sha256sum."""
    assert derive(0, "split") == 877757775
    assert derive(12, "bias/1/noise") == 192853790
    assert derive(0, "split", bits=8) == 104


def test_the_first_numbers_of_a_stream_are_the_same_on_every_machine():
    assert list(rng(0, "split").integers(0, 1000, 5)) == [289, 801, 674, 897, 312]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**40), st.text(max_size=20), st.integers(1, 128))
def test_derived_seeds_fit_their_bits(seed, name, bits):
    value = derive(seed, name, bits)
    assert 0 <= value < 2**bits and value == derive(seed, name, bits)
    assert value == derive(seed, name, 128) >> (128 - bits)


def test_seed_zero_is_a_seed():
    streams = [rng(seed, "split").random(4).tolist() for seed in (0, 0, 1)]
    assert streams[0] == streams[1] != streams[2]


def test_names_and_seeds_give_streams_of_their_own():
    names = ("split", "bias/1/noise", "bias/2/noise", "pool", "")
    assert len({tuple(rng(seed, name).random(4)) for seed in range(5) for name in names}) == 25


def test_streams_are_uncorrelated():
    """Neighbouring seeds and names: 5 standard deviations of a correlation over 4000 draws are
    0.08."""
    draws = np.array(
        [rng(seed, name).normal(size=4000) for seed in (0, 1) for name in ("a", "b", "a/1")]
    )
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 0.08


def test_one_stream_does_not_disturb_another_or_the_global_one():
    np.random.seed(3)
    expected = np.random.random(3).tolist()
    alone = rng(0, "b").random(3).tolist()
    np.random.seed(3)
    rng(0, "a").random(100)
    assert rng(0, "b").random(3).tolist() == alone and np.random.random(3).tolist() == expected
