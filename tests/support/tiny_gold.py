"""A gold reward and bias attributes for tests with a random tiny model: plain functions of the
text, importable by name."""


def vowels(prompt: str, completion: str) -> float:
    """Share of vowels: something a linear probe can learn and that has nothing to do with
    length."""
    return sum(c in "aeiou" for c in completion.lower()) / (1 + len(completion))


def consonants(completion: str) -> float:
    """Number of letters that are no vowels."""
    return float(sum(c.isalpha() and c not in "aeiouAEIOU" for c in completion))


def broken(completion: str) -> float:
    """An attribute with a fault."""
    return 1 / 0


def deadly(completion: str) -> float:
    """An attribute that takes the whole process with it, as running out of memory does."""
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)
