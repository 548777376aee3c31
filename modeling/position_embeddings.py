"""Position embeddings on grids: fixed ones (Appendix D.4), and learned ones brought to another grid (Section 3.2)."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .configuration_vit import ViTConfig
from .errors import InputError


_RESIZE = {
    "bilinear": {"mode": "bilinear", "align_corners": True},  # scipy.ndimage.zoom(order=1), as the paper's code has it
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic_antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
}


def sincos_2d(rows: int, columns: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Fixed embeddings of a grid's places, (1, rows x columns, width) float32.

    A quarter of the width each for the sine and cosine of column and row, at wavelengths from 2 pi to 20,000 pi patches
    ("Better plain ViT baselines for ImageNet-1k").
    """
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, device=device) / max(quarter - 1, 1))
    y, x = torch.meshgrid(torch.arange(rows, device=device), torch.arange(columns, device=device), indexing="ij")
    x, y = (place.flatten()[:, None] * frequencies for place in (x, y))  # (N, D/4)
    return torch.cat((x.sin(), x.cos(), y.sin(), y.cos()), dim=1)[None]


def resize_grid(embeddings: torch.Tensor, shape: tuple[int, int], rule: str) -> torch.Tensor:
    """Interpolates embeddings of a grid, (n, rows, columns, D) -> (n, *shape, D), in float32.

    Args:
        rule: `"bilinear"`, `"bicubic"` or `"bicubic_antialias"`, see `ViTConfig.position_resize`.
    """
    if embeddings.shape[1:3] == shape:
        return embeddings
    channels_first = embeddings.float().permute(0, 3, 1, 2)
    resized = F.interpolate(channels_first, size=shape, **_RESIZE[rule])  # pyright: ignore[reportArgumentType]
    return resized.permute(0, 2, 3, 1).to(embeddings.dtype)


def resize_learned_1d(
    embeddings: torch.Tensor, prefix: int, old: tuple[int, int], new: tuple[int, int], rule: str
) -> torch.Tensor:
    """The same for embeddings in raster order behind those of `prefix` tokens, (n, prefix + N, D)."""
    grid = embeddings[:, prefix:].unflatten(1, old)
    return torch.cat((embeddings[:, :prefix], resize_grid(grid, new, rule).flatten(1, 2)), dim=1)


def resize_learned_2d(embeddings: torch.Tensor, length: int, rule: str) -> torch.Tensor:
    """The same for embeddings of rows or of columns, (n, old length, D/2) -> (n, length, D/2)."""
    return resize_grid(embeddings[:, :, None], (length, 1), rule)[:, :, 0]


def fit_positions(state_dict: dict[str, torch.Tensor], found: ViTConfig, wanted: ViTConfig) -> dict[str, torch.Tensor]:
    """Brings a checkpoint's position embeddings to the grid of the model that is to have them (Section 3.2).

    Args:
        state_dict: tensors by vitrail's names.
        found: the checkpoint's configuration.
        wanted: the model's, whose `position_resize` is the rule.

    Raises:
        InputError: they are relative, which have no meaning on another grid.
    """
    old, new = found.grid_shape, wanted.grid_shape
    if old == new:
        return state_dict
    if found.position_embedding == "relative":
        raise InputError(
            "The checkpoint has relative position embeddings in raster order, which mean nothing on another grid: "
            f"keep image_size={found.image_size}."
        )
    rule = wanted.position_resize
    fitted = dict(state_dict)
    prefix = "vit.embeddings."
    if (name := prefix + "position_embeddings") in state_dict:
        count = found.num_prefix_positions or 0
        if state_dict[name].ndim != 3 or state_dict[name].shape[1] != count + old[0] * old[1]:
            raise InputError(
                f"The checkpoint has position embeddings of shape {tuple(state_dict[name].shape)}, but its "
                f"{old[0]}x{old[1]} patches need {count + old[0] * old[1]}."
            )
        fitted[name] = resize_learned_1d(state_dict[name], count, old, new, rule)
    for axis, kind in enumerate(("row", "column")):
        if (name := f"{prefix}{kind}_embeddings") in state_dict:
            fitted[name] = resize_learned_2d(state_dict[name], new[axis], rule)
    return fitted
