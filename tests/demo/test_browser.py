"""The page in Chromium, as people use it. What it looked like is in `build/screenshots`."""

import base64
import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.demo.engine import Engine, File
from vitrail.demo.explaining import Question
from vitrail.inspection import overlay
from vitrail.modeling import read_image


LABELS = ["ant", "bee", "cat", "dog", "elk"]
SHOTS = Path("build/screenshots")


@pytest.fixture(scope="module")
def engine(animals, deeper):
    """What the page is compared with."""
    return Engine([str(animals), str(deeper)], open_to_all=False)


@pytest.fixture
def open_page(app, chromium):
    """A function that opens the app; at the end nothing was asked of another host, and nothing failed."""
    pages, requested, failed = [], [], []

    def open_it(query="", **options):
        page = chromium.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
        pages.append(page)
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: message.type == "error" and failed.append(message.text))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.goto(app.address + query)
        page.locator("#image input[type=file]").wait_for(state="attached")
        return page

    yield open_it
    for page in pages:
        page.close()
    assert [url for url in requested if not url.startswith((app.address, "data:", "blob:"))] == []
    assert failed == []


@pytest.fixture
def page(open_page):
    return open_page()


def shoot(page, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{name}.png", full_page=True)


def upload(page, path, where="#image"):
    page.locator(f"{where} input[type=file]").set_input_files(path)


def predicted(page, where="#prediction"):
    label = page.locator(f"{where} [data-testid=label-output-value]")
    label.wait_for()
    return label.inner_text().strip()


def pixels_of(page, pane=0):
    """(height, width, 3) of a canvas."""
    canvas = page.locator("#lens canvas, #compare-lens canvas").nth(pane)
    data = canvas.evaluate("canvas => canvas.toDataURL()").partition(",")[2]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def overlaid(photo, heatmap, opacity=0.6):
    """What `inspection.overlay` draws of the map as the browser enlarges it: linearly, where Pillow rounds corners."""
    image = read_image(photo)
    enlarged = Image.fromarray(heatmap).resize(image.size, Image.Resampling.BILINEAR)
    return np.asarray(overlay(image, torch.from_numpy(np.array(enlarged)), opacity)).astype(int)


def slide(page, where, value):
    page.locator(where).evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }", value
    )


def caption(page, text):
    page.locator("#lens figcaption", has_text=text).wait_for()


def test_look_closer(page, engine, photo):
    """Depth and opacity are drawn here, without the server; a patch and a method are asked for."""
    file = File(photo, "photo.png")
    upload(page, photo)
    found = engine.explain("animals", file, Question())
    assert predicted(page) == LABELS[int(found.probabilities.argmax())]
    caption(page, "Attention rollout. Prediction:")
    page.locator("#slider img").first.wait_for()
    shoot(page, "look")

    for depth, opacity in ((2, 0.6), (0, 0.6), (1, 0.0), (1, 1.0)):
        asked = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        slide(page, "#lens .depth", depth)
        slide(page, "#lens .opacity", 100 * opacity)
        assert np.abs(pixels_of(page) - overlaid(photo, found.maps[depth], opacity)).mean() < 3, (depth, opacity)
        assert [url for url in asked if url.startswith("http")] == []
    slide(page, "#lens .opacity", 60)
    assert page.locator("#lens .depth-said").inner_text() == "2 of 3"

    canvas = page.locator("#lens canvas")
    box = canvas.bounding_box()
    canvas.click(position={"x": box["width"] * 0.75, "y": box["height"] * 0.5})
    caption(page, "Attention rollout of the patch in row 2, column 2")
    slide(page, "#lens .depth", 2)
    expected = engine.explain("animals", file, Question(patch=(1, 1))).maps[-1]
    assert np.median(np.abs(pixels_of(page) - overlaid(photo, expected))) < 4  # but for the frame of the patch
    page.mouse.move(0, 0)
    shoot(page, "look-patch")

    page.locator("#lens canvas").focus()
    page.keyboard.press("ArrowUp")
    assert page.locator("#lens .said").inner_text().startswith("Row 1, column 2: ")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    share = expected[0, 0]
    said = page.locator("#lens .said").inner_text()
    assert said.startswith("Row 1, column 1: ")
    assert float(said.split(":")[1].split("%")[0]) == pytest.approx(100 * share, abs=1)
    page.keyboard.press("Enter")
    caption(page, "of the patch in row 1, column 1")
    page.locator("#lens canvas").focus()
    page.keyboard.press("Escape")
    caption(page, "Attention rollout. Prediction:")

    page.get_by_label("Single layers").first.check()
    caption(page, "Attention. Prediction:")
    assert page.locator("#lens .what").inner_text() == "Layer"
    page.get_by_label("Relevance", exact=True).first.check()
    caption(page, f"Relevance of {predicted(page)}")
    page.locator("#target input").click()
    page.get_by_role("option", name="cat").click()
    caption(page, "Relevance of cat")
    expected = engine.explain("animals", file, Question("relevance", 2)).maps[-1]
    assert np.abs(pixels_of(page) - overlaid(photo, expected)).mean() < 5
    shoot(page, "look-relevance")


def test_heads_and_truth(page, photo):
    upload(page, photo)
    predicted(page)
    page.get_by_role("tab", name="Heads").click()
    page.locator("#heads img").nth(3).wait_for()
    assert page.locator("#heads img").count() == 4
    shoot(page, "heads")
    page.get_by_role("tab", name="Is it true?").click()
    page.locator("#test").click()
    verdict = page.locator("#verdict", has_text="With 25% of the patches hidden")
    verdict.wait_for()
    page.locator("#hidden img").nth(5).wait_for()
    page.locator("#fall canvas, #fall svg").first.wait_for()
    shoot(page, "truth")
    page.get_by_label("Single layers").first.check()
    verdict.wait_for(state="hidden")


def test_compare(page, engine, photo):
    page.get_by_role("tab", name="Compare").click()
    upload(page, photo, "#image-A")
    file = File(photo, "photo.png")
    for side, name in zip("AB", ("animals", "deeper"), strict=True):
        labels, probabilities = engine.model(name).labels, engine.explain(name, file, Question()).probabilities
        assert predicted(page, f"#prediction-{side}") == labels[int(probabilities.argmax())]
    page.locator("#compare-lens canvas").nth(1).wait_for()
    assert page.locator("#compare-lens .depth-said").inner_text() == "3 of 3, 5 of 5"
    slide(page, "#compare-lens .depth", 2)
    assert page.locator("#compare-lens .depth-said").inner_text() == "2 of 3, 3 of 5"
    box = page.locator("#compare-lens canvas").nth(1).bounding_box()
    page.locator("#compare-lens canvas").nth(1).click(position={"x": box["width"] / 8, "y": box["height"] / 8})
    page.locator("#compare-lens figcaption", has_text="deeper: Attention rollout of the patch in row 1").wait_for()
    assert page.locator("#compare-lens figcaption", has_text="animals: Attention rollout. Prediction").count() == 1
    shoot(page, "compare")


def test_batch(page, photo, broken, tmp_path):
    page.get_by_role("tab", name="Batch").click()
    page.locator("#files input[type=file]").set_input_files([photo, broken])
    page.locator("#files", has_text="broken").wait_for()
    page.locator("#predict-all").click()
    page.locator("#batch-said", has_text="2 images, 1 of them with an error").wait_for()
    page.locator("#table", has_text="Cannot read the image broken.png").wait_for()
    shoot(page, "batch")
    with page.expect_download() as download:
        page.locator("#csv").click()
    with Path(download.value.path()).open(newline="") as file:
        good, bad = csv.DictReader(file)
    assert (good["image"], good["label"] in LABELS, good["error"]) == ("photo.png", True, "")
    assert bad["error"].startswith("Cannot read the image broken.png")


def test_the_model(page):
    page.get_by_role("tab", name="The model").click()
    page.locator("#facts", has_text="none of the paper's").wait_for()
    page.locator("#card", has_text="Animals").wait_for()
    page.locator("#card-pictures img").first.wait_for()
    page.locator("#figure-7 img").first.wait_for()
    shoot(page, "model")


def test_a_damaged_file_is_a_toast_and_clears_what_was_there(page, photo, broken):
    upload(page, photo)
    predicted(page)
    page.locator("#image").get_by_label("Remove Image").click()
    upload(page, broken)
    toast = page.locator(".toast-body.error")
    toast.wait_for()
    assert "Cannot read the image broken.png: it is no image file" in toast.inner_text()
    page.locator("#prediction [data-testid=label-output-value]").wait_for(state="hidden")
    page.locator("#lens canvas").wait_for(state="hidden")
    shoot(page, "error")


def test_examples_and_the_latest_upload_wins(page, engine, animals, photo):
    expected = {}
    for path in sorted((animals / "samples").iterdir()):
        expected[path.name] = engine.classify("animals", File(path, path.name))
    page.locator("#image").wait_for()
    page.get_by_role("button", name="blue.png").or_(page.locator("button.gallery-item")).first.click()
    assert predicted(page) == LABELS[int(expected["blue.png"].argmax())]
    share = page.locator("#prediction").inner_text
    page.locator("#prediction", has_text=f"{expected['blue.png'].max():.0%}").wait_for()
    page.get_by_label("Remove Image").first.click()
    upload(page, photo)
    page.locator("button.gallery-item").nth(1).click()
    page.locator("#prediction", has_text=f"{expected['red.png'].max():.0%}").wait_for()
    page.wait_for_timeout(1000)
    assert f"{expected['red.png'].max():.0%}" in share()


def test_on_a_phone_at_night(open_page, photo):
    page = open_page("?__theme=dark", viewport={"width": 375, "height": 740})
    assert page.evaluate("document.body.classList.contains('dark')")
    upload(page, photo)
    predicted(page)
    page.locator("#lens canvas").wait_for()
    for tab in ("Look", "Compare", "Batch", "The model"):
        if tab == "Compare":
            page.get_by_role("tab", name=tab).click()
        elif tab != "Look":
            page.get_by_label("More tabs").first.click()
            page.locator(".overflow-dropdown button", has_text=tab).first.click()
        if tab == "The model":
            page.locator("#facts", has_text="Variant").wait_for()
        shoot(page, f"phone-{tab.replace(' ', '-').lower()}")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), tab
