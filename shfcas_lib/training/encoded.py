"""TRL trainers that tokenise nothing: they are given the ids that `models.tokens` makes.

TRL writes prompt and answer through the chat template once more, where thinking, dates, special
tokens and the boundary between the two come out otherwise than in the pools.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset

    from shfcas_lib.models.backbone import Backbone


class Encoded:
    """A trainer of token ids. Mixed in before the trainer's class; each replaces the method of its
    name.

    DPO and KTO know no data set of ids (SFT and rewards do), the online trainers no prompts of
    ids.
    """

    # attributes of the trainer
    backbone: Backbone
    calculate_KL: bool

    def _prepare_dataset(
        self, dataset: Dataset, processing_class: Any, args: Any, *rest: Any, **more: Any
    ) -> Dataset:
        if "prompt_ids" not in dataset.column_names:
            inherited: Any = super()
            return inherited._prepare_dataset(dataset, processing_class, args, *rest, **more)
        if not getattr(self, "calculate_KL", False):
            return dataset
        size = args.per_device_train_batch_size
        return dataset.map(_mismatched, batched=True, batch_size=size)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        """Ids of the prompts that the trainer samples for; no images."""
        return [self.backbone.prompt_ids(prompt) for prompt in prompts], None, {}


def _mismatched(batch: dict[str, list]) -> dict[str, list]:
    """Every prompt of a batch beside the completion of the one before it.

    KTO estimates its KL from them, over the batch as it is trained.
    """
    *others, last = batch["completion_ids"]
    return {"KL_completion_ids": [last, *others]}
