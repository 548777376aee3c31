"""Pictures of what a ViT looked at."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from vitrail.modeling import InputError


_COLORMAP = "inferno"  # perceptually uniform: equal steps of the map look equally large


def overlay(image: Image.Image, heatmap: torch.Tensor, alpha: float = 0.6) -> Image.Image:
    """A heat map laid over its image.

    Args:
        image: the picture that the model saw, of any size.
        heatmap: (rows, columns), not negative; covers the whole image. Its largest value becomes the brightest colour.
        alpha: in [0, 1], how strongly the map covers the image.

    Returns:
        an RGB image of the original size.

    Raises:
        InputError: the map is not a finite, non-negative matrix, or alpha is out of range.
    """
    values = heatmap.detach().float().cpu().numpy()
    if values.ndim != 2 or not values.size or not np.isfinite(values).all() or values.min() < 0:
        raise InputError(f"A heat map is a matrix of finite numbers >= 0; got shape {tuple(values.shape)}.")
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; it must lie between 0 and 1.")
    values = values / max(values.max(), np.finfo(np.float32).tiny)
    smooth = Image.fromarray(values).resize(image.size, Image.Resampling.BICUBIC)
    colours = matplotlib.colormaps[_COLORMAP](np.asarray(smooth).clip(0, 1), bytes=True)[..., :3]
    return Image.blend(image.convert("RGB"), Image.fromarray(np.ascontiguousarray(colours)), alpha)


def predictions_figure(
    images: Sequence[Image.Image],
    heatmaps: torch.Tensor,
    predictions: Sequence[str],
    probabilities: Sequence[float],
    truths: Sequence[str],
) -> Figure:
    """Images above their rollout, titled with the prediction, in red where it is wrong.

    Args:
        images: n pictures of any size.
        heatmaps: (n, rows, columns), not negative.
        predictions: the n predicted classes.
        probabilities: of the predictions, in [0, 1].
        truths: the n classes that the images really show.
    """
    figure = Figure(figsize=(1.5 * len(images), 3.6), layout="constrained")
    columns = figure.subplots(2, len(images), squeeze=False).T
    for (above, below), image, heatmap, prediction, probability, truth in zip(
        columns, images, heatmaps, predictions, probabilities, truths
    ):
        shown = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        above.imshow(shown)
        below.imshow(overlay(shown, heatmap))
        wrong = prediction != truth
        above.set_title(f"{prediction} ({probability:.0%})", fontsize=11, color="firebrick" if wrong else "black")
        if wrong:
            below.set_title(f"is {truth}", fontsize=9, color="firebrick")
        for axis in (above, below):
            axis.set_axis_off()
    figure.suptitle("prediction, and where it looked (attention rollout)", fontsize=10)
    return figure
