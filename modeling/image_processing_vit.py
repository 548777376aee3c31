"""Pixels in: any image file a person has -> `pixel_values` (B, C, H, W).

python -c "from vitrail.modeling import ViTImageProcessor; print(ViTImageProcessor()('photo.jpg', return_tensors='pt'))"
"""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_processing_utils import BaseImageProcessor
from transformers.image_utils import IMAGENET_STANDARD_MEAN, IMAGENET_STANDARD_STD, PILImageResampling, load_image

from .errors import InputError


# What Pillow raises on a file that is not an image, is cut off, lies about its structure or is a decompression bomb.
_UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Any image file as 8-bit RGB: see `to_rgb` for how other colour modes are brought there.

    Args:
        source: a path, or the bytes of a file.
        name: what to call the image in an error; by default its path.

    Raises:
        InputError: there is no such file, or it cannot be decoded completely.
    """
    name = name or ("the image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return to_rgb(image)
    except FileNotFoundError as error:
        raise InputError(f"There is no image {name}.") from error
    except _UNREADABLE as error:
        reason = "it is no image file" if isinstance(error, Image.UnidentifiedImageError) else str(error).rstrip(".")
        raise InputError(f"Cannot read the image {name}: {reason}.") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB as a viewer would show it.

    The EXIF orientation is applied and transparency is laid on white. Deep grayscale is scaled: 16-bit images from
    [0, 65535], 32-bit integers from the smallest of [0, 255], [0, 65535] and [0, 2^31] that holds them, floats from
    [0, 1] or [0, 255] likewise and otherwise from their minimum and maximum. Of an animation it is the current frame.
    """
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB":
        image.load()  # the file may be closed before the pixels are wanted
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_to_8_bit(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    if not np.isfinite(values).all():
        raise ValueError("it has pixels that are not numbers")
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # of either byte order
        low, high = 0.0, 65535.0
    elif np.issubdtype(values.dtype, np.integer):
        low, high = 0.0, next(top for top in (255.0, 65535.0, 2.0**31) if high <= top)
    elif low >= 0 and high <= 255:
        low, high = 0.0, 1.0 if high <= 1 else 255.0
    return np.round((values.astype(np.float64) - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)


# The name under which stock transformers finds a processor that computes the same.
STOCK_IMAGE_PROCESSOR_TYPE = "ViTImageProcessor"


class _AnyImage(BaseImageProcessor):
    """What both backends add to transformers': paths are opened here, and PIL images of any mode become RGB."""

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

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path, **kwargs):
        try:
            return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            if Path(pretrained_model_name_or_path, "preprocessor_config.json").is_file():
                raise InputError(
                    f"{pretrained_model_name_or_path}/preprocessor_config.json is not valid JSON."
                ) from error
            raise InputError(
                f"{pretrained_model_name_or_path} has no preprocessor_config.json, which says how images are prepared."
            ) from error

    def to_dict(self):
        return super().to_dict() | {"image_processor_type": STOCK_IMAGE_PROCESSOR_TYPE}

    def fetch_images(self, images):
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if isinstance(images, str) and images.startswith(("http://", "https://")):
            return load_image(images)
        if isinstance(images, (str, Path)):
            return read_image(images)
        return super().fetch_images(images)

    def process_image(self, image, **kwargs):
        return super().process_image(to_rgb(image) if isinstance(image, Image.Image) else image, **kwargs)


class ViTImageProcessor(_AnyImage, TorchvisionBackend):
    """Images -> `pixel_values`, float32 (B, C, H, W): resized to `size`, scaled to [0, 1], then to [-1, 1].

    Takes paths, URLs, PIL images of any mode, numpy arrays and torch tensors, one or a list. The defaults are those of
    the paper's fine-tuning: the whole image is squashed to the model's square, with mean and standard deviation 0.5
    (Appendix B.1; `input_pipeline.py` of its code). Equal to stock transformers' processor on RGB images.

    Raises:
        InputError: a file is missing or cannot be decoded.
    """


class ViTImageProcessorPil(_AnyImage, PilBackend):
    """`ViTImageProcessor` without torchvision; at most one 8-bit level away from it, by how Pillow rounds."""


class VitrailImageProcessor(ViTImageProcessor):
    """`ViTImageProcessor` as `AutoImageProcessor` knows it.

    transformers looks processors up by the class's bare name: one registered as `ViTImageProcessor` would take the
    place of its own for every model that uses that, Swin and others included.
    """


class VitrailImageProcessorPil(ViTImageProcessorPil):
    """`ViTImageProcessorPil` as `AutoImageProcessor` knows it."""
