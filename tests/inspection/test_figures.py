"""Overlays lie where the map says."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.inspection import overlay, predictions_figure
from vitrail.modeling import InputError


def test_overlay_is_brightest_where_the_map_is():
    heatmap = torch.zeros(3, 2)
    heatmap[2, 0] = 0.01  # however small: the largest value becomes the brightest colour
    picture = overlay(Image.new("L", (20, 60), 0), heatmap)
    assert (picture.mode, picture.size) == ("RGB", (20, 60))
    brightness = np.asarray(picture.convert("L")).astype(int)
    row, column = np.unravel_index(brightness.argmax(), brightness.shape)
    assert row >= 40
    assert column < 10
    assert brightness[:30].max() < brightness.max() / 4


def test_alpha_zero_leaves_the_image_alone():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(overlay(image, torch.rand(3, 4), alpha=0)), np.asarray(image))


@pytest.mark.parametrize(
    ("heatmap", "alpha"),
    [
        (torch.rand(2, 3, 3), 0.5),
        (torch.zeros(0, 3), 0.5),
        (torch.tensor([[0.1, float("nan")]]), 0.5),
        (torch.tensor([[0.1, -1.0]]), 0.5),
        (torch.rand(3, 3), 1.5),
    ],
    ids=["batch", "empty", "nan", "negative", "alpha"],
)
def test_bad_maps_are_refused(heatmap, alpha):
    with pytest.raises(InputError):
        overlay(Image.new("RGB", (10, 10)), heatmap, alpha)


def test_predictions_figure_marks_mistakes():
    images = [Image.new("RGB", (8, 8))] * 2
    figure = predictions_figure(
        images, torch.rand(2, 2, 2), ["cat (tabby)", "dog"], [0.98, 0.51], ["cat (tabby)", "cat"]
    )
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["cat (tabby) (98%)", "dog (51%)", "", "is cat"]
