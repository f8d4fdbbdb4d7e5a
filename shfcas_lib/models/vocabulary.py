"""Does a tokenizer belong to a model? Every token that it may write has a row in the embedding.

check(tokenizer, rows, "model.source 'x'")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shfcas_lib.base.errors import InputError
from shfcas_lib.models import templates

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NAMED = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def rows_of(causal: PreTrainedModel) -> int:
    """How many tokens a language model can read."""
    embedding: Any = causal.get_input_embeddings()
    return int(embedding.weight.shape[0])


def check(tokenizer: PreTrainedTokenizerBase, rows: int, name: str) -> None:
    """Raise InputError for a token without a row.

    rows: of the embedding; name: what messages call the model. Control tokens that neither the
    template nor the tokenizer puts into a text may lie beyond (Gemma 3's text models know the
    name of a token for pictures): no prompt or completion can spell them.
    """
    beyond = _beyond(tokenizer, rows)
    if beyond:
        token = beyond[0]
        raise InputError(
            f"{name}: its tokenizer writes {tokenizer.convert_ids_to_tokens(token)!r} as number"
            f" {token}, but the model knows the numbers below {rows}: they do not belong together"
        )


def _beyond(tokenizer: PreTrainedTokenizerBase, rows: int) -> list[int]:
    """Numbers above the last row that can come to stand in a text, in order."""
    numbers = {number for number in tokenizer.get_vocab().values() if number >= rows}
    if not numbers:
        return []
    control = set(templates.control(tokenizer))
    named = {getattr(tokenizer, key, None) for key in _NAMED}
    written = named | set(templates.written_ids(tokenizer))
    return sorted(number for number in numbers if number not in control or number in written)
