"""Attention as every method here reads it: whatever backend computes it, in float32, some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from vitrail.modeling import InputError, ObservedAttention, ViTConfig, ViTModel


# Attention weights computed at a time: on a CPU 2 MB, which stay in its cache.
_BLOCK_ELEMENTS_CPU = 2**19
_BLOCK_ELEMENTS = 2**25


# Of an `ObservedAttention` what its weights are made of: query, key, scaling, bias.
LayerScores = tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None]


class AttentionBlock(NamedTuple):
    """Some rows of one layer's attention.

    Attributes:
        images: which of the batch.
        queries: which of the tokens.
        weights: (images, k, queries, T) float32, or (images, queries, T) once the heads are fused.
    """

    images: slice
    queries: slice
    weights: torch.Tensor


def attention_maps(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
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
    wanted = _indices(layers, config.num_hidden_layers, "layers")
    kept = _indices(heads, config.num_attention_heads, "heads")
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

    with torch.no_grad():
        observed_call(model, pixel_values, observe)
    check_finite(maps[0], pixel_values)
    return maps[0]


def observed_call(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    observe: Callable[[int, ObservedAttention], None],
    **kwargs: bool,
) -> ModelOutput:
    """The model's own forward call, in which each layer, and attention pooling after them, is shown with its index."""
    count = 0

    def count_and_observe(attention: ObservedAttention) -> None:
        nonlocal count
        observe(count, attention)
        count += 1

    return model(pixel_values, attention_observer=count_and_observe, **kwargs)


def config_of(model: PreTrainedModel) -> ViTConfig:
    """The configuration of the ViT in a model, which may be wrapped, by `torch.compile` or PEFT for instance.

    Raises:
        InputError: there is none of `vitrail.modeling`, or it is in training mode, where attention is random.
    """
    vit = next((module for module in model.modules() if isinstance(module, ViTModel)), None)
    if vit is None:
        raise InputError(f"{type(model).__name__} does not show its attention; load it with vitrail.modeling.")
    if vit.training:
        raise InputError("The model is in training mode, where dropout makes attention random; call model.eval().")
    return vit.config


def attention_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    bias: torch.Tensor | None,
    num_queries: int | None = None,
) -> Iterator[AttentionBlock]:
    """A = softmax(scaling q k^T + bias) in float32, of as many rows at a time as a cache holds; rows have sum 1.

    A block is overwritten by the next one.

    Args:
        query, key, scaling, bias: as of `ObservedAttention`.
        num_queries: only the rows of the first so many tokens; by default of all.
    """
    query, key = query.float(), key.float()
    batch, heads, tokens, _ = query.shape
    keys = key.shape[2]
    tokens = tokens if num_queries is None else num_queries
    elements = _BLOCK_ELEMENTS_CPU if query.device.type == "cpu" else _BLOCK_ELEMENTS
    images_at_once = min(batch, max(1, elements // (heads * tokens * keys)))
    rows_at_once = min(tokens, max(1, elements // (heads * keys)))
    buffer = query.new_empty(images_at_once * heads * rows_at_once * keys)
    for image in range(0, batch, images_at_once):
        images = slice(image, min(image + images_at_once, batch))
        transposed = key[images].flatten(0, 1).transpose(1, 2)
        for row in range(0, tokens, rows_at_once):
            queries = slice(row, min(row + rows_at_once, tokens))
            rows = query[images, :, queries].flatten(0, 1)  # (images * k, queries, D/k)
            weights = buffer[: rows[..., 0].numel() * keys].view(*rows.shape[:2], keys)
            torch.baddbmm(weights, rows, transposed, beta=0, alpha=scaling, out=weights)
            if bias is not None:
                weights += bias[images, :, queries].flatten(0, 1)
            torch.softmax(weights, dim=-1, out=weights)
            yield AttentionBlock(images, queries, weights.unflatten(0, (-1, heads)))


def read_by_head(
    config: ViTConfig, pooling: str, tokens: torch.Tensor, pooled: torch.Tensor | None = None
) -> torch.Tensor:
    """The tokens that the head reads, (B, 1, t) with sum 1; of the T tokens those after the first t are not read.

    Args:
        config: of the model.
        pooling: `config.pooling`, or "mean" for a head that reads every patch.
        tokens: (B, k, T, D/k), for their number.
        pooled: (B, 1, N), attention pooling's own attention to the patches.
    """
    batch, _, count, _ = tokens.shape
    prefix = config.num_prefix_tokens
    read = tokens.new_zeros(batch, 1, prefix if pooling == "token" else count, dtype=torch.float32)
    if pooling == "attention":
        read[..., prefix:] = pooled
    elif pooling != "token":
        read[..., prefix:] = 1 / (count - prefix)
    elif config.use_distillation_head:
        read[..., :2] = 0.5
    else:
        read[..., 0] = 1
    if pooling == "token_and_mean":
        read[..., 0] = 1
        read /= 2
    return read


def patch_grids(rows: torch.Tensor, config: ViTConfig, pixel_values: torch.Tensor) -> torch.Tensor:
    """What rows say of the patches, in their places: (B, m, T) -> (B, m, H/P, W/P).

    Raises:
        InputError: the rows, made from a model's attention to `pixel_values`, are not all finite.
    """
    check_finite(rows, pixel_values)
    height, width = config.patch_shape
    grid_shape = pixel_values.shape[2] // height, pixel_values.shape[3] // width
    return rows[..., config.num_prefix_tokens :].unflatten(-1, grid_shape)


def check_finite(values: torch.Tensor, pixel_values: torch.Tensor) -> None:
    """Says where NaN come from.

    Raises:
        InputError: `values`, made from a model's attention to `pixel_values`, are not all finite.
    """
    if torch.isfinite(values).all():
        return
    if not torch.isfinite(pixel_values).all():
        raise InputError("pixel_values hold NaN or infinite values; prepare the images with the model's processor.")
    raise InputError("The model's attention is NaN, though its images are finite: its weights hold NaN or overflow.")


def _indices(chosen: Sequence[int] | None, count: int, name: str) -> list[int]:
    if chosen is None:
        return list(range(count))
    for index in chosen:
        if not -count <= index < count:
            raise InputError(f"{name} holds {index}; the model has {name} 0 to {count - 1}.")
    return [index % count for index in chosen]
