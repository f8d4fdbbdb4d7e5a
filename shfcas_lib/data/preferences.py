"""Preference pairs: the user's own data, or samples that gold compares, become one table.

    prompt_id, i, j    two completions of a prompt, i < j
    label              probability that completion i is preferred: 1, 0, or 0.5 for a tie; in
                       between where several rows are votes about one pair

Completions live in a pool table under (prompt_id, index); pairs given as text get indices of
their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import pandas as pd

from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.data import recipes
from shfcas_lib.data.formats import name_of as name_of
from shfcas_lib.data.rows import Dropped, Pair, read_pairs
from shfcas_lib.data.shortlist import Shortlist
from shfcas_lib.params.schema import Params, Preferences, Rows

FACTS = ["prompt_id", "prompt", "category", "harmful"]
Read = tuple[pd.DataFrame, Dropped]


def load_pairs(
    data: Preferences | Path, seed: int = 0, order: list[str] | None = None
) -> pd.DataFrame:
    """A preference set as a table.

    data:   what `preferences` says, or a file in TRL's format; of a set with more than `n`
            pairs those that the seed picks
    order:  which of a row's categories counts

    Columns:

        prompt_id, prompt, category, harmful
        chosen, rejected   the answer that more votes prefer, and the other
        label              mean of the votes for `chosen`: 1, or 0.5 for a tie, or in between
        votes              how many rows were about this pair, whichever way round

    Where rows differ, the label is their mean, as where several people answer one question
    (`LabelStore.labels`). Raises InputError.
    """
    if not isinstance(data, Preferences):
        data = Preferences(file=str(data))
    return _load_pairs(recipes.filled_in(data), seed, order)[0].drop(columns="where")


def own_pairs(params: Params) -> pd.DataFrame:
    """The preference pairs of a run with data of the user's own, as `load_pairs` gives them."""
    return counted_pairs(params)[0].drop(columns="where")


def counted_pairs(params: Params) -> Read:
    """`own_pairs` with their places in the data (`where`), and the rows that were left out."""
    return cached(_load_pairs, recipes.filled_in(params.preferences), params)


def cached(read: Callable[..., Read], block: Rows, params: Params) -> Read:
    """Read once for all who ask in this process; a file that changed is read again."""
    order = params.prompts.categories
    return _read_once(
        read,
        type(block),
        block.model_dump_json(),
        params.seed,
        None if order is None else tuple(order),
        places.content_hash(block.file or block.source),
    )


@lru_cache(maxsize=2)
def _read_once(
    read: Callable[..., Read],
    kind: type[Rows],
    block: str,
    seed: int,
    order: tuple[str, ...] | None,
    _contents: str | None,
) -> Read:
    return read(kind.model_validate_json(block), seed, None if order is None else list(order))


@dataclass
class _Votes:
    """Rows about one pair of answers. first: the one that was read first; total: the sum of their
    labels, as probabilities that its `chosen` is preferred."""

    first: Pair
    votes: int = 0
    total: float = field(default=0.0)

    def add(self, pair: Pair) -> None:
        """Count a row about the same two answers."""
        self.votes += 1
        self.total += pair.label if pair.chosen == self.first.chosen else 1 - pair.label

    def row(self) -> tuple:
        """The pair as a row of `load_pairs`."""
        pair, label = self.first, self.total / self.votes
        chosen, rejected = pair.chosen, pair.rejected
        if label < 0.5:
            chosen, rejected, label = rejected, chosen, 1 - label
        facts = (pair.prompt_id, pair.prompt, pair.category, pair.harmful)
        return (*facts, chosen, rejected, label, self.votes, pair.where)


def _load_pairs(data: Preferences, seed: int, order: list[str] | None) -> Read:
    recipes.check_pairs(data, "preferences")
    left_out = Dropped()
    shortlist = Shortlist(data.n, seed, "preferences.n")
    for pair in read_pairs(data, order, left_out):
        name = "\0".join([pair.prompt, *sorted([pair.chosen, pair.rejected])])
        votes = shortlist.find(name)
        if votes is None:
            votes = _Votes(pair)
            shortlist.offer(name, (pair.category, pair.harmful), votes)
        votes.add(pair)

    rows = [votes.row() for votes in shortlist.values()]
    if not rows:
        raise InputError(f"{name_of(data)} holds no preference pairs{left_out_text(left_out)}")
    columns = [*FACTS, "chosen", "rejected", "label", "votes", "where"]
    return pd.DataFrame(rows, columns=columns), left_out


def left_out_text(left_out: Counter) -> str:
    """What became of the rows, for the message that none is left."""
    if not left_out:
        return ""
    reasons = [f"{rows} dropped: {reason}" for reason, rows in left_out.most_common(3)]
    return f" that can be used ({', '.join(reasons)})"


def as_completions(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs of texts as two tables, completions and preferences.

        completions    prompt_id, index, prompt, completion
        preferences    prompt_id, i, j, label

    The label of a pair is that of `chosen` (missing: 1), turned where it has the higher index;
    0.5 is a tie. Equal texts of one prompt are one completion; indices follow first appearance.
    """
    # where a text of a prompt stands, and how many different ones the prompt has so far
    index: dict[tuple[str, str], int] = {}
    count: Counter = Counter()
    completions, preferences = [], []
    for row in pairs.itertuples():
        for text in (row.chosen, row.rejected):
            if (row.prompt_id, text) not in index:
                number = count[row.prompt_id]
                index[row.prompt_id, text] = number
                count[row.prompt_id] += 1
                completions.append((row.prompt_id, number, row.prompt, text))
        i, j = index[row.prompt_id, row.chosen], index[row.prompt_id, row.rejected]
        label = float(getattr(row, "label", 1.0))
        label = label if i < j else 1 - label
        preferences.append((row.prompt_id, min(i, j), max(i, j), label))
    return (
        pd.DataFrame(completions, columns=["prompt_id", "index", "prompt", "completion"]),
        pd.DataFrame(preferences, columns=["prompt_id", "i", "j", "label"]),
    )


def preferences_from_gold(scores: pd.DataFrame, per_prompt: int, seed: int) -> pd.DataFrame:
    """Clean preferences: random pairs of completions that gold tells apart.

    scores: prompt_id, index, gold. Of each prompt there are at most `per_prompt`. This is the
    annotated data set that a run starts from, before bias is injected. Returns prompt_id, i, j,
    label (1: i is better, 0: j). Raises InputError where gold tells no pair apart.
    """
    generator = rng(seed, "preferences")
    rows = []
    for prompt, group in scores.sort_values(["prompt_id", "index"]).groupby("prompt_id"):
        gold = dict(zip(group["index"], group["gold"], strict=True))
        pairs = [(i, j) for i, j in combinations(gold, 2) if gold[i] != gold[j]]
        for k in sorted(generator.permutation(len(pairs))[:per_prompt]):
            i, j = pairs[k]
            rows.append((prompt, i, j, float(gold[i] > gold[j])))
    if not rows:
        raise InputError(
            "gold tells no two completions of the training prompts apart: nothing can be learnt"
            " from them"
        )
    return pd.DataFrame(rows, columns=["prompt_id", "i", "j", "label"])


def to_trl(preferences: pd.DataFrame, completions: pd.DataFrame) -> pd.DataFrame:
    """Preferences as TRL's columns prompt, chosen, rejected.

    Ties are left out: TRL's losses have no place for them.
    """
    text = completions.set_index(["prompt_id", "index"])["completion"].to_dict()
    prompt = dict(zip(completions["prompt_id"], completions["prompt"], strict=True))
    rows = []
    for row in preferences[preferences["label"] != 0.5].itertuples():
        first, second = text[row.prompt_id, row.i], text[row.prompt_id, row.j]
        in_order = (first, second) if row.label > 0.5 else (second, first)
        rows.append((prompt[row.prompt_id], *in_order))
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])
