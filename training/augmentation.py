"""From rows of a data set to tensors: decoding, and the random variations of training."""

from collections.abc import Callable
from typing import Any

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from vitrail.modeling import ViTImageProcessor, read_image
from vitrail.training.arguments import DataArguments


Rows = dict[str, list[Any]]


class _DecodeRows:
    """Rows with `image` (undecoded), `label` and `row` -> `labels`, and images for `pixels`.

    Raises:
        InputError: an image cannot be decoded; its file, or else its row, is named.
    """

    def __init__(self, pixels: Callable[[list], torch.Tensor]):
        self.pixels = pixels

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        images = [
            read_image(image["bytes"] or image["path"], name=image["path"] or f"of row {row} of the data set")
            for image, row in zip(rows["image"], rows["row"])
        ]
        return {"pixel_values": self.pixels(images), "labels": torch.tensor(rows["label"])}


class EvaluationTransform(_DecodeRows):
    """What the image processor does, and nothing else: rows -> `pixel_values` (B, C, H, W), `labels` (B,)."""

    def __init__(self, processor: ViTImageProcessor):
        super().__init__(lambda images: processor(images, return_tensors="pt").pixel_values)


class TrainingTransform(_DecodeRows):
    """Random crop, affine variation and flip on 8-bit images, then the processor's normalisation.

    rows -> `pixel_values` (B, C, H, W), `labels` (B,). Every image draws its own variation.
    """

    def __init__(self, processor: ViTImageProcessor, arguments: DataArguments):
        super().__init__(self._vary)
        size = (processor.size["height"], processor.size["width"])
        variations: list[torch.nn.Module] = [
            v2.RandomResizedCrop(size, scale=(arguments.crop_scale, 1.0), antialias=True)
            if arguments.crop_scale < 1
            else v2.Resize(size, antialias=True)
        ]
        if arguments.rotation or arguments.scaling or arguments.translation:
            variations.append(
                v2.RandomAffine(
                    degrees=[-arguments.rotation, arguments.rotation],
                    translate=(arguments.translation, arguments.translation),
                    scale=(1 - arguments.scaling, 1 + arguments.scaling),
                    interpolation=InterpolationMode.BILINEAR,
                )
            )
        if arguments.flip:
            variations.append(v2.RandomHorizontalFlip(arguments.flip))
        self.variations = v2.Compose(variations)
        self.normalise = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
        )

    def _vary(self, images: list) -> torch.Tensor:
        return self.normalise(torch.stack([self.variations(tvF.pil_to_tensor(image)) for image in images]))
