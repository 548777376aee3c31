"""From a row's image to 8-bit pixels, by the shortest way that leads to the same picture.

Of a JPEG, the part that is wanted is decoded at a half, a quarter or an eighth of its size where it will be shrunk that
far anyway, and what lies below it is not, which spares libjpeg most of the work. Everything else is decoded as
`vitrail.modeling.read_image` does.
(torchvision's own decoder, as fast as Pillow's, is deprecated since 0.29.)
"""

import io
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pyarrow
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from vitrail.modeling import InputError, read_image
from vitrail.modeling.pictures import orientation_of, pixels_of, reading
from vitrail.training.jpeg_rows import without_rows_below


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def scaled(self, down: float, across: float) -> "Box":
        """The same part of an image that is so many times as high and wide."""
        top, left = round(self.top * down), round(self.left * across)
        bottom, right = round((self.top + self.height) * down), round((self.left + self.width) * across)
        return Box(top, left, bottom - top, right - left)


def read_picture(image: dict | None, row: int) -> Image.Image:
    """A row's image as `vitrail.modeling.read_image` reads it; arguments and errors are those of `read_pixels`."""
    content, name = _content(image, row)
    return read_image(content, name)


def read_pixels(image: dict | None, row: int, num_channels: int) -> torch.Tensor:
    """A row's whole image, uint8 (`num_channels`, H, W), upright: the pixels of `read_image`.

    Args:
        image: `bytes` or `path` of a file, as `datasets` has it undecoded.
        row: names the image in an error if it has no path.
        num_channels: 3 for RGB, 1 for gray.

    Raises:
        InputError: there is no image, or it cannot be decoded completely.
    """
    return read_crop(image, row, num_channels, lambda height, width: Box(0, 0, height, width), None)[:num_channels]


def read_crop(
    image: dict | None,
    row: int,
    num_channels: int,
    choose: Callable[[int, int], Box],
    size: tuple[int, int] | None,
) -> torch.Tensor:
    """A part of a row's image, uint8 (`num_channels`, h, w), upright; perhaps with channels beyond, of no meaning.

    Args:
        image, row, num_channels: as for `read_pixels`.
        choose: given the height and width of the upright image, the part that is wanted.
        size: the height and width to which it will be resized. The part of a JPEG may come at a half, a quarter or an
            eighth of its size, if that is no smaller than this. None: always as it is.

    Raises:
        InputError: there is no image, or it cannot be decoded; damage below the part may go unnoticed.
    """
    content, name = _content(image, row)
    with reading(name), Image.open(io.BytesIO(content)) as picture:
        if not isinstance(picture, JpegImageFile):
            pixels = _pixels(picture, num_channels)
            return cut(pixels, choose(*pixels.shape[1:]))
        orientation = orientation_of(picture)
        box = choose(*_upright_shape(picture, orientation))
        if orientation == 1:  # then what is not wanted need be neither decoded nor converted
            with Image.open(io.BytesIO(without_rows_below(content, box.top + box.height))) as upper:
                box = _reduced(upper, orientation, box, size)
                edges = box.left, box.top, box.left + box.width, box.top + box.height
                return _shared(upper.crop(edges), num_channels)
        box = _reduced(picture, orientation, box, size)
        return cut(_pixels(picture, num_channels), box)


def _reduced(picture: Image.Image, orientation: int, box: Box, size: tuple[int, int] | None) -> Box:
    """Has the picture decoded smaller if the part may be; returns where the part then is."""
    if size is None or not may_be_reduced(box.height, box.width, size):
        return box
    height, width = _upright_shape(picture, orientation)
    reduction = min(box.height // size[0], box.width // size[1])
    picture.draft(None, (picture.width // reduction, picture.height // reduction))
    reduced = _upright_shape(picture, orientation)
    return box.scaled(reduced[0] / height, reduced[1] / width)


def may_be_reduced(height: int, width: int, size: tuple[int, int]) -> bool:
    """Whether `read_crop` may shrink a part of this height and width that is to be resized to `size`."""
    return height >= 2 * size[0] and width >= 2 * size[1]


def cut(pixels: torch.Tensor, box: Box) -> torch.Tensor:
    """(C, H, W) -> (C, `box.height`, `box.width`), a view."""
    return pixels[:, box.top : box.top + box.height, box.left : box.left + box.width]


def _content(image: dict | None, row: int) -> tuple[bytes, str]:
    """The bytes of a row's file, and what to call it."""
    if image is None:
        raise InputError(f"Row {row} of the data set has no image; remove such rows.")
    name = image["path"] or f"of row {row} of the data set"
    with reading(name):
        return Path(image["path"]).read_bytes() if image["bytes"] is None else image["bytes"], name


def _upright_shape(picture: Image.Image, orientation: int) -> tuple[int, int]:
    """Height and width once it is turned."""
    width, height = picture.size
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)


def _pixels(picture: Image.Image, num_channels: int) -> torch.Tensor:
    """Any picture as uint8 (`num_channels`, H, W), upright."""
    return torch.from_numpy(pixels_of(picture, num_channels)).permute(2, 0, 1)


def _shared(picture: Image.Image, num_channels: int) -> torch.Tensor:
    """`_pixels` of an upright picture; of RGB the memory that Pillow has it in, four bytes a pixel, uncopied."""
    padded = picture.width * 4 % Image.core.get_alignment()  # which is 1, unless PILLOW_ALIGNMENT says otherwise
    if picture.mode == "RGB" and num_channels == 3 and not padded:
        with suppress(ValueError):  # of more than four million pixels, which are not all in one block
            memory = torch.from_dlpack(pyarrow.array(picture).flatten())
            return memory.view(picture.height, picture.width, 4).permute(2, 0, 1)
    return _pixels(picture, num_channels)
