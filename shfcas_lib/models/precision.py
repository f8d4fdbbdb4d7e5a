"""In which type sums over many tokens are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def widest(device: torch.device) -> torch.dtype:
    """The widest floating type that a device has: float64, and float32 on Apple's GPU (mps)."""
    import torch

    return torch.float32 if device.type == "mps" else torch.float64
