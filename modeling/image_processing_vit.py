"""Pixels in: any image file a person has -> `pixel_values` (B, C, H, W).

python -c "from vitrail.modeling import ViTImageProcessor; print(ViTImageProcessor()('photo.jpg', return_tensors='pt'))"

Every image becomes 8-bit RGB or gray first, then `size`, then floats. ICC profiles are ignored, as they were when the
published checkpoints were trained: a wide-gamut photograph keeps its numbers.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image, ImageFile
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, DeiTImageProcessorPil
from transformers import ViTImageProcessorPil as StockViTImageProcessorPil
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_transforms import get_size_with_aspect_ratio
from transformers.image_utils import (
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    get_image_size_for_max_height_width,
)
from transformers.processing_utils import ImagesKwargs

from .checkpoints import is_npz, read_preprocessing, split_hub_kwargs
from .errors import InputError
from .pictures import each_picture, pixels_of, pixels_of_array, reading
from .remote_code import PROCESSOR_AUTO_MAP, copy_sources


# The name under which stock transformers finds a processor that computes the same, and the one that only we know.
STOCK_IMAGE_PROCESSOR_TYPE = "ViTImageProcessor"
OWN_IMAGE_PROCESSOR_TYPE = "VitrailImageProcessor"

# Stock processors that do what ViT's does, each with its own defaults for what a file leaves out.
_STOCK_IMAGE_PROCESSORS = {
    STOCK_IMAGE_PROCESSOR_TYPE: StockViTImageProcessorPil,
    "DeiTImageProcessor": DeiTImageProcessorPil,
    "BitImageProcessor": BitImageProcessorPil,
    "CLIPImageProcessor": CLIPImageProcessorPil,
}

Fit = Literal["squash", "crop", "pad"]


class ViTImageProcessorKwargs(ImagesKwargs, total=False):
    """transformers' fields and ours.

    Attributes:
        num_channels: 3 for RGB, 1 for gray.
        fit: how an image comes to `size`; see `ViTImageProcessor`.
    """

    num_channels: int
    fit: Fit | None


class _AnyImage(BaseImageProcessor):
    """What both backends add to transformers': any image comes in, and `num_channels` and `fit` are honoured."""

    valid_kwargs = ViTImageProcessorKwargs
    num_channels = 3
    fit: Fit | None = None
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_STANDARD_MEAN
    image_std = IMAGENET_STANDARD_STD
    size: Any = {"height": 224, "width": 224}  # a SizeDict in instances
    crop_size: Any = None
    do_resize = True
    do_center_crop = False
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    resize: Any  # the backend's
    _blank: Any  # (colour in [0, 1] (C,), size, like) -> (C, height, width) of that colour, with the type of `like`

    def __init__(self, **kwargs: Any):
        if kwargs.get("num_channels") == 1:
            for name in ("image_mean", "image_std"):
                if kwargs.get(name) is None:
                    kwargs[name] = (0.5,)
        super().__init__(**kwargs)

    @property
    def output_size(self) -> tuple[int, int] | None:
        """(height, width) of `pixel_values`; None where it depends on the image."""
        size = self.crop_size if self.do_center_crop else _with_sides(self.size, self.fit)
        fixed = size.height and (self.do_center_crop or self.do_resize)
        return (size.height, size.width) if fixed else None

    def seen_region(self, width: int, height: int) -> tuple[float, float, float, float]:
        """What of an image of this size `pixel_values` show: all of it, its middle, or with padding more than it.

        Exact within a pixel of the resized image, to which crops and borders are rounded. An image must stand upright,
        as `read_image` returns it, and `do_pad` is not regarded.

        Returns:
            left, upper, right and lower edge in pixels of the image, negative or beyond its size where it is padded.
        """
        resized = height, width
        if self.do_resize:
            resized = _resized_shape(height, width, _with_sides(self.size, self.fit), self.fit)
        seen = self.output_size or resized
        half_height, half_width = (side * kept / whole / 2 for side, kept, whole in zip((height, width), seen, resized))
        return width / 2 - half_width, height / 2 - half_height, width / 2 + half_width, height / 2 + half_height

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        source = str(pretrained_model_name_or_path)
        if is_npz(source):
            return read_preprocessing(source), split_hub_kwargs(kwargs)[1]
        if Path(source).is_file():  # of weights, with its preprocessor_config.json beside it
            source = str(Path(source).parent)
        try:
            fields, kwargs = super().get_image_processor_dict(source, **kwargs)
        except OSError as error:
            if Path(source, "preprocessor_config.json").is_file():
                raise InputError(f"{source}/preprocessor_config.json is not valid JSON.") from error
            hub_kwargs, kwargs = split_hub_kwargs(kwargs)
            if (implied := read_preprocessing(source, **hub_kwargs)) is not None:
                return implied, kwargs
            raise InputError(
                f"{source} has no preprocessor_config.json, which says how images are prepared."
            ) from error
        if not isinstance(fields, dict):
            raise InputError(f"{source}/preprocessor_config.json is not a JSON object.")
        named = fields.get("image_processor_type") or fields.get("feature_extractor_type") or STOCK_IMAGE_PROCESSOR_TYPE
        name = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        if name == OWN_IMAGE_PROCESSOR_TYPE:
            return fields, kwargs
        if name not in _STOCK_IMAGE_PROCESSORS:
            raise InputError(
                f"{source} prepares images with {named}; vitrail can do what {', '.join(_STOCK_IMAGE_PROCESSORS)} do."
            )
        try:
            return _STOCK_IMAGE_PROCESSORS[name].from_dict(fields).to_dict(), kwargs
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"{source}/preprocessor_config.json: {reason}.") from error

    @property
    def is_stock(self) -> bool:
        """Whether stock transformers' processor computes the same, but for a pixel in where it crops."""
        fits = self.fit is None or (self.fit == "crop" and bool(self.size.shortest_edge) and self.do_center_crop)
        return self.num_channels == 3 and fits

    def to_dict(self):
        """The fields as they are saved: under the stock name where stock computes the same."""
        fields = super().to_dict()
        if self.num_channels == 3:
            del fields["num_channels"]
        if self.is_stock:
            return fields | {"image_processor_type": STOCK_IMAGE_PROCESSOR_TYPE}
        return fields | {"image_processor_type": OWN_IMAGE_PROCESSOR_TYPE, "auto_map": PROCESSOR_AUTO_MAP}

    def to_json_file(self, json_file_path):
        """Writes preprocessor_config.json and, where stock computes something else, the sources that do it right."""
        if not self.is_stock:
            copy_sources(Path(json_file_path).parent)
        super().to_json_file(json_file_path)

    def _standardize_kwargs(self, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs["num_channels"] not in (1, 3):
            raise InputError(f"num_channels is {kwargs['num_channels']}, but images have 1 (gray) or 3 (RGB).")
        for name in ("image_mean", "image_std"):
            if kwargs["num_channels"] == 1 and isinstance(kwargs[name], tuple) and len(kwargs[name]) != 1:
                raise InputError(f"{name} has {len(kwargs[name])} values, but must have one for num_channels=1.")
        if kwargs["fit"] not in (None, *get_args(Fit)):
            raise InputError(f"fit is {kwargs['fit']!r}, but must be one of {', '.join(get_args(Fit))}.")
        by_sides = kwargs["size"].height and kwargs["size"].width
        if not (by_sides or kwargs["fit"] is None or (kwargs["fit"] == "crop" and kwargs["size"].shortest_edge)):
            raise InputError(f"fit={kwargs['fit']!r} needs a size of height and width, not {dict(kwargs['size'])}.")
        if kwargs["do_center_crop"] and kwargs["crop_size"] is None:
            raise InputError("do_center_crop needs a crop_size.")
        return kwargs

    def _prepare_images_structure(self, images, expected_ndims=3):
        found = list(each_picture(images))
        if not found:
            raise InputError("No images were given.")
        return found

    def process_image(self, image, num_channels, do_rescale, input_data_format=None, **kwargs):
        """One image of any kind -> (`num_channels`, H, W), uint8, or float32 for floats that are not to be rescaled."""
        kwargs["do_convert_rgb"] = False
        if isinstance(image, Image.Image):
            opened = image.filename if isinstance(image, ImageFile.ImageFile) else ""
            with reading(str(opened) or f"of mode {image.mode} and {image.width}x{image.height} pixels"):
                pixels = pixels_of(image, num_channels)
            return super().process_image(pixels, input_data_format=ChannelDimension.LAST, **kwargs)
        with reading(f"array of shape {tuple(image.shape)}"):
            if isinstance(image, torch.Tensor):
                kwargs["device"] = kwargs.get("device") or image.device
                image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
            pixels = pixels_of_array(image, num_channels, input_data_format, as_given=not do_rescale)
        return super().process_image(pixels, input_data_format=ChannelDimension.LAST, **kwargs)

    def _preprocess(self, images, do_resize, size, resample, do_center_crop, crop_size, image_mean, fit, **kwargs):
        size = _with_sides(size, fit)
        target = crop_size if do_center_crop else size
        unbounded = fit == "crop" or (fit is None and size.shortest_edge and not size.longest_edge)
        if do_resize and unbounded:
            cropped = target if do_center_crop or fit == "crop" else None
            images = [_without_far_ends(image, size, cropped) for image in images]
        if do_resize and fit is not None:
            images = [self._fitted(image, fit, size, resample, target, image_mean) for image in images]
            do_resize = do_center_crop = False
        return super()._preprocess(
            images,
            do_resize=do_resize,
            size=size,
            resample=resample,
            do_center_crop=do_center_crop,
            crop_size=crop_size,
            image_mean=image_mean,
            **kwargs,
        )

    def _fitted(self, image, fit, size, resample, target, image_mean):
        """(C, H, W) -> (C, target)."""
        height, width = image.shape[-2:]
        resized = _resized_shape(height, width, size, fit)
        image = self.resize(image, SizeDict(height=resized[0], width=resized[1]), resample)
        image = _centre(image, target.height, target.width)
        height, width = image.shape[-2:]
        if (height, width) == (target.height, target.width):
            return image
        top, left = (target.height - height) // 2, (target.width - width) // 2
        padded = self._blank(np.broadcast_to(image_mean, len(image)), target, image)
        padded[:, top : top + height, left : left + width] = image
        return padded


def _with_sides(size: Any, fit: Fit | None) -> Any:
    """The `size` that a `fit` needs, of height and width: the shortest edge is that of a square."""
    if fit is None or not size.shortest_edge:
        return size
    return SizeDict(height=size.shortest_edge, width=size.shortest_edge)


def _resized_shape(height: int, width: int, size: Any, fit: Fit | None) -> tuple[int, int]:
    """(height, width) that an image is resized to, before anything is cut off or added.

    With a `fit`, timm's rounding: `transforms_imagenet_eval` in its `transforms_factory.py`.
    """
    if size.shortest_edge:
        return get_size_with_aspect_ratio((height, width), size.shortest_edge, size.longest_edge)
    if size.max_height and size.max_width:
        return get_image_size_for_max_height_width((height, width), size.max_height, size.max_width)
    if fit in (None, "squash"):
        return size.height, size.width
    if fit == "crop" and size.height == size.width:  # then timm takes torchvision's Resize, which rounds down
        return size.height * height // min(height, width), size.height * width // min(height, width)
    ratio = (max if fit == "pad" else min)(height / size.height, width / size.width)
    return max(1, round(height / ratio)), max(1, round(width / ratio))


def _centre(image: Any, height: int, width: int) -> Any:
    """The middle of (C, H, W), at most `height` by `width`, with the offsets of torchvision's `CenterCrop`."""
    top, left = (max(0, round((side - kept) / 2)) for side, kept in zip(image.shape[-2:], (height, width)))
    return image[..., top : top + height, left : left + width]


def _without_far_ends(image: Any, size: SizeDict, cropped: SizeDict | None) -> Any:
    """Of an extremely long image the middle, ten times what a centre crop can see.

    One of 1x20,000 pixels would be 256x5,120,000 when its short side is 256, and fill the memory.

    Raises:
        InputError: an image is that long, and nothing crops it.
    """
    height, width = image.shape[-2:]
    if size.shortest_edge:
        ratio = min(height, width) / size.shortest_edge
    else:
        ratio = min(height / size.height, width / size.width)
    seen = ratio * max(*dict(size).values(), *dict(cropped or size).values())  # pixels of the image, either way
    if max(height, width) <= 100 * seen:
        return image
    if cropped is None:
        raise InputError(
            f"An image of {height}x{width} pixels is too thin to be resized to {dict(size)} and not cropped."
        )
    # a multiple of 4 less, so that half of the difference rounds, once enlarged, the same way
    return _centre(image, *(min(side, 4 * math.ceil(2.5 * seen) + side % 4) for side in (height, width)))


class ViTImageProcessor(_AnyImage, TorchvisionBackend):
    """Images -> `pixel_values`, float32 (B, C, H, W): resized to `size`, scaled to [0, 1], then to [-1, 1].

    Takes paths, URLs, PIL images of any mode, numpy arrays and torch tensors of any kind, one or a list. The defaults
    are those of the paper's fine-tuning: the whole image is squashed to the model's square, with mean and standard
    deviation 0.5 (Appendix B.1; `input_pipeline.py` of its code). Equal to stock transformers' processor on RGB images.

    Fields, beside those of every image processor of transformers:
        num_channels: 3, or 1 for a model of gray images: then any image becomes 8-bit gray, of colours
            0.299 R + 0.587 G + 0.114 B (Pillow's mode L), and mean and standard deviation are 0.5 unless given.
        fit: how an image comes to `size`, {"height", "width"}. None is stock transformers' way: squashed, or with
            `size={"shortest_edge": n}` enlarged or reduced to cover, and then cut if `do_center_crop`. Otherwise as in
            timm's evaluation, whose sizes and offsets round differently:
            "squash": to `size` without regard to its shape.
            "crop": its shape is kept, `size` is covered, and what juts out is cut off evenly.
            "pad": its shape is kept, the whole image is seen, and evenly bordered with the colour `image_mean`.
            With `do_center_crop`, the centre of `crop_size` is what remains in the end.

    Arrays may be (H, W), (H, W, C) or (C, H, W) with 1 to 4 channels (gray, gray and alpha, RGB, RGBA). Where both ends
    could count channels, 3 and 4 do rather than 1 and 2, then the first; `input_data_format` says it. Values are taken
    as `to_rgb` takes those of files: floats of [0, 1] and of [0, 255] give the same, without a thought of the caller's.
    With `do_rescale=False` floats are left as they are.

    Raises:
        InputError: a file is missing or cannot be decoded, an array is no image, a field cannot be used.
    """

    def _blank(self, colour, size, like):
        colour = torch.tensor(colour)
        if not like.is_floating_point():
            colour = (255 * colour).round()
        return colour.to(like)[:, None, None].repeat(1, size.height, size.width)


class ViTImageProcessorPil(_AnyImage, PilBackend):
    """`ViTImageProcessor` without torchvision; on photographs one 8-bit level away from it, by how Pillow rounds.

    With bicubic and Lanczos resampling, and on noise, it is two for about twenty values in a million, as between
    stock's; "nearest" takes the other neighbour where two are equally near.
    """

    def resize(self, image, size, resample=None, **kwargs):
        if image.dtype.kind != "f":
            return super().resize(image, size, resample, **kwargs)
        if image.min() < 0 or image.max() > 1:
            raise InputError(
                f"Floats that are not to be rescaled must lie in [0, 1] for Pillow to resize them, not in "
                f"[{image.min():g}, {image.max():g}]; the torchvision backend takes any."
            )
        levels = np.round(255 * image).astype(np.uint8)
        return super().resize(levels, size, resample, **kwargs).astype(np.float32) / 255

    def _blank(self, colour, size, like):
        if like.dtype.kind == "u":
            colour = np.round(255 * colour)
        return np.tile(colour.astype(like.dtype)[:, None, None], (1, size.height, size.width))


class VitrailImageProcessor(ViTImageProcessor):
    """`ViTImageProcessor` as `AutoImageProcessor` knows it.

    transformers looks processors up by the class's bare name: one registered as `ViTImageProcessor` would take the
    place of its own for every model that uses that, Swin and others included. It is also the name under which a
    processor is saved that stock transformers cannot express.
    """


class VitrailImageProcessorPil(ViTImageProcessorPil):
    """`ViTImageProcessorPil` as `AutoImageProcessor` knows it."""
