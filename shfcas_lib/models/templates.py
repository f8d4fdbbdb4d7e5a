"""Chat templates: what a template writes around contents, and contents that would pass for it.

    form = Form.of(tokenizer, Style.of(model))   # where an answer begins, what stands around it
    Guard(tokenizer).spelt(messages)      # the first turn marker that the contents spell, or None

A template's own writing is seen by rendering a chat whose contents are known and looking at
what stands between them.
"""

from __future__ import annotations

import ast
import datetime as dt
import functools
import json
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents no template writes or changes, one a turn.
_CONTENTS = ("qzuserqz", "qzanswerqz", "qzagainqz")
_BRACKETED = re.compile(r"<<[^<>\n]+>>|<[^<>\n]+>|\[[^\[\]\n]+\]")
_CLOCK = "strftime_now"
# what closes a block of thinking, in the templates that know one
THOUGHT = re.compile(r"</think(?:ing)?>")
_THINKING = re.compile(r"</?think(?:ing)?>|<think(?:ing)?></think(?:ing)?>")


@dataclass(frozen=True)
class Style:
    """What a chat template is told beside the chat.

    thinking: may the model think before it answers? day: the day that a template reads off the
    clock.
    """

    thinking: bool = False
    day: dt.date = dt.date(2026, 1, 1)

    @classmethod
    def of(cls, model: Model) -> Style:
        """The style that parameters ask for; without `model.date` the day is today."""
        day = dt.date.fromisoformat(model.date) if model.date else dt.date.today()
        return cls(model.thinking, day)


def settle(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Leave the tokenizer with the template that the run asks for.

    Raises InputError where there is none, where it has no place for the run's system prompt,
    where it knows no thinking and the run asks for it, and where no completion could end.
    """
    if model.template == "plain":
        tokenizer.chat_template = None
    if tokenizer.chat_template is None:
        _check_plain(model)
        return
    if not isinstance(tokenizer.chat_template, str):  # several by name
        tokenizer.chat_template = tokenizer.get_chat_template()
    if model.system_prompt:
        text = _trial(tokenizer, [("system", _CONTENTS[2]), ("user", _CONTENTS[0])])
        if _CONTENTS[2] not in (text or ""):
            raise InputError(
                f"model.system_prompt: the chat template of {model.source!r} takes no system"
                " message: leave it empty"
            )
    if model.thinking and not _thinks(tokenizer):
        raise InputError(
            f"model.thinking: found true, but the chat template of {model.source!r} knows no"
            " thinking: leave it false"
        )
    end_of_answer(tokenizer)  # raises where no completion could end


def _check_plain(model: Model) -> None:
    if model.template == "chat":
        raise InputError(
            f"model.template: found 'chat', but {model.source!r} has no chat template: use"
            " 'auto' or 'plain'"
        )
    if model.thinking:
        raise InputError(
            f"model.thinking: found true, but {model.source!r} is used without a chat template:"
            " leave it false"
        )


def rendered(
    tokenizer: PreTrainedTokenizerBase,
    chat: list[dialogues.Message],
    style: Style,
    asking: bool = False,
) -> str:
    """A chat as the template writes it. asking: up to where the model's next answer begins."""
    text: Any = tokenizer.apply_chat_template(
        chat,
        chat_template=dated(str(tokenizer.chat_template), style.day),
        add_generation_prompt=asking,
        tokenize=False,
        # families call the same switch by two names
        enable_thinking=style.thinking,
        thinking=style.thinking,
    )
    return text


@functools.lru_cache(maxsize=64)
def dated(template: str, day: dt.date) -> str:
    """The template with a clock that stands at the start of a day.

    Templates read the clock by the function `strftime_now` alone, and transformers lets no other
    function in: it becomes a macro of the template itself, which knows all formats that stand in
    it.
    """
    if _CLOCK not in template:
        return template
    import jinja2

    midnight = dt.datetime.combine(day, dt.time())
    known = {}
    for _, kind, text in jinja2.Environment().lex(template):
        if kind == "string" and "%" in text:
            written = ast.literal_eval(text)
            known[written] = midnight.strftime(written)
    # what is written last keeps a line break at the template's start
    look_up = f"{json.dumps(known)}.get(format, {json.dumps(day.isoformat())})"
    macro = "{%- macro " + _CLOCK + "(format) -%}{{ " + look_up + " }}{%- endmacro %}{{ '' }}"
    return macro + template


@dataclass(frozen=True)
class Form:
    """How a chat template writes the answer at the end of a chat.

    cut         the prompt is what the template writes before an answer, not what it writes to
                ask for one: that leaves the model to think first, which it may not
    lead        what stands between the prompt and the text of an answer that is given
    stripped    does the template strip white space from the start, from the end of an answer?
    given       can an answer without thinking follow the prompt?
    opened      does the prompt end in the middle of a block of thinking?
    """

    cut: bool = False
    lead: str = ""
    stripped: tuple[bool, bool] = (False, False)
    given: bool = True
    opened: bool = False

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, style: Style) -> Form:
        """The form of a tokenizer's chat template. Without a template nothing is written."""
        if tokenizer.chat_template is None:
            return cls()
        user, answer = ("user", _CONTENTS[0]), ("assistant", f" {_CONTENTS[1]} ")
        asked = _trial(tokenizer, [user], style, asking=True) or ""
        before, answered, after = (_trial(tokenizer, [user, answer], style) or "").partition(
            _CONTENTS[1]
        )
        if not answered:  # such a template writes no answers
            return cls()
        stripped = not before.endswith(" "), not after.startswith(" ")
        before = before.removesuffix("" if stripped[0] else " ")
        follows = before.startswith(asked)
        lead = before[len(asked) :] if follows else ""
        if style.thinking:
            return cls(False, lead, stripped, follows, _opened(asked))
        cut = not follows or bool(lead.strip())
        return cls(cut, "" if cut else lead, stripped)

    def prompt(
        self, tokenizer: PreTrainedTokenizerBase, chat: list[dialogues.Message], style: Style
    ) -> str:
        """A chat that ends with the user's turn, up to where the completion begins."""
        if not self.cut:
            return rendered(tokenizer, chat, style, asking=True)
        answer = {"role": "assistant", "content": _CONTENTS[1]}
        return rendered(tokenizer, [*chat, answer], style).rpartition(_CONTENTS[1])[0]

    def answer(self, text: str) -> tuple[str, str]:
        """An answer that is given, as it follows the prompt, without its end: what the template
        writes first, and text.

        Where the model may think, a text that brings its thinking along is taken with it.
        """
        left, right = self.stripped
        text = text.lstrip() if left else text
        text = text.rstrip() if right else text
        if self.opened and THOUGHT.search(text):
            return "", re.sub(r"^\s*<think(?:ing)?>\n?", "", text)
        if not self.lead.strip():  # white space, which may share a token with the text
            return "", self.lead + text
        return ("", text) if THOUGHT.search(text) else (self.lead, text)


def _opened(text: str) -> bool:
    """Does a text end in the middle of a block of thinking?"""
    return re.search(r"<think(?:ing)?>\s*$", text) is not None


def _thinks(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does the template know thinking: does the switch change what it writes, or the answer?"""
    thoughtful, plain = (Form.of(tokenizer, Style(thinking)) for thinking in (True, False))
    return thoughtful != plain


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the token that the chat template writes after an answer, or None.

    Raises InputError where that is a mark of several ordinary tokens, which no completion ends
    with.
    """
    turns = [("user", _CONTENTS[0]), ("assistant", _CONTENTS[1])]
    written = "" if tokenizer.chat_template is None else _trial(tokenizer, turns) or ""
    after = written.partition(_CONTENTS[1])[2].strip()
    if after:
        token, length = _mark_at_start(tokenizer, after)
        if token is None:
            raise InputError(
                f"the model's chat template ends an answer with {after!r}, which its tokenizer"
                f" reads as {length} ordinary tokens, so that no completion would end: set"
                " model.template to plain, or make it one token of the tokenizer"
            )
        return token
    # some mark the end of an answer by the start of the next turn
    around = _around(tokenizer)
    return _mark_at_start(tokenizer, around[2].strip())[0] if len(around) == 4 else None


def _mark_at_start(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int | None, int]:
    """The one token that a text starts with, if it is an added token or a whole mark; and how many
    tokens the text has."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        return None, 0
    mark = _BRACKETED.match(text)
    whole = mark and str(tokenizer.decode(ids[:1])).strip() == mark[0]
    added = ids[0] in tokenizer.added_tokens_decoder or ids[0] in control(tokenizer)
    return (ids[0] if whole or added else None), len(ids)


def written_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Ids of the added tokens that a template writes around contents: they mark turns."""
    written: set[int] = set(control(tokenizer))
    for piece in _around(tokenizer):
        ids = tokenizer(piece, add_special_tokens=False)["input_ids"]
        written.update(set(ids) & set(tokenizer.added_tokens_decoder))
    return written


class Refusal(NamedTuple):
    """Why a model cannot be shown a prompt, or an answer, as what follows that word.

    kind: the same without this text's numbers.
    """

    told: str
    kind: str

    @classmethod
    def spelling(cls, text: str) -> Refusal:
        """The prompt holds what only a template may write, as `text` says."""
        return cls(text, text)

    @classmethod
    def too_long(cls, length: int, limit: str) -> Refusal:
        """There are too many tokens. limit: how many are too many, in words."""
        return cls(f"has {length} tokens; {limit}", f"is too long; {limit}")


class Guard:
    """Knows what of a model's input only its template may write.

    That is control tokens, and the text that marks turns.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.control = tokenizer, control(tokenizer)
        tokens = {token for token in self.control.values() if len(token) > 2}
        self.marks = sorted(tokens | _marks(_around(tokenizer)))

    def spelt(self, messages: list[dialogues.Message]) -> str | None:
        """The first mark that a content of the chat spells, with what it is.

        None where there is none. A mark also counts where the tokenizer makes it of the text.
        """
        # the speakers of a history are named in plain text
        named = self.tokenizer.chat_template is None and len(messages) > 1
        for message in messages:
            mark = self._mark(message["content"], named)
            if mark is not None:
                control = mark in self.control.values()
                return f"{'control token' if control else 'turn marker'} {mark!r}"
        return None

    def _mark(self, text: str, named: bool) -> str | None:
        """The first mark in one text. named: do speakers' names mark turns?"""
        normal = unicodedata.normalize("NFKC", text)
        marks = [mark for mark in self.marks if mark in text or mark in normal]
        if named:
            names = "|".join(dialogues.NAMES.values())
            marks += re.findall(rf"^(?:{names}):", text, re.MULTILINE)
        if marks:
            return marks[0]

        # whatever normalisation the tokenizer does, no control token may come out
        for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]:
            if token in self.control and token != self.tokenizer.unk_token_id:
                return self.control[token]
        return None

    def broken(self, text: str) -> str:
        """The text with a space after the first character of every mark it spells.

        For what a policy wrote, which cannot be refused: a tokenizer that parses control tokens
        then reads text, and the turn does not end where the policy would have it end.
        """
        for mark in self.marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text


def control(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The control tokens of a tokenizer: number to text."""
    added = tokenizer.added_tokens_decoder.items()
    special = {number: token.content for number, token in added if token.special}
    named = zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
    return special | dict(named)


def written_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids that stand around contents: those of the template, or of a plain text."""
    around = _around(tokenizer) or [""]
    return [number for piece in around for number in tokenizer(piece)["input_ids"]]


def _marks(around: list[str]) -> set[str]:
    """The turn markers in what a template writes.

    That is whatever stands in brackets, and the lines that are left, plain words apart.
    """
    if not around:
        return set()
    # before the first turn a template may write a whole system message
    written = [around[0].rpartition("\n")[2], *around[1:]]
    brackets: list[str] = []
    lines: list[str] = []
    for piece in written:
        brackets += _BRACKETED.findall(piece)
        lines += [line.strip() for line in _BRACKETED.sub("\n", piece).splitlines()]
    found = {*brackets, *(line for line in lines if len(line) > 2 and not line.isalnum())}
    # a block of thinking ends no turn
    return {mark for mark in found if not _THINKING.fullmatch(mark)}


def _around(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the template writes before, between and after the contents of a chat.

    The chat is one of user, assistant, user; or of one user turn, where the template takes no
    more. Empty without a template.
    """
    if tokenizer.chat_template is None:
        return []
    roles = ("user", "assistant", "user")
    for turns in (3, 1):
        chat = list(zip(roles[:turns], _CONTENTS[:turns], strict=True))
        text = _trial(tokenizer, chat, asking=True)
        if text and all(content in text for content in _CONTENTS[:turns]):
            return re.split("|".join(_CONTENTS), text)
    raise InputError(
        "the model's chat template cannot write a single user turn: set model.template to plain"
    )


def _trial(
    tokenizer: PreTrainedTokenizerBase,
    turns: list[tuple[str, str]],
    style: Style = Style(),
    asking: bool = False,
) -> str | None:
    """The chat as the template writes it, or None where the template refuses."""
    from jinja2 import TemplateError

    chat = [{"role": role, "content": content} for role, content in turns]
    try:
        return rendered(tokenizer, chat, style, asking)
    except TemplateError:
        return None
