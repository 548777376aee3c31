"""What becomes of a prediction when the patches that a map ranks highest are hidden, beside as many hidden at random.

This is the deletion of `faithfulness` for looking at: few steps, whole patches, and what was hidden is returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vitrail.inspection.faithfulness import check_images_and_maps, class_logits
from vitrail.inspection.observation import config_of, grid_shape_of
from vitrail.inspection.targets import targets_of
from vitrail.modeling import InputError, ViTForImageClassification


@dataclass(frozen=True)
class OcclusionOutput:
    """The class's probability with ever more hidden, S shares of the patches. A map is worth what random is not.

    Attributes:
        target: (B,) int64, the class whose probability was followed.
        probability: (B,) float32 in [0, 1], of the class with the whole image.
        map: (B, S) float32, with the patches hidden that the map ranks highest.
        random: (B, S, draws) float32, with as many hidden at random.
        hidden: (B, S, H/P, W/P) bool, what the map hides.
        hidden_at_random: (B, S, H/P, W/P) bool, what the first draw hides.
    """

    target: torch.Tensor
    probability: torch.Tensor
    map: torch.Tensor
    random: torch.Tensor
    hidden: torch.Tensor
    hidden_at_random: torch.Tensor


@torch.no_grad()
def occlusion(
    model: ViTForImageClassification,
    pixel_values: torch.Tensor,
    heatmap: torch.Tensor,
    target: int | Sequence[int] | torch.Tensor | None = None,
    shares: Sequence[float] = (0.1, 0.25, 0.5),
    random_draws: int = 5,
    batch_size: int = 32,
    seed: int = 0,
) -> OcclusionOutput:
    """Hides the patches that a map points at, and as many at random, and asks the model again.

    A hidden pixel is zero in `pixel_values`, which is the processor's mean colour. A larger share hides all that a
    smaller one hides, also at random. What must be predicted for one image are S (random_draws + 1) + 1 images, of
    which only `batch_size` are made at a time.

    Args:
        model: a classifier of `vitrail.modeling`, in evaluation mode.
        pixel_values: (B, C, H, W), as the model takes them.
        heatmap: (B, H/P, W/P), higher is hidden earlier; what is equal in it, in a random order.
        target: a class for all images, or one for each; by default what the model says.
        shares: S fractions of the patches, each in (0, 1], rounded to whole patches, at least one.
        random_draws: how many times as many are hidden at random.
        batch_size: images a forward call.
        seed: of what is random, which depends on an image's place in the batch, not on the other images.

    Raises:
        InputError: an argument is out of its range or misshapen, the model has no class logits, is not one of
            `vitrail.modeling` or is in training mode, or there are NaN or infinite values in the images, the map or the
            logits.
    """
    config = config_of(model)
    check_images_and_maps(pixel_values, heatmap, random_draws=random_draws, batch_size=batch_size)
    grid_shape = grid_shape_of(config, pixel_values)
    expected = (len(pixel_values), *grid_shape)
    if heatmap.shape != expected:
        raise InputError(f"heatmap has shape {tuple(heatmap.shape)}; for these images it is {expected}, one a patch.")
    if not shares or not all(0 < share <= 1 for share in shares):
        raise InputError(f"shares is {shares}; it must be numbers above 0 and at most 1, at least one of them.")
    logits = class_logits(model, pixel_values, batch_size)
    targets = targets_of(logits, target)

    orders = _orders(heatmap.flatten(1).cpu(), random_draws, seed)  # (B, 1 + draws, N)
    patches = orders.shape[2]
    counts = torch.tensor([max(1, round(share * patches)) for share in shares])
    hidden = orders.argsort()[:, None] < counts[:, None, None]  # (B, S, 1 + draws, N)
    hidden = hidden.unflatten(-1, grid_shape).to(pixel_values.device)

    height, width = config.patch_shape
    found = []
    for some in torch.cartesian_prod(*(torch.arange(count) for count in hidden.shape[:3])).split(batch_size):
        image, share, order = some.unbind(1)
        pixels = hidden[image, share, order].repeat_interleave(height, 1).repeat_interleave(width, 2)
        occluded = pixel_values[image].masked_fill(pixels[:, None], 0)
        found.append(_probability(model, class_logits(model, occluded, batch_size), targets[image]))
    probabilities = torch.cat(found).view(hidden.shape[:3])
    return OcclusionOutput(
        target=targets,
        probability=_probability(model, logits, targets),
        map=probabilities[..., 0],
        random=probabilities[..., 1:],
        hidden=hidden[:, :, 0],
        hidden_at_random=hidden[:, :, 1],
    )


def _orders(maps: torch.Tensor, random_draws: int, seed: int) -> torch.Tensor:
    """Which patch is hidden first: (B, N) -> (B, 1 + draws, N), by the map and at random."""
    generator = torch.Generator().manual_seed(seed)
    orders = []
    for values in maps:
        ties, *draws = (torch.randperm(len(values), generator=generator) for _ in range(1 + random_draws))
        orders.append(torch.stack((ties[values[ties].argsort(descending=True, stable=True)], *draws)))
    return torch.stack(orders)


def _probability(model: ViTForImageClassification, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Of each image's class: (n, num_labels), (n,) -> (n,)."""
    return model.probabilities(logits).gather(1, targets[:, None])[:, 0]
