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


def by_prompt(prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """The numbers of rows in batches, the rows of one prompt together, short prompts first.

    prompts: token ids of each row's prompt. The different prompts of a batch have at most `most`
    tokens with their padding; a longer one is alone.
    """
    keys = [tuple(prompt) for prompt in prompts]
    batches: list[list[int]] = []
    apart = 0  # different prompts in the last batch
    for row in sorted(range(len(keys)), key=lambda row: (len(keys[row]), keys[row], row)):
        key = keys[row]
        again = bool(batches) and keys[batches[-1][-1]] == key
        # the prompts come by length: this one is the longest
        if again or (batches and (apart + 1) * len(key) <= most):
            batches[-1].append(row)
            apart += not again
        else:
            batches.append([row])
            apart = 1
    return batches


def by_tokens(sequences: Sequence[Sized], most: int, beside: int, room: int) -> list[list[int]]:
    """The numbers of the sequences in batches, the shortest first.

    A batch has at most `most` tokens with its padding, and at most `room` with `beside` tokens
    more for each sequence; a longer one is alone.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(sequences)), key=lambda row: (len(sequences[row]), row)):
        longest, rows = len(sequences[row]), len(batches[-1]) + 1 if batches else 0
        if rows and rows * longest <= most and rows * (longest + beside) <= room:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


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
