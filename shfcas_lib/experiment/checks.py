"""Everything about a run that can be wrong before a model is loaded.

    screen = PromptCheck(params)
    prompts = check(params, screen)

What cannot be read stops the run in one sentence, or is dropped and counted. The backbone, a
published gold and a published proxy each read every prompt, each through its own template; their
tokenizers alone are asked.
"""

from __future__ import annotations

import functools
from typing import Protocol

import numpy as np
import pandas as pd

from shfcas_lib import gold
from shfcas_lib.annotators.endpoint import judge_environment
from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.plugins import imported
from shfcas_lib.data.completions import own_completions
from shfcas_lib.data.preferences import as_completions, own_pairs
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.models import inspection, loading, published, stored
from shfcas_lib.models.experts import trained_adapters, unreached
from shfcas_lib.models.templates import Refusal
from shfcas_lib.params.schema import Attribute, Coverage, Mechanism, Params
from shfcas_lib.tasks.attributes import attribute
from shfcas_lib.training import trainer


class Reader(Protocol):
    """A model that reads prompts and answers: the backbone, a published gold or proxy."""

    def refusal(self, prompt: str, room: int) -> Refusal | None: ...

    def answer_refusal(self, prompt: str, completion: str) -> Refusal | None: ...


def check(params: Params, screen: PromptCheck | None = None) -> pd.DataFrame:
    """Load the prompts and check everything about a run that needs no model. Returns the prompts.
    screen: as for `load_prompts`. Raises InputError."""
    check_models(params)
    prompts = load_prompts(params, screen)
    gold.check(params, prompts)
    for mechanism in params.bias:
        _check_mechanism(mechanism, sorted(prompts["category"].unique()))
    if params.evaluation.remedies:
        attribute(params.evaluation.remedy_attribute)  # raises where the name leads nowhere
    if ":" in params.gold.kind and not params.gold.kind.startswith("model:"):
        imported(params.gold.kind, "gold.kind")
    if params.feedback.file and not places.user_path(params.feedback.file).is_file():
        raise InputError(f"feedback.file {params.feedback.file!r} does not exist")
    if params.feedback.kind in ("judge", "mixed"):
        judge_environment()  # raises where the judge has no address or model
    if params.training.optimiser != "adamw_torch":
        trainer.check_optimiser(params.training, loading.pick_device(params.model.device))
    trainer.check_report(params.training)
    _check_budget(params, prompts)
    return prompts


def check_models(params: Params) -> list[str]:
    """Look at the models whose files lie on this machine. Returns lines about what quantisation
    or LoRA will not reach. Raises InputError."""
    for key, block in (("gold.kind", params.gold), ("reward.proxy", params.reward)):
        if block.published:
            inspection.classifier(block.published, block.model, params.model, key)
    found = inspection.policy(params.model)
    if found is None:
        return []
    adapters = trained_adapters(params)
    if adapters and not found.how.trainable:
        raise InputError(
            f"{next(iter(adapters))}: {found.name} is stored quantised ({found.how.method}), on"
            " which no adapter can be trained: expected reward.kind probe and policy.kind tilt, or"
            " another form of the model"
        )
    if params.sft.answers != "none" and not stored.widens(found.how.method):
        raise InputError(
            f"sft.answers: {found.name} is stored quantised ({found.how.method}), whose weights"
            " cannot be widened to merge an adapter into them: expected none, or another form of"
            " the model"
        )
    told = unreached(found.experts, params.model.quantisation, adapters)
    return [told] if told else []


def _check_mechanism(mechanism: Mechanism, categories: list[str]) -> None:
    """Raise InputError for a bias that leads nowhere. categories: those in the data."""
    if isinstance(mechanism, Attribute):
        attribute(mechanism.attribute)  # raises where the name leads nowhere
    if not isinstance(mechanism, Coverage):
        return
    if set(categories) <= set(mechanism.absent):
        raise InputError(
            "bias: every category is absent, so that no preference is left to train the proxy on"
        )
    missing = [name for name in mechanism.absent if name not in categories]
    if missing:
        raise InputError(
            f"bias: absent category {missing[0]!r} is not in the data (there are:"
            f" {', '.join(categories)})"
        )


def _check_budget(params: Params, prompts: pd.DataFrame) -> None:
    """Raise InputError for a budget larger than the pairs that can be asked about."""
    pairs = askable_pairs(params, prompts)
    if (params.selection.budget or 0) > pairs:
        splits = params.selection.prompts.split("_and_")
        askable = int(prompts["split"].isin(splits).sum())
        raise InputError(
            f"selection.budget: found {params.selection.budget}, expected at most {pairs}, the"
            f" number of pairs among {_completions(params)} of {askable}"
            f" {params.selection.prompts.replace('_', ' ')} prompts"
        )


def askable_pairs(params: Params, prompts: pd.DataFrame) -> int:
    """How many pairs of completions can be asked about.

    Where the completions are the user's own, or the training completions those of the user's own
    pairs, a prompt has the pairs among its different answers; elsewhere those among `sampling.n`
    samples.
    """
    splits = params.selection.prompts.split("_and_")
    sampled = prompts["split"].isin(splits)
    if params.completions.given:
        return _pairs_among(own_completions(params)[0], prompts[sampled])
    given = 0
    if params.preferences.given and "train" in splits:
        sampled &= prompts["split"] != "train"
        pairs = own_pairs(params)
        train = prompts[prompts["split"] == "train"]
        given = _pairs_among(as_completions(pairs)[0], train)
    n = params.sampling.n
    return n * (n - 1) // 2 * int(sampled.sum()) + given


def _pairs_among(completions: pd.DataFrame, prompts: pd.DataFrame) -> int:
    """The pairs of completions of these prompts."""
    sizes = completions.groupby("prompt_id").size()
    sizes = sizes[sizes.index.isin(prompts["prompt_id"])]
    return int((sizes * (sizes - 1) // 2).sum())


def _completions(params: Params) -> str:
    if params.completions.given:
        return "the completions of your own"
    own = params.preferences.given and params.selection.prompts == "train_and_feedback"
    sampled = f"{params.sampling.n} completions"
    return f"{sampled} (on training prompts the answers given)" if own else sampled


class PromptCheck:
    """Says of a prompt, and of an answer that is given to it, why the run cannot use it. Tokenizers
    are loaded at the first question; answers are kept."""

    def __init__(self, params: Params):
        self.params = params
        self._known: dict[tuple[str, int | str], Refusal | None] = {}

    @functools.cached_property
    def _readers(self) -> list[Reader]:
        return [loading.load_reader(self.params.model), *published.readers(self.params)]

    def __call__(self, prompt: str, room: int) -> Refusal | None:
        """Why no answer of `room` tokens can be asked of this prompt, by the first model that
        cannot read it; None where all can."""
        if (prompt, room) not in self._known:
            refusals = (reader.refusal(prompt, room) for reader in self._readers)
            self._known[prompt, room] = next((found for found in refusals if found), None)
        return self._known[prompt, room]

    def answer(self, prompt: str, text: str) -> Refusal | None:
        """The same for an answer that the data gives to a prompt."""
        if (prompt, text) not in self._known:
            refusals = (reader.answer_refusal(prompt, text) for reader in self._readers)
            self._known[prompt, text] = next((found for found in refusals if found), None)
        return self._known[prompt, text]


def readable(params: Params, pairs: pd.DataFrame) -> pd.DataFrame:
    """The pairs whose answers all models of the run can read; `check` has counted the others.

    pairs: columns prompt, chosen, rejected.
    """
    screen = _screen(params.model_dump_json())
    kept = []
    for row in pairs.itertuples():
        kept.append(not any(screen.answer(row.prompt, text) for text in (row.chosen, row.rejected)))
    return pairs[np.array(kept, bool)]


@functools.lru_cache(maxsize=1)
def _screen(params: str) -> PromptCheck:
    """Its answers are asked for several times in a run."""
    return PromptCheck(Params.model_validate_json(params))
