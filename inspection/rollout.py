"""Attention rollout (Abnar & Zuidema, 2020; the paper's Appendix D.8), exact and in little memory.

Rollout multiplies the layers' attention, Â_L ... Â_1 with Â = (A + I) normalised by row. Of that product only the rows
that the head reads are wanted, so their mean is computed from the left, one row times one layer at a time, and each Â
is made from the layer's query and key in blocks of rows and thrown away: no (heads, N, N) tensor is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from vitrail.inspection.observation import (
    AttentionBlock,
    HeadFusion,
    HeatmapOutput,
    LayerScores,
    attention_blocks,
    config_of,
    fuse,
    observed_layers,
    patch_grids,
    product,
)
from vitrail.modeling import InputError, ViTConfig


@torch.no_grad()
def attention_rollout(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    start_layer: int = 0,
    end_layer: int | None = None,
    residual_weight: float = 1.0,
    patch: tuple[int, int] | None = None,
) -> HeatmapOutput:
    """One forward pass and the rollout of its attention, on whatever attention backend the model uses.

    The map, (B, H/P, W/P) with values in [0, 1], is the rollout's row of the class token, or the mean of the rows that
    the head reads, at the patches; for attention pooling weighted by its own attention to them. A model without a head
    reads what it pools. With `patch` it is the row of that patch's token, whatever the head reads. With the share of
    the tokens before the patches it sums to 1.

    Args:
        model: any model of `vitrail.modeling`, in evaluation mode.
        pixel_values: (B, C, H, W), as the model takes them.
        head_fusion: how the heads' attention becomes one matrix per layer, and one row in attention pooling.
        discard_ratio: in [0, 1), the fraction of each image's and layer's fused attention that is set to zero, smallest
            entries first, before I is added; attention to the class token, where there is one, is never discarded.
        start_layer: the first layer that takes part, counted from 0; earlier ones are left out of the product.
        end_layer: the first layer that no longer takes part; by default all do, to the last.
        residual_weight: above 0, the weight of I beside the fused attention, whose rows have sum 1 under "mean".
        patch: (row, column) in the grid of patches, from 0, to see where that patch looks instead of the head.

    Raises:
        InputError: an argument is out of its range, the model is not one of `vitrail.modeling` or is in training mode,
            or the images or weights hold NaN.
    """
    config = config_of(model)
    num_layers = config.num_hidden_layers
    end_layer = num_layers if end_layer is None else end_layer
    if not 0 <= start_layer < num_layers:
        raise InputError(f"start_layer is {start_layer}; the model has layers 0 to {num_layers - 1}.")
    if not start_layer < end_layer <= num_layers:
        raise InputError(f"end_layer is {end_layer}; it must lie between {start_layer + 1} and {num_layers}.")
    operator = _Operator(config, head_fusion, discard_ratio, residual_weight)
    logits, layers, rows = observed_layers(model, pixel_values, head_fusion, patch)
    for layer in reversed(layers[start_layer:end_layer]):
        rows = operator.applied_to(rows, layer)
    return HeatmapOutput(logits, patch_grids(rows, config, pixel_values)[:, 0])


@torch.no_grad()
def rollout_by_depth(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    head_fusion: HeadFusion = "mean",
    discard_ratio: float = 0.0,
    residual_weight: float = 1.0,
    patch: tuple[int, int] | None = None,
) -> HeatmapOutput:
    """How attention spreads with depth: the rollouts up to every layer, from one forward pass and each Â made once.

    Args:
        model, pixel_values, head_fusion, discard_ratio, residual_weight, patch: as of `attention_rollout`.

    Returns:
        `heatmap` is (B, L, H/P, W/P); entry l is that of `attention_rollout` with `end_layer=l + 1`.

    Raises:
        InputError: as `attention_rollout`.
    """
    config = config_of(model)
    operator = _Operator(config, head_fusion, discard_ratio, residual_weight)
    logits, layers, read = observed_layers(model, pixel_values, head_fusion, patch)
    rows = operator.applied_to(read, layers.pop())
    read = F.pad(read, (0, rows.shape[2] - read.shape[2]))
    for layer in reversed(layers):
        rows = operator.applied_to(torch.cat((read, rows), dim=1), layer)
    return HeatmapOutput(logits, patch_grids(rows, config, pixel_values))


@dataclass(frozen=True)
class _Operator:
    """Â of a layer: the rows of its fused attention + `residual_weight` I, normalised to sum 1."""

    config: ViTConfig
    head_fusion: HeadFusion
    discard_ratio: float
    residual_weight: float

    def __post_init__(self):
        if not 0 <= self.discard_ratio < 1:
            raise InputError(f"discard_ratio is {self.discard_ratio}; it must be at least 0 and less than 1.")
        if not 0 < self.residual_weight < math.inf:
            raise InputError(f"residual_weight is {self.residual_weight}; it must be above 0.")

    def applied_to(self, rows: torch.Tensor, layer: LayerScores) -> torch.Tensor:
        """rows @ Â, (B, m, t) -> (B, m, T), with zeros beyond the first t <= T columns.

        Where tokens were merged before this layer, each shares its row with those that it was merged with, because the
        residual connection carries the mean of all of them.
        """
        tokens, merged = layer[0].shape[2], layer[4]
        if merged is not None and rows.shape[2] > self.config.num_prefix_tokens:
            rows = F.pad(rows, (0, tokens - rows.shape[2])).transpose(1, 2)
            rows = merged.unmerged(merged.mean(rows)).transpose(1, 2)
        blocks = self._fused_whole(layer) if self.discard_ratio else self._fused(layer, rows.shape[2])
        rows = F.pad(rows, (0, tokens - rows.shape[2]))
        return rows_times_normalised(rows, blocks, self.residual_weight)

    def _fused(self, layer: LayerScores, num_queries: int) -> Iterator[AttentionBlock]:
        for images, queries, weights in attention_blocks(*layer[:4], slice(num_queries)):
            yield AttentionBlock(images, queries, fuse(weights, self.head_fusion))

    def _fused_whole(self, layer: LayerScores) -> Iterator[AttentionBlock]:
        """Image by image, because what is smallest shows in the whole matrix only."""
        query, key, scaling, bias, _ = layer
        tokens = query.shape[2]
        for image in range(len(query)):
            one = slice(image, image + 1)
            fused = query.new_empty(1, tokens, tokens, dtype=torch.float32)
            for _, queries, rows in self._fused(
                (query[one], key[one], scaling, None if bias is None else bias[one], None), tokens
            ):
                fused[:, queries] = rows
            _discard_smallest(fused[0], self.discard_ratio, self.config.use_class_token)
            yield AttentionBlock(one, slice(0, tokens), fused)


def rows_times_normalised(
    rows: torch.Tensor, blocks: Iterator[AttentionBlock], residual_weight: float = 1.0
) -> torch.Tensor:
    """rows @ Â, (B, m, T) -> (B, m, T), from blocks of a layer's fused attention, each (images, queries, T).

    Rows that no block holds must be zero.
    """
    result = torch.zeros_like(rows)
    for images, queries, fused in blocks:
        weights = rows[images, :, queries] / (fused.sum(-1) + residual_weight)[:, None]
        result[images] += product(weights, fused)
        result[images, :, queries] += residual_weight * weights
    return result


def _discard_smallest(fused: torch.Tensor, discard_ratio: float, has_class_token: bool) -> None:
    """Sets the smallest entries of one image's (T, T) attention to zero, except in the class token's column."""
    kept = fused[:, : int(has_class_token)].clone()
    smallest = fused.flatten().topk(int(discard_ratio * fused.numel()), largest=False).indices
    fused.view(-1)[smallest] = 0
    fused[:, : int(has_class_token)] = kept
