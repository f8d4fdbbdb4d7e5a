"""What a row of a data set says: a prompt, or a pair of answers and which one is preferred.

    dropped = Dropped()
    for pair in read_pairs(params.preferences, order=None, dropped=dropped): ...

Prompts and answers may be text or message lists, also such that stand in text as JSON or Python;
a prompt of several turns becomes one string (`dialogues.encode`). A data set without a prompt
column has it as what the two answers share at their start. Rows that cannot be used raise
InputError with their place, or are left out and counted by reason, with their places
(`bad_rows`).
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from shfcas_lib.base import dialogues, progress
from shfcas_lib.base.dialogues import prompt_id
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.texts import canonical
from shfcas_lib.data import formats, recipes
from shfcas_lib.data.formats import Cell
from shfcas_lib.params.schema import Columns, Rows

# what spreadsheets show, and save, instead of a text that they took for something else
_SPREADSHEET_FAULTS = (
    *("#NAME?", "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "#N/A", "#NULL!", "#ERROR!", "########"),
    *("Err:502", "Err:504", "Err:508", "Err:509", "Err:510"),
)
_TRUTH = {"true": True, "false": False, "1": True, "0": False}
_BETTER = {"0": 1.0, "first": 1.0, "a": 1.0, "1": 0.0, "second": 0.0, "b": 0.0, "tie": 0.5}


@dataclass(frozen=True)
class Prompt:
    """One prompt of a data set. prompt_id: a hash of its text. where: its place in the data."""

    prompt: str
    category: str
    harmful: bool
    where: str = field(default="", compare=False)

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt)


@dataclass(frozen=True)
class Pair(Prompt):
    """Two answers.

    label: 1 where `chosen` is preferred over `rejected`, 0.5 where they are tied.
    """

    chosen: str = ""
    rejected: str = ""
    label: float = 1.0


class Dropped(Counter):
    """How many rows were left out, by reason.

    places: reason to the places of the first of them ('mine.jsonl, line 3').
    """

    MOST_PLACES = 1000

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, list[str]] = {}

    def leave_out(self, reason: str, where: str) -> None:
        """Count one row."""
        self[reason] += 1
        places = self.places.setdefault(reason, [])
        if len(places) < self.MOST_PLACES:
            places.append(where)


class _Unusable(Exception):
    """A row that the data can do without; the message continues 'mine.jsonl, line 3: '.

    kind: the same without this row's values.
    """

    def __init__(self, message: str, kind: str | None = None):
        super().__init__(message)
        self.kind = kind or message.split(", expected")[0].split(" (")[0]


def read_pairs(data: Rows, order: list[str] | None, dropped: Dropped) -> Iterator[Pair]:
    """The pairs of a data set, in its order.

    order: which of a row's categories counts, first come first; None: the first by name.

    dropped: counts the rows that were left out, by reason. Raises InputError.
    """
    return _usable(data, _Reader(data, order).pair, dropped)


def read_prompts(data: Rows, order: list[str] | None, dropped: Dropped) -> Iterator[Prompt]:
    """The prompts of a data set, repetitions included.

    A data set of pairs without a prompt column gives what its answers share.
    """
    return _usable(data, _Reader(data, order).alone, dropped)


def _usable(data: Rows, read: Callable[[dict, str], Any], dropped: Dropped) -> Iterator[Any]:
    prepare = recipes.prepare(data)
    rows = formats.read_rows(data, recipes.wanted_columns(data))
    title = f"reading {formats.name_of(data)}"
    for where, row in progress.over(rows, title, "row"):
        try:
            yield read(prepare(row), where)
        except _Unusable as reason:
            if data.bad_rows != "drop":
                raise InputError(f"{where}: {reason}") from reason
            dropped.leave_out(reason.kind, where)


class _Reader:
    """Reads rows of one data set by its `columns`."""

    def __init__(self, data: Rows, order: list[str] | None):
        self.columns, self.order = data.columns, order
        # a recipe reads its texts as its card says
        self.any_text = data.recipe is not None
        # whether the prompt is what the answers share; decided by the first row
        self.implicit: bool | None = None
        self.there: set[str] = set()  # the first row's columns
        plain = Columns()
        self.named = []
        for key in Columns.model_fields:
            if getattr(data.columns, key) not in (None, getattr(plain, key)):
                self.named.append(key)
        self.undecided = data.columns.first is not None or data.columns.second is not None

    def alone(self, row: dict, where: str) -> Prompt:
        self._look(row, where)
        if self.implicit and all(name in row for name in self._sides()):
            prompt, _, _ = self._texts(row, where)
        else:
            name = self.columns.prompt
            prompt = _encoded(self._turns(self._value(row, name, where), name), name)
        return Prompt(prompt, *self._facts(row), where=where)

    def pair(self, row: dict, where: str) -> Pair:
        self._look(row, where)
        prompt, first, second = self._texts(row, where)
        _refuse_same(first, second, self._sides())
        label = self._label(row)
        if label < 0.5:
            first, second = second, first
        return Pair(
            prompt,
            *self._facts(row),
            where=where,
            chosen=first,
            rejected=second,
            label=max(label, 1 - label),
        )

    def _look(self, row: dict, where: str) -> None:
        """Are the columns there that the parameters name?

        Raises InputError also where rows without a prompt are followed by one that has it: then
        what the answers share is not the prompt.
        """
        prompt = self.columns.prompt
        if self.implicit is None:
            self.implicit = prompt is None or prompt not in row
            self.there = set(row)
        if self.implicit and row.get(prompt) is not None:
            raise InputError(
                f"{where}: has a {prompt!r}, which the first row has not: give every row one, or"
                f" set columns.prompt to null where the answers start with it"
            )
        for key in self.named:
            for name in _listed(getattr(self.columns, key)):
                if name not in row:
                    raise InputError(
                        f"{where}: no {name!r}, which columns.{key} asks for (columns found:"
                        f" {_names(row)})"
                    )

    def _sides(self) -> tuple[str, str]:
        columns = self.columns
        if self.undecided:
            return columns.first or "first", columns.second or "second"
        return columns.chosen or "chosen", columns.rejected or "rejected"

    def _value(self, row: dict, name: str | None, where: str) -> Any:
        """A cell that must be there.

        A column that is missing altogether stops; an empty cell makes the row unusable.
        """
        value = row.get(name)
        if value is None:
            message = f"no {name or 'prompt'!r} (columns found: {_names(row)})"
            if name in row or name in self.there:
                raise _Unusable(message)
            raise InputError(f"{where}: {message}")
        return value

    def _texts(self, row: dict, where: str) -> tuple[str, str, str]:
        """Prompt and the two answers."""
        sides = self._sides()
        name = self.columns.prompt
        if self.implicit:
            one, other = [self._turns(self._value(row, side, where), side) for side in sides]
            return _shared(one, other, sides, name or "prompt", row)
        turns = self._turns(self._value(row, name, where), name)
        one, other = [self._turns(self._value(row, side, where), side) for side in sides]
        first, second = _answer(one, sides[0], turns), _answer(other, sides[1], turns)
        return _encoded(turns, name), first, second

    def _turns(self, value: Any, name: str | None) -> list[dialogues.Message]:
        """The turns of a cell, or one turn of nobody ('') for plain text."""
        if isinstance(value, str):
            value = _messages_in(value, name)
        turns = _turns(value, name)
        if not self.any_text and turns[0]["role"] == "":
            _refuse_transcript(turns[0]["content"], name)
        return turns

    def _label(self, row: dict) -> float:
        """The probability that the first answer is preferred: 1, 0 or 0.5.

        The first of the columns that says so counts.
        """
        columns = self.columns
        if columns.rating_first or columns.rating_second:
            names = (columns.rating_first, columns.rating_second)
            one, other = [_number(row.get(name), name) for name in names]
            return 0.5 if one == other else float(one > other)
        if columns.preference:
            lean = _number(row.get(columns.preference), columns.preference)
            return 0.5 if lean == 0 else float(lean < 0)
        if columns.better:
            return _better(row.get(columns.better), columns.better)
        value = row.get(columns.label) if columns.label else None
        if not _absent(value):
            return _probability(value, columns.label)
        if self.undecided:
            raise _Unusable(
                "nothing says which answer is preferred, expected a label, better, preference or"
                " two ratings among the columns"
            )
        return 1.0

    def _facts(self, row: dict) -> tuple[str, bool]:
        """Category and harmful of a row, with their defaults where a row has none."""
        harmful = row.get(self.columns.harmful)
        if _absent(harmful):
            harmful = False
        if isinstance(harmful, Cell):
            word, number = harmful.strip().lower(), harmful.number
            harmful = _TRUTH.get(word, harmful if number is None else number)
        # a bool is a number too: True and False are 1 and 0
        if not isinstance(harmful, (int, float)) or harmful not in (0, 1):
            raise _Unusable(
                f"{self.columns.harmful!r} is {_shown(harmful)}, expected true or false",
                f"{self.columns.harmful!r} is neither true nor false",
            )
        return self._category(row), bool(harmful)

    def _category(self, row: dict) -> str:
        names = _listed(self.columns.category)
        values = [row.get(name) for name in names]
        if any(isinstance(value, (dict, list)) for value in values):
            return self._of_several(list(chain.from_iterable(map(_flags, values))))
        there = [str(value) for value in values if not _absent(value)]
        return _whole(" / ".join(there) or "all", "category")

    def _of_several(self, names: list[str]) -> str:
        """The one category that counts where a row has several."""
        wanted = [name for name in self.order or [] if name in names]
        return _whole(wanted[0] if wanted else min(names, default="none"), "category")


def _better(value: Any, name: str) -> float:
    """The label that a word for the better answer stands for."""
    number = Cell(value).number if isinstance(value, str) else value
    # 1.0 is how pandas writes a whole number where the column has gaps
    side = int(number) if isinstance(number, (bool, float)) and number in (0, 1) else value
    word = str(side).strip().lower()
    if word not in _BETTER:
        raise _Unusable(
            f"{name!r} is {_shown(value)}, expected 0, 1, first, second, a, b or tie",
            f"{name!r} names neither answer",
        )
    return _BETTER[word]


def _probability(value: Any, name: str | None) -> float:
    """A label that is given as a number."""
    label = _number(value, name)
    if label not in (0, 0.5, 1):
        raise _Unusable(
            f"{name!r} is {_shown(value)}, expected 1, 0 or 0.5",
            f"{name!r} is none of 1, 0 and 0.5",
        )
    return label


def _listed(names: str | list[str] | None) -> list[str]:
    if names is None:
        return []
    return names if isinstance(names, list) else [names]


def _flags(value: Any) -> list[str]:
    """The names that a dict of flags sets, or that a list holds."""
    if isinstance(value, dict):
        return [str(name) for name, flag in value.items() if flag]
    if isinstance(value, list):
        return [str(name) for name in value]
    return [] if _absent(value) else [str(value)]


def _names(row: dict) -> str:
    """A row's columns as a message can hold them."""
    names = [str(name)[:60] for name in list(row)[:30]]
    return ", ".join(names) + (f" and {len(row) - 30} more" if len(row) > 30 else "")


def _shown(value: Any) -> str:
    """A value as a message can hold it."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _absent(value: Any) -> bool:
    if isinstance(value, float):
        return math.isnan(value)
    return value is None or (isinstance(value, str) and value == "")


def _number(value: Any, name: str | None) -> float:
    if isinstance(value, Cell) and value.number is not None:
        value = value.number
    try:
        number = float(value) if isinstance(value, (int, float)) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise _Unusable(
            f"{name!r} is {_shown(value)}, expected a finite number",
            f"{name!r} is no finite number",
        )
    return number


def _turns(value: Any, name: str | None) -> list[dialogues.Message]:
    """User and assistant turns of a message list, or one turn of nobody ('') for plain text.

    Contents are checked. System messages are left out: they stand beside the dialogue, and the
    run's own is model.system_prompt.
    """
    if not isinstance(value, list) or not all(map(dialogues.is_message, value)):
        return [{"role": "", "content": _text(value, name)}]
    turns = []
    for message in value:
        if message["role"] != "system":
            turns.append({"role": message["role"], "content": _text(message["content"], name)})
    if not turns:
        raise _Unusable(f"{name!r} is a dialogue of 0 turns, expected at least one")

    for role in _roles(turns):
        # a role that is a list or an object has no hash to look it up by
        if not isinstance(role, str) or role not in dialogues.NAMES:
            raise _Unusable(
                f"{name!r} has a message of {_shown(role)}, expected user, assistant or system",
                f"{name!r} has a message of another role",
            )
    return turns


def _messages_in(text: str, name: str | None) -> Any:
    """The messages that a text holds in JSON or Python notation, or else the text."""
    try:
        messages = dialogues.from_notation(text)
    except ValueError as error:
        raise _Unusable(
            f"{name!r} is text that starts like messages and is {error}: was it cut off? (it ends"
            f" in {_shown(text[-20:])})",
            f"{name!r} is text that starts like messages and cannot be read as such",
        ) from error
    return text if messages is None else messages


def _refuse_transcript(text: str, name: str | None) -> None:
    """Raise _Unusable for a dialogue that was written out as one text."""
    mark = dialogues.transcript_mark(text)
    if mark is None:
        return
    advice = "recipe hh-rlhf reads such pairs" if mark == "Human:" else "no recipe reads it"
    raise _Unusable(
        f"{name!r} is a transcript (it marks its speakers with {mark!r}): {advice}; or write its"
        " turns as messages (role, content)",
        f"{name!r} is a transcript ({mark!r}; {advice})",
    )


def _refuse_same(one: str, other: str, sides: tuple[str, str]) -> None:
    """Raise _Unusable for two answers between which nobody can choose."""
    if one == other:
        raise _Unusable("{} and {} are the same text".format(*sides))
    if canonical(one) == canonical(other):
        raise _Unusable("{} and {} differ in white space or Unicode form alone".format(*sides))


def _encoded(turns: list[dialogues.Message], name: str | None) -> str:
    """A prompt's turns as one string; they must take turns and end with the user's."""
    if len(turns) == 1 and turns[0]["role"] in ("", "user"):
        return dialogues.encode([{"role": "user", "content": turns[0]["content"]}])
    roles = _roles(turns)
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise _Unusable(
            f"{name or 'prompt'!r} is a dialogue of {len(turns)} turns, expected user and assistant"
            " in turn, the user last",
            f"{name or 'prompt'!r} is a dialogue whose speakers do not take turns",
        )
    return dialogues.encode(turns)


def _answer(turns: list[dialogues.Message], name: str, before: list[dialogues.Message]) -> str:
    """The answer's text. A message list may repeat the prompt, the turns `before` it, or its last
    one."""
    *earlier, last = turns
    asked = _contents(before)
    repeated = _contents(earlier) in ([], asked, asked[-1:])
    if repeated and _roles(earlier)[-1:] == ["assistant"]:
        repeated = False
    if not repeated and _roles(turns) == ["user", "assistant"]:
        raise _Unusable(
            f"{name!r} answers another question than the prompt: its user turn is"
            f" {_shown(earlier[0]['content'])}",
            f"{name!r} answers another question than the prompt",
        )
    if not repeated or last["role"] not in ("", "assistant"):
        raise _Unusable(
            f"{name!r} is a dialogue of {len(turns)} turns, expected one answer, or the prompt and"
            " one answer",
            f"{name!r} is a dialogue that is not the prompt and one answer",
        )
    return last["content"]


def _roles(turns: list[dialogues.Message]) -> list[str]:
    return [turn["role"] for turn in turns]


def _contents(turns: list[dialogues.Message]) -> list[str]:
    return [canonical(turn["content"]) for turn in turns]


def _shared(
    first: list[dialogues.Message],
    second: list[dialogues.Message],
    sides: tuple[str, str],
    name: str,
    row: dict,
) -> tuple[str, str, str]:
    """Prompt and answers of a pair whose prompt is what its two sides share at their start."""
    if first[0]["role"] == "" or second[0]["role"] == "":
        return _shared_text(first[0]["content"], second[0]["content"], sides, name, row)

    same = 0
    for a, b in zip(first, second, strict=False):  # one dialogue may be longer
        if a != b:
            break
        same += 1
    if same == len(first) == len(second):
        raise _Unusable("{} and {} are the same text".format(*sides))
    alone = _roles(first[same:]) == _roles(second[same:]) == ["assistant"]
    if not same or not alone:
        raise _Unusable("{} and {} do not differ in their last turn alone".format(*sides))
    return _encoded(first[:same], name), first[-1]["content"], second[-1]["content"]


def _shared_text(
    one: str, other: str, sides: tuple[str, str], name: str, row: dict
) -> tuple[str, str, str]:
    """The same of plain text: the longest common start that ends between two words."""
    if one == other:
        raise _Unusable("{} and {} are the same text".format(*sides))
    shared = os.path.commonprefix([one, other])
    cut = len(shared)
    while cut and not shared[cut - 1].isspace():
        cut -= 1
    prompt, first, second = one[:cut].strip(), one[cut:].strip(), other[cut:].strip()
    if not prompt:
        raise _Unusable(
            f"no {name!r} (columns found: {_names(row)}), and the two answers share no start that"
            " could be it"
        )
    for text, side in ((first, sides[0]), (second, sides[1])):
        if not text:
            raise _Unusable(f"{side!r} is empty after the prompt that both answers share")
    return dialogues.encode([{"role": "user", "content": prompt}]), first, second


def _text(value: Any, name: str | None) -> str:
    """A non-empty string."""
    if not isinstance(value, str):
        raise _Unusable(f"{name!r} is {type(value).__name__}, expected text")
    if not canonical(value):
        raise _Unusable(f"{name!r} is empty")
    if value.strip() in _SPREADSHEET_FAULTS and isinstance(value, Cell):
        raise _Unusable(
            f"{name!r} is {value.strip()}, which a spreadsheet writes where it took a text for a"
            " formula or a number: import the column as text there, and save it again",
            f"{name!r} is what a spreadsheet made of a formula or a number",
        )
    return _whole(str(value), name)


def _whole(text: str, name: str | None) -> str:
    """A text that no table or tokenizer chokes on."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _Unusable(f"{name!r} holds half a character (an unpaired surrogate)") from error
    return text
