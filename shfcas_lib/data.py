"""Prompts and preference pairs: embedded tasks or the user's own data become two tables.

prompts:      prompt_id, prompt, category, harmful, split (train, feedback or evaluate)
preferences:  prompt_id, i, j, label: the probability that completion i of the prompt is preferred over completion j
              (1, 0, or 0.5 for a tie), i < j

Completions live in a pool table under (prompt_id, index); pairs given as text get indices of their own. `prompt_id` is a
hash of the prompt's text. A prompt of several turns is one string all the same (`dialogues`). Two prompts that differ in
spaces and case alone count as one: the second is dropped, so that no split holds what another was made for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from shfcas_lib import assets, instructions, pairs, recipes, runs
from shfcas_lib.attributes import attribute, imported
from shfcas_lib.formats import name as name_of
from shfcas_lib.formats import read_jsonl
from shfcas_lib.pairs import prompt_id
from shfcas_lib.params import Attribute, InputError, Params, Preferences, Prompts, Rows, Split
from shfcas_lib.shortlist import Shortlist

if TYPE_CHECKING:
    from shfcas_lib.screening import Screen

_EMBEDDED = Path(__file__).parent / "prompts"
SPLITS = ("train", "feedback", "evaluate")
FACTS = ["prompt_id", "prompt", "category", "harmful"]
_SAME = "prompt says the same"


def load_prompts(params: Params, screen: Screen | None = None) -> pd.DataFrame:
    """The prompts of a run, with their split. Raises InputError for anything wrong with files, categories or sizes.

    screen: knows which prompts the run's models cannot read; they are refused, or dropped where `bad_rows` says so. None: not asked.
    With preferences of the user's own, their prompts are the training prompts (or, without prompts of the user's own, are split
    three ways like any others), and prompts that also occur among them are dropped from the other splits.
    """
    return _load(params, screen)[0]


def dropped(params: Params, screen: Screen | None = None) -> pd.DataFrame:
    """What `load_prompts` left out: columns data (prompts or preferences), reason, rows; the reasons in their order."""
    rows = [(*key, rows) for key, rows in _load(params, screen)[1].items()]
    return pd.DataFrame(rows, columns=["data", "reason", "rows"]).astype({"data": "str", "reason": "str", "rows": "int64"})


def shared(table: pd.DataFrame) -> int:
    """How many prompts were dropped because another one says the same. table: from `dropped`."""
    return int(table.loc[table["reason"].str.startswith(_SAME), "rows"].sum())


def told(table: pd.DataFrame) -> str:
    """What `dropped` found, as text: shared prompts, then the reasons of all rows left out."""
    reasons = [f"  {row.rows} of {row.data}: {row.reason}" for row in table.itertuples()]
    same, unusable = shared(table), table["rows"].sum() - shared(table)
    return "\n".join([f"{same} prompts dropped because another one says the same, {unusable} rows that could not be used", *reasons])


def _load(params: Params, screen: Screen | None) -> tuple[pd.DataFrame, Counter]:
    counts: Counter = Counter()
    room = params.sampling.max_new_tokens
    own = given = None
    if params.prompts.given:
        own, left_out = _cached(_load_own_prompts, recipes.resolved(params.prompts), params)
        _add(counts, "prompts", left_out)
    if params.preferences.given:
        table, left_out = _own_pairs(params)
        _add(counts, "preferences", left_out)
        given = table.drop_duplicates("prompt_id")[FACTS]
        given = _without(given, given["prompt"].map(_said).duplicated(), counts, "preferences", "another one")
        given = _readable(given, "preferences", params.preferences, counts, screen, room if own is None else 1)
    if own is not None:
        own = _without(own, own["prompt"].map(_said).duplicated(), counts, "prompts", "another one")
        own = _readable(own, "prompts", params.prompts, counts, screen, room)
    if given is None:
        chosen = own if own is not None else _readable(_choose(embedded_prompts(params.task), params), "prompts", params.prompts, counts, screen, room)
        return split(chosen, params.split, params.seed), counts
    if own is None:
        return split(_choose(given, params), params.split, params.seed), counts
    rest = _without(own, own["prompt"].map(_said).isin(given["prompt"].map(_said)), counts, "prompts", "one of the preferences")
    shares = {"feedback": params.split.feedback, "evaluate": params.split.evaluate}
    return _in_order(pd.concat([given.assign(split="train"), _assign(rest, shares, params.seed)])), counts


def _said(prompt: str) -> str:
    """What two prompts have in common that differ in spaces and case alone."""
    return " ".join(prompt.split()).casefold()


def _without(prompts: pd.DataFrame, again: pd.Series, counts: Counter, data: str, other: str) -> pd.DataFrame:
    """The prompts that are not marked as saying what another one says; the others are counted."""
    if again.any():
        counts[data, f"{_SAME} as {other}"] += int(again.sum())
    return prompts[~again].reset_index(drop=True)


def _readable(prompts: pd.DataFrame, data: str, rows: Rows, counts: Counter, screen: Screen | None, room: int) -> pd.DataFrame:
    """The prompts that the run's models can read; the others are counted, or the first of them raises InputError. room: tokens that an answer takes."""
    refusals = [screen(prompt, room) if screen else None for prompt in prompts["prompt"]]
    for prompt, refusal in zip(prompts["prompt"], refusals):
        if refusal and recipes.resolved(rows).bad_rows != "drop":
            raise InputError(f"prompt {prompt[:60]!r} {refusal.told}: change it, or set {data}.bad_rows to drop, which leaves such prompts out and counts them")
        if refusal:
            counts[data, f"prompt {refusal.kind}"] += 1
    kept = prompts[np.array([refusal is None for refusal in refusals], bool)].reset_index(drop=True)
    if len(kept) < len(prompts) and kept.empty:
        raise InputError(f"{data}: the models of this run can read none of the {len(prompts)} prompts; the first {refusals[0].told}")
    return kept


def _add(counts: Counter, data: str, left_out: dict[str, int]) -> None:
    for reason, rows in left_out.items():
        counts[data, reason] += rows


def embedded_prompts(task: str) -> pd.DataFrame:
    """All prompts of an embedded task: columns prompt_id, prompt, category, harmful."""
    if task in ("helpfulness", "instructions"):
        rows = [(r["prompt"], r["category"], False) for _, r in read_jsonl(_EMBEDDED / "helpfulness.jsonl")]
        return _prompt_table(rows if task == "helpfulness" else instructions.attached(rows))
    benign = [(r["prompt"], r["category"], False) for _, r in read_jsonl(_EMBEDDED / "safety_benign.jsonl")]
    harmful = [
        (row["prompt"].strip(), path.stem, True)
        for path in sorted(assets.asset_path("do-not-answer").glob("*.jsonl"))
        for _, row in read_jsonl(path)
    ]
    return _prompt_table(harmful + benign).drop_duplicates("prompt_id", ignore_index=True)


def hand_labels() -> pd.DataFrame:
    """The shipped hand labels of the safety task: prompt_id, prompt, harmful, completion, label (0, 0.5 or 1)."""
    labels = pd.DataFrame([row for _, row in read_jsonl(_EMBEDDED / "safety_hand_labels.jsonl")])
    return labels.merge(embedded_prompts("safety")[["prompt_id", "prompt"]], on="prompt_id", validate="many_to_one")


def split(prompts: pd.DataFrame, shares: Split, seed: int) -> pd.DataFrame:
    """Assign each prompt to train, feedback or evaluate, in equal shares of every category. Disjoint by prompt id."""
    return _in_order(_assign(prompts, shares.model_dump(), seed))


def check(params: Params, screen: Screen | None = None) -> pd.DataFrame:
    """Load the prompts and check everything about a run that needs no model. Returns the prompts. screen: as for `load_prompts`. Raises
    InputError."""
    prompts = load_prompts(params, screen)
    known = sorted(prompts["category"].unique())
    for mechanism in params.bias:
        if isinstance(mechanism, Attribute):
            attribute(mechanism.attribute)  # raises where the name leads nowhere
        missing = [c for c in getattr(mechanism, "absent", []) if c not in known]
        if set(known) <= set(getattr(mechanism, "absent", [])):
            raise InputError("bias: every category is absent, so that no preference is left to train the proxy on")
        if missing:
            raise InputError(f"bias: absent category {missing[0]!r} is not in the data (there are: {', '.join(known)})")
    if ":" in params.gold.kind and not params.gold.kind.startswith("model:"):
        imported(params.gold.kind, "gold.kind")
    if params.feedback.file and not runs.found(params.feedback.file).is_file():
        raise InputError(f"feedback.file {params.feedback.file!r} does not exist")
    if params.feedback.kind in ("judge", "mixed"):
        from shfcas_lib.endpoint import environment

        environment()  # raises where the judge has no address or model
    if params.training.optimiser != "adamw_torch":
        from shfcas_lib import models, training

        training.check(params.training, models.pick_device(params.model.device))
    askable = int(prompts["split"].isin(params.selection.prompts.split("_and_")).sum())
    pairs = params.sampling.n * (params.sampling.n - 1) // 2 * askable
    if (params.selection.budget or 0) > pairs:
        raise InputError(f"selection.budget: found {params.selection.budget}, expected at most {pairs}, the number of pairs "
                         f"among {params.sampling.n} completions of {askable} {params.selection.prompts.replace('_', ' ')} prompts")
    return prompts


def load_pairs(data: Preferences | Path, seed: int = 0, order: list[str] | None = None) -> pd.DataFrame:
    """A preference set: columns prompt_id, prompt, category, harmful, chosen, rejected, label (1, or 0.5 for a tie). Raises InputError.

    data: what `preferences` says, or a file in TRL's format. Of a set with more than `n` pairs those that the seed picks.
    order: which of a row's categories counts.
    """
    data = data if isinstance(data, Preferences) else Preferences(file=str(data))
    return _load_pairs(recipes.resolved(data), seed, order)[0]


def own_pairs(params: Params) -> pd.DataFrame:
    """The preference pairs of a run with data of the user's own, as `load_pairs` gives them."""
    return _own_pairs(params)[0]


def _own_pairs(params: Params) -> tuple[pd.DataFrame, Counter]:
    return _cached(_load_pairs, recipes.resolved(params.preferences), params)


def _cached(read: Callable, block: Prompts | Preferences, params: Params) -> tuple[pd.DataFrame, Counter]:
    """Read once for all who ask in this process; a file that changed is read again."""
    order = params.prompts.categories
    return _read_once(read, type(block), block.model_dump_json(), params.seed, None if order is None else tuple(order),
                      runs.contents(block.file or block.source))


@lru_cache(maxsize=2)
def _read_once(read: Callable, kind: type, block: str, seed: int, order: tuple[str, ...] | None, _contents: str | None):
    return read(kind.model_validate_json(block), seed, None if order is None else list(order))


def _load_pairs(data: Preferences, seed: int, order: list[str] | None) -> tuple[pd.DataFrame, Counter]:
    recipes.check_pairs(data, "preferences")
    left_out: Counter = Counter()
    chosen = Shortlist(data.n, seed, "preferences.n")
    for pair in pairs.pairs(data, order, left_out):
        chosen.offer(f"{pair.prompt}\0{pair.chosen}\0{pair.rejected}", (pair.category, pair.harmful), pair)
    rows = [(pair.prompt_id, pair.prompt, pair.category, pair.harmful, pair.chosen, pair.rejected, pair.label) for pair in chosen.values()]
    if not rows:
        raise InputError(f"{name_of(data)} holds no preference pairs{_told(left_out)}")
    return pd.DataFrame(rows, columns=[*FACTS, "chosen", "rejected", "label"]), left_out


def _load_own_prompts(data: Prompts, seed: int, order: list[str] | None) -> tuple[pd.DataFrame, Counter]:
    """Prompts of the user's own, of the categories asked for, at most n: columns prompt_id, prompt, category, harmful."""
    left_out: Counter = Counter()
    chosen = Shortlist(data.n, seed, "prompts.n")
    known: dict[str, int] = {}
    read = 0
    for prompt in pairs.prompts(data, order, left_out):
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
        raise InputError(f"{name_of(data)} holds no prompts{_told(left_out)}")
    _check_categories(data.categories, sorted(known))
    return _prompt_table([(p.prompt, p.category, p.harmful) for p in chosen.values()]), left_out


def _told(left_out: Counter) -> str:
    """What became of the rows, for the message that none is left."""
    return f" that can be used ({', '.join(f'{rows} dropped: {reason}' for reason, rows in left_out.most_common(3))})" if left_out else ""


def as_completions(pairs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pairs of texts as (completions: prompt_id, index, prompt, completion; preferences: prompt_id, i, j, label).

    Pairs whose label is 0.5 are ties. Equal texts of one prompt are one completion; indices follow first appearance.
    """
    index: dict[tuple[str, str], int] = {}
    count: dict[str, int] = {}
    completions, preferences = [], []
    for row in pairs.itertuples():
        for text in (row.chosen, row.rejected):
            if (row.prompt_id, text) not in index:
                index[row.prompt_id, text] = count.get(row.prompt_id, 0)
                count[row.prompt_id] = index[row.prompt_id, text] + 1
                completions.append((row.prompt_id, index[row.prompt_id, text], row.prompt, text))
        i, j = index[row.prompt_id, row.chosen], index[row.prompt_id, row.rejected]
        tied = getattr(row, "label", 1.0) == 0.5
        preferences.append((row.prompt_id, min(i, j), max(i, j), 0.5 if tied else float(i < j)))
    return (pd.DataFrame(completions, columns=["prompt_id", "index", "prompt", "completion"]),
            pd.DataFrame(preferences, columns=["prompt_id", "i", "j", "label"]))


def preferences_from_gold(scores: pd.DataFrame, per_prompt: int, seed: int) -> pd.DataFrame:
    """Clean preferences: per prompt up to `per_prompt` random pairs of completions that gold tells apart.

    scores: prompt_id, index, gold. This is the annotated data set that a run starts from, before bias is injected.
    """
    generator = runs.rng(seed, "preferences")
    rows = []
    for prompt, group in scores.sort_values(["prompt_id", "index"]).groupby("prompt_id"):
        gold = dict(zip(group["index"], group["gold"]))
        pairs = [(i, j) for i, j in combinations(gold, 2) if gold[i] != gold[j]]
        for k in sorted(generator.permutation(len(pairs))[:per_prompt]):
            i, j = pairs[k]
            rows.append((prompt, i, j, float(gold[i] > gold[j])))
    if not rows:
        raise InputError("gold tells no two completions of the training prompts apart: nothing can be learnt from them")
    return pd.DataFrame(rows, columns=["prompt_id", "i", "j", "label"])


def to_trl(preferences: pd.DataFrame, completions: pd.DataFrame) -> pd.DataFrame:
    """Preferences as TRL's columns prompt, chosen, rejected. Ties are left out: TRL's losses have no place for them."""
    text = completions.set_index(["prompt_id", "index"])["completion"].to_dict()
    prompt = dict(zip(completions["prompt_id"], completions["prompt"]))
    rows = []
    for row in preferences[preferences["label"] != 0.5].itertuples():
        first, second = text[row.prompt_id, row.i], text[row.prompt_id, row.j]
        rows.append((prompt[row.prompt_id], *((first, second) if row.label > 0.5 else (second, first))))
    return pd.DataFrame(rows, columns=["prompt", "chosen", "rejected"])


def _assign(prompts: pd.DataFrame, shares: dict[str, float], seed: int) -> pd.DataFrame:
    """Deal the prompts, shuffled within (category, harmful), one by one to the split furthest behind its share."""
    generator = runs.rng(seed, "split")
    groups = [group.iloc[generator.permutation(len(group))] for _, group in prompts.sort_values("prompt_id").groupby(["category", "harmful"])]
    assigned = pd.concat(groups) if groups else prompts
    share = np.array(list(shares.values())) / sum(shares.values())
    names, count = [], np.zeros(len(share), int)
    for dealt in range(1, len(assigned) + 1):
        behind = int(np.argmax(share * dealt - count))
        count[behind] += 1
        names.append(list(shares)[behind])
    for name, got in zip(shares, count):
        if got < 2:
            raise InputError(f"only {len(assigned)} prompts: split {name!r} would get fewer than 2; add prompts or change `split`")
    return assigned.assign(split=names)


def _in_order(prompts: pd.DataFrame) -> pd.DataFrame:
    return prompts.sort_values("prompt_id", ignore_index=True)


def _check_categories(asked: list[str] | None, known: list[str]) -> None:
    for category in asked or []:
        if category not in known:
            there = ", ".join(known[:30]) + (f" and {len(known) - 30} more" if len(known) > 30 else "")
            raise InputError(f"prompts.categories: found {category!r}, which is not in the data (there are: {there})")


def _choose(prompts: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Keep the categories asked for, then `prompts.n` prompts dealt out evenly over category and harmful, by prompt id."""
    _check_categories(params.prompts.categories, sorted(prompts["category"].unique()))
    if params.prompts.categories is not None:
        prompts = prompts[prompts["category"].isin(params.prompts.categories)]
    prompts = prompts.sort_values("prompt_id")
    turn = prompts.groupby(["category", "harmful"]).cumcount()
    prompts = prompts.assign(turn=turn).sort_values(["turn", "prompt_id"]).drop(columns="turn")
    return prompts.head(params.prompts.n) if params.prompts.n else prompts


def _prompt_table(rows: list[tuple[str, str, bool]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["prompt", "category", "harmful"])
    return table.assign(prompt_id=table["prompt"].map(prompt_id))[["prompt_id", "prompt", "category", "harmful"]]
