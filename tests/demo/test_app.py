"""The app, through its API and in a real browser."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from vitrail.demo import build_app
from vitrail.inspection import attention_rollout, overlay
from vitrail.modeling import InputError, ViTImageProcessor, read_image


LABELS = ["ant", "bee", "cat", "dog", "elk"]


@pytest.fixture(scope="module")
def model(tmp_path_factory, request) -> Path:
    """A model folder as `vitrail train` leaves it, with two samples."""
    from vitrail.modeling import ViTConfig, ViTForImageClassification

    folder = tmp_path_factory.mktemp("animals")
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=(24, 16),
        patch_size=8,
        id2label=dict(enumerate(LABELS)),
    )
    network = ViTForImageClassification(config)
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    network.save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(folder)
    (folder / "samples").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (16, 24), name).save(folder / "samples" / f"{name}.png")
    return folder


@pytest.fixture(scope="module")
def address(model):
    """A running app."""
    app = build_app(str(model))
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True)
    yield address
    app.close()


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (600, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_the_api_says_what_the_model_says(address, model, photo, tmp_path):
    from vitrail.modeling import ViTForImageClassification

    client = Client(address, verbose=False, download_files=str(tmp_path))
    label, picture = client.predict(upload=handle_file(str(photo)), opacity=0.6, api_name="/predict")

    network = ViTForImageClassification.from_pretrained(model)
    image = read_image(photo)
    out = attention_rollout(network, ViTImageProcessor.from_pretrained(model)(image, return_tensors="pt").pixel_values)
    expected = dict(zip(LABELS, out.logits.softmax(-1)[0].tolist(), strict=True))
    assert label["label"] == max(expected, key=lambda name: expected[name])
    assert {row["label"]: row["confidence"] for row in label["confidences"]} == pytest.approx(expected, abs=1e-6)
    shown = np.asarray(Image.open(picture["path"] if isinstance(picture, dict) else picture).convert("RGB"))
    assert np.array_equal(shown, np.asarray(overlay(image, out.heatmap[0], 0.6)))


@pytest.fixture
def cropping(model, tmp_path):
    """The same model, whose processor cuts the middle out."""
    folder = shutil.copytree(model, tmp_path / "cropping")
    ViTImageProcessor(fit="crop", size={"height": 24, "width": 16}).save_pretrained(folder)
    return folder


def ask(folder, photo, downloads):
    app = build_app(str(folder))
    _, address, _ = app.launch(prevent_thread_lock=True, quiet=True)
    try:
        client = Client(address, verbose=False, download_files=str(downloads))
        return client.predict(upload=handle_file(str(photo)), opacity=0.6, api_name="/predict")
    finally:
        app.close()


def test_the_map_lies_on_what_was_cut_out(cropping, tmp_path):
    from vitrail.modeling import ViTForImageClassification

    photo = tmp_path / "wide.png"
    Image.new("RGB", (60, 24), "olive").save(photo)
    _, picture = ask(cropping, photo, tmp_path)
    shown = Image.open(picture["path"] if isinstance(picture, dict) else picture).convert("RGB")
    processor = ViTImageProcessor.from_pretrained(cropping)
    network = ViTForImageClassification.from_pretrained(cropping)
    heatmap = attention_rollout(network, processor(photo, return_tensors="pt").pixel_values).heatmap[0]
    factor = shown.width // 60
    assert shown.size == (60 * factor, 24 * factor)
    expected = overlay(Image.new("RGB", shown.size, "olive"), heatmap, 0.6, (22 * factor, 0, 38 * factor, shown.height))
    assert np.array_equal(np.asarray(shown), np.asarray(expected))


def test_broken_weights_are_one_sentence(cropping, photo, tmp_path):
    from vitrail.modeling import ViTForImageClassification

    network = ViTForImageClassification.from_pretrained(cropping)
    with torch.no_grad():
        network.vit.layers[0].attention.q_proj.weight[0] = torch.nan
    network.save_pretrained(cropping)
    with pytest.raises(AppError, match="the model's weights hold NaN, or overflow"):
        ask(cropping, photo, tmp_path)


def test_an_unreadable_file_is_one_sentence(address, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(b"not a picture")
    client = Client(address, verbose=False)
    with pytest.raises(AppError, match=r"Cannot read the image broken\.png: it is no image file"):
        client.predict(upload=handle_file(str(path)), opacity=0.6, api_name="/predict")


def test_a_folder_without_a_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"neither a folder with a config\.json, .* nor a model on the Hub"):
        build_app(str(tmp_path))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def test_in_a_browser(address, browser, photo, tmp_path):
    """Upload, prediction, overlay, an example, and a toast for a broken file; nothing is asked of another host."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    requested = []
    page.on("request", lambda request: requested.append(request.url))
    page.goto(address)
    page.locator("#image input[type=file]").set_input_files(photo)
    label = page.get_by_test_id("label-output-value")
    label.wait_for()
    assert label.inner_text().strip() in LABELS
    page.locator("#rollout img").wait_for()
    shots = Path("build/screenshots")
    shots.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=shots / "demo.png")

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not a picture")
    page.get_by_label("Remove Image").click()
    page.locator("#image input[type=file]").set_input_files(broken)
    toast = page.locator(".toast-body.error")
    toast.wait_for()
    assert "Cannot read the image broken.png" in toast.inner_text()
    page.screenshot(path=shots / "demo-error.png")
    host = address.rstrip("/")
    assert [url for url in requested if not url.startswith((host, "data:", "blob:"))] == []
    page.close()
