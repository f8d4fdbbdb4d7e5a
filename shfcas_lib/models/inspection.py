"""A model whose files lie on this machine, looked at before a weight is loaded.

    found = policy(params.model)                     # raises what loading would raise
    found = classifier(params.gold.published, ...)   # the same of a published reward model

Headers of the files against the model that config.json describes, tokenizer against embedding,
stored quantisation against the parameters: seconds, whatever the size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from shfcas_lib.models import (
    architecture,
    checkpoint,
    experts,
    loading,
    published,
    report,
    stored,
    vocabulary,
)
from shfcas_lib.models.experts import Experts
from shfcas_lib.params.schema import Classifier, Model
from shfcas_lib.storage import assets


@dataclass(frozen=True)
class Found:
    """What is known of a model. name: what messages call it."""

    name: str
    experts: Experts
    how: stored.Treatment


def policy(model: Model) -> Found | None:
    """Look at the backbone's files; None where they do not lie here. Raises InputError."""
    whence = loading.Source("model.source", model.source, model.revision)
    if not _at_hand(whence):
        return None
    config = loading.checked_config(model, whence)
    architecture.check_policy(config, whence.name, model.trust_remote_code)
    how = loading.treatment(model, config, whence)
    if not _own_code(config):
        kind = architecture.written_by(config) or architecture.causal_class(config)
        _check_weights(kind, how, whence)
    causal = architecture.skeleton(config, model.trust_remote_code)
    rows = vocabulary.rows_of(causal)
    vocabulary.check(loading.settled_tokenizer(model), rows, whence.name)
    found = experts.find(causal)
    if loading.quantises_experts(model, how):
        found = replace(found, quantised=bool(found.names))
    return Found(whence.name, found, how)


def classifier(source: str, read: Classifier, backbone: Model, key: str) -> None:
    """Look at a published reward model's files, where they lie here. Raises InputError."""
    from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as classifiers

    model, whence = published.as_loaded(source, read, backbone, key)
    if not _at_hand(whence):
        return
    config = loading.checked_config(model, whence)
    architecture.check_classifier(config, whence.name, model.trust_remote_code)
    how = loading.treatment(model, config, whence)
    if not _own_code(config):
        _check_weights(
            classifiers[type(config)], how, whence, published.SPARE, key_mapping=published.HEADS
        )


def _at_hand(whence: loading.Source) -> bool:
    """Do the files of a model that is not the library's own lie on this machine?"""
    if whence.source in assets.ASSETS:
        return False
    loading.located(whence.source, whence.key)  # a folder without config.json is refused
    return checkpoint.local_folder(whence.source, whence.revision) is not None


def _own_code(config: Any) -> bool:
    """Does the model bring program code? Its weights are judged when they are loaded."""
    return bool(getattr(config, "auto_map", None))


def _check_weights(
    kind: Any, how: stored.Treatment, whence: loading.Source, spare: str = "(?!)", **options: Any
) -> None:
    """Raise InputError where weights are missing, do not fit or would be left over.

    Those that are stored quantised are judged when they are loaded.
    """
    folder = checkpoint.local_folder(whence.source, whence.revision)
    if folder is None or how.method is not None:
        return
    tensors = checkpoint.read_tensors(folder, whence.name)
    said = loading.guarded(whence, lambda: report.foretold(kind, how.config, tensors, **options))
    report.check_report(said, whence.name, kind.__name__, spare)
