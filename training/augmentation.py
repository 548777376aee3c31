"""From rows of a data set to tensors: what the processor does, and the random variations of training.

A variation is a function of the seed, the epoch and the image's key, which is its place among the training images. So
it does not matter how many workers or machines prepare the images, in which order, or where a training goes on that
was interrupted.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.transforms import v2
from transformers import TrainerCallback
from transformers.image_utils import SizeDict

from vitrail.modeling import ViTImageProcessor, mean_color_classes
from vitrail.training.arguments import DataArguments
from vitrail.training.decoding import Box, cut, may_be_reduced, read_crop, read_picture, read_pixels


Rows = dict[str, Any]  # by column, each a list; `image` also as the tensor that `still` makes of it
# What there is to learn of rows whose images, (B, C, H, W) in [0, 255], are not normalised yet.
Labels = Callable[[Rows, torch.Tensor], torch.Tensor]

_POLICIES = {"randaugment": v2.RandAugment, "trivialaugment": v2.TrivialAugmentWide}
_CROP_RATIO = (3 / 4, 4 / 3)  # width to height, as in torchvision's RandomResizedCrop
_ERASED_RATIO, _ERASED_SCALE = (1 / 3.3, 1 / 0.3), (0.02, 0.33)  # as in its RandomErasing


def class_labels(rows: Rows, images: torch.Tensor) -> torch.Tensor:
    """The rows' classes, (B,)."""
    return torch.tensor(rows["label"])


def color_labels(rows: Rows, images: torch.Tensor, patch_shape: tuple[int, int]) -> torch.Tensor:
    """The mean colours of the images' own patches, (B, N): see `mean_color_classes`."""
    return mean_color_classes(images / 255, patch_shape)


class EvaluationTransform:
    """What the image processor does, and nothing else.

    Rows with `image` (undecoded, or what `still` made of them), `row` and what `labels` reads -> `pixel_values`
    (B, C, H, W), `labels` (B, ...).

    Raises:
        InputError: an image cannot be decoded; its file, or else its row, is named.
    """

    def __init__(self, processor: ViTImageProcessor, labels: Labels = class_labels):
        self.processor, self.labels = processor, labels

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        images = self._framed(rows)
        return {"pixel_values": self._normalized(images), "labels": self.labels(rows, images)}

    def still(self, rows: Rows) -> torch.Tensor | None:
        """What every epoch would otherwise do to the images anew, uint8 (B, C, h, w).

        None if that is no one thing: the images' sizes differ, or random parts of them are read better than the whole.
        """
        return self._framed(rows)

    def _framed(self, rows: Rows) -> torch.Tensor:
        """What is seen of the images, (B, C, H, W)."""
        if isinstance(rows["image"], torch.Tensor):
            return rows["image"]
        images = [read_picture(image, row) for image, row in zip(rows["image"], rows["row"])]
        return self.processor(images, do_rescale=False, do_normalize=False, return_tensors="pt").pixel_values

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        processor = self.processor
        return processor.rescale_and_normalize(
            images,
            processor.do_rescale,
            processor.rescale_factor,
            processor.do_normalize,
            processor.image_mean,
            processor.image_std,
        )


class TrainingTransform(EvaluationTransform):
    """The variations of `arguments`, then the processor's normalisation, then MixUp or CutMix.

    Rows with `key` beside what `EvaluationTransform` takes. When mixing, `labels` are probabilities, (B, K).

    Args:
        processor: says what is seen of an image that is not cropped at random, and normalises.
        arguments: the variations.
        labels: what is learned, made of the varied images.
        seed: of all randomness.
        num_labels: K, needed for mixing.

    Attributes:
        epoch: from 0; a tensor in memory that workers share.
    """

    def __init__(
        self,
        processor: ViTImageProcessor,
        arguments: DataArguments,
        labels: Labels = class_labels,
        seed: int = 0,
        num_labels: int | None = None,
    ):
        super().__init__(processor, labels)
        assert processor.output_size is not None  # it is the model's
        self.size = processor.output_size
        self.arguments, self.seed = arguments, seed
        self.epoch = torch.tensor(0).share_memory_()
        self.gray = (255 * torch.tensor(processor.image_mean)).round().byte()[:, None, None]  # 0 once normalised
        self.policy = None
        if arguments.policy != "none":
            self.policy = _POLICIES[arguments.policy](interpolation=v2.InterpolationMode.BILINEAR)
        mixing = [v2.MixUp(alpha=arguments.mixup, num_classes=num_labels)] if arguments.mixup else []
        mixing += [v2.CutMix(alpha=arguments.cutmix, num_classes=num_labels)] if arguments.cutmix else []
        self.mixing = v2.RandomChoice(mixing) if mixing else None

    def __call__(self, rows: Rows) -> dict[str, torch.Tensor]:
        draws = Draws(self.seed, int(self.epoch), rows["key"])
        images = self._cropped(rows, draws) if self.arguments.crop_scale < 1 else self._framed(rows)
        images = self._varied(images, draws)
        pixel_values, labels = self._normalized(images), self.labels(rows, images)
        if self.mixing is not None:
            pixel_values, labels = _drawn_from(draws.seeds()[0], self.mixing, pixel_values, labels)
        return {"pixel_values": pixel_values, "labels": labels}

    def still(self, rows: Rows) -> torch.Tensor | None:
        if self.arguments.crop_scale == 1:
            return super().still(rows)
        channels = self.processor.num_channels
        pixels = [read_pixels(image, row, channels) for image, row in zip(rows["image"], rows["row"])]
        shapes = {image.shape for image in pixels}
        _, height, width = pixels[0].shape
        return None if len(shapes) > 1 or may_be_reduced(height, width, self.size) else torch.stack(pixels)

    def _cropped(self, rows: Rows, draws: "Draws") -> torch.Tensor:
        """Random parts of the images at the model's size, (B, C, H, W): torchvision's RandomResizedCrop."""
        channels, resample = self.processor.num_channels, self.processor.resample
        size = SizeDict(height=self.size[0], width=self.size[1])
        crops = []
        for index, numbers in enumerate(draws.uniform(_BOX_NUMBERS).T.tolist()):
            choose = partial(crop_box, numbers, self.arguments.crop_scale)
            if isinstance(rows["image"], torch.Tensor):
                height, width = rows["image"].shape[2:]
                crop = cut(rows["image"][index], choose(height, width))
            else:
                crop = read_crop(rows["image"][index], rows["row"][index], channels, choose, self.size)
            crop = crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)  # the memory that is fastest to resize
            crops.append(self.processor.resize(crop, size, resample)[:channels])
        return torch.stack(crops)

    def _varied(self, images: torch.Tensor, draws: "Draws") -> torch.Tensor:
        """(B, C, H, W) -> (B, C, H, W), in [0, 255]."""
        arguments = self.arguments
        if arguments.flip:
            mirrored = draws.uniform(1)[0] < arguments.flip
            images = torch.stack([image.flip(-1) if turn else image for image, turn in zip(images, mirrored.tolist())])
        if arguments.padding:
            images = shifted(images, arguments.padding, draws.uniform(2))
        if self.policy is not None:
            images = torch.stack([_drawn_from(seed, self.policy, image) for seed, image in zip(draws.seeds(), images)])
        if arguments.rotation or arguments.scaling or arguments.translation:
            amounts = 2 * draws.uniform(4) - 1
            images = affine(images.float(), arguments.rotation, arguments.scaling, arguments.translation, amounts)
        if arguments.erasing:
            images = erased(images, arguments.erasing, self.gray, draws.uniform(1 + _BOX_NUMBERS))
        return images


class Draws:
    """Random numbers of a batch, which for every image depend on the seed, the epoch and its own key alone.

    Each image has a splitmix64 generator (Steele, Lea and Flood, 2014), all of which advance together.
    """

    def __init__(self, seed: int, epoch: int, keys: Sequence[int]):
        state = np.zeros(1, np.uint64)
        for part in (seed, epoch, keys):
            state = _mixed(state ^ np.asarray(part, np.uint64))
        self._state = state  # (B,)

    def integers(self, count: int) -> np.ndarray:
        """(`count`, B), all of 64 bits."""
        steps = np.arange(1, count + 1, dtype=np.uint64)[:, None] * _GOLDEN
        states = self._state + steps
        self._state = states[-1]
        return _mixed(states)

    def uniform(self, count: int) -> np.ndarray:
        """(`count`, B), float64 in [0, 1)."""
        return (self.integers(count) >> np.uint64(11)) * 2.0**-53

    def seeds(self) -> list[int]:
        """Of a generator for every image."""
        return self.integers(1)[0].tolist()


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(state: np.ndarray) -> np.ndarray:
    """splitmix64's bijection of 64 bits, in which every bit of the result depends on every bit of the state."""
    state = state + _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _drawn_from(seed: int, vary: Callable, *inputs: torch.Tensor) -> Any:
    """What one of torchvision's random transforms makes of the inputs when torch's generator starts at this seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also set the accelerators' generators
        return vary(*inputs)


_TRIES = 10  # of torchvision's random boxes, each with four numbers
_BOX_NUMBERS = 4 * _TRIES


def random_box(
    numbers: Sequence[float], height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Box | None:
    """A part of an image, as torchvision's RandomResizedCrop and RandomErasing choose it; None if ten do not fit.

    Args:
        numbers: 40 of [0, 1).
        height: of the image.
        width: of the image.
        scale: least and greatest share of the image's area.
        ratio: least and greatest width, in heights.
    """
    least, greatest = math.log(ratio[0]), math.log(ratio[1])
    for area, shape, down, right in zip(*[iter(numbers)] * 4):
        area = height * width * (scale[0] + area * (scale[1] - scale[0]))
        shape = math.exp(least + shape * (greatest - least))
        h, w = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < h <= height and 0 < w <= width:
            return Box(int(down * (height - h + 1)), int(right * (width - w + 1)), h, w)
    return None


def crop_box(numbers: Sequence[float], least_area: float, height: int, width: int) -> Box:
    """The part of an image that a random crop keeps, of at least this share of the area; see `random_box`."""
    box = random_box(numbers, height, width, (least_area, 1.0), _CROP_RATIO)
    if box is None:  # the image is too long, so its middle
        h, w = min(height, round(width / _CROP_RATIO[0])), min(width, round(height * _CROP_RATIO[1]))
        return Box((height - h) // 2, (width - w) // 2, h, w)
    return box


def shifted(images: torch.Tensor, padding: int, numbers: np.ndarray) -> torch.Tensor:
    """Images moved by up to `padding` whole pixels in each direction; what comes in from outside is 0, black.

    Args:
        images: (B, C, H, W).
        padding: in pixels.
        numbers: (2, B) of [0, 1): how far down and right the part lies that is kept of the padded image.
    """
    height, width = images.shape[2:]
    down, right = torch.from_numpy(numbers * (2 * padding + 1)).long()
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2P+1, 2P+1, H, W), a view
    return windows[torch.arange(len(images)), :, down, right]


def affine(
    images: torch.Tensor, rotation: float, scaling: float, translation: float, amounts: np.ndarray
) -> torch.Tensor:
    """Every image of a batch rotated, scaled and shifted by its own amounts, all of them at once.

    torchvision's `RandomAffine` draws one variation a call; called for each small image it costs more than the rest of
    the pipeline together.

    Args:
        images: (B, C, H, W), float; what comes in from outside is 0, black.
        rotation: the greatest, in degrees.
        scaling: the greatest share by which the image grows.
        translation: the greatest, as a share of the side.
        amounts: (4, B) in [-1, 1], of the greatest: rotation, scaling, and the shifts to the right and down.
    """
    batch, _, height, width = images.shape
    angle, scale, right, down = torch.from_numpy(amounts).float()
    cos, sin = torch.cos(math.radians(rotation) * angle), torch.sin(math.radians(rotation) * angle)
    zoom = 1 / (1 + scaling * scale)
    shift = 2 * translation  # the grid runs from -1 to 1, so that a side is 2 long
    rows = [zoom * cos, -zoom * sin * height / width, shift * right]
    rows += [zoom * sin * width / height, zoom * cos, shift * down]
    matrices = torch.stack(rows, dim=1).view(batch, 2, 3)  # from places in the result to places in the image
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def erased(images: torch.Tensor, probability: float, colour: torch.Tensor, numbers: np.ndarray) -> torch.Tensor:
    """Images of which a random part is painted over: torchvision's RandomErasing.

    Args:
        images: (B, C, H, W).
        probability: that it happens to an image.
        colour: (C, 1, 1), in the images' range.
        numbers: (41, B) of [0, 1): whether, and where.
    """
    images = images.clone()
    height, width = images.shape[2:]
    for index in np.flatnonzero(numbers[0] < probability):
        box = random_box(numbers[1:, index].tolist(), height, width, _ERASED_SCALE, _ERASED_RATIO)
        if box is not None:
            cut(images[index], box)[:] = colour
    return images


class EpochOfAugmentation(TrainerCallback):
    """Tells the training transform which epoch has begun, also where a training is resumed."""

    def __init__(self, transform: TrainingTransform):
        self.transform = transform

    def on_train_begin(self, args, state, control, **kwargs):
        self.transform.epoch.fill_(int(state.epoch) - 1)

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.transform.epoch += 1  # `state.epoch` is no whole number where a data set's length is unknown
