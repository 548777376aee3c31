"""What every map here is made of: attention as any backend computes it, in float32, some rows at a time."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, cast, get_args

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from vitrail.modeling import InputError, MergedTokens, ObservedAttention, ViTConfig, ViTModel


# Attention weights computed at a time: on a CPU 4 MB, which stay in its cache.
_BLOCK_ELEMENTS_CPU = 2**20
_BLOCK_ELEMENTS = 2**25

_UNCOMPILED = threading.RLock()

HeadFusion = Literal["mean", "max", "min"]

# Of an `ObservedAttention` what its weights are made of: query, key, scaling, bias; and what was merged before it.
LayerScores = tuple[torch.Tensor, torch.Tensor, float, torch.Tensor | None, MergedTokens | None]


@dataclass(frozen=True)
class HeatmapOutput:
    """What the model said and where that came from.

    Attributes:
        logits: (B, num_labels), or (B, N, 512) of masked patch prediction, exactly the model's own; None for a model
            without a head.
        heatmap: (B, H/P, W/P) float32, or (B, maps, H/P, W/P), at least 0; not stretched to any range.
    """

    logits: torch.Tensor | None
    heatmap: torch.Tensor


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


def observed_call(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    observe: Callable[[int, ObservedAttention], None],
    **kwargs: bool,
) -> ModelOutput:
    """The model's own forward call, in which each layer, and attention pooling after them, is shown with its index.

    Merged tokens are shown as all those that they are made of, but in the output.
    """
    count = 0

    def count_and_observe(attention: ObservedAttention) -> None:
        nonlocal count
        observe(count, _unmerged(attention))
        count += 1

    return model(pixel_values, attention_observer=count_and_observe, **kwargs)


def _unmerged(attention: ObservedAttention) -> ObservedAttention:
    """Attention of and to all T tokens in place of those that were left.

    Each has the query and key of the token that it was merged into. As "Token Merging", Eq. 1, weighs that one by its
    size, this is the same attention, in equal shares.
    """
    merged = attention.merged
    if merged is None:
        return attention
    query, key, value = (
        merged.unmerged(tokens.transpose(1, 2)).transpose(1, 2)
        for tokens in (attention.query, attention.key, attention.value)
    )
    return attention._replace(query=query, key=key, value=value, bias=None)


def vit_of(model: PreTrainedModel) -> ViTModel:
    """The ViT in a model, which may be wrapped, by `torch.compile` or PEFT for instance.

    Raises:
        InputError: there is none of `vitrail.modeling`.
    """
    vit = next((module for module in model.modules() if isinstance(module, ViTModel)), None)
    if vit is None:
        raise InputError(f"{type(model).__name__} does not show its attention; load it with vitrail.modeling.")
    return vit


def config_of(model: PreTrainedModel) -> ViTConfig:
    """The configuration of the ViT in a model whose attention can be observed.

    Raises:
        InputError: as `vit_of`, or it is in training mode, where attention is random.
    """
    vit = vit_of(model)
    if vit.training:
        raise InputError("The model is in training mode, where dropout makes attention random; call model.eval().")
    return cast("ViTConfig", vit.config)


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled models run as if they were not, because they would take an observer that computes into their graph.

    One thread at a time, for what PyTorch switches here is switched for the whole process.
    """
    with _UNCOMPILED, torch.compiler.set_stance("force_eager"):
        yield


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left @ right in their own precision, also where the model runs under autocast."""
    with torch.autocast(left.device.type, enabled=False):
        return left @ right


def observed_layers(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    head_fusion: HeadFusion,
    patch: Sequence[int] | None,
) -> tuple[torch.Tensor | None, list[LayerScores], torch.Tensor]:
    """One forward call: the model's logits, its layers, and what is read of the tokens, (B, 1, t) with sum 1.

    Read is what the head reads, or else the token of one patch, (row, column) of their grid.

    Raises:
        InputError: as `config_of`, there is no such head fusion, or no such patch.
    """
    config = config_of(model)
    if head_fusion not in get_args(HeadFusion):
        raise InputError(f"head_fusion is {head_fusion!r}; it must be 'mean', 'max' or 'min'.")
    layers: list[LayerScores] = []
    outputs = observed_call(model, pixel_values, lambda _, attention: layers.append((*attention[:4], attention.merged)))
    pooling = layers.pop() if config.pooling == "attention" else None
    if patch is not None:
        token = config.num_prefix_tokens + _place_of(patch, grid_shape_of(config, pixel_values))
        read = F.pad(layers[0][0].new_ones(len(pixel_values), 1, 1, dtype=torch.float32), (token, 0))
    elif "bool_masked_pos" in outputs:  # the head of masked patch prediction reads every patch, whatever is pooled
        read = read_by_head(config, "mean", layers[0][0])
    elif pooling is None:
        read = read_by_head(config, config.pooling, layers[0][0])
    else:
        fused = torch.cat([fuse(block.weights, head_fusion) for block in attention_blocks(*pooling[:4])])  # (B, 1, N)
        read = F.pad(fused / fused.sum(-1, keepdim=True), (config.num_prefix_tokens, 0))
    return outputs.get("logits"), layers, read


def attention_blocks(
    query: torch.Tensor,
    key: torch.Tensor,
    scaling: float,
    bias: torch.Tensor | None,
    wanted: slice = slice(None),
) -> Iterator[AttentionBlock]:
    """A = softmax(scaling q k^T + bias) in float32, of as many rows at a time as a cache holds; rows have sum 1.

    A block is overwritten by the next one.

    Args:
        query, key, scaling, bias: as of `ObservedAttention`.
        wanted: of which tokens the rows are made; by default of all.
    """
    query, key = query.float(), key.float()
    batch, heads, tokens, _ = query.shape
    keys = key.shape[2]
    first, end, _ = wanted.indices(tokens)
    elements = _BLOCK_ELEMENTS_CPU if query.device.type == "cpu" else _BLOCK_ELEMENTS
    images_at_once = min(batch, max(1, elements // (heads * (end - first) * keys)))
    rows_at_once = min(end - first, max(1, elements // (heads * keys)))
    buffer = query.new_empty(images_at_once * heads * rows_at_once * keys)
    for image in range(0, batch, images_at_once):
        images = slice(image, min(image + images_at_once, batch))
        transposed = key[images].flatten(0, 1).transpose(1, 2)
        for row in range(first, end, rows_at_once):
            queries = slice(row, min(row + rows_at_once, end))
            rows = query[images, :, queries].flatten(0, 1)  # (images * k, queries, D/k)
            weights = buffer[: rows[..., 0].numel() * keys].view(*rows.shape[:2], keys)
            torch.baddbmm(weights, rows, transposed, beta=0, alpha=scaling, out=weights)
            if bias is not None:
                weights += bias[images, :, queries].flatten(0, 1)
            torch.softmax(weights, dim=-1, out=weights)
            yield AttentionBlock(images, queries, weights.unflatten(0, (-1, heads)))


def fuse(weights: torch.Tensor, head_fusion: HeadFusion) -> torch.Tensor:
    """The heads' attention as one matrix: (B, k, queries, T) -> (B, queries, T)."""
    if head_fusion == "mean":
        return weights.mean(1)
    return weights.amax(1) if head_fusion == "max" else weights.amin(1)


def read_by_head(config: ViTConfig, pooling: str, tokens: torch.Tensor) -> torch.Tensor:
    """The tokens that the head reads, (B, 1, t) with sum 1; of the T tokens those after the first t are not read.

    Args:
        config: of the model.
        pooling: `config.pooling`, or "mean" for a head that reads every patch; not "attention", which has its own.
        tokens: (B, k, T, D/k), for their number.
    """
    batch, _, count, _ = tokens.shape
    prefix = config.num_prefix_tokens
    read = tokens.new_zeros(batch, 1, prefix if pooling == "token" else count, dtype=torch.float32)
    if pooling != "token":
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
    return rows[..., config.num_prefix_tokens :].unflatten(-1, grid_shape_of(config, pixel_values))


def grid_shape_of(config: ViTConfig, pixel_values: torch.Tensor) -> tuple[int, int]:
    """How many rows and columns of patches there are, (H/P, W/P)."""
    height, width = config.patch_shape
    return pixel_values.shape[2] // height, pixel_values.shape[3] // width


def _place_of(patch: Sequence[int], grid_shape: tuple[int, int]) -> int:
    """The place of a patch, (row, column), among all of them.

    Raises:
        InputError: it lies outside the grid.
    """
    rows, columns = grid_shape
    places: list[tuple[int, ...]] = list(itertools.product(range(rows), range(columns)))
    if tuple(patch) not in places:
        raise InputError(
            f"patch is {patch}; it must be a row from 0 to {rows - 1} and a column from 0 to {columns - 1}."
        )
    return places.index(tuple(patch))


def check_finite(values: torch.Tensor, pixel_values: torch.Tensor) -> None:
    """Says where NaN come from.

    Raises:
        InputError: `values`, made from a model's attention to `pixel_values`, are not all finite.
    """
    if torch.isfinite(values).all():
        return
    if not torch.isfinite(pixel_values).all():
        raise InputError("pixel_values hold NaN or infinite values; prepare the images with the model's processor.")
    raise InputError("The map holds NaN, though the images are finite: the model's weights hold NaN, or overflow.")
