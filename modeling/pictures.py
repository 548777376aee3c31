"""Pictures of every kind, as files, arrays or objects in memory, to 8-bit RGB or gray.

python -c "from vitrail.modeling import read_image; read_image('scan.tif').save('scan.png')"

ICC profiles are ignored, as they were when the published checkpoints were trained: a wide-gamut photograph keeps its
numbers.
"""

from __future__ import annotations

import base64
import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.utils import httpx
from PIL import ExifTags, GifImagePlugin, Image
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format

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


def read_image(source: str | Path | bytes, name: str | None = None, max_pixels: int | None = None) -> Image.Image:
    """Any image file as 8-bit RGB: see `to_rgb` for how other colour modes are brought there.

    Args:
        source: a path, or the bytes of a file.
        name: what to call the image in an error; by default its path.
        max_pixels: above which a file is not decoded; by default Pillow's own limit of 179 million.

    Raises:
        InputError: there is no such file, it is too large, or it cannot be decoded completely.
    """
    if isinstance(source, bytes):
        with reading(name or "given as bytes"), Image.open(io.BytesIO(source)) as image:
            return to_rgb(_limited(image, max_pixels))
    name = name or str(source)
    with reading(name):
        is_file = Path(source).is_file()  # neither a folder nor a pipe, which could be waited for without end
    if not is_file:
        raise InputError(f"There is no image {name}.")
    with reading(name), Image.open(source) as image:
        return to_rgb(_limited(image, max_pixels))


def _limited(image: Image.Image, max_pixels: int | None) -> Image.Image:
    if max_pixels is not None and image.width * image.height > max_pixels:
        raise ValueError(
            f"it has {image.width}x{image.height} pixels, more than the {max_pixels // 10**6} million that may be"
        )
    return image


@contextmanager
def reading(name: str) -> Iterator[None]:
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
    orientation = orientation_of(image)
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
    image.info = {}  # or its orientation would be applied once more by whoever takes this for a file's image
    if partial:
        frame = image.crop(partial)
        image = Image.new("RGB", image.size, "white")
        image.paste(frame, partial)
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1, upright, where there is none that can be read."""
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


def pixels_of_array(
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
        return pixels_of(image, num_channels)
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


def pixels_of(image: Image.Image, num_channels: int) -> np.ndarray:
    """(H, W, `num_channels`), uint8; writable, as torch wants it."""
    image = to_rgb(image)
    return np.array(image) if num_channels == 3 else np.array(image.convert("L"))[..., None]


def each_picture(images: Any) -> Iterator[Any]:
    """Single images, opened where they are paths or addresses, of lists and batches nested to any depth.

    Raises:
        InputError: there is something else among them.
    """
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, torch.Tensor)) and images.ndim == 4):
        for image in images:
            yield from each_picture(image)
    elif isinstance(images, str) and images.startswith(("http://", "https://")):
        yield read_image(_download(images), name=images)
    elif isinstance(images, str) and images.startswith("data:image/"):
        with reading("in the data URL"):
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
