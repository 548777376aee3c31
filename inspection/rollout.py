"""Attention rollout (Abnar & Zuidema, 2020; the paper's Appendix D.8), exact and in little memory.

Rollout multiplies the layers' attention, Â_L ... Â_1 with Â = (A + I) normalised by row. Of that product only the rows
that the head reads are wanted, so their mean is computed from the left, one row times one layer at a time, and each Â
is made from the layer's query and key in blocks of rows and thrown away: no (heads, N, N) tensor is kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

import torch
from transformers import PreTrainedModel

from vitrail.modeling import InputError, ViTConfig


HeadFusion = Literal["mean", "max", "min"]

# Attention weights computed at a time: 2 MB of float32, which stays in a core's cache.
_BLOCK_ELEMENTS = 2**19


@dataclass(frozen=True)
class RolloutOutput:
    """What the model said and where the information came from.

    Attributes:
        logits: (B, num_labels), or (B, N, 512) of masked patch prediction, exactly the model's own; None for a model
            without a head.
        heatmap: (B, H/P, W/P) float32 in [0, 1], the rollout's row of the class token, or the mean of the rows that the
            head reads, at the patches; for attention pooling weighted by its own attention to them. A model without a
            head reads what it pools. With the share of the tokens before the patches it sums to 1; it is not stretched
            to any range.
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
        head_fusion: how the heads' attention becomes one matrix per layer, and one row in attention pooling.
        discard_ratio: in [0, 1), the fraction of each image's and layer's fused attention that is set to zero, smallest
            entries first, before I is added; attention to the class token, where there is one, is never discarded.
        start_layer: the first layer that takes part, counted from 0; earlier ones are left out of the product.

    Raises:
        InputError: an argument is out of its range, or the model is not one of `vitrail.modeling`.
    """
    config = cast("ViTConfig", model.config)
    num_layers = config.num_hidden_layers
    if head_fusion not in ("mean", "max", "min"):
        raise InputError(f"head_fusion is {head_fusion!r}; it must be 'mean', 'max' or 'min'.")
    if not 0 <= discard_ratio < 1:
        raise InputError(f"discard_ratio is {discard_ratio}; it must be at least 0 and less than 1.")
    if not 0 <= start_layer < num_layers:
        raise InputError(f"start_layer is {start_layer}; the model has layers 0 to {num_layers - 1}.")

    layers: list[_Layer] = []

    def observe(query: torch.Tensor, key: torch.Tensor, scaling: float, bias: torch.Tensor | None) -> None:
        layers.append((query.float() * scaling, key.float(), None if bias is None else bias.float()))

    outputs = model(pixel_values, attention_observer=observe)

    if len(layers) != num_layers + (config.pooling == "attention"):
        raise InputError(f"{type(model).__name__} does not show its attention; load it with vitrail.modeling.")

    # The head of masked patch prediction reads every patch, whatever is pooled.
    pooling = "mean" if "bool_masked_pos" in outputs else config.pooling
    row = _read_by_head(config, pooling, layers, head_fusion)
    needed = config.num_prefix_tokens if pooling == "token" else row.shape[1]
    for layer in reversed(layers[start_layer:num_layers]):
        row = _row_times_layer(row, layer, needed, head_fusion, discard_ratio, config.use_class_token)
        needed = row.shape[1]
    height, width = config.patch_shape
    grid_shape = pixel_values.shape[2] // height, pixel_values.shape[3] // width
    heatmap = row[:, config.num_prefix_tokens :].unflatten(1, grid_shape)  # (B, H/P, W/P)
    return RolloutOutput(logits=outputs.get("logits"), heatmap=heatmap)


# A layer's query times the scale and key, each (B, k, T, D/k); what is added to their product, (B, k, T, T) or None.
_Layer = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def _read_by_head(config: ViTConfig, pooling: str, layers: list[_Layer], head_fusion: HeadFusion) -> torch.Tensor:
    """The tokens that the head reads, (B, T) with sum 1. Attention pooling's own attention follows the layers'."""
    batch, _, tokens, _ = layers[0][0].shape
    query, key, _ = layers[-1]
    row = query.new_zeros(batch, tokens)
    patches = row[:, config.num_prefix_tokens :]
    if pooling == "attention":
        fused = _fuse(query @ key.transpose(-1, -2), head_fusion)[:, 0]  # (B, N)
        patches.copy_(fused / fused.sum(-1, keepdim=True))
    elif pooling != "token":
        patches.fill_(1 / patches.shape[1])
    elif config.use_distillation_head:
        row[:, :2] = 0.5
    else:
        row[:, 0] = 1
    if pooling == "token_and_mean":
        row[:, 0] = 1
        row /= 2
    return row


def _row_times_layer(
    row: torch.Tensor,
    layer: _Layer,
    needed: int,
    head_fusion: HeadFusion,
    discard_ratio: float,
    has_class_token: bool,
) -> torch.Tensor:
    """row @ Â of one layer, (B, T) -> (B, T); only the first `needed` entries of `row` are not zero."""
    query, key, bias = layer
    batch, heads, tokens, _ = query.shape
    size = max(1, _BLOCK_ELEMENTS // (heads * tokens))
    if discard_ratio:  # what is smallest shows in the whole matrix only
        needed = size = tokens
    result = torch.zeros_like(row)
    for image in range(batch):
        for start in range(0, needed, size):
            block = slice(start, min(start + size, needed))
            logits = query[image, :, block] @ key[image].transpose(-1, -2)  # (k, rows, T)
            fused = _fuse(logits if bias is None else logits + bias[image, :, block], head_fusion)
            if discard_ratio:
                _discard_smallest(fused, discard_ratio, has_class_token)
            weights = row[image, block] / (fused.sum(-1) + 1)  # the rows of fused attention + I, normalised
            result[image] += weights @ fused
            result[image, block] += weights
    return result


def _fuse(logits: torch.Tensor, head_fusion: HeadFusion) -> torch.Tensor:
    """Softmax, and the heads fused: (..., k, rows, T) -> (..., rows, T)."""
    attention = torch.softmax(logits, dim=-1)
    if head_fusion == "mean":
        return attention.mean(-3)
    return attention.amax(-3) if head_fusion == "max" else attention.amin(-3)


def _discard_smallest(fused: torch.Tensor, discard_ratio: float, has_class_token: bool) -> None:
    """Sets the smallest entries of one image's (T, T) attention to zero, except in the class token's column."""
    kept = fused[:, : int(has_class_token)].clone()
    smallest = fused.flatten().topk(int(discard_ratio * fused.numel()), largest=False).indices
    fused.view(-1)[smallest] = 0
    fused[:, : int(has_class_token)] = kept
