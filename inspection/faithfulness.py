"""Is a map true? What the model says as the pixels that it points at are taken away, or are all there is.

Insertion and deletion (Petsiuk et al., "RISE", 2018) follow the probability of a class; positive and negative
perturbation (Chefer et al., "Transformer Interpretability Beyond Attention Visualization", 2021, Section 4) whether the
model still decides for it. These figures say little on their own, for they depend on the model and the images. So the
same is measured of a map that knows nothing, and of one that knows only that photographers centre their subject.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from vitrail.inspection.targets import targets_of
from vitrail.modeling import InputError


@dataclass(frozen=True)
class Scores:
    """Areas under curves, each (B,) float32 in [0, 1], or (B, M) where each image has M maps.

    Attributes:
        insertion_blur: of the class's probability, as the pixels are put back into the blurred image, most relevant
            first; higher is better.
        deletion_blur: as they are blurred instead; lower is better.
        insertion_zero: as `insertion_blur`, from an image of zeros.
        deletion_zero: as `deletion_blur`, with zeros; lower is better.
        positive: share of the decisions for the class while 10 % to 90 % of the pixels are zero, the most relevant;
            lower is better.
        negative: the same of the least relevant; higher is better.
    """

    insertion_blur: torch.Tensor
    deletion_blur: torch.Tensor
    insertion_zero: torch.Tensor
    deletion_zero: torch.Tensor
    positive: torch.Tensor
    negative: torch.Tensor


@dataclass(frozen=True)
class FaithfulnessOutput:
    """A map's scores beside those of two maps that never saw the model: only what is better than both is insight.

    Attributes:
        map: of the map, or maps.
        random: of a map of noise, the mean of several.
        gaussian: of a Gaussian in the middle of the image. Only the order of the pixels counts, so its width does not.
        target: (B,) int64, the class whose probability was followed.
    """

    map: Scores
    random: Scores
    gaussian: Scores
    target: torch.Tensor


@torch.no_grad()
def faithfulness(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    heatmap: torch.Tensor,
    target: int | Sequence[int] | torch.Tensor | None = None,
    steps: int = 10,
    random_draws: int = 3,
    batch_size: int = 32,
    seed: int = 0,
) -> FaithfulnessOutput:
    """Scores maps by what becomes of the prediction when the pixels that they rank highest are removed, or kept.

    A map is stretched bilinearly to the image's size and its pixels ranked. What is equal in the map is ranked at
    random, by noise of the map's resolution that is stretched likewise: a constant map is the random control.

    A removed pixel is zero in `pixel_values`, which is the processor's mean colour, or the pixel of the image under a
    Gaussian blur with a standard deviation of a tenth of the shorter side, wider than RISE's. The areas are trapezoids;
    those of positive and negative perturbation are divided by their width, 0.8.

    What must be predicted for one image with M maps are 4 (steps - 1) (M + random_draws + 1) + 2 images, of which only
    `batch_size` are made at a time.

    Args:
        model: any image classifier of transformers' interface, in evaluation mode.
        pixel_values: (B, C, H, W), as the model takes them.
        heatmap: (B, rows, columns), higher is more relevant; or (B, M, rows, columns) to compare M maps of each image,
            as `rollout_by_depth` returns them, beside the same controls.
        target: the class index, or one for each image; by default the model's prediction.
        steps: into how many equal parts the pixels are divided; a multiple of 10.
        random_draws: how many maps of noise are drawn for each image; their mean is the random control.
        batch_size: images a forward call.
        seed: of the noise. An image's noise depends on its place in the batch and the number of maps, not on the other
            images.

    Raises:
        InputError: an argument is out of its range or misshapen, the model has no class logits or is in training mode,
            or there are NaN or infinite values in the images, the map or the logits.
    """
    check_images_and_maps(pixel_values, heatmap, random_draws=random_draws, batch_size=batch_size)
    maps = _checked(pixel_values, heatmap, steps)
    if model.training:
        raise InputError("The model is in training mode, where dropout makes its logits random; call model.eval().")
    logits = class_logits(model, pixel_values, batch_size)
    targets = targets_of(logits, target)
    blurred = torch.cat([_blurred(images) for images in pixel_values.split(batch_size)])
    zeros = torch.zeros_like(pixel_values[:1])
    ends = torch.stack(
        (logits, class_logits(model, blurred, batch_size), class_logits(model, zeros, batch_size).expand_as(logits)),
        dim=1,
    )

    rows, columns = maps.shape[2:]
    controls = torch.cat((torch.zeros(random_draws, rows, columns), _centred_gaussian(rows, columns)[None]))
    generator = torch.Generator().manual_seed(seed)
    areas = []
    for image, baseline, end, label, own in zip(pixel_values, blurred, ends, targets, maps):
        ranks = _ranks(torch.cat((controls, own)), image.shape[1:], generator).to(image.device)
        baselines = torch.stack((baseline, zeros[0]))
        inner = _curves(model, image, baselines, ranks, label, steps, batch_size)
        areas.append(_areas(inner, _judged(end, label), steps))
    scores = torch.stack(areas, dim=1)  # (6, B, draws + 1 + M)

    of_maps = scores[..., random_draws + 1 :]
    return FaithfulnessOutput(
        map=Scores(*(of_maps if heatmap.ndim == 4 else of_maps[..., 0])),
        random=Scores(*scores[..., :random_draws].mean(-1)),
        gaussian=Scores(*scores[..., random_draws]),
        target=targets,
    )


def check_images_and_maps(pixel_values: torch.Tensor, heatmap: torch.Tensor, **counts: int) -> None:
    """Whether these can be used, whatever shape the maps should have.

    Raises:
        InputError: the images are no batch, they or the maps hold NaN, or a count is below 1.
    """
    if pixel_values.ndim != 4:
        raise InputError(f"pixel_values has shape {tuple(pixel_values.shape)}; it must be (B, C, H, W).")
    if not torch.isfinite(pixel_values).all():
        raise InputError("pixel_values hold NaN or infinite values; prepare the images with the model's processor.")
    if not torch.isfinite(heatmap).all():
        raise InputError("heatmap holds NaN or infinite values, which have no rank; make it of finite numbers.")
    for name, value in counts.items():
        if value < 1:
            raise InputError(f"{name} is {value}; it must be at least 1.")


def _checked(pixel_values: torch.Tensor, heatmap: torch.Tensor, steps: int) -> torch.Tensor:
    """The maps, (B, M, rows, columns) float32 on the CPU."""
    batch, _, height, width = pixel_values.shape
    fits = heatmap.ndim in (3, 4) and len(heatmap) == batch and heatmap.numel() > 0
    if not fits or heatmap.shape[-2] > height or heatmap.shape[-1] > width:
        raise InputError(
            f"heatmap has shape {tuple(heatmap.shape)}; for these images it is ({batch}, rows, columns) or "
            f"({batch}, maps, rows, columns), of at most {height} rows and {width} columns."
        )
    if steps < 10 or steps % 10:
        raise InputError(f"steps is {steps}; it must be a multiple of 10, so that the curves pass 10 % and 90 %.")
    return (heatmap if heatmap.ndim == 4 else heatmap[:, None]).float().cpu()


def class_logits(model: PreTrainedModel, images: torch.Tensor, batch_size: int) -> torch.Tensor:
    """(n, num_labels) float32 of any number of images.

    Raises:
        InputError: the model gives none, or they are not finite.
    """
    found = []
    for some in images.split(batch_size):
        logits = model(some).get("logits")
        if logits is None or logits.ndim != 2:
            raise InputError(f"{type(model).__name__} gives no logits of classes; load an image classifier.")
        found.append(logits.float())
    result = torch.cat(found)
    if not torch.isfinite(result).all():
        raise InputError("The model's logits are NaN or infinite, though its images are finite: its weights hold NaN.")
    return result


def _judged(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """The class's probability, and 1 where it is the decision: (n, num_labels) -> (n, 2)."""
    return torch.stack((logits.softmax(-1)[:, label], (logits.argmax(-1) == label).float()), dim=1)


def _curves(
    model: PreTrainedModel,
    image: torch.Tensor,
    baselines: torch.Tensor,
    ranks: torch.Tensor,
    label: torch.Tensor,
    steps: int,
    batch_size: int,
) -> torch.Tensor:
    """What `_judged` says when only the first k / steps of the pixels are there, and when only they are missing.

    Returns:
        (M, steps - 1, 2, 2, 2): map, k from 1, there or missing, baseline, judgement.
    """
    count = len(ranks)
    first = torch.arange(1, steps, device=image.device) * ranks[0].numel() // steps
    ways = torch.arange(2, device=image.device)
    judged = []
    for some in torch.cartesian_prod(torch.arange(count, device=image.device), first, ways, ways).split(batch_size):
        which, pixels, missing, baseline = some.unbind(1)
        there = (ranks[which] < pixels[:, None, None]) ^ missing.bool()[:, None, None]
        images = torch.where(there[:, None], image, baselines[baseline])
        judged.append(_judged(class_logits(model, images, batch_size), label))
    return torch.cat(judged).view(count, steps - 1, 2, 2, 2)


def _areas(inner: torch.Tensor, ends: torch.Tensor, steps: int) -> torch.Tensor:
    """The fields of `Scores`, (6, M), from `_curves` and what is said of the image and both baselines, (3, 2)."""
    count = len(inner)
    whole, nothing = ends[:1].expand(count, 1, 2, 2), ends[1:].expand(count, 1, 2, 2)
    there = torch.cat((nothing, inner[:, :, 0], whole), dim=1)  # (M, steps + 1, baseline, judgement)
    missing = torch.cat((whole, inner[:, :, 1], nothing), dim=1)
    insertion, deletion = (torch.trapezoid(curve[..., 0], dx=1 / steps, dim=1).T for curve in (there, missing))
    # What is left when the least relevant pixels are zero are the most relevant: the images of insertion serve twice.
    tenth = steps // 10
    negative, positive = (
        torch.trapezoid(curve[:, tenth : steps - tenth + 1, 1, 1], dx=1 / (steps - 2 * tenth), dim=1)
        for curve in (there, missing)
    )
    return torch.stack((insertion[0], deletion[0], insertion[1], deletion[1], positive, negative))


def _ranks(maps: torch.Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
    """The place of every pixel in the order of each map, from 0: (M, rows, columns) -> (M, H, W)."""
    noise = torch.rand(maps.shape, generator=generator)
    keys = torch.stack((noise, maps)).double()
    # Back in float32, neighbours that are equal in the map are equal here, whatever interpolation rounded.
    keys = F.interpolate(keys, tuple(shape), mode="bilinear", align_corners=False).float().flatten(2)
    ranks = []
    for noise, values in keys.unbind(1):
        order = torch.randperm(len(values), generator=generator)
        for key in (noise, values):  # the last one decides
            order = order[key[order].argsort(descending=True, stable=True)]
        ranks.append(order.argsort())
    return torch.stack(ranks).unflatten(1, tuple(shape))


def _centred_gaussian(rows: int, columns: int) -> torch.Tensor:
    """(rows, columns), with standard deviations of a quarter of the sides."""
    down, across = ((torch.arange(side) - (side - 1) / 2) / (side / 4) for side in (rows, columns))
    return torch.exp(-(down[:, None] ** 2 + across**2) / 2)


def _blurred(images: torch.Tensor) -> torch.Tensor:
    """(B, C, H, W) under a strong Gaussian blur; beyond the edge there is nothing, rather than black."""
    height, width = images.shape[2:]
    vertical, horizontal = (_blur(side, min(height, width) / 10) for side in (height, width))
    return (vertical @ images.cpu().double() @ horizontal.T).to(images)


def _blur(side: int, deviation: float) -> torch.Tensor:
    """The matrix that blurs a line of pixels; its rows have sum 1."""
    places = torch.arange(side, dtype=torch.float64)
    weights = torch.exp(-(((places[:, None] - places) / deviation) ** 2) / 2)
    return weights / weights.sum(1, keepdim=True)
