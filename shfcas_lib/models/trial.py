"""One short text through a loaded language model, before hours are spent on it.

    run(backbone, "model.source 'x'")

A language model must say the same of a text's start whatever follows it; an encoder that was
loaded as one does not. And what cannot be computed here, for want of a kernel or a type, shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from shfcas_lib.base.errors import InputError
from shfcas_lib.models.architecture import shares_prompts
from shfcas_lib.models.stored import first_line

if TYPE_CHECKING:
    import torch

    from shfcas_lib.models.backbone import Backbone

TEXT = "The first words of a text, and two ways to go on: one"
TOKENS = 12
# Of the spread of the logits. Rounding of 8-bit kernels, which look at all tokens at once, stays
# below 0.02; encoders were between 0.2 and 1.
TOLERANCE = 0.1


def run(backbone: Backbone, name: str) -> None:
    """Raise InputError for a model that cannot compute, gives no numbers, or reads backwards.

    name: what messages call the model.
    """
    import torch

    ids = backbone.tokenizer(TEXT, add_special_tokens=False)["input_ids"][:TOKENS]
    if len(ids) < 4:  # of a tokenizer that knows none of these words
        return
    others = [ids[:-1] + [ids[0]], ids[:-2] + [ids[1], ids[0]]]
    try:
        logits, *changed = (_logits(backbone, one) for one in (ids, *others))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{name} cannot compute on this machine: {first_line(error)}") from error
    if not torch.isfinite(logits).all():
        raise InputError(f"{name} gives no finite log-probabilities in the compute type asked for")
    start = len(ids) - 2
    for other in changed:
        gap = (other[:start] - logits[:start]).abs().mean() / logits.std()
        if gap > TOLERANCE:
            raise InputError(
                f"{name} changes what it says of a text's start with what follows: expected a"
                " decoder-only language model"
            )


def _logits(backbone: Backbone, ids: list[int]) -> torch.Tensor:
    """Logits of one sequence, (tokens, vocabulary), float32.

    Raises ValueError for a cache that sampling cannot work with.
    """
    import torch

    tokens = torch.tensor([ids], device=backbone.device)
    with torch.inference_mode():
        out = backbone.causal(input_ids=tokens, use_cache=True)
    if not shares_prompts(out.past_key_values):
        raise ValueError("its layers keep a running state in place of keys and values")
    return out.logits[0].float()
