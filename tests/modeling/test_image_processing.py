"""The image processor: any file a person has, and the same numbers as stock transformers."""

import io

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from vitrail.modeling import InputError, ViTImageProcessor, ViTImageProcessorPil, read_image
from vitrail.modeling.image_processing_vit import to_rgb


SIZE = {"height": 32, "width": 48}
BACKENDS = [ViTImageProcessor, ViTImageProcessorPil]


@pytest.fixture
def photo():
    """A 60x40 RGB image with smooth colours and a little noise, as photographs have."""
    y, x = np.mgrid[:40, :60]
    noise = np.random.default_rng(0).integers(0, 20, (40, 60, 3))
    return Image.fromarray(np.uint8(np.stack([4 * x, 6 * y, 2 * (x + y)], -1) * 0.9 + noise))


def pixels(processor, image):
    return processor(image, return_tensors="pt").pixel_values


def test_equals_stock_on_rgb(photo):
    stock = transformers.ViTImageProcessor(size=SIZE)
    assert torch.equal(pixels(ViTImageProcessor(size=SIZE), photo), pixels(stock, photo))
    stock_pil = transformers.ViTImageProcessorPil(size=SIZE)
    assert torch.equal(pixels(ViTImageProcessorPil(size=SIZE), photo), pixels(stock_pil, photo))


def test_backends_agree_within_one_8_bit_level(photo):
    torchvision, pil = (pixels(backend(size=SIZE), photo) for backend in BACKENDS)
    assert (torchvision - pil).abs().max() <= 1.001 / 127.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_paths_arrays_and_tensors_are_one_image(backend, photo, tmp_path):
    path = tmp_path / "photo.png"
    photo.save(path)
    processor = backend(size=SIZE)
    expected = pixels(processor, photo)
    array = np.array(photo)
    forms = [path, str(path), array, torch.from_numpy(array).permute(2, 0, 1)]
    for form in forms:
        assert torch.equal(pixels(processor, form), expected), type(form)
    batch = pixels(processor, [photo, str(path), path])
    assert torch.equal(batch, expected.expand(3, -1, -1, -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_colour_mode_becomes_three_channels(backend, photo, mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", photo.split())
    elif mode == "PA":
        image = photo.convert("LA").convert("PA")
    else:
        image = photo.convert(mode)
    assert image.mode == mode
    values = pixels(backend(size=SIZE), image)
    assert values.shape == (1, 3, 32, 48)
    assert values.std() > 0.1


@pytest.mark.parametrize(
    "gray",
    [
        lambda levels: levels.astype(np.uint16) * 257,
        lambda levels: levels.astype(np.int32) * 257,
        lambda levels: levels.astype(np.float32) / 255,
        lambda levels: levels.astype(np.float32),
    ],
    ids=["16-bit", "32-bit integer", "float in [0, 1]", "float in [0, 255]"],
)
def test_deep_grayscale_is_scaled_not_clipped(photo, gray):
    levels = np.asarray(photo.convert("L"))
    file = io.BytesIO()
    Image.fromarray(gray(levels)).save(file, "TIFF")
    image = read_image(file.getvalue())
    assert np.array_equal(np.asarray(image), np.repeat(levels[..., None], 3, -1))


def test_transparency_lies_on_white(photo):
    image = photo.convert("RGBA")
    image.putalpha(0)
    file = io.BytesIO()
    image.save(file, "PNG")
    assert np.all(np.asarray(read_image(file.getvalue())) == 255)


def test_exif_orientation_is_applied(photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show
    photo.save(tmp_path / "turned.png", exif=exif)
    shown = read_image(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(shown), np.asarray(photo.rotate(-90, expand=True)))


def test_saved_processor_serves_stock_transformers_on_gray_images(photo, tmp_path):
    ViTImageProcessor(size=SIZE).save_pretrained(tmp_path)
    stock = transformers.ViTImageProcessor.from_pretrained(tmp_path)
    ours = ViTImageProcessor.from_pretrained(tmp_path)
    gray = photo.convert("L")
    assert torch.equal(pixels(stock, gray), pixels(ours, gray))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jpg", lambda jpeg: jpeg[: len(jpeg) // 2]),
        ("text.png", lambda jpeg: b"this is not a picture"),
        ("empty.jpg", lambda jpeg: b""),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_unreadable_file_is_named_in_one_sentence(backend, photo, tmp_path, name, content):
    file = io.BytesIO()
    photo.save(file, "JPEG")
    path = tmp_path / name
    path.write_bytes(content(file.getvalue()))
    with pytest.raises(InputError, match=rf"^Cannot read the image .*{name}: [^\n]+\.$"):
        backend()(str(path))


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(InputError, match=r"bomb\.png"):
        read_image(path)


def test_missing_file_and_missing_processor_are_named(tmp_path):
    with pytest.raises(InputError, match=r"There is no image .*nowhere\.png"):
        read_image(tmp_path / "nowhere.png")
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        ViTImageProcessor.from_pretrained(tmp_path)


def test_auto_image_processor_still_finds_other_models_processors(tmp_path):
    """It looks classes up by their bare name, and Swin among others uses transformers' `ViTImageProcessor`."""
    transformers.SwinConfig().save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    found = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(found) is transformers.ViTImageProcessor


def test_pixels_that_are_not_numbers_and_big_endian_ones(tmp_path):
    levels = np.full((4, 4), 0.5, np.float32)
    levels[1, 1] = np.nan
    Image.fromarray(levels).save(tmp_path / "nan.tif")
    with pytest.raises(InputError, match=r"nan\.tif: it has pixels that are not numbers"):
        read_image(tmp_path / "nan.tif")
    dark = Image.frombytes("I;16B", (4, 4), np.full((4, 4), 257, ">u2").tobytes())
    assert np.all(np.asarray(to_rgb(dark)) == 1)
