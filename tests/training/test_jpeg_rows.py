"""Rows that are decoded are those of the whole file, and only a complete file loses any."""

import io

import numpy as np
import pytest
from PIL import Image

from vitrail.training.jpeg_rows import without_rows_below


WIDTH, HEIGHT = 83, 150


def jpeg(mode="RGB", **options):
    noise = np.random.default_rng(0).integers(0, 256, (30, 17, 3), np.uint8)
    picture = Image.fromarray(noise).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).convert(mode)
    file = io.BytesIO()
    picture.save(file, "JPEG", **options)
    return file.getvalue()


def decoded(content, reduction=1):
    with Image.open(io.BytesIO(content)) as picture:
        if reduction > 1:
            picture.draft(None, (picture.width // reduction, picture.height // reduction))
        return np.asarray(picture)


FILES = {
    **{f"subsampling {number}": ("RGB", {"subsampling": number}) for number in range(3)},
    "gray": ("L", {}),
    "CMYK": ("CMYK", {}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_blocks": 3}),
    "progressive with restarts": ("RGB", {"progressive": True, "restart_marker_blocks": 3}),
    "metadata with a JPEG": ("RGB", {"exif": b"Exif\x00\x00" + jpeg()}),
}


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
@pytest.mark.parametrize("name", FILES)
def test_rows_are_those_of_the_whole(name, reduction):
    mode, options = FILES[name]
    content = jpeg(mode, **options)
    whole = decoded(content, reduction)
    for bottom in range(1, HEIGHT + 1):
        upper = decoded(without_rows_below(content, bottom), reduction)
        rows = -(-bottom // reduction)
        spared = 0 if "progressive" in name else (HEIGHT - bottom - 18) // reduction
        assert upper.shape[0] <= whole.shape[0] - max(0, spared)
        assert np.array_equal(upper[:rows], whole[:rows])


def test_nothing_is_done_where_it_is_of_no_use():
    content = jpeg()
    assert without_rows_below(content, 20) != content
    assert without_rows_below(content, HEIGHT) is content


@pytest.mark.parametrize("kept", [0, 1, 2, 3, 20, 200, -1, -2, -100])
def test_a_file_that_is_cut_off_remains_so(kept):
    content = jpeg()[:kept]
    assert without_rows_below(content, 20) is content


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff\xd9", b"\xff\xd8\xff\xe0\x00\x00\xff\xd9"])
def test_a_header_that_is_none_remains(content):
    assert without_rows_below(content, 20) is content
