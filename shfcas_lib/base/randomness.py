"""Random choices by name: the one seed of a run gives every choice a generator of its own.

What one choice draws does not move any other:

    rng(seed, "bias").random()
"""

from __future__ import annotations

import hashlib

import numpy as np


def rng(seed: int, name: str) -> np.random.Generator:
    """The generator that the seed of a run gives to the random choice called `name`."""
    return np.random.Generator(np.random.Philox(key=derive(seed, name, bits=128)))


def derive(seed: int, name: str, bits: int = 31) -> int:
    """An integer of `bits` bits (at most 128) that depends on (seed, name) alone.

    It is the same on every machine and in every process.
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:16], "big") >> (128 - bits)
