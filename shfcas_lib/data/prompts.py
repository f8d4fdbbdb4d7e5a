"""Prompts: an embedded task or the user's own data become one table, split three ways.

prompts:  prompt_id, prompt, category, harmful, split (train, feedback or evaluate)

`prompt_id` is a hash of the prompt's text. A prompt of several turns is one string all the same
(`dialogues`). Two prompts that differ in spaces and case alone count as one: the second is
dropped, so that no split holds what another was made for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib.base.errors import InputError
from shfcas_lib.base.randomness import rng
from shfcas_lib.data import recipes, rows
from shfcas_lib.data.formats import name_of as name_of
from shfcas_lib.data.preferences import FACTS, cached, counted_pairs, left_out_text
from shfcas_lib.data.shortlist import Shortlist
from shfcas_lib.params.schema import Params, Prompts, Rows, Split
from shfcas_lib.tasks.embedded import embedded_prompts, prompt_table

if TYPE_CHECKING:
    from shfcas_lib.experiment.checks import PromptCheck

SPLITS = ("train", "feedback", "evaluate")
_SAME = "prompt says the same"


def load_prompts(params: Params, screen: PromptCheck | None = None) -> pd.DataFrame:
    """The prompts of a run, with their split. Raises InputError for anything wrong with files,
    categories or sizes.

    screen: knows which prompts the run's models cannot read; they are refused, or dropped where
    `bad_rows` says so. None: not asked. With preferences of the user's own, their prompts are the
    training prompts (or, without prompts of the user's own, are split three ways like any
    others), and prompts that also occur among them are dropped from the other splits."""
    return _load(params, screen)[0]


def dropped(params: Params, screen: PromptCheck | None = None) -> pd.DataFrame:
    """What `load_prompts` left out: columns data (prompts or preferences), reason, rows; the
    reasons in their order."""
    rows = [(*key, rows) for key, rows in _load(params, screen)[1].items()]
    return pd.DataFrame(rows, columns=["data", "reason", "rows"]).astype(
        {"data": "str", "reason": "str", "rows": "int64"}
    )


def shared(table: pd.DataFrame) -> int:
    """How many prompts were dropped because another one says the same. table: from `dropped`."""
    return int(table.loc[table["reason"].str.startswith(_SAME), "rows"].sum())


def dropped_text(table: pd.DataFrame) -> str:
    """What `dropped` found, as text: shared prompts, then the reasons of all rows left out."""
    reasons = [f"  {row.rows} of {row.data}: {row.reason}" for row in table.itertuples()]
    same, unusable = shared(table), table["rows"].sum() - shared(table)
    return "\n".join(
        [
            (
                f"{same} prompts dropped because another one says the same, {unusable} rows that"
                " could not be used"
            ),
            *reasons,
        ]
    )


def _load(params: Params, screen: PromptCheck | None) -> tuple[pd.DataFrame, Counter]:
    counts: Counter = Counter()
    room = params.sampling.max_new_tokens
    own = given = None
    if params.prompts.given:
        own, left_out = cached(_load_own_prompts, recipes.filled_in(params.prompts), params)
        _add(counts, "prompts", left_out)
    if params.preferences.given:
        table, left_out = counted_pairs(params)
        _add(counts, "preferences", left_out)
        given = table.drop_duplicates("prompt_id")[FACTS]
        given = _without(
            given, given["prompt"].map(_said).duplicated(), counts, "preferences", "another one"
        )
        given = _readable(
            given, "preferences", params.preferences, counts, screen, room if own is None else 1
        )
    if own is not None:
        own = _without(own, own["prompt"].map(_said).duplicated(), counts, "prompts", "another one")
        own = _readable(own, "prompts", params.prompts, counts, screen, room)
    if given is None:
        chosen = (
            own
            if own is not None
            else _readable(
                _choose(embedded_prompts(params.task), params),
                "prompts",
                params.prompts,
                counts,
                screen,
                room,
            )
        )
        return split(chosen, params.split, params.seed), counts
    if own is None:
        return split(_choose(given, params), params.split, params.seed), counts
    rest = _without(
        own,
        own["prompt"].map(_said).isin(given["prompt"].map(_said)),
        counts,
        "prompts",
        "one of the preferences",
    )
    shares = {"feedback": params.split.feedback, "evaluate": params.split.evaluate}
    return (
        _in_order(pd.concat([given.assign(split="train"), _assign(rest, shares, params.seed)])),
        counts,
    )


def _said(prompt: str) -> str:
    """What two prompts have in common that differ in spaces and case alone."""
    return " ".join(prompt.split()).casefold()


def _without(
    prompts: pd.DataFrame, again: pd.Series, counts: Counter, data: str, other: str
) -> pd.DataFrame:
    """The prompts that are not marked as saying what another one says; the others are counted."""
    if again.any():
        counts[data, f"{_SAME} as {other}"] += int(again.sum())
    return prompts[~again].reset_index(drop=True)


def _readable(
    prompts: pd.DataFrame,
    data: str,
    rows: Rows,
    counts: Counter,
    screen: PromptCheck | None,
    room: int,
) -> pd.DataFrame:
    """The prompts that the run's models can read; the others are counted, or the first of them
    raises InputError. room: tokens that an answer takes."""
    refusals = [screen(prompt, room) if screen else None for prompt in prompts["prompt"]]
    for prompt, refusal in zip(prompts["prompt"], refusals):
        if refusal and recipes.filled_in(rows).bad_rows != "drop":
            raise InputError(
                f"prompt {prompt[:60]!r} {refusal.told}: change it, or set {data}.bad_rows to drop,"
                " which leaves such prompts out and counts them"
            )
        if refusal:
            counts[data, f"prompt {refusal.kind}"] += 1
    kept = prompts[np.array([refusal is None for refusal in refusals], bool)].reset_index(drop=True)
    if len(kept) < len(prompts) and kept.empty:
        raise InputError(
            f"{data}: the models of this run can read none of the {len(prompts)} prompts; the first"
            f" {refusals[0].told}"
        )
    return kept


def _add(counts: Counter, data: str, left_out: dict[str, int]) -> None:
    for reason, number in left_out.items():
        counts[data, reason] += number


def split(prompts: pd.DataFrame, shares: Split, seed: int) -> pd.DataFrame:
    """Assign each prompt to train, feedback or evaluate, in equal shares of every category.
    Disjoint by prompt id."""
    return _in_order(_assign(prompts, shares.model_dump(), seed))


def _load_own_prompts(
    data: Prompts, seed: int, order: list[str] | None
) -> tuple[pd.DataFrame, Counter]:
    """Prompts of the user's own, of the categories asked for, at most n: columns prompt_id,
    prompt, category, harmful."""
    left_out: Counter = Counter()
    chosen = Shortlist(data.n, seed, "prompts.n")
    known: dict[str, int] = {}
    read = 0
    for prompt in rows.read_prompts(data, order, left_out):
        read += 1
        if prompt.category not in known and len(known) < 1000:
            known[prompt.category] = 0
        if data.categories is not None and prompt.category not in data.categories:
            continue
        before = chosen.find(prompt.prompt)
        if before is None:
            chosen.offer(prompt.prompt, (prompt.category, prompt.harmful), prompt)
        elif data.bad_rows == "drop":
            left_out["the same prompt again"] += 1
        else:
            raise InputError(f"{prompt.where}: the same prompt stands at {before.where}")
    if not read:
        raise InputError(f"{name_of(data)} holds no prompts{left_out_text(left_out)}")
    _check_categories(data.categories, sorted(known))
    return prompt_table([(p.prompt, p.category, p.harmful) for p in chosen.values()]), left_out


def _assign(prompts: pd.DataFrame, shares: dict[str, float], seed: int) -> pd.DataFrame:
    """Deal the prompts, shuffled within (category, harmful), one by one to the split furthest
    behind its share."""
    generator = rng(seed, "split")
    groups = [
        group.iloc[generator.permutation(len(group))]
        for _, group in prompts.sort_values("prompt_id").groupby(["category", "harmful"])
    ]
    assigned = pd.concat(groups) if groups else prompts
    share = np.array(list(shares.values())) / sum(shares.values())
    names, count = [], np.zeros(len(share), int)
    for dealt in range(1, len(assigned) + 1):
        behind = int(np.argmax(share * dealt - count))
        count[behind] += 1
        names.append(list(shares)[behind])
    for name, got in zip(shares, count):
        if got < 2:
            raise InputError(
                f"only {len(assigned)} prompts: split {name!r} would get fewer than 2; add prompts"
                " or change `split`"
            )
    return assigned.assign(split=names)


def _in_order(prompts: pd.DataFrame) -> pd.DataFrame:
    return prompts.sort_values("prompt_id", ignore_index=True)


def _check_categories(asked: list[str] | None, known: list[str]) -> None:
    for category in asked or []:
        if category not in known:
            there = ", ".join(known[:30]) + (
                f" and {len(known) - 30} more" if len(known) > 30 else ""
            )
            raise InputError(
                f"prompts.categories: found {category!r}, which is not in the data (there are:"
                f" {there})"
            )


def _choose(prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Keep the categories asked for, then `prompts.n` prompts dealt out evenly over category and
    harmful, by prompt id."""
    _check_categories(params.prompts.categories, sorted(prompts["category"].unique()))
    if params.prompts.categories is not None:
        prompts = prompts[prompts["category"].isin(params.prompts.categories)]
    prompts = prompts.sort_values("prompt_id")
    turn = prompts.groupby(["category", "harmful"]).cumcount()
    prompts = prompts.assign(turn=turn).sort_values(["turn", "prompt_id"]).drop(columns="turn")
    return prompts.head(params.prompts.n) if params.prompts.n else prompts
