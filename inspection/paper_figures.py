"""The paper's Figure 7: what the patch embedding filters, how near positions are, how far heads look (Section 4.5)."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import MaxNLocator
from torch.nn import functional as F
from transformers import PreTrainedModel

from vitrail.inspection.observation import attention_blocks, check_finite, config_of, observed_call, uncompiled, vit_of
from vitrail.modeling import InputError, ObservedAttention


_COMPONENTS = 28  # as many as the paper shows
_TILES = 8  # at most, along each side


def principal_filters(filters: torch.Tensor, count: int = _COMPONENTS) -> torch.Tensor:
    """Principal components of patch embedding filters, Figure 7, left.

    Args:
        filters: (D, C, P, P), the weight of the patch embedding.
        count: how many; there are at most as many as filters and as numbers in a filter.

    Returns:
        (count, P, P, C) float32, the components with the largest variance first, of length 1. The sign, which is
        arbitrary, makes each one's largest value positive.
    """
    rows = filters.detach().float().flatten(1)
    rows = rows - rows.mean(0)
    components = torch.linalg.svd(rows, full_matrices=False).Vh[:count]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    return (components * largest.sign()).unflatten(1, filters.shape[1:]).permute(0, 2, 3, 1)


def position_similarity(positions: torch.Tensor, rows: list[int], columns: list[int]) -> torch.Tensor:
    """How alike position embeddings are, Figure 7, centre.

    Args:
        positions: (rows, columns, D), of every patch.
        rows, columns: the places that are compared with all.

    Returns:
        (len(rows), len(columns), rows, columns) float32, cosine similarities in [-1, 1].
    """
    unit = F.normalize(positions.detach().float(), dim=-1)
    return torch.einsum("abd,rcd->abrc", unit[rows][:, columns], unit)


@torch.no_grad()
def attention_distance(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """How far each head looks, Figure 7, right: "analogous to receptive field size in CNNs" (Section 4.5).

    Of every patch i the sum over all patches j of A_ij times the distance of their centres, where A_i is the attention
    to the patches alone, with sum 1; then the mean over the patches and images. Tokens before the patches, which have
    no place in the image, are neither i nor j. Computed some rows at a time, so that no (k, N, N) tensor is kept.

    Args:
        model: any model of `vitrail.modeling`, in evaluation mode.
        pixel_values: (B, C, H, W), as the model takes them; the paper averages over 128 images.

    Returns:
        (L, k) float32, in pixels of `pixel_values`.

    Raises:
        InputError: the model is not one of `vitrail.modeling` or is in training mode, or the images or weights hold
            NaN.
    """
    config = config_of(model)
    prefix = config.num_prefix_tokens
    height, width = config.patch_shape
    y, x = torch.meshgrid(
        torch.arange(0, pixel_values.shape[2], height), torch.arange(0, pixel_values.shape[3], width), indexing="ij"
    )
    centres = torch.stack((y, x), dim=-1).flatten(0, 1).double()  # but for half a patch, (N, 2)
    distances = torch.zeros(config.num_hidden_layers, config.num_attention_heads, dtype=torch.float64)

    def observe(layer: int, attention: ObservedAttention) -> None:
        if layer == config.num_hidden_layers:  # attention pooling, whose query has no place
            return
        query, key, scaling, bias = attention[:4]
        # A softmax over the patches alone is attention renormalised over them, even where that has no weight left.
        query, key = query[:, :, prefix:], key[:, :, prefix:]
        bias = None if bias is None else bias[:, :, prefix:, prefix:]
        for _, queries, weights in attention_blocks(query, key, scaling, bias):
            pixels = torch.cdist(centres[queries], centres).to(weights)
            distances[layer] += (weights * pixels).sum((0, 2, 3)).cpu()

    with uncompiled():
        observed_call(model, pixel_values, observe)
    check_finite(distances, pixel_values)
    return (distances / (len(pixel_values) * len(centres))).float()


def filters_figure(model: PreTrainedModel) -> Figure:
    """Figure 7, left: the first 28 principal components of the patch embedding's filters.

    Each component is scaled to its own largest value; middle gray is zero.

    Args:
        model: any model of `vitrail.modeling` whose patches are of an RGB or gray image.

    Raises:
        InputError: the model is not one of `vitrail.modeling`, it is a hybrid, its images have other channels, or its
            filters are not finite.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    _draw_filters(figure, model)
    return figure


def position_similarity_figure(model: PreTrainedModel, layer: int = 0) -> Figure:
    """Figure 7, centre: the cosine similarity of patches' position embeddings with all others, one tile for each patch.

    Of a large grid every so many-th row and column have a tile, at most eight of each; the title says which.

    Args:
        model: any model of `vitrail.modeling` with absolute position embeddings.
        layer: whose embeddings are drawn where each layer has its own.

    Raises:
        InputError: the model is not one of `vitrail.modeling`, it has no embedding for each place or none in this
            layer, or they are not finite.
    """
    figure = Figure(figsize=(6, 5.5), layout="constrained")
    _draw_position_similarity(figure, model, layer)
    return figure


def attention_distance_figure(distances: torch.Tensor) -> Figure:
    """Figure 7, right: one dot for each head, above its layer.

    Args:
        distances: (L, k) in pixels, of `attention_distance`.

    Raises:
        InputError: they are not a finite, non-negative matrix.
    """
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    _draw_attention_distance(figure, distances)
    return figure


def figure_7(model: PreTrainedModel, pixel_values: torch.Tensor) -> Figure:
    """All three panels of the paper's Figure 7, side by side.

    Args:
        model: any model of `vitrail.modeling` that the three single figures take.
        pixel_values: (B, C, H, W), as of `attention_distance`.

    Raises:
        InputError: as of the single figures and `attention_distance`.
    """
    figure = Figure(figsize=(12, 4), layout="constrained")
    left, centre, right = figure.subfigures(1, 3, squeeze=False, width_ratios=(1.1, 1.15, 1), wspace=0.02)[0]
    _draw_filters(left, model)
    _draw_position_similarity(centre, model, 0)
    _draw_attention_distance(right, attention_distance(model, pixel_values))
    return figure


def _draw_filters(figure: FigureBase, model: PreTrainedModel) -> None:
    vit = vit_of(model)
    config = vit.config
    if config.resnet_depths is not None:
        raise InputError("The patch embedding of a hybrid filters a ResNet's features, which have no colours to show.")
    if config.num_channels not in (1, 3):
        raise InputError(f"The filters have {config.num_channels} channels; only 1 (gray) or 3 (RGB) can be shown.")
    filters = _finite(vit.embeddings.patch_embeddings.projection.weight, "The patch embedding")
    components = principal_filters(filters).numpy()
    components /= np.abs(components).max(axis=(1, 2, 3), keepdims=True).clip(np.finfo(np.float32).tiny)
    columns = min(7, len(components))
    axes = figure.subplots(-(-len(components) // columns), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, component in zip(axes.flat, components):
        axis.imshow((component + 1) / 2, cmap="gray", vmin=0, vmax=1)
    colours = "RGB" if config.num_channels == 3 else "gray"
    figure.suptitle(f"{colours} embedding filters\n(first {len(components)} principal components)", fontsize=11)


def _draw_position_similarity(figure: FigureBase, model: PreTrainedModel, layer: int) -> None:
    vit = vit_of(model)
    config = vit.config
    if config.position_embedding == "none":
        raise InputError("The model has no position embeddings to compare.")
    if config.position_embedding == "relative":
        raise InputError("The model's position embeddings are of offsets between patches; no patch has one of its own.")
    embeddings = vit.embeddings
    tables = embeddings.position_tables(config.grid_shape, embeddings.patch_embeddings.projection.weight.device)
    if not 0 <= layer < len(tables):
        raise InputError(f"layer is {layer}; the model has position embeddings for layers 0 to {len(tables) - 1}.")
    table = _finite(tables[layer, config.num_prefix_tokens :], "The position embedding")
    steps = [-(-count // _TILES) for count in config.grid_shape]
    # What is left over by the steps lies half before and half behind them.
    rows, columns = (list(range((count - 1) % step // 2, count, step)) for count, step in zip(config.grid_shape, steps))
    similarity = position_similarity(table.unflatten(0, config.grid_shape), rows, columns).cpu().numpy()
    axes = figure.subplots(len(rows), len(columns), squeeze=False)
    for (i, j), axis in np.ndenumerate(axes):
        drawn = axis.imshow(similarity[i, j], vmin=-1, vmax=1, cmap="viridis")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if i == len(rows) - 1:
            axis.set_xlabel(columns[j] + 1, fontsize=9)
        if j == 0:
            axis.set_ylabel(rows[i] + 1, fontsize=9)
    figure.supxlabel("Input patch column", fontsize=10)
    figure.supylabel("Input patch row", fontsize=10)
    figure.colorbar(drawn, ax=axes, label="Cosine similarity", fraction=0.05, pad=0.02)
    shape = f"{config.grid_shape[0]}x{config.grid_shape[1]} patches"
    if max(steps) > 1:
        shape += f", a tile every {steps[0]} rows and {steps[1]} columns"
    figure.suptitle(f"Position embedding similarity\n({shape})", fontsize=11)


def _draw_attention_distance(figure: FigureBase, distances: torch.Tensor) -> None:
    values = distances.detach().float().cpu().numpy()
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise InputError(f"Distances are a (layers, heads) matrix of finite numbers >= 0; got {values.shape}.")
    layers, heads = values.shape
    axis = figure.subplots()
    for head in range(heads):
        axis.scatter(range(layers), values[:, head], s=28, color=f"C{head % 10}", alpha=0.8, linewidths=0)
    axis.set(xlabel="Network depth (layer)", ylabel="Mean attention distance (pixels)", ylim=(0, None))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.3)
    figure.suptitle(f"Mean attention distance\n(one dot for each of {heads} heads)", fontsize=11)


def _finite(weights: torch.Tensor, name: str) -> torch.Tensor:
    weights = weights.detach().float().cpu()
    if not torch.isfinite(weights).all():
        raise InputError(f"{name} holds NaN or infinite values; load the weights again.")
    return weights
