"""Attention of single layers and heads, from one forward call on any backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from vitrail.inspection.observation import (
    HeadFusion,
    HeatmapOutput,
    LayerScores,
    attention_blocks,
    check_finite,
    config_of,
    fuse,
    observed_call,
    observed_layers,
    patch_grids,
    product,
    uncompiled,
)
from vitrail.modeling import InputError, ObservedAttention


def attention_maps(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    layers: int | Sequence[int] | None = None,
    heads: int | Sequence[int] | None = None,
) -> torch.Tensor:
    """The attention of single layers and heads, A of the paper's Eq. 6, from one forward call on any backend.

    Args:
        model: any model of `vitrail.modeling`.
        pixel_values: (B, C, H, W), as the model takes them.
        layers: which layers, from 0, or from -1 backwards; by default all. Only those asked for take memory.
        heads: which heads, likewise.

    Returns:
        (B, layers, heads, T, T) float32, for every token how it attends to every token; rows sum to 1. The first
        `model.config.num_prefix_tokens` of both are no patches.

    Raises:
        InputError: there is no such layer or head, the model is not one of `vitrail.modeling` or is in training mode,
            or the images or weights hold NaN.
    """
    config = config_of(model)
    wanted = _indices(layers, config.num_hidden_layers, "layer")
    kept = _indices(heads, config.num_attention_heads, "head")
    maps: list[torch.Tensor] = []

    def observe(index: int, attention: ObservedAttention) -> None:
        if not maps:
            batch, _, tokens, _ = attention.key.shape
            maps.append(attention.key.new_empty(batch, len(wanted), len(kept), tokens, tokens, dtype=torch.float32))
        for place in (place for place, layer in enumerate(wanted) if layer == index):
            query, key, scaling, bias = attention[:4]
            bias = None if bias is None else bias[:, kept]
            for images, queries, weights in attention_blocks(query[:, kept], key[:, kept], scaling, bias):
                maps[0][images, place, :, queries] = weights

    with uncompiled(), torch.no_grad():
        observed_call(model, pixel_values, observe)
    check_finite(maps[0], pixel_values)
    return maps[0]


@torch.no_grad()
def layer_attention(
    model: PreTrainedModel, pixel_values: torch.Tensor, layer: int = -1, patch: tuple[int, int] | None = None
) -> HeatmapOutput:
    """What each head of one layer attends to: the raw attention of the tokens that the model's head reads.

    Args:
        model, pixel_values: as of `attention_rollout`.
        layer: which layer, from 0, or from -1 backwards.
        patch: (row, column) in the grid of patches, from 0, for that patch's attention instead.

    Returns:
        `heatmap` is (B, k, H/P, W/P): the class token's attention to the patches, or the mean of that of the tokens
        read. With the share of the tokens before the patches it sums to 1.

    Raises:
        InputError: there is no such layer, or as `attention_rollout`.
    """
    config = config_of(model)
    (index,) = _indices(layer, config.num_hidden_layers, "layer")
    logits, layers, read = observed_layers(model, pixel_values, "mean", patch)
    return HeatmapOutput(logits, patch_grids(_attention_of(read, layers[index]), config, pixel_values))


@torch.no_grad()
def attention_by_depth(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    head_fusion: HeadFusion = "mean",
    patch: tuple[int, int] | None = None,
) -> HeatmapOutput:
    """What each layer attends to, its heads fused: the raw attention of the tokens that the model's head reads.

    Unlike `rollout_by_depth` a layer is seen by itself, without what the layers before it had mixed.

    Args:
        model, pixel_values, head_fusion: as of `attention_rollout`.
        patch: (row, column) in the grid of patches, from 0, for that patch's attention instead.

    Returns:
        `heatmap` is (B, L, H/P, W/P), for each layer as of `layer_attention`, from which it differs by the fusion.

    Raises:
        InputError: as `attention_rollout`.
    """
    logits, layers, read = observed_layers(model, pixel_values, head_fusion, patch)
    rows = torch.cat([_attention_of(read, layer, head_fusion) for layer in layers], dim=1)
    return HeatmapOutput(logits, patch_grids(rows, config_of(model), pixel_values))


def _attention_of(read: torch.Tensor, layer: LayerScores, head_fusion: HeadFusion | None = None) -> torch.Tensor:
    """The attention of what is read, (B, 1, t) with sum 1: (B, k, T) of each head, or (B, 1, T) of their fusion.

    Only the rows from the first token that is read to the last are made.
    """
    batch, heads, tokens, _ = layer[0].shape
    first = int(read.amax((0, 1)).nonzero()[0])
    rows = read.new_zeros(batch, heads if head_fusion is None else 1, tokens)
    for images, queries, weights in attention_blocks(*layer[:4], slice(first, read.shape[2])):
        maps = weights if head_fusion is None else fuse(weights, head_fusion)[:, None]
        rows[images] += product(read[images, None, :, queries], maps)[:, :, 0]
    return rows


def _indices(chosen: int | Sequence[int] | None, count: int, name: str) -> list[int]:
    """Which of `count` things called `name` are chosen, from 0.

    Raises:
        InputError: there is none of that number.
    """
    if chosen is None:
        return list(range(count))
    chosen = [chosen] if isinstance(chosen, int | float | str) else chosen
    for index in chosen:
        if not isinstance(index, int) or not -count <= index < count:
            raise InputError(f"There is no {name} {index!r}; the model has {name}s 0 to {count - 1}.")
    return [index % count for index in chosen]
