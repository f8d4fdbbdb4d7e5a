"""Token sequences of unlike length: which of them share a batch, and how they become tensors.

    for rows in by_length(sequences, size=16):
        tokens, mask = pad_right([sequences[k] for k in rows], pad)

Whatever puts sequences through a model pads and sorts them here.
"""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    Padded = tuple[torch.Tensor, torch.Tensor]


def by_length(sequences: Sequence[Sized], size: int) -> list[list[int]]:
    """The numbers of the sequences in batches of at most `size`, the shortest sequences first.

    Of two that are equally long the earlier one comes first. Little is padded where sequences
    of like length share a batch.
    """
    order = sorted(range(len(sequences)), key=lambda k: (len(sequences[k]), k))
    return [order[start : start + size] for start in range(0, len(order), size)]


def pad_right(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> Padded:
    """Token ids with `pad` after each sequence, and the mask of what is no padding.

    Both are (sequences, tokens of the longest), of dtype long. For classifiers.
    """
    return _padded(sequences, pad, device, left=False)


def pad_left(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str = "cpu"
) -> Padded:
    """Token ids with `pad` before each sequence, and the mask of what is no padding.

    Both are (sequences, tokens of the longest), of dtype long. For models that write on: the
    last token of every row stands in the last column.
    """
    return _padded(sequences, pad, device, left=True)


def _padded(
    sequences: Sequence[Sequence[int]], pad: int, device: torch.device | str, left: bool
) -> Padded:
    import torch

    width = max(map(len, sequences))
    tokens = torch.full((len(sequences), width), pad, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence) if left else 0
        end = start + len(sequence)
        tokens[row, start:end] = torch.tensor(sequence)
        mask[row, start:end] = 1
    return tokens.to(device), mask.to(device)
