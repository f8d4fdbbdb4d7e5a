"""Everything about a run that can be wrong before a model is loaded.

    screen = PromptCheck(params)
    prompts = check(params, screen)

What cannot be read stops the run in one sentence, or is dropped and counted. The backbone, a
published gold and a published proxy each read every prompt, each through its own template; their
tokenizers alone are asked.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from shfcas_lib.annotators.endpoint import judge_environment
from shfcas_lib.base import places
from shfcas_lib.base.errors import InputError
from shfcas_lib.base.plugins import imported
from shfcas_lib.data.preferences import as_completions, own_pairs
from shfcas_lib.data.prompts import load_prompts
from shfcas_lib.models import loading, published
from shfcas_lib.models.templates import Refusal
from shfcas_lib.params.schema import Attribute, Coverage, Mechanism, Params
from shfcas_lib.tasks.attributes import attribute
from shfcas_lib.training import trainer


def check(params: Params, screen: PromptCheck | None = None) -> pd.DataFrame:
    """Load the prompts and check everything about a run that needs no model. Returns the prompts.
    screen: as for `load_prompts`. Raises InputError."""
    prompts = load_prompts(params, screen)
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
    _check_budget(params, prompts)
    return prompts


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

    Where the training completions are those of the user's own pairs, a prompt has the pairs among
    its different answers; elsewhere those among `sampling.n` samples.
    """
    splits = params.selection.prompts.split("_and_")
    sampled = prompts["split"].isin(splits)
    given = 0
    if params.preferences.given and "train" in splits:
        sampled &= prompts["split"] != "train"
        train = set(prompts.loc[prompts["split"] == "train", "prompt_id"])
        pairs = own_pairs(params)
        completions, _ = as_completions(pairs[pairs["prompt_id"].isin(train)])
        sizes = completions.groupby("prompt_id").size()
        given = int((sizes * (sizes - 1) // 2).sum())
    n = params.sampling.n
    return n * (n - 1) // 2 * int(sampled.sum()) + given


def _completions(params: Params) -> str:
    own = params.preferences.given and params.selection.prompts == "train_and_feedback"
    sampled = f"{params.sampling.n} completions"
    return f"{sampled} (on training prompts the answers given)" if own else sampled


class PromptCheck:
    """Says of a prompt why the run cannot use it. Tokenizers are loaded at the first question;
    answers are kept."""

    def __init__(self, params: Params):
        self.params = params
        self._readers: list[Callable[[str, int], Refusal | None]] | None = None
        self._known: dict[tuple[str, int], Refusal | None] = {}

    def __call__(self, prompt: str, room: int) -> Refusal | None:
        """Why no answer of `room` tokens can be asked of this prompt, by the first model that
        cannot read it; None where all can."""
        if self._readers is None:
            self._readers = [
                loading.load_reader(self.params.model).refusal,
                *published.readers(self.params),
            ]
        if (prompt, room) not in self._known:
            refusals = (refusal(prompt, room) for refusal in self._readers)
            self._known[prompt, room] = next((found for found in refusals if found), None)
        return self._known[prompt, room]
