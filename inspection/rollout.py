"""Attention rollout (Abnar & Zuidema, 2020; the paper's Appendix D.8), exact and in little memory.

Rollout multiplies the layers' attention, Â_L ... Â_1 with Â = (A + I) normalised by row. Only the class token's row of
that product is wanted, so it is computed from the left, one row times one layer at a time, and each Â is made from the
layer's query and key in blocks of rows and thrown away: no (heads, N, N) tensor is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from vitrail.modeling import InputError


HeadFusion = Literal["mean", "max", "min"]

# Attention weights computed at a time: 2 MB of float32, which stays in a core's cache.
_BLOCK_ELEMENTS = 2**19


@dataclass(frozen=True)
class RolloutOutput:
    """What the model said and where the information came from.

    Attributes:
        logits: (B, num_labels), exactly the model's own; None for a model without a head.
        heatmap: (B, H/P, W/P) float32 in [0, 1], the class token's row of the rollout at the patches. With the class
            token's own share it sums to 1; it is not stretched to any range.
    """

    logits: torch.Tensor | None
    heatmap: torch.Tensor


@torch.no_grad()
def attention_rollout(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
) -> RolloutOutput:
    """One forward pass and the rollout of its attention, on whatever attention backend the model uses.

    Args:
        model: any model of `vitrail.modeling`.
        pixel_values: (B, C, H, W), as the model takes them.
        head_fusion: how the heads' attention becomes one matrix per layer.
        discard_ratio: in [0, 1), the fraction of each image's and layer's fused attention that is set to zero, smallest
            entries first, before I is added; attention to the class token is never discarded.
        start_layer: the first layer that takes part, counted from 0; earlier ones are left out of the product.

    Raises:
        InputError: an argument is out of its range, or the model is not one of `vitrail.modeling`.
    """
    num_layers = model.config.num_hidden_layers
    if head_fusion not in ("mean", "max", "min"):
        raise InputError(f"head_fusion is {head_fusion!r}; it must be 'mean', 'max' or 'min'.")
    if not 0 <= discard_ratio < 1:
        raise InputError(f"discard_ratio is {discard_ratio}; it must be at least 0 and less than 1.")
    if not 0 <= start_layer < num_layers:
        raise InputError(f"start_layer is {start_layer}; the model has layers 0 to {num_layers - 1}.")

    layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def observe(query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        layers.append((query.float() * scaling, key.float()))

    outputs = model(pixel_values, attention_observer=observe)

    if len(layers) != num_layers:
        raise InputError(f"{type(model).__name__} does not show its attention; load it with vitrail.modeling.")

    row: torch.Tensor | None = None
    for query, key in reversed(layers[start_layer:]):
        row = _row_times_layer(row, query, key, head_fusion, discard_ratio)
    assert row is not None  # start_layer < num_layers
    patches = row[:, 1:]  # without the class token
    heatmap = patches.unflatten(1, model.config.grid_shape)  # (B, H/P, W/P)
    return RolloutOutput(logits=outputs.get("logits"), heatmap=heatmap)


def _row_times_layer(
    row: torch.Tensor | None, query: torch.Tensor, key: torch.Tensor, head_fusion: HeadFusion, discard_ratio: float
) -> torch.Tensor:
    """row @ Â of one layer: (B, N) -> (B, N); None stands for the class token's unit row, which needs one row of Â."""
    batch, heads, tokens, _ = query.shape
    if row is None:
        row = query.new_zeros(batch, tokens)
        row[:, 0] = 1
        needed = 1
    else:
        needed = tokens
    result = torch.zeros_like(row)
    for image in range(batch):
        q, k = query[image], key[image].transpose(-1, -2)
        if discard_ratio:
            blocks = [(slice(0, tokens), _discard_smallest(_fused_attention(q, k, head_fusion), discard_ratio))]
        else:
            size = max(1, _BLOCK_ELEMENTS // (heads * tokens))
            rows = (slice(start, min(start + size, needed)) for start in range(0, needed, size))
            blocks = ((block, _fused_attention(q[:, block], k, head_fusion)) for block in rows)
        for block, fused in blocks:
            weights = row[image, block] / (fused.sum(-1) + 1)  # the rows of fused attention + I, normalised
            result[image] += weights @ fused
            result[image, block] += weights
    return result


def _fused_attention(query: torch.Tensor, key: torch.Tensor, head_fusion: HeadFusion) -> torch.Tensor:
    """Rows of softmax(q k^T) with the heads fused: (heads, rows, D/k), (heads, D/k, N) -> (rows, N)."""
    attention = torch.softmax(query @ key, dim=-1)
    if head_fusion == "mean":
        return attention.mean(0)
    return attention.amax(0) if head_fusion == "max" else attention.amin(0)


def _discard_smallest(fused: torch.Tensor, discard_ratio: float) -> torch.Tensor:
    """Sets the smallest entries of one image's (N, N) attention to zero, except in the class token's column."""
    class_token = fused[:, 0].clone()
    smallest = fused.flatten().topk(int(discard_ratio * fused.numel()), largest=False).indices
    fused.view(-1)[smallest] = 0
    fused[:, 0] = class_token
    return fused
