"""Pixels in: any image file a person has -> `pixel_values` (B, C, H, W).

python -c "from vitrail.modeling import ViTImageProcessor; print(ViTImageProcessor()('photo.jpg', return_tensors='pt'))"

Every image becomes 8-bit RGB or gray first, then `size`, then floats. ICC profiles are ignored, as they were when the
published checkpoints were trained: a wide-gamut photograph keeps its numbers.
"""

from __future__ import annotations

import base64
import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, GifImagePlugin, Image, ImageFile
from transformers import BitImageProcessorPil, CLIPImageProcessorPil, DeiTImageProcessorPil
from transformers import ViTImageProcessorPil as StockViTImageProcessorPil
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    IMAGENET_STANDARD_MEAN,
    IMAGENET_STANDARD_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs

from .errors import InputError


# What Pillow raises on a file that is not an image, is cut off, lies about its structure or is a decompression bomb.
_UNREADABLE = (
    OSError,
    SyntaxError,
    ValueError,
    RuntimeError,
    EOFError,
    IndexError,
    struct.error,
    Image.DecompressionBombError,
)

_TIMEOUT = 30  # seconds without a byte, after which a download is given up

_Transpose = Image.Transpose
_UPRIGHT = {  # by the EXIF orientation
    2: _Transpose.FLIP_LEFT_RIGHT,
    3: _Transpose.ROTATE_180,
    4: _Transpose.FLIP_TOP_BOTTOM,
    5: _Transpose.TRANSPOSE,
    6: _Transpose.ROTATE_270,
    7: _Transpose.TRANSVERSE,
    8: _Transpose.ROTATE_90,
}


def read_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Any image file as 8-bit RGB: see `to_rgb` for how other colour modes are brought there.

    Args:
        source: a path, or the bytes of a file.
        name: what to call the image in an error; by default its path.

    Raises:
        InputError: there is no such file, or it cannot be decoded completely.
    """
    if isinstance(source, bytes):
        with _reading(name or "given as bytes"), Image.open(io.BytesIO(source)) as image:
            return to_rgb(image)
    name = name or str(source)
    with _reading(name):
        is_file = Path(source).is_file()  # neither a folder nor a pipe, which could be waited for without end
    if not is_file:
        raise InputError(f"There is no image {name}.")
    with _reading(name), Image.open(source) as image:
        return to_rgb(image)


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turns what decoding raises into one sentence about the image of that name."""
    try:
        yield
    except _UNREADABLE as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or "it is damaged"
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "it is no image file, or of a format that Pillow does not read"
        raise InputError(f"Cannot read the image {name}: {' '.join(reason.split()).rstrip('.')}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB as a viewer would show it.

    The EXIF orientation is applied (a damaged EXIF block is ignored) and transparency is laid on white. Deep grayscale
    is scaled: 16-bit images from [0, 65535], 32-bit integers from the smaller of [0, 255] and [0, 65535] that holds
    them, floats from [0, 1] or [0, 255] likewise, and what fits neither from its minimum and maximum. Of an animation
    it is the current frame. Colour profiles are ignored.
    """
    image.load()  # before anything is asked of a file that may be cut off, and before it is closed
    orientation = _orientation(image)
    partial = _partial_frame(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        levels = _to_8_bit(values)
        if "transparency" in image.info:
            levels[values == image.info["transparency"]] = 255
        image = Image.fromarray(levels)
    if image.mode == "La":
        image = image.convert("LA")  # the only mode into which Pillow converts it
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if partial:
        frame = image.crop(partial)
        image = Image.new("RGB", image.size, "white")
        image.paste(frame, partial)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except _UNREADABLE:
        return 1  # the metadata are damaged, the picture is not


def _partial_frame(image: Image.Image) -> tuple[int, int, int, int] | None:
    """The part of a GIF that its first frame covers; Pillow fills the rest with any colour, viewers leave it empty."""
    if not isinstance(image, GifImagePlugin.GifImageFile) or image.tell() > 0:
        return None
    return None if image.dispose_extent == (0, 0, *image.size) else image.dispose_extent


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Levels 0 to 255, by the range that the values must have had.

    Raises:
        ValueError: pixels are not finite, or are colours and in no range that colours have.
    """
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind not in "buif":
        raise ValueError(f"its pixels are of type {values.dtype}, not numbers")
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not numbers")
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "b":
        tops: tuple[float, ...] = (1,)
    elif values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        tops = (65535,)
    else:
        tops = (1, 255) if values.dtype.kind == "f" else (255, 65535)
    if low >= 0 and high <= tops[-1]:
        low, high = 0.0, next(top for top in tops if high <= top)
    elif values.ndim > 2:
        expected = " or ".join(f"[0, {top}]" for top in tops)
        raise ValueError(f"its colours lie in [{low:g}, {high:g}], but must lie in {expected}")
    return np.round((values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)


_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, which Pillow's mode L has


def _array_pixels(
    array: np.ndarray, num_channels: int, input_data_format: str | ChannelDimension | None, as_given: bool
) -> np.ndarray:
    """(H, W), (H, W, C) or (C, H, W) of any kind -> (H, W, `num_channels`); floats `as_given` keep their values.

    Raises:
        ValueError: the array is no image.
    """
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError("it must be (height, width), (height, width, channels) or (channels, height, width)")
    if array.ndim == 3:
        if _channel_format(array, input_data_format) == ChannelDimension.FIRST:
            array = np.moveaxis(array, 0, -1)
        if array.shape[-1] == 1:
            array = array[..., 0]
        elif array.shape[-1] > 4:
            raise ValueError(f"it has {array.shape[-1]} channels; 1 to 4 are gray, gray and alpha, RGB and RGBA")
    if not as_given or array.dtype.kind != "f":
        image = Image.fromarray(np.ascontiguousarray(_to_8_bit(array)))
        return _pixels(image, num_channels)
    if not np.isfinite(array).all():
        raise ValueError("it has pixels that are not numbers")
    array = np.atleast_3d(array)
    if array.shape[-1] in (2, 4):
        alpha = array[..., -1:]
        array = array[..., :-1] * alpha + (1 - alpha)
    if array.shape[-1] > num_channels:
        array = array @ _LUMA.astype(array.dtype)[:, None]
    return np.repeat(array, num_channels // array.shape[-1], -1)


def _channel_format(array: np.ndarray, given: str | ChannelDimension | None) -> ChannelDimension:
    """Which end of the shape counts channels: 3 and 4 do before 1 and 2, and the first end before the last."""
    if given is not None:
        return ChannelDimension(given)
    for counts in ((3, 4), (1, 2)):
        if array.shape[0] in counts or array.shape[-1] in counts:
            return infer_channel_dimension_format(array, counts)
    raise ValueError("neither its first nor its last side can count the channels, of which an image has 1 to 4")


def _pixels(image: Image.Image, num_channels: int) -> np.ndarray:
    """(H, W, `num_channels`), uint8; writable, as torch wants it."""
    image = to_rgb(image)
    return np.array(image) if num_channels == 3 else np.array(image.convert("L"))[..., None]


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
        size = self.crop_size if self.do_center_crop else self.size
        fixed = size.height and (self.do_center_crop or self.do_resize)
        return (size.height, size.width) if fixed else None

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        try:
            fields, kwargs = super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            if Path(pretrained_model_name_or_path, "preprocessor_config.json").is_file():
                raise InputError(
                    f"{pretrained_model_name_or_path}/preprocessor_config.json is not valid JSON."
                ) from error
            raise InputError(
                f"{pretrained_model_name_or_path} has no preprocessor_config.json, which says how images are prepared."
            ) from error
        if not isinstance(fields, dict):
            raise InputError(f"{pretrained_model_name_or_path}/preprocessor_config.json is not a JSON object.")
        named = fields.get("image_processor_type") or fields.get("feature_extractor_type") or STOCK_IMAGE_PROCESSOR_TYPE
        name = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
        if name == OWN_IMAGE_PROCESSOR_TYPE:
            return fields, kwargs
        if name not in _STOCK_IMAGE_PROCESSORS:
            raise InputError(
                f"{pretrained_model_name_or_path} prepares images with {named}; vitrail can do what "
                f"{', '.join(_STOCK_IMAGE_PROCESSORS)} do."
            )
        try:
            return _STOCK_IMAGE_PROCESSORS[name].from_dict(fields).to_dict(), kwargs
        except (TypeError, ValueError) as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"{pretrained_model_name_or_path}/preprocessor_config.json: {reason}.") from error

    def to_dict(self):
        """The fields as they are saved: under the stock name, and without ours, where stock computes the same."""
        fields = super().to_dict()
        if self.num_channels == 3:
            del fields["num_channels"]
        plain = self.num_channels == 3 and self.fit is None
        return fields | {"image_processor_type": STOCK_IMAGE_PROCESSOR_TYPE if plain else OWN_IMAGE_PROCESSOR_TYPE}

    def _standardize_kwargs(self, **kwargs):
        kwargs = super()._standardize_kwargs(**kwargs)
        if kwargs["num_channels"] not in (1, 3):
            raise InputError(f"num_channels is {kwargs['num_channels']}, but images have 1 (gray) or 3 (RGB).")
        for name in ("image_mean", "image_std"):
            if kwargs["num_channels"] == 1 and isinstance(kwargs[name], tuple) and len(kwargs[name]) != 1:
                raise InputError(f"{name} has {len(kwargs[name])} values, but must have one for num_channels=1.")
        if kwargs["fit"] not in (None, *get_args(Fit)):
            raise InputError(f"fit is {kwargs['fit']!r}, but must be one of {', '.join(get_args(Fit))}.")
        if kwargs["fit"] is not None and not (kwargs["size"].height and kwargs["size"].width):
            raise InputError(f"fit={kwargs['fit']!r} needs a size of height and width, not {dict(kwargs['size'])}.")
        if kwargs["do_center_crop"] and kwargs["crop_size"] is None:
            raise InputError("do_center_crop needs a crop_size.")
        return kwargs

    def _prepare_images_structure(self, images, expected_ndims=3):
        found = list(_each(images))
        if not found:
            raise InputError("No images were given.")
        return found

    def process_image(self, image, num_channels, do_rescale, input_data_format=None, **kwargs):
        """One image of any kind -> (`num_channels`, H, W), uint8, or float32 for floats that are not to be rescaled."""
        kwargs["do_convert_rgb"] = False
        if isinstance(image, Image.Image):
            opened = image.filename if isinstance(image, ImageFile.ImageFile) else ""
            with _reading(str(opened) or f"of mode {image.mode} and {image.width}x{image.height} pixels"):
                pixels = _pixels(image, num_channels)
            return super().process_image(pixels, input_data_format=ChannelDimension.LAST, **kwargs)
        with _reading(f"array of shape {tuple(image.shape)}"):
            if isinstance(image, torch.Tensor):
                kwargs["device"] = kwargs.get("device") or image.device
                image = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
            pixels = _array_pixels(image, num_channels, input_data_format, as_given=not do_rescale)
        return super().process_image(pixels, input_data_format=ChannelDimension.LAST, **kwargs)

    def _preprocess(self, images, do_resize, size, resample, do_center_crop, crop_size, image_mean, fit, **kwargs):
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
        """(C, H, W) -> (C, target), with timm's rounding: `transforms_imagenet_eval` in its `transforms_factory.py`."""
        height, width = image.shape[-2:]
        if fit == "squash":
            resized = (size.height, size.width)
        elif fit == "crop" and size.height == size.width:  # then timm takes torchvision's Resize, which rounds down
            resized = [size.height * side // min(height, width) for side in (height, width)]
        else:
            ratio = (max if fit == "pad" else min)(height / size.height, width / size.width)
            resized = [max(1, round(side / ratio)) for side in (height, width)]
        image = self.resize(image, SizeDict(height=resized[0], width=resized[1]), resample)
        image = _centre(image, target.height, target.width)
        height, width = image.shape[-2:]
        if (height, width) == (target.height, target.width):
            return image
        top, left = (target.height - height) // 2, (target.width - width) // 2
        padded = self._blank(np.broadcast_to(image_mean, len(image)), target, image)
        padded[:, top : top + height, left : left + width] = image
        return padded


def _each(images: Any) -> Iterator[Any]:
    """Single images, opened where they are paths or addresses, of lists and batches nested to any depth.

    Raises:
        InputError: there is something else among them.
    """
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        for image in images:
            yield from _each(image)
    elif isinstance(images, str) and images.startswith(("http://", "https://")):
        yield read_image(_download(images), name=images)
    elif isinstance(images, str) and images.startswith("data:image/"):
        with _reading("in the data URL"):
            content = base64.b64decode(images.partition(",")[2], validate=True)
        yield read_image(content, name="in the data URL")
    elif isinstance(images, (str, Path)):
        yield read_image(images)
    elif isinstance(images, (Image.Image, np.ndarray, torch.Tensor)):
        yield images
    else:
        raise InputError(
            f"Images are paths, URLs, PIL images, arrays, tensors or lists of them, not {type(images).__name__}."
        )


def _download(url: str) -> bytes:
    try:
        return httpx.get(url, follow_redirects=True, timeout=_TIMEOUT).raise_for_status().content
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"Cannot fetch the image {url}: {' '.join(str(error).split())}.") from error


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
    """`ViTImageProcessor` without torchvision; one 8-bit level away from it at most, by how Pillow rounds.

    With bicubic and Lanczos resampling it is two for about twenty values in a million, as between stock's.
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


def timm_preprocessing(pretrained_cfg: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `ViTImageProcessor` that does what timm's evaluation transform of a checkpoint does.

    Like `timm.data.resolve_data_config` and `transforms_imagenet_eval`. With the PIL backend the pixels are timm's own,
    with torchvision's they differ as the backends do.

    Args:
        pretrained_cfg: timm's description of the checkpoint. Read are `input_size` (C, H, W), `crop_pct`, `crop_mode`
            (center, squash or border), `interpolation` ("random", which draws bilinear or bicubic in training, is the
            latter), `mean` and `std`; what is absent or None is timm's default.

    Raises:
        InputError: timm has no such `crop_mode` or `interpolation`.
    """
    defaults = {
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "crop_mode": "center",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
    given = {name: pretrained_cfg.get(name) or default for name, default in defaults.items()}
    fits = {"center": "crop", "squash": "squash", "border": "pad"}
    resample = {kind.name.lower(): int(kind) for kind in PILImageResampling}
    resample["random"] = resample["bicubic"]
    for name, known in (("crop_mode", fits), ("interpolation", resample)):
        if given[name] not in known:
            raise InputError(f"The checkpoint's {name} is {given[name]!r}, but timm knows {', '.join(known)}.")
    channels, *target = given["input_size"]
    resized = [math.floor(side / given["crop_pct"]) for side in target]
    fields = {
        "num_channels": channels,
        "size": dict(zip(("height", "width"), resized)),
        "resample": resample[given["interpolation"]],
        "image_mean": tuple(given["mean"]),
        "image_std": tuple(given["std"]),
    }
    if resized != target:
        fields |= {"do_center_crop": True, "crop_size": dict(zip(("height", "width"), target))}
    # Stock transformers squashes to the same size, and cuts at the same place unless half the difference rounds up.
    if given["crop_mode"] == "squash" and all((before - after) % 4 != 3 for before, after in zip(resized, target)):
        return fields
    return fields | {"fit": fits[given["crop_mode"]]}
