"""Chat templates: what a template writes around contents, and contents that would pass for it.

    Guard(tokenizer).spelt(messages)      # the first turn marker that the contents spell, or None

A template's own writing is seen by rendering a chat whose contents are known and looking at what
stands between them."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, NamedTuple

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.params.schema import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Contents no template writes or changes, one a turn.
_CONTENTS = ("qzuserqz", "qzanswerqz", "qzagainqz")
_BRACKETED = re.compile(r"<<[^<>\n]+>>|<[^<>\n]+>|\[[^\[\]\n]+\]")


def settle(tokenizer: PreTrainedTokenizerBase, model: Model) -> None:
    """Leave the tokenizer with the template that the run asks for. Raises InputError where there
    is none, or where it has no place for the run's system prompt."""
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
    if model.system_prompt and _CONTENTS[2] not in (
        _rendered(tokenizer, [("system", _CONTENTS[2]), ("user", _CONTENTS[0])]) or ""
    ):
        raise InputError(
            f"model.system_prompt: the chat template of {model.source!r} takes no system message:"
            " leave it empty"
        )


def end_of_answer(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the control token that the chat template writes right after an answer; None where it
    writes none."""
    around = _around(tokenizer)
    if len(around) < 4:
        return None
    after = tokenizer(around[2].strip(), add_special_tokens=False)["input_ids"]
    return after[0] if after and after[0] in _control(tokenizer) else None


class Refusal(NamedTuple):
    """Why a model cannot be shown a prompt, as what follows the word 'prompt'. kind: the same
    without this prompt's numbers."""

    told: str
    kind: str


class Guard:
    """Knows what of a model's input only its template may write: control tokens, and the text
    that marks turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.control = tokenizer, _control(tokenizer)
        self.marks = sorted(
            {token for token in self.control.values() if len(token) > 2}
            | _marks(_around(tokenizer))
        )

    def spelt(self, messages: list[dialogues.Message]) -> str | None:
        """The first mark that a content of the chat spells, or that the tokenizer makes of it,
        with what it is; None where there is none."""
        plain = self.tokenizer.chat_template is None
        for text in (message["content"] for message in messages):
            found = [
                mark
                for mark in self.marks
                if mark in text or mark in unicodedata.normalize("NFKC", text)
            ]
            if plain and len(messages) > 1:  # the speakers of a history are named in plain text
                found += re.findall(
                    rf"^(?:{'|'.join(dialogues.NAMES.values())}):", text, re.MULTILINE
                )
            if (
                not found
            ):  # whatever normalisation the tokenizer does, no control token may come out
                made = self.tokenizer(text, add_special_tokens=False)["input_ids"]
                found = [
                    self.control[k]
                    for k in made
                    if k in self.control and k != self.tokenizer.unk_token_id
                ]
            if found:
                return (
                    f"{'control token' if found[0] in self.control.values() else 'turn marker'}"
                    f" {found[0]!r}"
                )
        return None

    def broken(self, text: str) -> str:
        """The text with a space after the first character of every mark it spells. For what a
        policy wrote, which cannot be refused: a tokenizer that parses control tokens then reads
        text, and the turn does not end where the policy would have it end."""
        for mark in self.marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return text


def _control(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    added = {
        k: token.content for k, token in tokenizer.added_tokens_decoder.items() if token.special
    }
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens))


def _marks(around: list[str]) -> set[str]:
    """The turn markers in what a template writes: whatever stands in brackets, and the lines that
    are left, plain words apart."""
    if not around:
        return set()
    # before the first turn a template may write a whole system message
    written = [
        around[0].rpartition("\n")[2],
        *around[1:],
    ]
    brackets = {mark for piece in written for mark in _BRACKETED.findall(piece)}
    lines = {line.strip() for piece in written for line in _BRACKETED.sub("\n", piece).splitlines()}
    return brackets | {line for line in lines if len(line) > 2 and not line.isalnum()}


def _around(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What the template writes before, between and after the contents of a chat of user,
    assistant, user; or of one user turn, where it takes no more. Empty without a template."""
    if tokenizer.chat_template is None:
        return []
    roles = ("user", "assistant", "user")
    for turns in (3, 1):
        text = _rendered(tokenizer, list(zip(roles[:turns], _CONTENTS)))
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
        return tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        return None
