"""Sizes that configurations and checkpoints have in common."""

from __future__ import annotations

from collections.abc import Sequence


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a size given as one number or as both."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def resnet_stride(depths: Sequence[int] | None) -> int:
    """Pixels per position of the feature map of a ResNet with so many units per stage; 1 for no ResNet (None)."""
    if depths is None:
        return 1
    return 4 * 2 ** max(len(depths) - 1, 0)  # the root halves twice, every stage but the first once
