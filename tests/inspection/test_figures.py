"""Overlays lie where the map says."""

import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.inspection import depth_figure, heads_figure, overlay, predictions_figure, rollout_grid
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


def brightness(picture):
    return np.asarray(picture.convert("L")).astype(int)


@pytest.mark.parametrize("region", [(20, 10, 60, 50), (20.4, 9.7, 59.6, 50.2)], ids=["whole pixels", "parts of them"])
def test_a_map_lies_on_its_region(region):
    """The region is filled as the same map fills a picture of its size; outside, the picture fades to white."""
    image = Image.new("RGB", (100, 60), (0, 100, 200))
    heatmap = torch.tensor([[0.0, 1.0], [0.5, 0.0]])
    picture = overlay(image, heatmap, 0.5, region)
    alone = overlay(image.crop((20, 10, 60, 50)), heatmap, 0.5)
    inside = np.asarray(picture.crop((20, 10, 60, 50))).astype(int)
    assert np.abs(inside - np.asarray(alone)).max() <= (0 if region[0] == 20 else 12)
    outside = np.ones((60, 100), dtype=bool)
    outside[10:50, 20:60] = False
    assert np.abs(np.asarray(picture)[outside] - [127, 177, 227]).max() <= 1


def test_of_a_map_beyond_the_image_the_middle_is_seen():
    """A padded image: the upper and lower quarter of the map lie on the border that was added."""
    heatmap = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
    image = Image.new("RGB", (80, 80))
    square = overlay(image, heatmap, 1.0)
    middle = overlay(image.crop((0, 20, 80, 60)), heatmap, 1.0, (0, -20, 80, 60))
    assert np.abs(brightness(square.crop((0, 20, 80, 60))) - brightness(middle)).max() <= 1


def test_a_region_thinner_than_a_pixel_is_drawn():
    picture = overlay(Image.new("RGB", (1, 500)), torch.ones(2, 2), 1.0, (0, 249.7, 1, 250.3))
    assert (brightness(picture)[:, 0] < 255).sum() == 1


def panels(figure):
    """What each panel shows, by its first title's line."""
    return {axis.get_title().split("\n")[0]: axis.images[0].get_array() for axis in figure.axes if axis.images}


@pytest.mark.parametrize("draw", [depth_figure, lambda image, maps, region: heads_figure(image, maps, 2, region)])
def test_a_strip_shows_every_map_on_what_was_seen(draw):
    image = Image.fromarray(np.arange(30 * 40 * 3, dtype=np.uint8).reshape(30, 40, 3))
    maps = torch.rand(9, 3, 3, generator=torch.Generator().manual_seed(0))
    figure = draw(image, maps, (5, 0, 35, 30))
    shown = panels(figure)
    assert len(shown) == 10
    assert "own peak" in figure.get_suptitle()
    seen = image.crop((5, 0, 35, 30)).resize((224, 224), Image.Resampling.BICUBIC)
    assert np.abs(shown["input"].astype(int) - np.asarray(seen)).mean() < 2
    name = next(iter(name for name in shown if name.endswith(" 8")))
    expected = overlay(Image.fromarray(np.asarray(shown["input"])), maps[8])
    assert np.array_equal(shown[name], np.asarray(expected))
    assert f"peak {maps[8].max():.1%}" in [axis.get_title() for axis in figure.axes][9]
    figure.canvas.draw()


def test_the_grid_lights_what_the_map_says():
    images = [Image.new("RGB", (64, 32), "white"), Image.new("RGB", (32, 32), "white")]
    heatmaps = torch.tensor([[[1.0, 0.0]], [[0.25, 0.25]]])
    figure = rollout_grid(images, heatmaps, [(0, 0, 64, 32), (-16, 0, 48, 32)], pairs_per_row=1)
    pictures = [axis.images[0].get_array() for axis in figure.axes]
    assert [picture.shape[:2] for picture in pictures] == 4 * [(112, 224)]
    assert pictures[0].min() == 255
    assert pictures[1][:, :40].min() == 255
    assert pictures[1][:, -40:].max() == 0
    assert pictures[3][:, 60:160].min() == 255  # each map by its own peak
    assert pictures[3][:, :50].max() == pictures[2][:, :50].max() == 0  # the border that was added
    figure.canvas.draw()


IMAGES = 2 * [Image.new("RGB", (8, 8))]


@pytest.mark.parametrize(
    ("draw", "sentence"),
    [
        (lambda: overlay(IMAGES[0], torch.ones(2, 2), region=(8, 0, 9, 4)), "lies outside of the image of 8x8 pixels"),
        (lambda: overlay(IMAGES[0], torch.ones(2, 2), region=(4, 0, 4, 4)), "left edge before right"),
        (lambda: depth_figure(IMAGES[0], torch.ones(2, 2)), r"\(2, 2\); it must be \(layers, rows, columns\)"),
        (lambda: heads_figure(IMAGES[0], torch.full((2, 2, 2), torch.nan), 0), "NaN"),
        (lambda: rollout_grid(IMAGES, torch.ones(3, 2, 2)), "There are 2 images, but 3 heatmaps"),
        (lambda: rollout_grid(IMAGES, torch.ones(2, 2, 2), [(0, 0, 8, 8)]), "2 images, but 1 regions"),
        (lambda: rollout_grid([], torch.ones(1, 2, 2)), "There are no images"),
        (lambda: predictions_figure(IMAGES, torch.ones(2, 2, 2), ["a"], [1, 1], ["a", "b"]), "but 1 predictions"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(draw, sentence):
    with pytest.raises(InputError, match=sentence):
        draw()
