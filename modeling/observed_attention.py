"""What attention shows of itself while it runs, on any backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from .token_merging import MergedTokens


class ObservedAttention(NamedTuple):
    """What one attention took and gave, whatever computed it: A = softmax(scaling q k^T + bias), output = A v.

    A layer's has T queries and T keys; attention pooling's has one learned query and the N patches as keys.

    Attributes:
        query: (B, k, T, D/k).
        key: (B, k, T, D/k).
        scaling: of their products.
        bias: (B, k, T, T) with relative position embeddings, (B, 1, 1, T) where tokens were merged, else None.
        value: (B, k, T, D/k).
        output: (B, T, k, D/k), before the heads are joined; of the last layer only what the head reads, if it reads
            only tokens before the patches.
        merged: which of the image's tokens these T are made of; None where nothing was merged.
    """

    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    bias: torch.Tensor | None
    value: torch.Tensor
    output: torch.Tensor
    merged: MergedTokens | None = None


AttentionObserver = Callable[[ObservedAttention], None]
