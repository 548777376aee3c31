"""Pictures of what a ViT looked at."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence, Sized

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from vitrail.modeling import InputError


# Left, upper, right and lower edge of what a model saw, in pixels of the image; see `ViTImageProcessor.seen_region`.
Region = tuple[float, float, float, float]

_COLORMAP = "inferno"  # perceptually uniform: equal steps of the map look equally large
_WIDTH = 8  # inches of a figure; at 100 dots per inch the 800 pixels that a README shows
_PER_ROW = 7  # panels of a strip
MISSING = "□"  # a letter that no font has
_SIDE = 224  # pixels of an image's longer side in a figure


def overlay(image: Image.Image, heatmap: torch.Tensor, alpha: float = 0.6, region: Region | None = None) -> Image.Image:
    """A heat map laid over its image.

    Args:
        image: the picture that the model saw, of any size.
        heatmap: (rows, columns), not negative. Its largest value becomes the brightest colour.
        alpha: in [0, 1], how strongly the map covers the image.
        region: left, upper, right and lower edge of what the map covers in pixels of the image, which it may exceed:
            `processor.seen_region(*image.size)`. By default the whole image. What lies outside fades to white.

    Returns:
        an RGB image of the original size.

    Raises:
        InputError: the map is not a finite, non-negative matrix, alpha is out of range, or the region is empty or
            outside the image.
    """
    values = _finite(heatmap, ("rows", "columns"))
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha is {alpha}; it must lie between 0 and 1.")
    values = values / _peak(values)
    shown = image.convert("RGB")
    (left, upper, right, lower), part = _placed(region, image.size)
    inside = _pixels(part, image.size)
    # Of the map what lies on the image, in its rows and columns, which rounding to pixels must not exceed.
    rows, columns = values.shape
    across, down = columns / (right - left), rows / (lower - upper)
    box = (
        max(0, (inside[0] - left) * across),
        max(0, (inside[1] - upper) * down),
        min(columns, (inside[2] - left) * across),
        min(rows, (inside[3] - upper) * down),
    )
    size = inside[2] - inside[0], inside[3] - inside[1]
    smooth = Image.fromarray(values).resize(size, Image.Resampling.BICUBIC, box=box)
    colours = matplotlib.colormaps[_COLORMAP](np.asarray(smooth).clip(0, 1), bytes=True)[..., :3]
    seen = Image.blend(shown.crop(inside), Image.fromarray(np.ascontiguousarray(colours)), alpha)
    result = Image.blend(shown, Image.new("RGB", shown.size, "white"), alpha)
    result.paste(seen, inside[:2])
    return result


def depth_figure(image: Image.Image, heatmaps: torch.Tensor, region: Region | None = None) -> Figure:
    """How rollout spreads with depth: the image, and over it the map up to every layer.

    Args:
        image: the picture that the model saw, of any size.
        heatmaps: (L, rows, columns), not negative: `rollout_by_depth(model, pixel_values).heatmap[0]`. Each is scaled
            to its own peak, the largest share that one patch has, which stands above it.
        region: as of `overlay`. Nothing else of the image is shown.

    Raises:
        InputError: the maps are not finite, non-negative matrices, or the region is empty or outside the image.
    """
    maps = _finite(heatmaps, ("layers", "rows", "columns"))
    names = [f"layer {layer}" for layer in range(len(maps))]
    return _strip(image, maps, names, region, "Attention rollout up to each layer")


def heads_figure(image: Image.Image, maps: torch.Tensor, layer: int, region: Region | None = None) -> Figure:
    """What single heads of one layer look at.

    Args:
        image: the picture that the model saw, of any size.
        maps: (k, rows, columns), not negative: for instance what the class token attends to, the first row of
            `attention_maps` without the tokens before the patches. Each is scaled to its own peak.
        layer: which it is, for the title.
        region: as of `overlay`. Nothing else of the image is shown.

    Raises:
        InputError: the maps are not finite, non-negative matrices, or the region is empty or outside the image.
    """
    values = _finite(maps, ("heads", "rows", "columns"))
    names = [f"head {head}" for head in range(len(values))]
    return _strip(image, values, names, region, f"Attention of each head of layer {layer}")


def rollout_grid(
    images: Sequence[Image.Image],
    heatmaps: torch.Tensor,
    regions: Sequence[Region] | None = None,
    pairs_per_row: int = 3,
) -> Figure:
    """As the paper's Figure 6 the input, and beside it the input in the light of its attention.

    Args:
        images: n pictures of any size.
        heatmaps: (n, rows, columns), not negative; the picture keeps all its light where its map has its peak, and none
            where the map is zero.
        regions: n times what `overlay` takes, by default the whole images. Nothing else of them is shown.
        pairs_per_row: how many images stand side by side.

    Raises:
        InputError: the maps are not finite, non-negative matrices, or not as many as the images and regions.
    """
    maps = _finite(heatmaps, ("images", "rows", "columns"))
    places = _one_each(images, regions, heatmaps=maps)
    rows = -(-len(images) // pairs_per_row)
    panel = _WIDTH / (2 * pairs_per_row)
    layout = ConstrainedLayoutEngine(w_pad=0.01, h_pad=0.02, wspace=0.01)
    figure = Figure(figsize=(_WIDTH, rows * panel + 0.6), layout=layout)
    axes = figure.subplots(rows, 2 * pairs_per_row, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for axis, title in zip(axes[0, : 2 * len(images)], ("Input", "Attention") * pairs_per_row):
        axis.set_title(title, fontsize=11)
    for (left, right), image, values, region in zip(axes.reshape(-1, 2), images, maps, places):
        shown = _seen(image, region)
        strength = Image.fromarray(values / _peak(values)).resize(shown.size, Image.Resampling.BILINEAR)
        light = np.asarray(strength).clip(0, 1)[..., None] ** (1 / 2.2)  # as 8-bit levels encode light
        left.imshow(shown)
        right.imshow((np.asarray(shown) * light).astype(np.uint8))
    figure.suptitle("Attention rollout (each map scaled to its own peak)", fontsize=11)
    return figure


def legible(text: str, letters: int) -> str:
    """A text as a figure can show it: in one line of at most so many letters, with a box for each that no font has.

    What is too long loses its middle, because names often differ at their ends.
    """
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in matplotlib.rcParams["font.family"]]
    text = " ".join(text.split())
    if len(text) > letters:
        ending = letters // 3
        text = f"{text[: letters - ending - 1].rstrip()}…{text[-ending:].lstrip()}"
    return "".join(
        letter if letter.isprintable() and any(font.get_char_index(ord(letter)) for font in fonts) else MISSING
        for letter in text
    )


def predictions_figure(
    images: Sequence[Image.Image],
    heatmaps: torch.Tensor,
    predictions: Sequence[str],
    probabilities: Sequence[float],
    truths: Sequence[str],
    regions: Sequence[Region] | None = None,
    truth_probabilities: Sequence[float] | None = None,
) -> Figure:
    """Images above their rollout, titled with the prediction, in red where it is wrong.

    Args:
        images: n pictures of any size.
        heatmaps: (n, rows, columns), not negative; each is scaled to its own peak.
        predictions: the n predicted classes.
        probabilities: of the predictions, in [0, 1].
        truths: the n classes that the images really show.
        regions: n times what `overlay` takes; by default the whole images.
        truth_probabilities: what the model gave the true classes, in [0, 1]; by default it is not shown.

    Raises:
        InputError: the maps are not finite, non-negative matrices, or there are not n of everything.
    """
    likely = [None] * len(images) if truth_probabilities is None else truth_probabilities
    places = _one_each(
        images,
        regions,
        heatmaps=heatmaps,
        predictions=predictions,
        probabilities=probabilities,
        truths=truths,
        truth_probabilities=likely,
    )
    width = max(1.5 * len(images), 5.5)
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    columns = figure.subplots(2, len(images), squeeze=False).T
    for (above, below), image, heatmap, prediction, probability, truth, region, truth_probability in zip(
        columns, images, heatmaps, predictions, probabilities, truths, places, likely
    ):
        wrong = prediction != truth
        shown, region = _scaled(image, region)
        colour = "firebrick" if wrong else "black"
        _panel(above, shown, _class_title(prediction, probability), fontsize=10, color=colour)
        title = f"is {_class_title(truth, truth_probability)}" if wrong else ""
        _panel(below, overlay(shown, heatmap, region=region), title, color=colour)
    title = "prediction, and where it looked (attention rollout, each map scaled to its own peak)"
    figure.suptitle(textwrap.fill(title, round(12 * width)), fontsize=10)
    return figure


def _class_title(name: str, probability: float | None) -> str:
    """A class's name and probability on as few lines of a panel's width as it takes, three at most."""
    share = "" if probability is None else f" ({probability:.0%})" if probability >= 0.01 else " (<1%)"
    return textwrap.fill(legible(name, 32) + share, 18)


def _strip(image: Image.Image, maps: np.ndarray, names: Sequence[str], region: Region | None, title: str) -> Figure:
    """What of the image was seen, and every map over it, each below its name and its peak."""
    image = _seen(image, region)
    per_row = min(_PER_ROW, 1 + len(maps))
    rows = -(-(1 + len(maps)) // per_row)
    panel = min(2, (_WIDTH - 0.9) / per_row)  # inches, beside the colour bar
    height = rows * (panel * min(image.height / image.width, 3) + 0.42) + 0.45
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, per_row, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    _panel(axes.flat[0], image, "input")
    for axis, values, name in zip(axes.flat[1:], maps, names):
        _panel(axis, overlay(image, torch.from_numpy(values)), f"{name}\npeak {values.max():.1%}")
    bar = figure.colorbar(ScalarMappable(cmap=_COLORMAP), ax=axes, fraction=0.03, pad=0.01, aspect=18 * rows)
    bar.set_ticks([0, 1], labels=["0", "peak"])
    bar.ax.tick_params(labelsize=9)
    figure.suptitle(f"{title} (each map scaled to its own peak)", fontsize=11)
    return figure


def _panel(axis: Axes, image: Image.Image, title: str, fontsize: int = 9, color: str = "black") -> None:
    axis.imshow(image)
    axis.set_title(title, fontsize=fontsize, color=color, parse_math=False)  # a class may be called $x^$
    axis.set_axis_off()


def _seen(image: Image.Image, region: Region | None) -> Image.Image:
    """What of an image the model saw, black where it lies outside of it, with a longer side of `_SIDE`."""
    (left, upper, right, lower), part = _placed(region, image.size)
    factor = _SIDE / max(right - left, lower - upper)

    def scaled(across: float, down: float) -> tuple[int, int]:
        return max(1, round(factor * across)), max(1, round(factor * down))

    size = scaled(part[2] - part[0], part[3] - part[1])
    shown = Image.new("RGB", scaled(right - left, lower - upper))
    corner = round(factor * (part[0] - left)), round(factor * (part[1] - upper))
    shown.paste(image.convert("RGB").resize(size, Image.Resampling.BICUBIC, box=part), corner)
    return shown


def _scaled(image: Image.Image, region: Region | None) -> tuple[Image.Image, Region]:
    """The image with a longer side of `_SIDE`, and its region there."""
    left, upper, right, lower = region or (0, 0, *image.size)
    factor = _SIDE / max(image.size)
    width, height = (max(1, round(factor * side)) for side in image.size)
    across, down = width / image.width, height / image.height
    scaled = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return scaled, (left * across, upper * down, right * across, lower * down)


def _one_each(images: Sequence[Image.Image], regions: Sequence[Region] | None, **others: Sized) -> list[Region | None]:
    """The regions.

    Raises:
        InputError: there are no images, or not one of everything else for each of them.
    """
    found: list[Region | None] = [None] * len(images) if regions is None else list(regions)
    if not len(images):
        raise InputError("There are no images to draw.")
    for name, values in {"regions": found, **others}.items():
        if len(values) != len(images):
            raise InputError(f"There are {len(images)} images, but {len(values)} {name}; each image needs one.")
    return found


def _peak(values: np.ndarray) -> float:
    return max(float(values.max()), float(np.finfo(np.float32).tiny))


def _placed(region: Region | None, size: tuple[int, int]) -> tuple[Region, Region]:
    """A region, by default the whole image of this (width, height), and what of it lies on the image.

    Raises:
        InputError: nothing does.
    """
    width, height = size
    left, upper, right, lower = region = region or (0, 0, width, height)
    if not (-math.inf < left < right < math.inf and -math.inf < upper < lower < math.inf):
        raise InputError(f"region is {region}; it must be finite, left edge before right and upper before lower.")
    if right <= 0 or lower <= 0 or left >= width or upper >= height:
        raise InputError(f"The region {region} lies outside of the image of {width}x{height} pixels.")
    return region, (max(0, left), max(0, upper), min(width, right), min(height, lower))


def _pixels(part: Region, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A part of an image in whole pixels, at least one."""
    left, upper = min(round(part[0]), size[0] - 1), min(round(part[1]), size[1] - 1)
    return left, upper, max(left + 1, round(part[2])), max(upper + 1, round(part[3]))


def _finite(maps: torch.Tensor, axes: tuple[str, ...]) -> np.ndarray:
    """Heat maps as float32.

    Raises:
        InputError: they have other axes, or are empty, negative or not finite.
    """
    values = maps.detach().float().cpu().numpy()
    if values.ndim != len(axes) or not values.size:
        raise InputError(f"The heat map's shape is {tuple(values.shape)}; it must be ({', '.join(axes)}), not empty.")
    if not np.isfinite(values).all() or values.min() < 0:
        raise InputError("A heat map holds negative, infinite or NaN values; it must be finite and >= 0.")
    return values
