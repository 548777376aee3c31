"""From rows of a data set to tensors: decoding, and the random variations of training."""

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvF
from transformers.image_utils import pil_torch_interpolation_mapping

from vitrail.modeling import InputError, ViTImageProcessor, mean_color_classes, read_image
from vitrail.training.arguments import DataArguments


Rows = dict[str, list[Any]]
# What there is to learn of rows whose images, (B, C, H, W) in [0, 255], are not normalised yet.
Labels = Callable[[Rows, torch.Tensor], torch.Tensor]


def class_labels(rows: Rows, images: torch.Tensor) -> torch.Tensor:
    """The rows' classes, (B,)."""
    return torch.tensor(rows["label"])


def color_labels(rows: Rows, images: torch.Tensor, patch_shape: tuple[int, int]) -> torch.Tensor:
    """The mean colours of the images' own patches, (B, N): see `mean_color_classes`."""
    return mean_color_classes(images / 255, patch_shape)


def _read(image: dict | None, row: int) -> Image.Image:
    if image is None:
        raise InputError(f"Row {row} of the data set has no image; remove such rows.")
    return read_image(image["bytes"] or image["path"], name=image["path"] or f"of row {row} of the data set")


class EvaluationTransform:
    """What the image processor does, and nothing else.

    Rows with `image` (undecoded), `row` and what `labels` reads -> `pixel_values` (B, C, H, W), `labels` (B, ...).

    Raises:
        InputError: an image cannot be decoded; its file, or else its row, is named.
    """

    def __init__(self, processor: ViTImageProcessor, labels: Labels = class_labels):
        self.processor, self.labels = processor, labels

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        processor = self.processor
        images = self._framed([_read(image, row) for image, row in zip(rows["image"], rows["row"])])
        pixel_values = processor.rescale_and_normalize(
            images,
            processor.do_rescale,
            processor.rescale_factor,
            processor.do_normalize,
            processor.image_mean,
            processor.image_std,
        )
        return {"pixel_values": pixel_values, "labels": self.labels(rows, images)}

    def _framed(self, images: list, **kwargs: Any) -> torch.Tensor:
        """What of the images is seen, (B, C, H, W) in [0, 255]."""
        return self.processor(images, do_rescale=False, do_normalize=False, return_tensors="pt", **kwargs).pixel_values


class TrainingTransform(EvaluationTransform):
    """Random crop, flip and affine variation before the processor's normalisation; every image draws its own."""

    def __init__(self, processor: ViTImageProcessor, arguments: DataArguments, labels: Labels = class_labels):
        super().__init__(processor, labels)
        self.crop = None
        if arguments.crop_scale < 1:
            assert processor.output_size is not None  # it is the model's
            interpolation = pil_torch_interpolation_mapping[processor.resample]
            self.crop = v2.RandomResizedCrop(
                processor.output_size, scale=(arguments.crop_scale, 1.0), interpolation=interpolation
            )
        self.flip = v2.RandomHorizontalFlip(arguments.flip)
        self.affine = BatchedRandomAffine(arguments.rotation, arguments.scaling, arguments.translation)

    def _framed(self, images: list, **kwargs: Any) -> torch.Tensor:
        if self.crop is not None:
            images = [self.crop(tvF.pil_to_tensor(image)) for image in images]
            kwargs |= {"do_resize": False, "do_center_crop": False}
        batch = super()._framed(images, **kwargs)
        return self.affine(torch.stack([self.flip(image) for image in batch]).float())


class BatchedRandomAffine(torch.nn.Module):
    """Rotates, scales and shifts every image of a batch by its own random amount, all of them at once.

    torchvision's `RandomAffine` draws one variation a call; called for each small image it costs more than the rest of
    the pipeline together.

    Args:
        rotation: up to so many degrees, either way.
        scaling: up to this share, up and down.
        translation: up to this share of the side, in any direction.
    """

    def __init__(self, rotation: float, scaling: float, translation: float):
        super().__init__()
        self.rotation, self.scaling, self.translation = math.radians(rotation), scaling, translation

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) float -> (B, C, H, W); what comes in from outside is 0, black."""
        if not (self.rotation or self.scaling or self.translation):
            return images
        batch, _, height, width = images.shape
        angle, scale, right, down = 2 * torch.rand(4, batch) - 1  # each (B,), in [-1, 1]
        cos, sin = torch.cos(self.rotation * angle), torch.sin(self.rotation * angle)
        zoom = 1 / (1 + self.scaling * scale)
        shift = 2 * self.translation  # the grid runs from -1 to 1, so that a side is 2 long
        rows = [zoom * cos, -zoom * sin * height / width, shift * right]
        rows += [zoom * sin * width / height, zoom * cos, shift * down]
        matrices = torch.stack(rows, dim=1).view(batch, 2, 3)  # from places in the result to places in the image
        grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
