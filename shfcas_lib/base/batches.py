"""Token sequences of unlike length: which of them share a batch, and how they become tensors.

    for rows in by_length(sequences, size=16):
        tokens, mask = pad_right([sequences[k] for k in rows], pad)

Whatever puts sequences through a model pads and sorts them here.
"""

from __future__ import annotations

import math
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


def by_prompt(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sized], most: int
) -> list[list[int]]:
    """The numbers of rows in batches, the rows of one prompt side by side.

    prompts, answers: token ids of each row. In a batch the different prompts have at most `most`
    tokens with their padding, the answers too, and all rows at most twice as many; a row that is
    longer is alone. Prompts of like length share a batch, among these prompts with like answers.
    """
    longest: dict[tuple[int, ...], int] = {}
    keys = [tuple(prompt) for prompt in prompts]
    for key, answer in zip(keys, answers, strict=True):
        longest[key] = max(longest.get(key, 0), len(answer))

    def place(row: int) -> tuple:
        key = keys[row]
        # lengths a fifth apart are alike
        alike = round(math.log(max(1, len(key)), 1.2))
        return alike, longest[key], key, len(answers[row]), row

    batches: list[list[int]] = []
    apart, prompt, answer = 0, 0, 0  # of the last batch: its prompts, the longest, longest answer
    for row in sorted(range(len(keys)), key=place):
        batch = batches[-1] if batches else []
        more = apart + (not batch or keys[batch[-1]] != keys[row])
        wide, long = max(prompt, len(keys[row])), max(answer, len(answers[row]))
        rows = len(batch) + 1
        if batch and max(more * wide, rows * long, rows * (wide + long) / 2) <= most:
            batch.append(row)
            apart, prompt, answer = more, wide, long
        else:
            batches.append([row])
            apart, prompt, answer = 1, len(keys[row]), len(answers[row])
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
