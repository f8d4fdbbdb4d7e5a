"""Published reward models: sequence classifiers from a hub or a folder, as gold or as proxy.

    scores = score(completions, params.gold.published, params.gold.model, params.model, "gold.kind")
    pool = scored(pool, params)             # a pool with the published proxy's scores in its column `proxy`

A model is loaded, scores everything in batches and is let go again, so that it never stands
beside a training. As proxy it is frozen: what labels teach is a correction on top of it, of the
kind that `reward.kind` names. With r the proxy's reward in units of its spread, the correction c
is fitted by maximum a posteriori Bradley-Terry on the labels alone with r as offset,

    P(i beats j) = sigmoid(r_i - r_j + c_i - c_j),      refined reward r + c,

so that the refined reward is the proxy where labels say nothing. The weight of r stays 1: labels
are asked for where proxy and policy conflict, and a weight learnt there would condemn the proxy
everywhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib.base import dialogues
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import loading, templates
from shfcas_lib.params.schema import Classifier, Gold, Model, Params, Reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Score heads of published models under names that transformers does not know (safe-rlhf's reward
# and cost models).
_HEADS = {r"^score_head\.": "score."}
_HEAD_NAMES = ("score", "classifier", "classification_head", "lm_head")


def scored(pool: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The pool with the published proxy's scores as column `proxy`; as it is where the proxy is
    trained here."""
    if not params.reward.published:
        return pool
    return pool.assign(
        proxy=score_published(
            pool, params.reward.published, params.reward.model, params.model, "reward.proxy"
        )
    )


def scorer(params: Params) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """`scored` for the pools of a run, as sampling takes it."""
    return functools.partial(scored, params=params)


def try_out(params: Params) -> None:
    """Load every published model that the run names and score one text with it: what is wrong
    with a model shows before hours of sampling."""
    text = pd.DataFrame(
        {"prompt_id": ["a trial"], "index": [0], "prompt": ["Hello"], "completion": ["Hello."]}
    )
    for key, block in _named(params):
        score_published(text, block.published, block.model, params.model, key)


def readers(params: Params) -> Iterator[Callable[[str, int], templates.Refusal | None]]:
    """For each published model that the run names: why it cannot be shown a prompt with an answer
    of so many tokens. Tokenizer and configuration are loaded, no weights."""
    for key, block in _named(params):
        asked = (params.model, key, block.published, block.model.revision)
        yield _Reader(
            loading.load_tokenizer(*asked),
            loading.load_config(*asked),
            block.model,
            f"{key} {block.published!r}",
        ).refusal


def _named(params: Params) -> list[tuple[str, Gold | Reward]]:
    """The blocks that name a published model, each with the key that does."""
    return [
        (key, block)
        for key, block in (("gold.kind", params.gold), ("reward.proxy", params.reward))
        if block.published
    ]


def score_published(
    table: pd.DataFrame, source: str, read: Classifier, backbone: Model, key: str
) -> np.ndarray:
    """Scores of completions by a published model, (rows,), higher is better; the model is gone
    afterwards.

    table: columns prompt_id, index, prompt, completion. key: the parameter that named the model,
    for messages. Sequences of like length share a batch. Raises InputError for a model that
    cannot be loaded, has no trained score head or several outputs and no choice among them, for a
    completion that does not fit it, and for a score that is not finite."""
    import torch
    from tqdm import tqdm

    tokenizer, model, column = load_classifier(source, read, backbone, key)
    sequences = _sequences(table, _Reader(tokenizer, model.config, read, f"{key} {source!r}"))
    pad = model.config.get_text_config().pad_token_id
    order = sorted(range(len(sequences)), key=lambda k: (len(sequences[k]), k))
    scores = np.zeros(len(sequences))
    for start in tqdm(
        range(0, len(order), read.batch_size),
        desc=f"scoring with {source}",
        unit="batch",
        mininterval=1,
    ):
        rows = order[start : start + read.batch_size]
        tokens, mask = _padded([sequences[k] for k in rows], pad, model)
        with torch.inference_mode():
            scores[rows] = (
                model(input_ids=tokens, attention_mask=mask)
                .logits[:, column]
                .double()
                .cpu()
                .numpy()
            )
    del model
    loading.free_memory()
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        row = table.iloc[bad[0]]
        raise InputError(
            f"{key} {source!r} scores completion {row['index']} of prompt {row['prompt_id']}"
            f" {scores[bad[0]]}: its output is not finite"
        )
    return -scores if read.cost else scores


def load_classifier(
    source: str, read: Classifier, backbone: Model, key: str
) -> tuple[PreTrainedTokenizerBase, object, int]:
    """Tokenizer, model and the number of the output that is the reward. Raises InputError."""
    from transformers import AutoModelForSequenceClassification

    tokenizer = loading.load_tokenizer(backbone, key, source, read.revision)
    told = loading.loading_options(backbone, key, source, skip=list(_HEAD_NAMES))
    model, report = loading.load_weights(
        AutoModelForSequenceClassification,
        key,
        source,
        revision=read.revision,
        key_mapping=_HEADS,
        **told,
    )
    fresh = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if fresh:
        raise InputError(
            f"{key} {source!r} has no trained score head ({fresh[0]} is not among its weights):"
            " expected a reward model, a sequence classifier"
        )
    return tokenizer, model, _column(model.config, read.label, key, source)


def _column(config, label: int | str | None, key: str, source: str) -> int:
    names = [config.id2label.get(k, str(k)) for k in range(config.num_labels)]
    if label is None and len(names) == 1:
        return 0
    where = f"{key.partition('.')[0]}.model.label"
    if label is None:
        raise InputError(
            f"{where}: {source!r} has {len(names)} outputs ({', '.join(names)}): say which one is"
            " the reward"
        )
    number = names.index(label) if label in names else label
    if isinstance(number, str) or not 0 <= number < len(names):
        raise InputError(
            f"{where}: found {label!r}, expected one of {', '.join(names)}, or its number, 0 to"
            f" {len(names) - 1}"
        )
    return number


@dataclass(frozen=True)
class _Reader:
    """How a published model is shown a prompt and a completion. name: what messages call it."""

    tokenizer: PreTrainedTokenizerBase
    config: Any
    read: Classifier
    name: str

    @property
    def longest(self) -> int:
        """Tokens that the model reads at most."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) or 1 << 30

    def refusal(self, prompt: str, room: int) -> templates.Refusal | None:
        """What stands against a prompt: that it spells a turn marker of this model, or leaves no
        room for an answer of `room` tokens."""
        spelt = self._guard.spelt(dialogues.messages(prompt))
        if spelt:
            text = f"holds the {spelt} of {self.name}"
            return templates.Refusal(text, text)
        length = len(self.ids(prompt, ""))
        if length + room > self.longest:
            more = (
                f"with an answer of {room} tokens that is more than the {self.longest} that"
                f" {self.name} reads"
            )
            return templates.Refusal(f"has {length} tokens; {more}", f"is too long; {more}")
        return None

    def ids(self, prompt: str, completion: str) -> list[int]:
        """Token ids of a completion with its prompt. A control token that the completion spells
        is text."""
        completion = self._guard.broken(completion)
        if self.read.text is None and self.tokenizer.chat_template is not None:
            chat = [*dialogues.messages(prompt), {"role": "assistant", "content": completion}]
            return self.tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        part = {"prompt": dialogues.plain(prompt), "completion": completion}
        text = self.read.text or "{prompt}\n\n{completion}"
        return self.tokenizer(
            re.sub(r"\{(prompt|completion)\}", lambda place: part[place[1]], text)
        )["input_ids"]

    @functools.cached_property
    def _guard(self) -> templates.Guard:
        return templates.Guard(self.tokenizer)


def _sequences(table: pd.DataFrame, reader: _Reader) -> list[list[int]]:
    """Token ids of every completion with its prompt. Raises InputError for a prompt that cannot
    be read, and for a completion too long."""
    for prompt in table["prompt"].unique():
        refusal = reader.refusal(prompt, 0)
        if refusal:
            raise InputError(f"prompt {prompt[:60]!r} {refusal.told}")
    sequences = [reader.ids(row.prompt, row.completion) for row in table.itertuples()]
    for prompt_id, index, sequence in zip(table["prompt_id"], table["index"], sequences):
        if len(sequence) > reader.longest:
            raise InputError(
                f"{reader.name} reads at most {reader.longest} tokens, but completion {index} of"
                f" prompt {prompt_id} has {len(sequence)} with its prompt: choose another model, or"
                " leave long prompts out"
            )
    return sequences


def _padded(sequences: list[list[int]], pad: int | None, model):
    """Sequences padded on the right: ids and mask, each (batch, tokens). transformers'
    classifiers read the last token that is no pad token; where the model has none, any id will do
    that the batch does not hold, and the last token is read, as it is for one sequence alone."""
    import torch

    if pad is None:
        used = {token for sequence in sequences for token in sequence}
        pad = model.config.get_text_config().pad_token_id = next(
            k for k in range(len(used) + 1) if k not in used
        )
    width = max(map(len, sequences))
    tokens = torch.full((len(sequences), width), pad)
    mask = torch.zeros_like(tokens)
    for line, sequence in enumerate(sequences):
        tokens[line, : len(sequence)], mask[line, : len(sequence)] = torch.tensor(sequence), 1
    return tokens.to(model.device), mask.to(model.device)
