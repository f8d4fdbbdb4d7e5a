"""Some of many: n rows of a stream, evenly over groups, by the seed, in one pass.

Memory is taken by about 2n rows.

    chosen = Shortlist(n=300, seed=0, what="prompts")
    for ...: chosen.offer(name, group, value)
    chosen.values()         # in the order they were offered

Which rows are chosen depends on the names, groups and seed alone, not on the order of the rows:
a row's place is its turn within its group (ordered by a hash of seed and name), then that hash.
A row that falls behind never comes back, so it can be forgotten.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

from shfcas_lib.base.errors import InputError

MOST = 200_000  # rows that are kept when nobody said how many are needed
BATCH = 1000  # rows beyond 2n before the next sorting out


class Shortlist:
    """At most n values; with n None all of them, up to MOST.

    `what` names the parameter that sets n, for the message beyond that.
    """

    def __init__(self, n: int | None, seed: int, what: str):
        self.n, self.seed, self.what = n, seed, what
        self._rows: list[tuple[bytes, tuple, int, str, Any]] = []
        self._values: dict[str, Any] = {}
        self._offered = 0

    def offer(self, name: str, group: tuple, value: Any) -> None:
        """Take a row into account. name: what tells it from all others."""
        rank = b"" if self.n is None else self._rank(name)
        self._rows.append((rank, group, self._offered, name, value))
        self._values[name] = value
        self._offered += 1
        if self.n is None and self._offered > MOST:
            raise InputError(
                f"{self.what}: the data holds more than {MOST} rows that could be used: set it to"
                " how many the run needs"
            )
        if self.n is not None and len(self._rows) >= 2 * self.n + BATCH:
            self._prune()

    def _rank(self, name: str) -> bytes:
        """What the rows of a group are ordered by."""
        text = f"{self.seed}/{name}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(text).digest()[:16]

    def find(self, name: str) -> Any:
        """The value offered under this name.

        None where there was none, or where it has fallen behind for good.
        """
        return self._values.get(name)

    def values(self) -> list[Any]:
        """What was chosen, in the order it was offered."""
        self._prune()
        return [row[4] for row in sorted(self._rows, key=lambda row: row[2])]

    def _prune(self) -> None:
        if self.n is None or len(self._rows) <= self.n:
            return
        turns: Counter = Counter()
        placed = []
        for row in sorted(self._rows, key=lambda row: row[0]):
            rank, group = row[:2]
            turns[group] += 1
            placed.append((turns[group], rank, row))
        placed.sort(key=lambda entry: entry[:2])
        self._rows = [row for _, _, row in placed[: self.n]]
        self._values = {row[3]: row[4] for row in self._rows}
