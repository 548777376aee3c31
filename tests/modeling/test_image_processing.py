"""The image processor: any file a person has, and the same numbers as stock transformers."""

import base64
import io
import json
import os
import struct
import threading
import tracemalloc
import zlib
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import timm.data
import torch
import transformers
from PIL import GifImagePlugin, Image, ImageCms, ImageOps

from vitrail.modeling import InputError, ViTImageProcessor, ViTImageProcessorPil, read_image
from vitrail.modeling.pictures import to_rgb
from vitrail.modeling.timm_preprocessing import processor_from_timm, timm_from_processor


SIZE = {"height": 32, "width": 48}
MODES = ["1", "L", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"]
BACKENDS = [ViTImageProcessor, ViTImageProcessorPil]


@pytest.fixture
def photo():
    """A 60x40 RGB image with smooth colours and a little noise, as photographs have."""
    y, x = np.mgrid[:40, :60]
    noise = np.random.default_rng(0).integers(0, 20, (40, 60, 3))
    return Image.fromarray(np.uint8(np.stack([4 * x, 6 * y, 2 * (x + y)], -1) * 0.9 + noise))


def pixels(processor, image, **changes):
    return processor(image, return_tensors="pt", **changes).pixel_values


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def levels(image):
    return np.asarray(image).astype(int)


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


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_colour_mode_becomes_three_channels(backend, photo, mode):
    if mode == "I;16":
        image = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    elif mode == "LAB":
        image = Image.merge("LAB", photo.split())
    elif mode == "PA":
        image = photo.convert("LA").convert("PA")
    elif mode in ("La", "RGBa"):
        image = photo.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
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
    light = np.asarray(photo.convert("L"))
    image = read_image(encoded(Image.fromarray(gray(light)), "TIFF"))
    assert np.array_equal(np.asarray(image), np.repeat(light[..., None], 3, -1))


def test_transparency_lies_on_white(photo):
    image = photo.convert("RGBA")
    image.putalpha(0)
    assert np.all(np.asarray(read_image(encoded(image, "PNG"))) == 255)


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
    path = tmp_path / name
    path.write_bytes(content(encoded(photo, "JPEG")))
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
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        ViTImageProcessor.from_pretrained(tmp_path)


def test_auto_image_processor_still_finds_other_models_processors(tmp_path):
    """It looks classes up by their bare name, and Swin among others uses transformers' `ViTImageProcessor`."""
    transformers.SwinConfig().save_pretrained(tmp_path)
    transformers.ViTImageProcessor().save_pretrained(tmp_path)
    found = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(found) is transformers.ViTImageProcessor


def test_pixels_that_are_not_numbers_and_big_endian_ones(tmp_path):
    half = np.full((4, 4), 0.5, np.float32)
    half[1, 1] = np.nan
    Image.fromarray(half).save(tmp_path / "nan.tif")
    with pytest.raises(InputError, match=r"nan\.tif: it has pixels that are not numbers"):
        read_image(tmp_path / "nan.tif")
    dark = Image.frombytes("I;16B", (4, 4), np.full((4, 4), 257, ">u2").tobytes())
    assert np.all(np.asarray(to_rgb(dark)) == 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "MPO"])
def test_exif_orientation_is_applied_once(photo, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "MPO": {"save_all": True, "append_images": [photo.rotate(90)]}}.get(kind, {})
    content = encoded(photo, kind, exif=exif, **options)
    stored = Image.open(io.BytesIO(encoded(photo, kind, **options))).convert("RGB")
    stored.getexif()[0x0112] = orientation
    assert np.array_equal(levels(read_image(content)), levels(ImageOps.exif_transpose(stored)))


@pytest.mark.filterwarnings("ignore:.*EXIF")
@pytest.mark.parametrize(
    "block",
    [b"", b"Exif\0\0", b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"],
)
def test_a_damaged_exif_block_does_not_cost_the_picture(photo, block):
    assert np.array_equal(levels(read_image(encoded(photo, "PNG", exif=block))), levels(photo))


def test_cmyk_photographs_are_not_negatives(photo):
    """Adobe stores CMYK inverted in JPEG, and not in TIFF."""
    cmyk = photo.convert("CMYK")
    for kind, error in (("TIFF", 0), ("JPEG", 4)):
        options = {"quality": 100} if kind == "JPEG" else {}
        found = levels(read_image(encoded(cmyk, kind, **options)))
        assert np.abs(found - levels(cmyk.convert("RGB"))).mean() <= error


def big_endian_tiff(deep):
    entries = [(256, 3, 1, 60), (257, 3, 1, 40), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128)]
    entries += [(277, 3, 1, 3), (278, 3, 1, 40), (279, 4, 1, len(deep))]
    directory = b"".join(
        struct.pack(">HHI" + ("H2x" if (kind, count) == (3, 1) else "I"), tag, kind, count, value)
        for tag, kind, count, value in entries
    )
    return b"MM\0*" + struct.pack(">IH", 8, len(entries)) + directory + bytes(4) + b"\0\x10" * 3 + deep


def deep_png(deep):
    rows = b"".join(b"\0" + deep[start : start + 360] for start in range(0, len(deep), 360))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 60, 40, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("container", [big_endian_tiff, deep_png])
def test_16_bit_colours_keep_their_high_bytes(photo, container):
    """Written by hand, because Pillow writes neither."""
    content = container((np.asarray(photo).astype(np.uint16) * 256 + 77).astype(">u2").tobytes())
    assert np.array_equal(levels(read_image(content)), levels(photo))


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert np.array_equal(levels(read_image(content)), levels(frames[0]))


def test_what_the_first_frame_of_a_gif_leaves_open_is_white():
    """A canvas of 8x8 with a frame of 4x4 at (2, 2); the first colour, which nothing shows, is red."""
    frame = Image.new("P", (4, 4), 1)
    frame.putpalette([255, 0, 0, 0, 255, 0] + [0, 0, 0] * 254)
    header = b"GIF89a" + bytes([8, 0, 8, 0, 0x80, 0, 0, 255, 0, 0, 0, 255, 0])
    shown = levels(read_image(header + b"".join(GifImagePlugin.getdata(frame, offset=(2, 2))) + b";"))
    assert np.all(shown[2:6, 2:6] == [0, 255, 0])
    shown[2:6, 2:6] = 255
    assert np.all(shown == 255)


@pytest.mark.parametrize(
    ("image", "transparency", "shown"),
    [
        (Image.new("P", (2, 2), 1), bytes([255, 0]), 255),
        (Image.new("P", (2, 2), 1), bytes([0, 255]), 0),
        (Image.new("RGB", (2, 2), (9, 8, 7)), (9, 8, 7), 255),
        (Image.new("L", (2, 2), 9), 9, 255),
        (Image.new("1", (2, 2), 0), 0, 255),
        (Image.new("I;16", (2, 2), 999), 999, 255),
        (Image.new("I;16", (2, 2), 0), 999, 0),
    ],
    ids=["palette, clear", "palette, opaque", "RGB", "gray", "1-bit", "16-bit", "16-bit, opaque"],
)
def test_a_png_with_a_transparent_colour(image, transparency, shown):
    if image.mode == "P":
        image.putpalette([0, 0, 0, 0, 0, 0])
    assert np.all(levels(read_image(encoded(image, "PNG", transparency=transparency))) == shown)


def test_colour_profiles_are_left_alone(photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert np.array_equal(levels(read_image(encoded(photo, "PNG", icc_profile=profile))), levels(photo))


ARRAYS = {
    "H, W": (lambda photo: photo.convert("L"), lambda values: values),
    "H, W, 1": (lambda photo: photo.convert("L"), lambda values: values[..., None]),
    "1, H, W": (lambda photo: photo.convert("L"), lambda values: values[None]),
    "H, W, 2": (lambda photo: photo.convert("LA"), lambda values: values),
    "2, H, W": (lambda photo: photo.convert("LA"), lambda values: np.moveaxis(values, -1, 0)),
    "4, H, W": (lambda photo: clear_to_the_left(photo), lambda values: np.moveaxis(values, -1, 0)),
    "H, W, 4": (lambda photo: clear_to_the_left(photo), lambda values: values),
    "3, H, W": (lambda photo: photo, lambda values: np.moveaxis(values, -1, 0)),
    "1, W, 3": (lambda photo: photo.crop((0, 3, 60, 4)), lambda values: values),
    "1, 1, 3": (lambda photo: photo.crop((7, 3, 8, 4)), lambda values: values),
    "3, 1, 1": (lambda photo: photo.crop((7, 3, 8, 4)), lambda values: np.moveaxis(values, -1, 0)),
    "1-bit": (lambda photo: photo.convert("1"), lambda values: values),
    "int64": (lambda photo: photo, lambda values: values.astype(np.int64)),
    "uint16": (lambda photo: photo, lambda values: values.astype(np.uint16) * 257),
    "float32 in [0, 1]": (lambda photo: photo, lambda values: values.astype(np.float32) / 255),
    "float16 in [0, 255]": (lambda photo: photo, lambda values: values.astype(np.float16)),
    "float64 RGBA": (lambda photo: clear_to_the_left(photo), lambda values: values / 255),
    "float gray": (lambda photo: photo.convert("L"), lambda values: values / 255),
}


def clear_to_the_left(photo):
    photo = photo.convert("RGBA")
    photo.putalpha(Image.linear_gradient("L").rotate(90).resize(photo.size))
    return photo


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("array", ARRAYS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_array_is_the_image_it_was_made_of(backend, photo, array, num_channels):
    make, change = ARRAYS[array]
    processor, image = backend(size=SIZE, num_channels=num_channels), make(photo)
    expected = pixels(processor, image)
    assert expected.shape == (1, num_channels, 32, 48)
    values = change(np.array(image))
    assert torch.equal(pixels(processor, values), expected)
    assert torch.equal(pixels(processor, torch.from_numpy(values)), expected)
    assert torch.equal(
        pixels(processor, [[values, image], np.stack([values] * 2)]), expected.expand(4, -1, -1, -1)
    ) or (values.ndim == 2)


def test_which_end_counts_channels_can_be_said(photo):
    values = np.array(photo)[:, :3]  # (40, 3, 3)
    processor = ViTImageProcessor(size=SIZE)
    expected = pixels(processor, photo.crop((0, 0, 3, 40)))
    assert torch.equal(pixels(processor, values, input_data_format="channels_last"), expected)
    assert torch.equal(pixels(processor, values.transpose(2, 0, 1)), expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_floats_that_are_not_to_be_rescaled_keep_their_values(backend, num_channels, channels):
    values = np.random.default_rng(1).random((32, 48, channels), np.float32)
    processor = backend(size=SIZE, num_channels=num_channels, do_resize=False)
    rescaled = pixels(processor, np.uint8(np.round(255 * values)))
    torch.testing.assert_close(pixels(processor, values, do_rescale=False), rescaled, atol=2.5 / 255, rtol=0)
    if channels == num_channels:
        given = pixels(processor, values, do_rescale=False, do_normalize=False)
        assert np.array_equal(given[0].permute(1, 2, 0).numpy(), values)


def test_backends_agree_on_unrescaled_floats_of_black_and_white():
    """Which stock takes for levels 0 and 1 with Pillow, and for black and white with torchvision."""
    values = np.indices((31, 45)).sum(0) // 7 % 2 * np.ones((3, 1, 1), np.float32)
    torchvision, pil = (pixels(backend(size=SIZE, do_rescale=False), values) for backend in BACKENDS)
    assert (torchvision - pil).abs().max() <= 1.001 / 127.5


@pytest.mark.parametrize("backend", BACKENDS)
def test_fields_can_be_changed_for_one_call(backend, photo):
    processor = backend(size=SIZE)
    for fields in ({"fit": "pad"}, {"num_channels": 1, "image_mean": [0.5], "image_std": [0.5]}):
        assert torch.equal(pixels(processor, photo, **fields), pixels(backend(size=SIZE, **fields), photo))


def with_nan(*shape):
    values = np.full(shape, 0.5, np.float32)
    values[1, 1] = np.nan
    return values


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        (np.zeros((0, 5, 3), np.uint8), r"array of shape \(0, 5, 3\): it must be"),
        (np.zeros(5, np.uint8), r"array of shape \(5,\): it must be"),
        (np.zeros((1, 1, 1, 5, 5), np.uint8), r"array of shape \(1, 1, 1, 5, 5\): it must be"),
        (np.zeros((13, 20, 20), np.uint8), r"array of shape \(13, 20, 20\): neither its first nor its last side"),
        (with_nan(5, 5, 3), "it has pixels that are not numbers"),
        (torch.full((3, 5, 5), torch.inf), "it has pixels that are not numbers"),
        (np.full((5, 5, 3), -1.5), r"its colours lie in \[-1.5, -1.5\], but must lie in \[0, 1\] or \[0, 255\]"),
        (np.full((5, 5, 3), 70000), r"must lie in \[0, 255\] or \[0, 65535\]"),
        (np.full((5, 5, 3), 1j), "its pixels are of type complex128, not numbers"),
        (np.full((5, 5, 3), "x"), "not numbers"),
        (None, "not NoneType"),
        ({"image": 1}, "not dict"),
        ([[1, 2], [3, 4]], "not int"),
        ([], "No images"),
        (b"", "not bytes"),
        ("data:image/png;base64,@@", "Cannot read the image in the data URL"),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_image_gets_one_sentence(backend, values, complaint):
    with pytest.raises(InputError, match=complaint) as raised:
        backend(size=SIZE)(values)
    assert str(raised.value).count("\n") == 0
    assert str(raised.value).endswith(".")


def test_unrescaled_floats_out_of_range_are_refused_where_pillow_would_break_them():
    values = np.linspace(-1, 1, 300, dtype=np.float32).reshape(10, 10, 3)
    changes = {"do_rescale": False, "do_normalize": False}
    assert pixels(ViTImageProcessor(size=SIZE), values, **changes).min() < -0.9
    with pytest.raises(InputError, match=r"must lie in \[0, 1\].*not in \[-1, 1\]"):
        pixels(ViTImageProcessorPil(size=SIZE), values, **changes)


def test_a_damaged_image_that_pillow_has_only_opened_is_named(photo, tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(photo, "JPEG", quality=100)[:-400])
    with Image.open(path) as image, pytest.raises(InputError, match=r"Cannot read the image .*cut\.jpg: .*truncated"):
        ViTImageProcessor()(image)


def test_pipes_and_folders_are_no_images(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for somebody to write
    for path in (tmp_path / "pipe.png", tmp_path):
        with pytest.raises(InputError, match=f"There is no image {path}"):
            read_image(path)


def test_addresses_are_read_like_files(photo):
    png = encoded(clear_to_the_left(photo), "PNG")

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/photo" else 404)
            self.end_headers()
            self.wfile.write(png)

        def log_message(self, format, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        processor = ViTImageProcessor(size=SIZE)
        data_url = "data:image/png;base64," + base64.b64encode(png).decode()
        expected = pixels(processor, clear_to_the_left(photo)).expand(2, -1, -1, -1)
        assert torch.equal(pixels(processor, [f"{site}/photo", data_url]), expected)
        with pytest.raises(InputError, match=f"Cannot fetch the image {site}/gone: .*404.*[.]$"):
            processor(f"{site}/gone")
        server.shutdown()
    with pytest.raises(InputError, match="Cannot fetch the image"):
        processor(f"{site}/photo")


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_channel_is_the_gray_of_the_picture_on_white(backend, photo, tmp_path):
    processor = backend(size=SIZE, num_channels=1)
    assert (processor.image_mean, processor.image_std) == ((0.5,), (0.5,))
    picture = clear_to_the_left(photo)
    on_white = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), picture).convert("RGB")
    red, green, blue = np.moveaxis(levels(on_white), -1, 0)
    gray = pixels(processor, picture, do_resize=False, do_rescale=False, do_normalize=False)
    assert np.abs(gray[0, 0].numpy() - (0.299 * red + 0.587 * green + 0.114 * blue)).max() <= 0.51
    light = photo.convert("L")
    assert np.array_equal(pixels(processor, light, do_resize=False, do_rescale=False, do_normalize=False)[0, 0], light)
    colours = backend(size=SIZE)
    torch.testing.assert_close(
        pixels(processor, light).expand(-1, 3, -1, -1), pixels(colours, light), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("fields", [{}, {"fit": "pad"}, {"fit": "crop"}, {"num_channels": 1}], ids=str)
@pytest.mark.parametrize("image_size", [(60, 40), (41, 67), (1, 1), (1, 5000), (3000, 2)], ids=str)
def test_backends_agree_on_any_shape(photo, fields, image_size):
    image = photo.resize(image_size)
    torchvision, pil = (pixels(backend(**({"size": SIZE} | fields)), image) for backend in BACKENDS)
    assert torchvision.shape == pil.shape == (1, fields.get("num_channels", 3), 32, 48)
    assert (torchvision - pil).abs().max() <= 1.001 / 127.5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("image_size", [(60, 40), (40, 60), (48, 32), (5, 5), (200, 1)], ids=str)
def test_padding_shows_the_whole_image_in_the_middle_of_its_mean_colour(backend, image_size):
    """A red image, so that every pixel says whether it is image or border."""
    processor = backend(size=SIZE, fit="pad", image_mean=(0.2, 0.5, 0.7))
    found = pixels(processor, Image.new("RGB", image_size, "red"), do_normalize=False)[0]
    is_image = found[0] == 1
    rows, columns = is_image.any(1), is_image.any(0)
    scale = min(48 / image_size[0], 32 / image_size[1])
    assert (rows.sum(), columns.sum()) == (max(1, round(image_size[1] * scale)), max(1, round(image_size[0] * scale)))
    assert is_image.sum() == rows.sum() * columns.sum()
    for shown in (rows, columns):
        before, after = shown.tolist().index(True), shown.flip(0).tolist().index(True)
        assert after - before in (0, 1)
    border = found[:, ~is_image]
    torch.testing.assert_close(border, torch.tensor([[51.0], [128.0], [178.0]]).expand_as(border) / 255)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("image_size", [(1, 5000), (5000, 1), (2, 5001), (4, 3000)], ids=str)
def test_a_thin_image_is_cropped_as_if_it_had_been_enlarged_whole(photo, backend, image_size):
    crop = {"size": {"shortest_edge": 8}, "do_center_crop": True, "crop_size": {"height": 8, "width": 8}, "resample": 3}
    stock = getattr(transformers, backend.__name__)(**crop)
    image = photo.resize(image_size)
    assert torch.equal(pixels(backend(**crop), image), pixels(stock, image))


@pytest.mark.parametrize("fields", [{"fit": "crop"}, {"size": {"shortest_edge": 256}, "do_center_crop": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thin_image_does_not_fill_the_memory(backend, fields):
    processor = backend(**({"crop_size": {"height": 224, "width": 224}} | fields))
    tracemalloc.start()
    assert pixels(processor, Image.new("L", (20_000, 1))).shape == (1, 3, 224, 224)
    assert tracemalloc.get_traced_memory()[1] < 50e6  # of numpy; 4e9 if the image were enlarged whole
    tracemalloc.stop()


def test_a_thin_image_that_nothing_crops_is_refused():
    with pytest.raises(InputError, match="1x20000 pixels"):
        ViTImageProcessor(size={"shortest_edge": 256})(np.zeros((1, 20_000), np.uint8))


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize(
    ("shape", "crop_pct"), [((24, 24), None), ((24, 32), 0.9), ((33, 33), 0.93), ((35, 21), 0.91), ((30, 30), 1.0)]
)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest", "lanczos"])
def test_preprocessing_of_timm(photo, mode, shape, crop_pct, interpolation):
    """With Pillow the pixels are timm's own. torchvision's bicubic and Lanczos differ by up to two levels here and
    there; its "nearest" takes the other neighbour where two are equally near."""
    cfg = {"input_size": (3, *shape), "crop_pct": crop_pct, "crop_mode": mode, "interpolation": interpolation}
    cfg |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    torchvision, pil = (backend(**processor_from_timm(cfg)) for backend in BACKENDS)
    level = 1 / 255 / 0.224
    for image_size in [(60, 40), (37, 60), (41, 41), (23, 35), (64, 11)] + [(400, 1), (2, 903)] * (mode != "border"):
        image = photo.resize(image_size)
        expected = transform(image)[None]
        torch.testing.assert_close(pixels(pil, image), expected, atol=1e-5, rtol=0)
        if interpolation != "nearest":
            assert (pixels(torchvision, image) - expected).abs().max() <= 2.001 * level


def test_preprocessing_of_timm_by_default_and_in_gray(photo):
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg={"x": 1}), is_training=False)
    processor = ViTImageProcessorPil(**processor_from_timm({}))
    torch.testing.assert_close(pixels(processor, photo), transform(photo)[None], atol=1e-5, rtol=0)
    cfg = {"input_size": [1, 24, 24], "mean": [0.4], "std": [0.2], "interpolation": "bicubic"}
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=cfg), is_training=False)
    gray = pixels(ViTImageProcessorPil(**processor_from_timm(cfg)), photo.convert("L"))
    torch.testing.assert_close(gray, transform(photo.convert("L"))[None], atol=1e-5, rtol=0)
    for name in ("crop_mode", "interpolation"):
        with pytest.raises(InputError, match=f"{name} is 'odd', but timm knows"):
            processor_from_timm({name: "odd"})


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
def test_preprocessing_of_timm_survives_the_way_there_and_back(mode, crop_pct):
    cfg = {"input_size": [3, 224, 224], "crop_pct": crop_pct, "crop_mode": mode, "interpolation": "bilinear"}
    processor = ViTImageProcessor(**processor_from_timm(cfg))
    again = ViTImageProcessor(**processor_from_timm(timm_from_processor(processor.to_dict())))
    assert again.to_dict() == processor.to_dict()


def test_timm_checkpoints_that_stock_can_express_stay_stock(photo, tmp_path):
    """All but a pixel: torchvision, which timm uses, cuts at half a pixel the other way than transformers."""
    cfg = {"input_size": (3, 24, 24), "crop_pct": 0.75, "interpolation": "bilinear"}
    ours = ViTImageProcessor(**processor_from_timm(cfg))
    ours.save_pretrained(tmp_path)
    stock = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    assert type(stock) is transformers.ViTImageProcessor
    even = photo.resize((64, 32))
    assert torch.equal(pixels(stock, even), pixels(ours, even))
    again = ViTImageProcessor.from_pretrained(tmp_path)
    odd = photo.resize((67, 32))
    assert torch.equal(pixels(again, odd), pixels(ours, odd))
    assert not torch.equal(pixels(stock, odd), pixels(ours, odd))


OLD_FILES = {
    "google/vit-base-patch16-224-in21k": {"do_normalize": True, "do_resize": True, "size": 24},
    "ViTFeatureExtractor": {"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0.4] * 3, "size": 24},
    "DeiTFeatureExtractor": {"feature_extractor_type": "DeiTFeatureExtractor", "size": 32, "crop_size": 24},
    "DeiTFeatureExtractor, bare": {"feature_extractor_type": "DeiTFeatureExtractor"},
    "ViTImageProcessor": {"image_processor_type": "ViTImageProcessor", "do_convert_rgb": None, "resample": 3},
    "ViTImageProcessorFast": {"image_processor_type": "ViTImageProcessorFast", "size": {"height": 24, "width": 32}},
    "DeiTImageProcessor": {"image_processor_type": "DeiTImageProcessor", "do_center_crop": False},
    "BitImageProcessor": {"image_processor_type": "BitImageProcessor", "size": 32, "crop_size": 24},
    "BitImageProcessorFast": {"image_processor_type": "BitImageProcessorFast", "size": {"shortest_edge": 31}},
    "CLIPFeatureExtractor": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 32, "crop_size": 24},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("file", OLD_FILES)
def test_files_of_any_age_mean_what_the_class_they_name_means(photo, backend, file, tmp_path):
    fields = OLD_FILES[file]
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(fields))
    named = fields.get("image_processor_type") or fields.get("feature_extractor_type") or "ViTImageProcessor"
    named = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    stock = getattr(transformers, named + ("Pil" if backend is ViTImageProcessorPil else "")).from_pretrained(tmp_path)
    expected = pixels(stock, photo)
    ours = backend.from_pretrained(tmp_path)
    assert torch.equal(pixels(ours, photo), expected)

    ours.save_pretrained(tmp_path)
    kind = "pil" if backend is ViTImageProcessorPil else "torchvision"
    again = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=kind)
    assert type(again).__module__.startswith("transformers.")
    assert torch.equal(pixels(again, photo), expected)
    assert torch.equal(pixels(backend.from_pretrained(tmp_path), photo), expected)


def test_a_real_dinov2_is_prepared_as_by_its_own_class(assets):
    stock = transformers.BitImageProcessor.from_pretrained(assets / "dinov2-small")
    ours = ViTImageProcessor.from_pretrained(assets / "dinov2-small")
    with Image.open(assets / "photos" / "chelsea.jpg") as image:
        assert torch.equal(pixels(ours, image), pixels(stock, image))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ('{"image_processor_type": "ConvNextImageProcessor"}', "prepares images with ConvNextImageProcessor"),
        ('{"size": {"side": 3}}', "preprocessor_config.json"),
        ('{"size": ', "is not valid JSON"),
        ("[1]", "is not a JSON object"),
    ],
)
def test_a_file_that_cannot_be_followed_is_named(tmp_path, content, complaint):
    (tmp_path / "preprocessor_config.json").write_text(content)
    with pytest.raises(InputError, match=complaint):
        ViTImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("fields", [{"num_channels": 1}, {"fit": "pad"}, {"fit": "crop"}, {"fit": "squash"}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_stock_cannot_express_is_not_saved_as_stock(photo, backend, fields, tmp_path):
    processor = backend(size=SIZE, **fields)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "VitrailImageProcessor"
    kind = "pil" if backend is ViTImageProcessorPil else "torchvision"
    auto = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend=kind)
    for again in (backend.from_pretrained(tmp_path), auto):
        assert again.to_dict() == processor.to_dict()
        assert torch.equal(pixels(again, photo), pixels(processor, photo))


def test_a_plain_processor_is_saved_as_stock_saves_it():
    assert ViTImageProcessor().to_dict().keys() - transformers.ViTImageProcessor().to_dict().keys() <= {
        "do_center_crop",
        "do_convert_rgb",
    }


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"num_channels": 2}, "num_channels is 2, but"),
        ({"num_channels": 1, "image_mean": [0.5] * 3}, "image_mean has 3 values, but must have one"),
        ({"fit": "stretch"}, "fit is 'stretch', but must be one of squash, crop, pad"),
        ({"fit": "pad", "size": {"shortest_edge": 3}}, "fit='pad' needs a size of height and width"),
        ({"do_center_crop": True}, "do_center_crop needs a crop_size"),
    ],
)
def test_a_field_that_cannot_be_followed_is_named(fields, complaint):
    with pytest.raises(InputError, match=complaint):
        ViTImageProcessor(**fields)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_photo_is_turned_once_on_its_way_to_pixels(photo, tmp_path, backend, suffix, orientation):
    """By whatever way it comes: a path, an opened file, an image that was read before."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    photo.save(path, exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        processor = backend(size=SIZE)
        expected = pixels(processor, upright)
        assert torch.equal(pixels(processor, path), expected)
        assert torch.equal(pixels(processor, image), expected)
    assert torch.equal(pixels(processor, read_image(path)), expected)
    assert torch.equal(pixels(processor, read_image(path.read_bytes())), expected)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"size": {"shortest_edge": 41}},
        {"size": {"shortest_edge": 41, "longest_edge": 50}},
        {"size": {"max_height": 40, "max_width": 51}},
        {"do_resize": False},
        {"size": {"shortest_edge": 48}, "do_center_crop": True},
        {"size": {"shortest_edge": 30}, "do_center_crop": True},  # smaller than what is cut: black is added
        {"do_center_crop": True},
        {"do_resize": False, "do_center_crop": True},
        {"do_resize": False, "do_center_crop": True, "fit": "pad"},
        {"fit": "squash"},
        {"fit": "squash", "do_center_crop": True},
        {"fit": "crop"},
        {"fit": "crop", "size": {"shortest_edge": 41}},
        {"fit": "crop", "size": {"shortest_edge": 48}, "do_center_crop": True},
        {"fit": "pad"},
        {"fit": "pad", "do_center_crop": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_seen_region_is_where_the_pixels_are_from(backend, fields):
    """Every pixel of the image says where it stands, and a line through what it says reaches the edges."""
    processor = backend(**{"size": SIZE, "crop_size": {"height": 36, "width": 33}, "do_normalize": False} | fields)
    for width, height in [(75, 60), (60, 75), (97, 31), (31, 97), (20, 20), (250, 10), (5, 200)]:
        y, x = np.mgrid[:height, :width] + 0.5
        ramps = np.stack([x * 255 / width, y * 255 / height, np.full_like(x, 255)], -1)
        values = pixels(processor, Image.fromarray(ramps.round().astype(np.uint8)))[0].numpy()
        region = processor.seen_region(width, height)
        inside = values[2] == 1
        for axis, side in enumerate((width, height)):
            places = np.flatnonzero(inside.any(axis))
            if len(places) < 8:  # too thin to read a scale from
                continue
            ramp = np.array([values[axis].take(i, 1 - axis)[inside.take(i, 1 - axis)].mean() for i in places]) * side
            middle = (ramp > 1) & (ramp < side - 1)
            slope, start = np.polyfit(places[middle] + 0.5, ramp[middle], 1)
            count = values.shape[2 - axis]
            read = start, start + count * slope
            assert (region[axis], region[axis + 2]) == pytest.approx(read, abs=slope + 0.3), (width, height)


def test_crop_to_the_shortest_edge_alone_is_a_square(photo):
    square = pixels(ViTImageProcessorPil(fit="crop", size={"height": 32, "width": 32}), photo)
    processor = ViTImageProcessorPil(fit="crop", size={"shortest_edge": 32})
    assert processor.output_size == (32, 32)
    assert torch.equal(pixels(processor, photo), square)
