"""Chat templates: what a template writes around contents, and contents that would pass for it.

    Guard(tokenizer).spelt(messages)      # the first turn marker that the contents spell, or None

A template's own writing is seen by rendering a chat whose contents are known and looking at
what stands between them.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Any, NamedTuple

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents no template writes or changes, one a turn.
_CONTENTS = ("qzuserqz", "qzanswerqz", "qzagainqz")
_BRACKETED = re.compile(r"<<[^<>\n]+>>|<[^<>\n]+>|\[[^\[\]\n]+\]")


def settle(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Leave the tokenizer with the template that the run asks for.

    Raises InputError where there is none, or where it has no place for the run's system prompt.
    """
    if model.template == "plain":
        tokenizer.chat_template = None
    if tokenizer.chat_template is None:
        if model.template == "chat":
            raise InputError(
                f"model.template: found 'chat', but {model.source!r} has no chat template: use"
                " 'auto' or 'plain'"
            )
        return
    if not isinstance(tokenizer.chat_template, str):  # several by name
        tokenizer.chat_template = tokenizer.get_chat_template()
    if model.system_prompt:
        text = _rendered(tokenizer, [("system", _CONTENTS[2]), ("user", _CONTENTS[0])])
        if _CONTENTS[2] not in (text or ""):
            raise InputError(
                f"model.system_prompt: the chat template of {model.source!r} takes no system"
                " message: leave it empty"
            )


def chat_ids(
    tokenizer: PreTrainedTokenizerBase, chat: list[dialogues.Message], **options: Any
) -> list[int]:
    """Token ids of a chat as the template writes it. options: of apply_chat_template."""
    encoded: Any = tokenizer.apply_chat_template(chat, return_dict=True, **options)
    return encoded["input_ids"]


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the control token that the chat template writes after an answer, or None."""
    around = _around(tokenizer)
    if len(around) < 4:
        return None
    after = tokenizer(around[2].strip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in control(tokenizer) else None


class Refusal(NamedTuple):
    """Why a model cannot be shown a prompt, as what follows the word 'prompt'.

    kind: the same without this prompt's numbers.
    """

    told: str
    kind: str

    @classmethod
    def spelling(cls, text: str) -> Refusal:
        """The prompt holds what only a template may write, as `text` says."""
        return cls(text, text)

    @classmethod
    def too_long(cls, length: int, limit: str) -> Refusal:
        """The prompt has too many tokens. limit: how many are too many, in words."""
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
    return {*brackets, *(line for line in lines if len(line) > 2 and not line.isalnum())}


def _around(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the template writes before, between and after the contents of a chat.

    The chat is one of user, assistant, user; or of one user turn, where the template takes no
    more. Empty without a template.
    """
    if tokenizer.chat_template is None:
        return []
    roles = ("user", "assistant", "user")
    for turns in (3, 1):
        text = _rendered(tokenizer, list(zip(roles[:turns], _CONTENTS[:turns], strict=True)))
        if text and all(content in text for content in _CONTENTS[:turns]):
            return re.split("|".join(_CONTENTS), text)
    raise InputError(
        "the model's chat template cannot write a single user turn: set model.template to plain"
    )


def _rendered(tokenizer: PreTrainedTokenizerBase, turns: list[tuple[str, str]]) -> str | None:
    """The chat as the template writes it, or None where the template refuses."""
    from jinja2 import TemplateError

    chat = [{"role": role, "content": content} for role, content in turns]
    try:
        text: Any = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        return None
    return text
