"""Published reward models: sequence classifiers from a hub or a folder, as gold or as proxy.

    scores = score_published(completions, source, params.gold.model, params.model, "gold.kind")
    pool = scored(pool, params)             # its column `proxy`: the published proxy's scores

A model is loaded, scores everything in batches and is let go again, so that it never stands
beside a training. As proxy it is frozen: what labels teach is a correction on top of it, of the
kind that `reward.kind` names, and the labels say how far it is believed (module `refine`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from shfcas_lib.base import dialogues, progress
from shfcas_lib.base.alignment import need
from shfcas_lib.base.batches import by_length, pad_right
from shfcas_lib.base.errors import InputError
from shfcas_lib.models import architecture, loading, templates, tokens, vocabulary
from shfcas_lib.models.backbone import positions
from shfcas_lib.params.schema import Classifier, Model, Params

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Score heads of published models under names that transformers does not know (safe-rlhf's reward
# and cost models).
HEADS = {r"^score_head\.": "score."}
HEAD_NAMES = ("score", "classifier", "classification_head", "lm_head")
# What may lie beside a score head unused: the language model's output layer, and the running mean
# that safe-rlhf keeps in training.
_HEAD = rf"^(?:{'|'.join(HEAD_NAMES[:3])})\."
SPARE = r"^lm_head\.|^normalizer\."


def scored(pool: pd.DataFrame, params: Params) -> pd.DataFrame:
    """The pool with the proxy's scores as column `proxy`: a published model's, or the rewards that
    came with the completions (column `reward`).

    It stays as it is where the proxy is trained here.
    """
    if params.reward.proxy == "given":
        need(pool, ["reward"], "reward.proxy given: the pool")
        return pool.assign(proxy=pool["reward"])
    source = params.reward.published
    if not source:
        return pool
    scores = score_published(pool, source, params.reward.model, params.model, "reward.proxy")
    return pool.assign(proxy=scores)


def scorer(params: Params) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """`scored` for the pools of a run, as sampling takes it."""
    return functools.partial(scored, params=params)


def try_out(params: Params) -> None:
    """Load every published model that the run names and score one text with it.

    What is wrong with a model shows before hours of sampling.
    """
    text = pd.DataFrame(
        {"prompt_id": ["a trial"], "index": [0], "prompt": ["Hello"], "completion": ["Hello."]}
    )
    for key, source, read in _named(params):
        score_published(text, source, read, params.model, key)


def readers(params: Params) -> Iterator[_Reader]:
    """For each published model of the run, what can be asked of it (`refusal`, `answer_refusal`).

    Tokenizer and configuration are loaded, no weights.
    """
    for key, source, read in _named(params):
        tokenizer = loading.load_tokenizer(params.model, key, source, read.revision)
        skeleton = loading.load_skeleton(
            "AutoModelForSequenceClassification", params.model, key, source, read.revision
        )
        yield _Reader.of(tokenizer, skeleton, read, params.model, f"{key} {source!r}")


def _named(params: Params) -> list[tuple[str, str, Classifier]]:
    """The published models of a run: the key that names it, where it is, how it is read."""
    named = []
    for key, block in (("gold.kind", params.gold), ("reward.proxy", params.reward)):
        if block.published:
            named.append((key, block.published, block.model))
    return named


def score_published(
    table: pd.DataFrame, source: str, read: Classifier, backbone: Model, key: str
) -> np.ndarray:
    """Scores of completions by a published model, (rows,), higher is better.

    table:  columns prompt_id, index, prompt, completion
    key:    the parameter that named the model, for messages

    The model is gone afterwards. Sequences of like length share a batch. Raises InputError for
    a model that cannot be loaded, has no trained score head or several outputs and no choice
    among them, for a completion that does not fit it, and for a score that is not finite.
    """
    tokenizer, model, column = load_classifier(source, read, backbone, key)
    reader = _Reader.of(tokenizer, model, read, backbone, f"{key} {source!r}")
    sequences = _sequences(table, reader)
    scores = _scores(model, column, sequences, read.batch_size, f"scoring with {source}")
    # nothing that the caller does next has room for this model too
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


def _scores(
    model: Any, column: int, sequences: list[list[int]], batch_size: int, title: str
) -> np.ndarray:
    """One output of a classifier for every sequence, (sequences,).

    transformers' classifiers read the last token that is no pad token. Where the model has none,
    any id will do that the batch does not hold: the last token is read, as it is for one
    sequence alone.
    """
    import torch

    config = model.config.get_text_config()
    pad = config.pad_token_id
    scores = np.zeros(len(sequences))
    batches = by_length(sequences, batch_size)
    for rows in progress.over(batches, title, "batch"):
        batch = [sequences[k] for k in rows]
        if pad is None:
            config.pad_token_id = _unused(batch)
        ids, mask = pad_right(batch, config.pad_token_id, model.device)
        with torch.inference_mode():
            logits = model(input_ids=ids, attention_mask=mask).logits[:, column]
            scores[rows] = logits.cpu().double().numpy()
    return scores


def _unused(sequences: list[list[int]]) -> int:
    """The first token id that no sequence holds."""
    used = set(chain.from_iterable(sequences))
    return next(k for k in range(len(used) + 1) if k not in used)


def load_classifier(
    source: str, read: Classifier, backbone: Model, key: str
) -> tuple[PreTrainedTokenizerBase, Any, int]:
    """Tokenizer, model and the number of the output that is the reward. Raises InputError."""
    from transformers import AutoModelForSequenceClassification

    model, whence = as_loaded(source, read, backbone, key)
    config = loading.checked_config(model, whence)
    architecture.check_classifier(config, whence.name, model.trust_remote_code)
    options = loading.loading_options(model, config, whence, skip=list(HEAD_NAMES))
    classifier = loading.load_weights(
        AutoModelForSequenceClassification,
        whence,
        spare=SPARE,
        head=_HEAD,
        key_mapping=HEADS,
        **options,
    )
    tokenizer = loading.load_tokenizer(backbone, key, source, read.revision)
    rows = classifier.get_input_embeddings().weight.shape[0]
    vocabulary.check(tokenizer, rows, whence.name)
    return tokenizer, classifier, _column(classifier.config, read.label, key, source)


def as_loaded(
    source: str, read: Classifier, backbone: Model, key: str
) -> tuple[Model, loading.Source]:
    """How a published model is loaded: as the backbone, but for a quantisation of its own."""
    if read.quantisation is None:
        return backbone, loading.Source(key, source, read.revision, "model.quantisation")
    told = f"{key.partition('.')[0]}.model.quantisation"
    model = backbone.model_copy(update={"quantisation": read.quantisation})
    return model, loading.Source(key, source, read.revision, told)


def _column(config: Any, label: int | str | None, key: str, source: str) -> int:
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
    """How a published model is given a prompt and a completion.

    longest: tokens that it reads at most. name: what messages call it.
    """

    shown: tokens.Shown
    longest: int
    name: str

    @classmethod
    def of(
        cls, tokenizer: Any, model: Any, read: Classifier, backbone: Model, name: str
    ) -> _Reader:
        """The reader of a loaded model, or of its skeleton without weights."""
        style = templates.Style(day=templates.Style.of(backbone).day)
        return cls(tokens.Shown(tokenizer, style, read.text), positions(model), name)

    def refusal(self, prompt: str, room: int) -> templates.Refusal | None:
        """What stands against a prompt; None where nothing does.

        It spells a turn marker of this model, or leaves no room for an answer of `room` tokens.
        """
        spelt = self.shown.guard.spelt(dialogues.messages(prompt))
        if spelt:
            return templates.Refusal.spelling(f"holds the {spelt} of {self.name}")
        length = len(self.shown.ids(prompt, ""))
        if length + room <= self.longest:
            return None
        limit = f"with an answer of {room} tokens that is more than the {self.longest} that"
        return templates.Refusal.too_long(length, f"{limit} {self.name} reads")

    def answer_refusal(self, prompt: str, completion: str) -> templates.Refusal | None:
        """What stands against an answer that is given to a prompt; None where nothing does."""
        length = len(self.shown.ids(prompt, completion))
        if length <= self.longest:
            return None
        limit = f"with its prompt that is more than the {self.longest} that {self.name} reads"
        return templates.Refusal.too_long(length, limit)


def _sequences(table: pd.DataFrame, reader: _Reader) -> list[list[int]]:
    """Token ids of every completion with its prompt.

    Raises InputError for a prompt that cannot be read, and for a completion too long.
    """
    for prompt in table["prompt"].unique():
        refusal = reader.refusal(prompt, 0)
        if refusal:
            raise InputError(f"prompt {prompt[:60]!r} {refusal.told}")
    sequences = [reader.shown.ids(row.prompt, row.completion) for row in table.itertuples()]
    names = zip(table["prompt_id"], table["index"], strict=True)
    for (prompt_id, index), sequence in zip(names, sequences, strict=True):
        if len(sequence) > reader.longest:
            raise InputError(
                f"{reader.name} reads at most {reader.longest} tokens, but completion {index} of"
                f" prompt {prompt_id} has {len(sequence)} with its prompt: choose another model, or"
                " leave long prompts out"
            )
    return sequences
