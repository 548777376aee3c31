"""What the browser is told to draw; what it draws is compared in `test_browser.py`."""

import base64
import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from vitrail.demo.lens import Pane, lens_value


@pytest.fixture
def pane():
    maps = np.random.default_rng(0).random((4, 3, 2)).astype(np.float32) * np.float32([[[1e-6]], [[1]], [[0]], [[7]]])
    return Pane(Image.new("RGB", (60, 40), "olive"), maps, (-6, 4, 66, 36), "a map", "what it shows", "of all", (2, 1))


def test_levels_are_shares_of_the_peak_of_their_layer(pane):
    found = pane.as_json()
    levels = np.frombuffer(base64.b64decode(found["levels"]), np.uint8).reshape(4, found["rows"], found["columns"])
    assert (found["rows"], found["columns"]) == (3, 2)
    assert found["peaks"] == pane.maps.max((1, 2)).tolist()
    restored = levels / 255 * np.array(found["peaks"])[:, None, None]
    assert np.abs(restored - pane.maps).max((1, 2)) == pytest.approx(0, abs=7 / 500)
    assert levels.max((1, 2)).tolist() == [255, 255, 0, 255]


def test_the_rest(pane):
    found = pane.as_json()
    assert found["region"] == pytest.approx([-0.1, 0.1, 1.1, 0.9])
    assert (found["width"], found["height"]) == (60, 40)
    assert (found["caption"], found["alt"], found["unit"]) == ("a map", "what it shows", "of all")
    assert found["patch"] == (2, 1)
    head, _, data = found["picture"].partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert np.abs(np.asarray(picture).astype(int) - np.asarray(pane.image)).max() <= 3


def test_the_colours_are_those_of_an_overlay(pane):
    value = lens_value([pane, pane], "Layer")
    assert len(value["panes"]) == 2
    assert value["depth_name"] == "Layer"
    colors = np.frombuffer(base64.b64decode(value["colors"]), np.uint8).reshape(256, 3)
    assert np.array_equal(colors, matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3])
