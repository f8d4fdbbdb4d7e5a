"""Chat templates for others: what this library writes around a prompt, as a template alone.

A run's system prompt, its plain text where a model has no template, and where a reward reads an
answer are ours; a folder that leaves must say all three through its tokenizer.
"""

from __future__ import annotations

import copy
import json
import os
from typing import TYPE_CHECKING

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import templates as in_the_run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shfcas_lib.models.backbone import Backbone

# `Writer.text` and `dialogues.plain`
_PLAIN = """\
{{ start }}{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + '\\n\\n' }}\
{% set messages = messages[1:] %}{% endif %}\
{% if messages | length == 1 %}{{ messages[0]['content'] + '\\n\\n' }}\
{% else %}{% for turn in messages %}\
{{ ('User: ' if turn['role'] == 'user' else 'Assistant: ') + turn['content'] + '\\n\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}{% endif %}"""
_SYSTEM = """\
{% if messages[0]['role'] != 'system' %}\
{% set messages = [{'role': 'system', 'content': SYSTEM}] + messages %}{% endif %}{{ '' }}"""
# a chat that ends with an answer is the prompt, the answer and what closes it, nothing after it
_ANSWER = """\
{% set answer = none %}{% if messages[-1]['role'] == 'assistant' and not add_generation_prompt %}\
{% set answer = messages[-1]['content'] %}{% set messages = messages[:-1] %}\
{% set add_generation_prompt = true %}{% endif %}{{ '' }}"""
# families call the same switch by two names
_THINKING = "{% set enable_thinking = THINKS %}{% set thinking = THINKS %}{{ '' }}"
# a prompt that is what the template writes before an answer, see `Form.cut`
_CUT = """\
{% set asked = add_generation_prompt | default(false) %}{% if asked %}\
{% set messages = messages + [{'role': 'assistant', 'content': MARK}] %}\
{% set add_generation_prompt = false %}{% endif %}{% set whole %}TEMPLATE{% endset %}\
{{ whole.rpartition(MARK)[0] if asked else whole }}"""
_MARK = "the answer stands here"


def for_policy(backbone: Backbone) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy: the run's system prompt stands where a chat brings none, and it
    thinks or does not as in the run. A template that tells the date tells today's."""
    return _with(backbone, _prompt_template(backbone, backbone.tokenizer.chat_template))


def for_reward(backbone: Backbone, classifier: bool) -> PreTrainedTokenizerBase:
    """The tokenizer of a reward. A chat that ends with an answer is written as a reward reads it:
    the prompt as it is sampled from, the run's date in it, the answer, and the token that closes
    it.

    classifier: the reward is a standard classifier, which reads the last token that is no padding.
    Where the token that closes an answer is the pad token it is left out for it, so that servers
    which read the last token of all read the same one.
    """
    closes, tokenizer = backbone.stop_ids[0], backbone.tokenizer
    unseen = classifier and closes == tokenizer.pad_token_id
    end = "" if unseen else str(tokenizer.convert_ids_to_tokens(closes))
    after = "{{ '' if answer is none else answer + END }}".replace("END", _quoted(end))
    given = tokenizer.chat_template
    dated = None if given is None else in_the_run.dated(str(given), backbone.writer.style.day)
    written = _with(backbone, _ANSWER + _prompt_template(backbone, dated) + after)
    written.padding_side = "right"  # GPT-2's classifier counts positions from the left
    return written


def _quoted(text: str) -> str:
    """A text as jinja writes it."""
    return json.dumps(text, ensure_ascii=False)


def _prompt_template(backbone: Backbone, own: str | None) -> str:
    """The template of a prompt as the run writes it. own: the model's, None where it has none."""
    before = ""
    if backbone.system_prompt:
        before = _SYSTEM.replace("SYSTEM", _quoted(backbone.system_prompt))
    if own is None:
        return before + _plain(backbone)
    before += _THINKING.replace("THINKS", str(backbone.writer.style.thinking).lower())
    # jinja drops one newline at the end of a template; here something follows
    written = own.removesuffix("\n")
    if backbone.writer.form.cut:
        written = _CUT.replace("MARK", _quoted(_MARK)).replace("TEMPLATE", written)
    return before + written


def _plain(backbone: Backbone) -> str:
    """The template of a model that has none. Tokenizers that begin a text with a token do not
    begin a chat with it."""
    tokenizer = backbone.tokenizer
    first = tokenizer("a")["input_ids"][0]
    begins = first == tokenizer.bos_token_id
    return _PLAIN.replace("start", _quoted(str(tokenizer.bos_token) if begins else ""), 1)


def _with(backbone: Backbone, template: str) -> PreTrainedTokenizerBase:
    tokenizer = copy.deepcopy(backbone.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


_PROMPTS = ("a", "Who ran?", "1.", "x = {}\n", "the rain in Spain ")


def answer_start(backbone: Backbone) -> list[int]:
    """The token ids that stand before every completion and cannot stand inside one: what all
    prompts end with, if a control token is among it; else empty."""
    chat = [("user", "hi"), ("assistant", "yes?"), ("user", "no")]
    turns = [{"role": role, "content": content} for role, content in chat]
    prompts = [*_PROMPTS, dialogues.encode(turns)]
    try:
        ends = [backbone.prompt_ids(prompt)[::-1] for prompt in prompts]
    except Exception:  # a template that takes one turn alone raises an error of jinja's
        ends = [backbone.prompt_ids(prompt)[::-1] for prompt in _PROMPTS]
    shared = os.path.commonprefix(ends)[::-1]
    marks = set(backbone.writer.guard.control)
    return list(shared) if set(shared) & marks else []


def check_whole(merged: bool, dtype: str | None) -> None:
    """Raise InputError where a type is asked for of weights that are not written."""
    if dtype is not None and not merged:
        raise InputError("--dtype is the type of whole weights: expected --merged beside it")


def check_standard(backbone: Backbone) -> None:
    """Raise InputError for a model whose code comes with it: what leaves here needs transformers
    alone."""
    if getattr(backbone.causal.config, "auto_map", None):
        raise InputError(
            f"model.source {backbone.model.source!r} brings program code of its own, which cannot"
            " leave with a reward: expected an architecture that transformers has"
        )
