"""Pixels by the short way are those of the long way."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tvF

from vitrail.modeling import InputError, read_image
from vitrail.training.decoding import Box, cut, may_be_reduced, read_crop, read_picture, read_pixels


@pytest.fixture(scope="module")
def photograph():
    """90x61 pixels of smooth colours, none of its sides like another."""
    noise = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(noise, (61, 90), mode="bicubic").clip(0, 1)[0]
    return Image.fromarray(np.uint8(255 * picture.permute(1, 2, 0).numpy()))


def saved(picture, form, **options):
    file = io.BytesIO()
    picture.save(file, form, **options)
    return {"bytes": file.getvalue(), "path": None}


def expected_pixels(image, num_channels):
    picture = read_image(image["bytes"])
    return torch.from_numpy(np.array(picture.convert("RGB" if num_channels == 3 else "L"))).view(
        *picture.size[::-1], num_channels
    )


def oriented(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif}


FILES = {
    "plain": ("RGB", "JPEG", {}),
    "gray": ("L", "JPEG", {}),
    "CMYK": ("CMYK", "JPEG", {}),
    "progressive": ("RGB", "JPEG", {"progressive": True}),
    "colour in full": ("RGB", "JPEG", {"subsampling": 0}),
    "restarts": ("RGB", "JPEG", {"restart_marker_blocks": 2}),
    "stored as RGB": ("RGB", "JPEG", {"keep_rgb": True}),
    "odd orientation": ("RGB", "JPEG", oriented(9)),
    **{f"orientation {number}": ("RGB", "JPEG", oriented(number)) for number in range(1, 9)},
    "PNG": ("RGB", "PNG", {}),
    "palette": ("P", "PNG", {}),
    "transparent": ("LA", "PNG", {}),
    "16 bits": ("I;16", "PNG", {}),
    "WebP": ("RGB", "WEBP", {"lossless": True}),
    "turned PNG": ("RGB", "PNG", oriented(6)),
}


@pytest.mark.parametrize("num_channels", [3, 1])
@pytest.mark.parametrize("name", FILES)
def test_pixels_are_those_of_read_image(photograph, name, num_channels):
    mode, form, options = FILES[name]
    picture = photograph.convert("L").convert(mode) if mode in ("I;16", "LA") else photograph.convert(mode)
    image = saved(picture, form, **options)
    expected = expected_pixels(image, num_channels).permute(2, 0, 1)
    pixels = read_pixels(image, 0, num_channels)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, expected.shape)
    assert torch.equal(pixels, expected)
    box = Box(7, 11, 31, 24)
    part = read_crop(image, 0, num_channels, lambda height, width: box, (20, 20))
    assert torch.equal(part[:num_channels], cut(expected, box))


@pytest.mark.parametrize("name", [name for name in FILES if FILES[name][1] == "JPEG"])
def test_a_part_that_will_be_shrunk_may_come_smaller(photograph, name):
    """Within a few levels of the whole decoded and shrunk, and in the right place."""
    mode, form, options = FILES[name]
    image = saved(photograph.resize((900, 610), Image.Resampling.BICUBIC).convert(mode), form, **options)
    whole = expected_pixels(image, 3).permute(2, 0, 1)
    for size, least in (((60, 50), 0.25), ((110, 80), 0.5), ((12, 9), 0.125)):
        seen = []

        def choose(height, width, seen=seen):
            seen.append((height, width))
            return Box(101, 203, 333, 299)

        part = read_crop(image, 0, 3, choose, size)[:3]
        assert seen == [whole.shape[1:]]
        assert part.shape[1] == pytest.approx(333 * least, abs=1)
        assert part.shape[2] == pytest.approx(299 * least, abs=1)
        assert part.shape[1] >= size[0]
        assert part.shape[2] >= size[1]
        ours, theirs = (
            tvF.resize(pixels, list(size), antialias=True).float() for pixels in (part, cut(whole, Box(*choose(0, 0))))
        )
        error = (ours - theirs).abs().mean()
        assert error < 8  # of 255: its edges are half a reduced pixel away
        assert (ours.flip(-1) - theirs).abs().mean() > 4 * error


def test_a_part_of_millions_of_pixels_is_whole():
    """Pillow has it in several blocks of memory."""
    image = saved(Image.linear_gradient("L").resize((2500, 2000)).convert("RGB"), "JPEG")
    box = Box(3, 5, 1990, 2400)
    part = read_crop(image, 0, 3, lambda height, width: box, None)
    assert torch.equal(part, cut(expected_pixels(image, 3).permute(2, 0, 1), box))


def test_no_part_comes_smaller_than_it_will_be():
    assert may_be_reduced(448, 448, (224, 224))
    assert not may_be_reduced(447, 10_000, (224, 224))
    assert not may_be_reduced(10_000, 447, (224, 224))


@pytest.mark.parametrize("read", [read_pixels, read_picture], ids=lambda read: read.__name__)
@pytest.mark.parametrize("progressive", [False, True])
def test_what_is_cut_off_is_named(photograph, tmp_path, read, progressive):
    whole = saved(photograph, "JPEG", progressive=progressive)["bytes"]
    channels = (3,) if read is read_pixels else ()
    for length in (0, 2, 30, len(whole) // 3, len(whole) // 2, len(whole) - 40):
        with pytest.raises(InputError, match=r"Cannot read the image of row 7 of the data set: "):
            read({"bytes": whole[:length], "path": None}, 7, *channels)
        path = tmp_path / "photo.jpg"
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=rf"Cannot read the image {path}: "):
            read({"bytes": None, "path": str(path)}, 7, *channels)
    with pytest.raises(InputError, match=r"Cannot read the image .*nowhere.jpg: No such file or directory"):
        read({"bytes": None, "path": str(tmp_path / "nowhere.jpg")}, 7, *channels)
    with pytest.raises(InputError, match="Row 7 of the data set has no image"):
        read(None, 7, *channels)


def test_a_part_of_what_is_cut_off_is_no_image_either(photograph):
    whole = saved(photograph.resize((900, 610)), "JPEG")["bytes"]
    for size in ((40, 30), (300, 300)):
        with pytest.raises(InputError, match="row 7"):
            read_crop({"bytes": whole[:-100], "path": None}, 7, 3, lambda height, width: Box(0, 0, 100, 90), size)


def test_damage_in_the_middle_is_judged_alike(photograph):
    """Whatever Pillow makes of damaged bytes, an error or gray blocks, is what comes."""
    whole = saved(photograph, "JPEG", quality=95)["bytes"]
    generator = np.random.default_rng(0)
    same = 0
    for _ in range(60):
        content = bytearray(whole)
        for place in generator.integers(300, len(whole), 3):
            content[place] = generator.integers(0, 256)
        image = {"bytes": bytes(content), "path": None}
        try:
            expected = expected_pixels(image, 3).permute(2, 0, 1)
        except InputError:
            with pytest.raises(InputError):
                read_pixels(image, 0, 3)
        else:
            assert torch.equal(read_pixels(image, 0, 3), expected)
            same += 1
    assert 0 < same < 60
