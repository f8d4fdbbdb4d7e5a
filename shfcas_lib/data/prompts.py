"""Prompts: an embedded task or the user's own data become one table, split three ways.

    prompt_id    a hash of the prompt's text
    prompt       text; a prompt of several turns is one string all the same (`dialogues`)
    category     what it is about
    harmful      should the request be declined?
    split        train, feedback or evaluate; held_out: pairs of the user's own on this prompt do
                 not train the proxy, they say how good it is

Two prompts that differ in spaces, case or Unicode form alone count as one: the second is dropped,
so that no split holds what another was made for.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.base.texts import canonical
from shfcas_lib.data import recipes, rows
from shfcas_lib.data.completions import own_completions
from shfcas_lib.data.formats import name_of as name_of
from shfcas_lib.data.preferences import FACTS, Read, cached, counted_pairs, left_out_text
from shfcas_lib.data.rows import Dropped
from shfcas_lib.data.shortlist import Shortlist
from shfcas_lib.params.schema import Params, Prompts, Rows, Split
from shfcas_lib.tasks.embedded import embedded_prompts, prompt_table

if TYPE_CHECKING:
    from shfcas_lib.experiment.checks import PromptCheck

SPLITS = ("train", "feedback", "evaluate")
_SAME = "prompt says the same"


def load_prompts(params: Params, screen: PromptCheck | None = None) -> pd.DataFrame:
    """The prompts of a run, with their split.

    Raises InputError for anything wrong with files, categories or sizes.

    screen: knows which prompts the run's models cannot read; they are refused, or dropped where
    `bad_rows` says so. None: not asked. With preferences of the user's own, their prompts are the
    training prompts, but for those held out (or, without prompts of the user's own, are split
    three ways like any others), and prompts that also occur among them are dropped from the other
    splits.
    """
    return _load(params, screen)[0]


def dropped(params: Params, screen: PromptCheck | None = None) -> pd.DataFrame:
    """What `load_prompts` left out.

    Columns, the reasons in their order:

        data     prompts, preferences or completions
        reason
        rows     how many
        places   where the first of them stand ('mine.jsonl, line 3'), one a line
    """
    sieve = _load(params, screen)[1]
    rows = [
        (*key, number, "\n".join(sieve.places.get(key, []))) for key, number in sieve.counts.items()
    ]
    table = pd.DataFrame(rows, columns=["data", "reason", "rows", "places"])
    return table.astype({"data": "str", "reason": "str", "rows": "int64", "places": "str"})


def shared(table: pd.DataFrame) -> int:
    """How many prompts were dropped because another one says the same. table: from `dropped`."""
    return int(table.loc[table["reason"].str.startswith(_SAME), "rows"].sum())


def dropped_text(table: pd.DataFrame) -> str:
    """What `dropped` found, as text: shared prompts, then the reasons of all rows left out."""
    same = shared(table)
    unusable = table["rows"].sum() - same
    head = (
        f"{same} prompts dropped because another one says the same, {unusable} rows that"
        " could not be used"
    )
    reasons = []
    for row in table.itertuples():
        reasons.append(f"  {row.rows} of {row.data}: {row.reason}{_places_text(row.places)}")
    return "\n".join([head, *reasons])


def _places_text(places: str) -> str:
    """The first places of rows that were left out, for a line of text."""
    listed = places.split("\n") if places else []
    if not listed:
        return ""
    # the file is named once
    first, *rest = listed[:5]
    file = first.rpartition(", ")[0]
    short = [place.removeprefix(f"{file}, ") for place in rest]
    return f" ({', '.join([first, *short])}{' and more' if len(listed) > 5 else ''})"


def _load(params: Params, screen: PromptCheck | None) -> tuple[pd.DataFrame, _Sieve]:
    """The prompts with their split, and what kept the others out."""
    sieve = _Sieve(params, screen)
    room = params.sampling.max_new_tokens
    own = given = None
    if params.prompts.given:
        own, left_out = cached(_load_own_prompts, recipes.filled_in(params.prompts), params)
        sieve.add("prompts", left_out)
    if params.preferences.given:
        pairs, left_out = counted_pairs(params)
        sieve.add("preferences", left_out)
        # with prompts of the user's own, nothing is written for those of the preferences
        facts = pairs.drop_duplicates("prompt_id")[[*FACTS, "where"]]
        alone = own is None and not params.completions.given
        given = sieve.usable(facts, "preferences", room if alone else 1)
        given = sieve.answered(given, pairs)
    if own is not None:
        own = sieve.usable(own, "prompts", room)
    if params.completions.given:
        completions, unused = own_completions(params)
        sieve.add("completions", unused)
        facts = _choose(completions.drop_duplicates("prompt_id")[FACTS], params)
        # the closed form writes nothing more
        own = sieve.usable(facts, "completions", 1 if params.policy.kind == "tilt" else room)

    if given is None:
        if own is None:
            chosen = _choose(embedded_prompts(params.task), params)
            own = sieve.readable(chosen, "prompts", room)
        return split(_plain(own), params.split, params.seed), sieve
    if own is None:
        return split(_plain(_choose(given, params)), params.split, params.seed), sieve

    # the preferences train the proxy: no other split may hold their prompts
    again = own["prompt"].map(_said).isin(given["prompt"].map(_said))
    rest = sieve.without(own, again, "prompts", "one of the preferences")
    shares = {"feedback": params.split.feedback, "evaluate": params.split.evaluate}
    dealt = _assign(rest, shares, params.seed)
    return _in_order(_plain(pd.concat([_some_held_out(given, params), dealt]))), sieve


def _plain(prompts: pd.DataFrame) -> pd.DataFrame:
    """The prompts without their places in the data."""
    return prompts.drop(columns="where", errors="ignore")


def _some_held_out(given: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The prompts of the user's pairs: all train the proxy but a share of every category. None is
    held out of a handful, nor where the proxy is a published model, which none of them trains."""
    share = params.preferences.held_out
    if params.reward.published or share * len(given) < 3:
        return given.assign(split="train")
    return _assign(given, {"train": 1 - share, "held_out": share}, params.seed)


def _said(prompt: str) -> str:
    """What two prompts have in common that differ in spaces, case and Unicode form alone."""
    # folding the case may take a composed character apart
    return canonical(canonical(prompt).casefold())


class _Sieve:
    """Keeps the prompts that a run can use, and counts the others by (data, reason) with their
    places.

    data: the parameter block that the prompts come from, prompts, preferences or completions.
    """

    def __init__(self, params: Params, screen: PromptCheck | None):
        self.params, self.screen = params, screen
        self.counts: Counter = Counter()
        self.places: dict[tuple[str, str], list[str]] = {}

    def add(self, data: str, left_out: Counter) -> None:
        """Count rows that were left out while they were read; a `Dropped` knows their places."""
        places = left_out.places if isinstance(left_out, Dropped) else {}
        for reason, number in left_out.items():
            self._count(data, reason, number, places.get(reason, []))

    def _count(self, data: str, reason: str, number: int, places: list[str]) -> None:
        self.counts[data, reason] += number
        known = self.places.setdefault((data, reason), [])
        known += places[: Dropped.MOST_PLACES - len(known)]

    def usable(self, prompts: pd.DataFrame, data: str, room: int) -> pd.DataFrame:
        """The prompts that say something new and that the run's models can read."""
        again = prompts["prompt"].map(_said).duplicated()
        return self.readable(self.without(prompts, again, data, "another one"), data, room)

    def without(
        self, prompts: pd.DataFrame, again: pd.Series, data: str, other: str
    ) -> pd.DataFrame:
        """The prompts that are not marked as saying what another one says."""
        if again.any():
            reason = f"{_SAME} as {other}"
            self._count(data, reason, int(again.sum()), _places(prompts[again]))
        return prompts[~again].reset_index(drop=True)

    def answered(self, prompts: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
        """The prompts of preferences that keep a pair whose answers the run's models can read.

        The other pairs are counted, or the first of them raises InputError.
        """
        if self.screen is None:
            return prompts
        stop = recipes.filled_in(self.params.preferences).bad_rows != "drop"
        kept: set[str] = set()
        first: str | None = None
        for row in pairs[pairs["prompt_id"].isin(prompts["prompt_id"])].itertuples():
            found = [self.screen.answer(row.prompt, text) for text in (row.chosen, row.rejected)]
            refusal = found[0] or found[1]
            if refusal is None:
                kept.add(row.prompt_id)
                continue
            text = row.chosen if found[0] else row.rejected
            first = first or f"answer {text[:60]!r} {refusal.told}"
            if stop:
                raise InputError(
                    f"{first}: change it, or set preferences.bad_rows to drop, which leaves such"
                    " pairs out and counts them"
                )
            self._count("preferences", f"answer {refusal.kind}", 1, [row.where])
        if first and not kept:
            raise InputError(
                f"preferences: the models of this run can read the answers of none of the"
                f" {len(pairs)} pairs; the first {first}"
            )
        return prompts[prompts["prompt_id"].isin(kept)].reset_index(drop=True)

    def readable(self, prompts: pd.DataFrame, data: str, room: int) -> pd.DataFrame:
        """The prompts that the run's models can read.

        The others are counted, or the first of them raises InputError. room: tokens that an
        answer takes.
        """
        texts = list(prompts["prompt"])
        refusals = [self.screen(text, room) if self.screen else None for text in texts]
        block = getattr(self.params, data)
        stop = (recipes.filled_in(block) if isinstance(block, Rows) else block).bad_rows != "drop"
        places = _places(prompts) or [""] * len(texts)
        for text, refusal, where in zip(texts, refusals, places, strict=True):
            if refusal and stop:
                raise InputError(
                    f"prompt {text[:60]!r} {refusal.told}: change it, or set {data}.bad_rows to"
                    " drop, which leaves such prompts out and counts them"
                )
            if refusal:
                self._count(data, f"prompt {refusal.kind}", 1, [where] if where else [])

        # a run without a single prompt stops, whatever bad_rows says
        first = next((refusal for refusal in refusals if refusal), None)
        kept = np.array([refusal is None for refusal in refusals], bool)
        if first and not kept.any():
            raise InputError(
                f"{data}: the models of this run can read none of the {len(texts)} prompts; the"
                f" first {first.told}"
            )
        return prompts[kept].reset_index(drop=True)


def _places(prompts: pd.DataFrame) -> list[str]:
    """Where prompts of the user's own stand; none for embedded ones."""
    return list(prompts["where"]) if "where" in prompts else []


def split(prompts: pd.DataFrame, shares: Split, seed: int) -> pd.DataFrame:
    """Assign each prompt to train, feedback or evaluate, in equal shares of every category.

    Disjoint by prompt id.
    """
    return _in_order(_assign(prompts, shares.model_dump(), seed))


def _load_own_prompts(data: Prompts, seed: int, order: list[str] | None) -> Read:
    """Prompts of the user's own, of the categories asked for, at most n.

    Columns prompt_id, prompt, category, harmful, where.
    """
    left_out = Dropped()
    chosen = Shortlist(data.n, seed, "prompts.n")
    known: dict[str, int] = {}
    read = 0
    for prompt in rows.read_prompts(data, order, left_out):
        read += 1
        # for a message alone: a data set of free text in this column must not fill the memory
        if prompt.category not in known and len(known) < 1000:
            known[prompt.category] = 0
        if data.categories is not None and prompt.category not in data.categories:
            continue
        before = chosen.find(prompt.prompt)
        if before is None:
            chosen.offer(prompt.prompt, (prompt.category, prompt.harmful), prompt)
        elif data.bad_rows == "drop":
            left_out.leave_out("the same prompt again", prompt.where)
        else:
            raise InputError(f"{prompt.where}: the same prompt stands at {before.where}")
    if not read:
        raise InputError(f"{name_of(data)} holds no prompts{left_out_text(left_out)}")
    _check_categories(data.categories, sorted(known))
    taken = chosen.values()
    table = prompt_table([(prompt.prompt, prompt.category, prompt.harmful) for prompt in taken])
    where = {prompt.prompt: prompt.where for prompt in taken}
    return table.assign(where=table["prompt"].map(where)), left_out


def _assign(prompts: pd.DataFrame, shares: dict[str, float], seed: int) -> pd.DataFrame:
    """Deal the prompts one by one to the split that is furthest behind its share.

    They are dealt group by group, (category, harmful), each in random order.
    """
    generator = rng(seed, "split")
    ordered = prompts.sort_values("prompt_id").groupby(["category", "harmful"])
    groups = [group.iloc[generator.permutation(len(group))] for _, group in ordered]
    assigned = pd.concat(groups) if groups else prompts

    share = np.array(list(shares.values())) / sum(shares.values())
    names, count = [], np.zeros(len(share), int)
    for dealt in range(1, len(assigned) + 1):
        behind = int(np.argmax(share * dealt - count))
        count[behind] += 1
        names.append(list(shares)[behind])
    for name, got in zip(shares, count, strict=True):
        if got < 2:
            raise InputError(
                f"only {len(assigned)} prompts: split {name!r} would get fewer than 2; add prompts"
                " or change `split`"
            )
    return assigned.assign(split=names)


def _in_order(prompts: pd.DataFrame) -> pd.DataFrame:
    return prompts.sort_values("prompt_id", ignore_index=True)


def _check_categories(wanted: list[str] | None, known: list[str]) -> None:
    for category in wanted or []:
        if category in known:
            continue
        there = ", ".join(known[:30])
        if len(known) > 30:
            there += f" and {len(known) - 30} more"
        raise InputError(
            f"prompts.categories: found {category!r}, which is not in the data (there are: {there})"
        )


def _choose(prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Keep the categories of the parameters, then `prompts.n` prompts drawn by the seed.

    They are dealt out evenly over category and harmful.
    """
    _check_categories(params.prompts.categories, sorted(prompts["category"].unique()))
    if params.prompts.categories is not None:
        prompts = prompts[prompts["category"].isin(params.prompts.categories)]
    prompts = prompts.sort_values("prompt_id")
    if params.prompts.n is None:
        return prompts
    # another seed draws other prompts: an interval over seeds covers the choice of prompts
    drawn = prompts.iloc[rng(params.seed, "prompts").permutation(len(prompts))]
    turn = drawn.groupby(["category", "harmful"]).cumcount()
    drawn = drawn.assign(turn=turn).sort_values(["turn", "prompt_id"]).drop(columns="turn")
    return drawn.head(params.prompts.n)
