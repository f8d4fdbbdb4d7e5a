"""One string of tokens: how a prompt and its completion become token ids, whoever asks.

    prompt, completion = backbone.writer.both(prompt, completion)     # two lists of ids

Pools, the probe's features, LoRA rewards and every training get their ids here; TRL is given ids
and tokenises nothing. A completion that a model wrote is the very tokens that it wrote: where it
was cut off it has no end. A completion given as text is tokenised by itself, after whatever the
chat template writes before an answer, and closed by the token that ends an answer. Nothing is
ever cut: what does not fit a model is refused (`refusal`).

A published reward model is shown the whole chat (`Shown`).
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import templates
from shfcas_lib.models.templates import Form, Guard, Refusal, Style

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedTokenizerBase


class Sequence(NamedTuple):
    """Token ids of a prompt and of its completion."""

    prompt: list[int]
    completion: list[int]

    @property
    def ids(self) -> list[int]:
        """The tokens that a model reads, one after the other."""
        return self.prompt + self.completion

    @property
    def mask(self) -> list[int]:
        """1 for every token of the completion, 0 for every token of the prompt."""
        return [0] * len(self.prompt) + [1] * len(self.completion)


@dataclass(frozen=True)
class Writer:
    """How a language model is given a prompt and a completion.

    end: id of the token that closes a completion given as text.
    """

    tokenizer: PreTrainedTokenizerBase
    style: Style
    system_prompt: str
    end: int

    def both(self, prompt: str, completion: str | Iterable[int]) -> Sequence:
        """Ids of a prompt and its completion: a text that is given, or tokens that a model wrote.

        Raises InputError for a text that cannot follow the prompt.
        """
        return Sequence(self.prompt(prompt), self.answer(completion))

    def rows(self, table: pd.DataFrame) -> list[Sequence]:
        """`both` for every row of a table.

        table: columns prompt, and tokens (ids that a model wrote) or completion (text).
        """
        asked = {prompt: self.prompt(prompt) for prompt in table["prompt"].unique()}
        answers = map(self.answer, table["tokens" if "tokens" in table else "completion"])
        pairs = zip(table["prompt"], answers, strict=True)
        return [Sequence(asked[prompt], answer) for prompt, answer in pairs]

    def answer(self, completion: str | Iterable[int]) -> list[int]:
        """Ids of a completion: those that a model wrote as they are, a text with its end."""
        if isinstance(completion, str):
            return self.completion(completion)
        return [int(token) for token in completion]

    def prompt(self, prompt: str) -> list[int]:
        """Ids of a prompt, up to where the completion begins."""
        text = self.text(prompt)
        if self.tokenizer.chat_template is not None:
            return self._encode(text)
        # a token that the tokenizer puts behind every text would end the prompt
        return [*frame(self.tokenizer)[0], *self._encode(text)]

    def text(self, prompt: str) -> str:
        """What the model reads of a prompt, as text; without a start that the tokenizer adds."""
        if self.tokenizer.chat_template is not None:
            return self.form.prompt(self.tokenizer, self.messages(prompt), self.style)
        parts = [self.system_prompt] if self.system_prompt else []
        text = "\n\n".join([*parts, dialogues.plain(prompt), ""])
        several = len(dialogues.messages(prompt)) > 1
        return text + "Assistant: " if several else text

    def messages(self, prompt: str) -> list[dialogues.Message]:
        """The chat that a prompt stands for: the system message, if one is set, then its turns."""
        turns = dialogues.messages(prompt)
        if self.system_prompt:
            turns = [{"role": "system", "content": self.system_prompt}, *turns]
        return turns

    def completion(self, text: str) -> list[int]:
        """Ids of a completion given as text, with its end.

        A control token that the text spells is text. Raises InputError for a text that cannot
        follow the prompt.
        """
        refusal = self.unfit(text)
        if refusal:
            raise InputError(f"completion {text[:60]!r} {refusal.told}")
        return [*self._answer(text), self.end]

    def _answer(self, text: str) -> list[int]:
        """Ids of an answer in which no token of the text marks a turn."""
        lead, text = self.form.answer(text)
        ids = self._encode_as_text(text)
        if not self._marks.isdisjoint(ids):
            # marks that are no control tokens are made of the text all the same
            ids = self._encode_as_text(self.guard.broken(text))
        return [*self._encode(lead), *ids] if lead else ids

    def unfit(self, text: str) -> Refusal | None:
        """What stands against a completion given as text, whatever its prompt; None: nothing."""
        template = str(self.tokenizer.chat_template or "")
        thought = templates.THOUGHT.search(text) if templates.THOUGHT.search(template) else None
        if thought and not self.style.thinking:
            return Refusal.spelling(
                f"holds a block of thinking ({thought[0]!r}), which model.thinking false leaves out"
            )
        if not self.form.given and not (thought and self.form.opened):
            return Refusal.spelling(
                "brings no thinking along, where the chat template under model.thinking true"
                " writes the start of it: set model.thinking to false"
            )
        return None

    def refusal(self, prompt: str, room: int, context: int) -> Refusal | None:
        """What stands against a prompt whose completion has `room` tokens; None: nothing.

        It spells what only the template may write, or is longer than the context of the model.
        """
        spelt = self.guard.spelt(dialogues.messages(prompt))
        if spelt:
            return Refusal.spelling(f"holds the model's {spelt}")
        length = len(self.prompt(prompt))
        if length + room <= context:
            return None
        limit = f"with max_new_tokens {room} that is more than the model's context of {context}"
        return Refusal.too_long(length, limit)

    def answer_refusal(self, prompt: str, completion: str, context: int) -> Refusal | None:
        """What stands against an answer that is given to a prompt; None where nothing does."""
        unfit = self.unfit(completion)
        if unfit:
            return unfit
        length = len(self.both(prompt, completion).ids)
        if length <= context:
            return None
        limit = f"with its prompt that is more than the model's context of {context}"
        return Refusal.too_long(length, limit)

    @functools.cached_property
    def form(self) -> Form:
        """How the chat template writes an answer."""
        return Form.of(self.tokenizer, self.style)

    @functools.cached_property
    def guard(self) -> Guard:
        """Knows what only the template may write."""
        return Guard(self.tokenizer)

    @functools.cached_property
    def _marks(self) -> set[int]:
        return {self.end, *templates.written_tokens(self.tokenizer)}

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _encode_as_text(self, text: str) -> list[int]:
        options = {"add_special_tokens": False, "split_special_tokens": True}
        return self.tokenizer(text, **options)["input_ids"]


@dataclass(frozen=True)
class Shown:
    """How a published reward model is shown a prompt with its completion: as one whole text.

    form: that text, with {prompt} and {completion} in it; None: the chat template, or an empty
    line between the two where there is none.
    """

    tokenizer: PreTrainedTokenizerBase
    style: Style
    form: str | None

    def ids(self, prompt: str, completion: str) -> list[int]:
        """Token ids of a completion with its prompt.

        A control token that the completion spells is text. What the tokenizer puts around every
        text stands there once, whether or not `form` writes it too.
        """
        completion = self.guard.broken(completion)
        if self.form is None and self.tokenizer.chat_template is not None:
            answer = {"role": "assistant", "content": completion}
            chat = [*dialogues.messages(prompt), answer]
            text = templates.rendered(self.tokenizer, chat, self.style)
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        parts = {"prompt": dialogues.plain(prompt), "completion": completion}
        form = self.form or "{prompt}\n\n{completion}"
        text = re.sub(r"\{(prompt|completion)\}", lambda place: parts[place[1]], form)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        start, end = frame(self.tokenizer)
        start = [] if ids[: len(start)] == start else start
        end = [] if end and ids[-len(end) :] == end else end
        return [*start, *ids, *end]

    @functools.cached_property
    def guard(self) -> Guard:
        """Knows what only the template may write."""
        return Guard(self.tokenizer)


def frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that a tokenizer puts before and behind every text that is no chat."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    return [], []
