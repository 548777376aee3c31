"""Scores of maps against loops over images, pixels and steps, and against areas that follow from what a model reads."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers.modeling_outputs import ImageClassifierOutput

from vitrail.inspection import attention_rollout, faithfulness, rollout_by_depth
from vitrail.inspection.faithfulness import _blurred, _ranks
from vitrail.inspection.targets import targets_of
from vitrail.modeling import InputError, ViTForMaskedPatchPrediction, ViTModel


FIELDS = ("insertion_blur", "deletion_blur", "insertion_zero", "deletion_zero", "positive", "negative")


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def model(tiny_model):
    """A classifier whose decision hangs on the pixels, unlike that of random weights: without them it is open."""
    with torch.no_grad():
        tiny_model.classifier.bias -= tiny_model(torch.zeros(1, 3, 24, 16)).logits[0]
        tiny_model.classifier.weight *= 20
        tiny_model.classifier.bias *= 20
    return tiny_model


@pytest.fixture
def heatmap():
    """A value for every pixel, no two of them the same, so that nothing is drawn and nothing interpolated."""
    return torch.randperm(3 * 24 * 16, generator=torch.Generator().manual_seed(3)).view(3, 24, 16).float()


class OnePatch(torch.nn.Module):
    """Decides for class 1 if at least half of one patch is there, a tenth of the image: its pixels are then 1."""

    def forward(self, pixel_values):
        there = (pixel_values[:, :, 4:8, 4:8] == 1).all(1).float().mean((1, 2)) >= 0.5
        return ImageClassifierOutput(logits=torch.stack((there * -60.0 + 30, there * 60.0 - 30), dim=1))


@pytest.fixture
def only_patch():
    """Images of 20x8 pixels for `OnePatch`, and the map of what it reads."""
    truth = torch.zeros(2, 20, 8)
    truth[:, 4:8, 4:8] = 1
    return torch.ones(2, 3, 20, 8), truth


def assert_same(actual, expected):
    for name in FIELDS:
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name), atol=1e-5, rtol=0)


def naive_blur(image):
    """A pixel of the blurred image is the mean of all pixels, weighted by their distance; no separability."""
    height, width = image.shape[1:]
    y, x = np.mgrid[:height, :width]
    blurred = np.empty_like(image)
    for row in range(height):
        for column in range(width):
            weights = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * (min(height, width) / 10) ** 2))
            blurred[:, row, column] = (image * weights).sum((1, 2)) / weights.sum()
    return blurred


def naive_scores(model, image, heatmap, target, steps):
    """The definitions, one image and one step at a time; the model in float64."""
    image = image.double().numpy()
    pixels = sorted(np.ndindex(heatmap.shape), key=lambda place: -heatmap[place].item())

    def predict(picture):
        logits = model(torch.from_numpy(picture)[None]).logits[0]
        return logits.softmax(0)[target].item(), float(logits.argmax() == target)

    def walk(start, finish, order):
        """What is said as `order`'s pixels become those of `finish`."""
        said = []
        for step in range(steps + 1):
            picture = start.copy()
            for row, column in order[: round(step / steps * len(order))]:
                picture[:, row, column] = finish[:, row, column]
            said.append(predict(picture))
        return np.array(said)

    scores = {}
    for name, baseline in {"blur": naive_blur(image), "zero": np.zeros_like(image)}.items():
        scores[f"insertion_{name}"] = np.trapezoid(walk(baseline, image, pixels)[:, 0], dx=1 / steps)
        scores[f"deletion_{name}"] = np.trapezoid(walk(image, baseline, pixels)[:, 0], dx=1 / steps)
    zeros = np.zeros_like(image)
    for name, order in {"positive": pixels, "negative": pixels[::-1]}.items():
        decided = walk(image, zeros, order)[steps // 10 : -(steps // 10), 1]
        scores[name] = np.trapezoid(decided, dx=1 / steps) / 0.8
    return scores


@pytest.mark.parametrize(("target", "steps"), [(None, 10), ([4, 0, 2], 20)])
@torch.no_grad()
def test_scores_are_those_of_a_loop(model, pixels, heatmap, target, steps):
    pixels, heatmap = pixels[..., :20, :], heatmap[:, :20]  # 320 pixels, which every number of steps divides
    model.double()

    class Padded(torch.nn.Module):
        """The model in float64, of images lower than its own."""

        def forward(self, pixel_values):
            return model(torch.nn.functional.pad(pixel_values.double(), (0, 0, 0, 4), value=0.5))

    network = Padded().eval()
    out = faithfulness(network, pixels, heatmap, target=target, steps=steps, random_draws=1)
    predicted = network(pixels).logits.argmax(-1)
    assert out.target.tolist() == (predicted.tolist() if target is None else target)
    for index, (image, relevance) in enumerate(zip(pixels, heatmap)):
        expected = naive_scores(network, image, relevance, out.target[index].item(), steps)
        for name in FIELDS:
            assert getattr(out.map, name)[index].item() == pytest.approx(expected[name], abs=1e-6), name
    assert (out.map.positive % 1).any()  # the decision did change on the way
    assert (out.map.negative % 1).any()


def test_a_perfect_map_has_the_best_scores_that_there_are(only_patch):
    images, truth = only_patch
    out = faithfulness(OnePatch().eval(), images, torch.stack((truth, -truth), dim=1), target=1)
    expected = {"insertion": (0.95, 0.05), "deletion": (0.05, 0.95), "positive": (0, 1), "negative": (1, 0)}
    for name in FIELDS:
        if "blur" not in name:  # a blurred image of ones is the image
            wanted = torch.tensor([expected[name.removesuffix("_zero")]] * 2, dtype=torch.float32)
            torch.testing.assert_close(getattr(out.map, name), wanted)
    for control in (out.random, out.gaussian):
        for better, worse in ((control.insertion_zero, 0.95), (control.negative, 1)):
            assert (better < worse).all()
        for better, worse in ((control.deletion_zero, 0.05), (control.positive, 0)):
            assert (better > worse).all()


def test_the_blurred_image_is_a_baseline_of_its_own(only_patch):
    images, truth = only_patch
    images[:, :, 3::4] = 0  # is not there, wherever it blurs into
    out = faithfulness(OnePatch().eval(), images, truth, target=1)
    torch.testing.assert_close(out.map.insertion_blur, out.map.insertion_zero)
    torch.testing.assert_close(out.map.deletion_blur, out.map.deletion_zero)


def test_a_map_of_patches_is_ranked_too(only_patch):
    images, truth = only_patch
    patches = truth[:, ::4, ::4]  # (2, 5, 2)
    out = faithfulness(OnePatch().eval(), images, torch.stack((patches, -patches), dim=1), target=1)
    assert (out.map.insertion_zero[:, 0] > 0.8).all()
    assert (out.map.insertion_zero[:, 1] < 0.2).all()


def test_pixels_are_ranked_as_bilinear_interpolation_has_them():
    shape, grid = (24, 18), (4, 3)
    grid_map = torch.rand(grid, generator=torch.Generator().manual_seed(1)).double()

    def at(row, column):
        """Between the centres of the cells; beyond the outermost ones, as there."""
        row, column = (
            np.clip((place + 0.5) * cells / side - 0.5, 0, cells - 1)
            for place, cells, side in ((row, grid[0], shape[0]), (column, grid[1], shape[1]))
        )
        top, left = min(int(row), grid[0] - 2), min(int(column), grid[1] - 2)
        down, right = row - top, column - left
        above = (1 - right) * grid_map[top, left] + right * grid_map[top, left + 1]
        below = (1 - right) * grid_map[top + 1, left] + right * grid_map[top + 1, left + 1]
        return ((1 - down) * above + down * below).item()

    values = np.array([[at(row, column) for column in range(shape[1])] for row in range(shape[0])], dtype=np.float32)
    ranks = _ranks(grid_map.float()[None], shape, torch.Generator().manual_seed(0))[0]
    assert sorted(ranks.flatten().tolist()) == list(range(24 * 18))
    in_order = values.flatten()[ranks.flatten().argsort().numpy()]
    assert (np.diff(in_order) <= 1e-7).all()


def test_ties_are_drawn_by_patches_and_favour_no_place():
    grid = torch.full((400, 3, 2), 0.3)  # interpolation of which would not be constant but for rounding
    ranks = _ranks(grid, (24, 16), torch.Generator().manual_seed(0)).float()
    mean_rank = ranks.view(400, 3, 8, 2, 8).mean((0, 2, 4))
    torch.testing.assert_close(mean_rank, torch.full((3, 2), 383 / 2), atol=15, rtol=0)
    corners = ranks[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean(0)
    torch.testing.assert_close(corners, torch.full((4,), 383 / 2), atol=25, rtol=0)
    neighbours = (ranks[:, :, 1:] - ranks[:, :, :-1]).abs().mean()
    assert neighbours < 60  # 128 if every pixel were drawn by itself
    one_patch = _ranks(torch.zeros(400, 1, 1), (4, 4), torch.Generator().manual_seed(0)).float().mean(0)
    torch.testing.assert_close(one_patch, torch.full((4, 4), 7.5), atol=1, rtol=0)


def test_zeros_come_after_what_is_relevant_and_above_what_is_negative():
    grid = torch.tensor([[[0.0, 0.0, 1.0, 0.0, -1.0, 0.0]]])
    ranks = _ranks(grid, (1, 6), torch.Generator().manual_seed(0)).flatten().tolist()
    assert ranks[2] == 0
    assert ranks[4] == 5


def test_a_constant_map_scores_as_the_random_control(model, pixels):
    constant = torch.full((3, 100, 3, 2), 1 / 7)
    out = faithfulness(model, pixels, constant, random_draws=100, batch_size=512)
    for name in FIELDS:
        values, control = getattr(out.map, name), getattr(out.random, name)
        noise = (2 * values.var(1) / 100).sqrt()
        assert ((values.mean(1) - control).abs() <= 4 * noise + 1e-6).all(), name


@pytest.mark.parametrize("shape", [(24, 16), (20, 20)])
def test_blur_is_that_of_the_definition(shape):
    images = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    for image, blurred in zip(images, _blurred(images)):
        torch.testing.assert_close(blurred, torch.from_numpy(naive_blur(image.double().numpy())).float())
    torch.testing.assert_close(_blurred(torch.ones(1, 1, *shape)), torch.ones(1, 1, *shape))


def test_same_seed_same_scores_whatever_the_batch(model, pixels):
    heatmap = attention_rollout(model, pixels).heatmap.round(decimals=1)  # with ties
    first = faithfulness(model, pixels, heatmap)
    for batch_size in (1, 7, 1000):
        again = faithfulness(model, pixels, heatmap, batch_size=batch_size)
        for name in ("map", "random", "gaussian"):
            assert_same(getattr(again, name), getattr(first, name))
    other = faithfulness(model, pixels, heatmap, seed=1)
    assert not torch.equal(other.random.insertion_zero, first.random.insertion_zero)
    torch.testing.assert_close(other.gaussian.insertion_zero, first.gaussian.insertion_zero, atol=0.1, rtol=0)


def test_images_do_not_see_each_other(model, pixels):
    heatmap = attention_rollout(model, pixels).heatmap
    together = faithfulness(model, pixels, heatmap)
    pixels[1], heatmap[1] = 3 * pixels[0], heatmap[0].flip(0)
    others = faithfulness(model, pixels, heatmap)
    alone = faithfulness(model, pixels[:1], heatmap[:1])
    for name in FIELDS:
        for kind in ("map", "random", "gaussian"):
            here, there, single = (getattr(getattr(out, kind), name) for out in (together, others, alone))
            torch.testing.assert_close(here[[0, 2]], there[[0, 2]], atol=1e-5, rtol=0)
            torch.testing.assert_close(here[:1], single, atol=1e-5, rtol=0)


def test_scores_of_every_depth_stand_beside_one_control(model, pixels):
    depths = rollout_by_depth(model, pixels).heatmap
    out = faithfulness(model, pixels, depths)
    assert {field.name for field in dataclasses.fields(out.map)} == set(FIELDS)
    for name in FIELDS:
        assert getattr(out.map, name).shape == depths.shape[:2]
        for scores in (out.random, out.gaussian):
            assert getattr(scores, name).shape == (3,)
            assert getattr(scores, name).dtype == torch.float32
        assert 0 <= getattr(out.map, name).min() <= getattr(out.map, name).max() <= 1 + 1e-6


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, [2, 0]),
        (1, [1, 1]),
        ([0, 2], [0, 2]),
        (torch.tensor([1, 0], dtype=torch.int32), [1, 0]),
        (torch.tensor(2), [2, 2]),
    ],
)
def test_targets(target, expected):
    found = targets_of(torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]]), target)
    assert found.dtype == torch.int64
    assert found.tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": 12}, "target is 12; the model's labels are 0 to 4."),
        ({"target": [0, -1, 1]}, "target is -1; the model's labels are 0 to 4."),
        ({"target": [1, 2]}, r"target has the shape \(2,\); it must be one class, or 3, one an image."),
        ({"target": torch.zeros(3, 1).long()}, r"target has the shape \(3, 1\)"),
        ({"target": 0.5}, "target is 0.5; it must be the whole number of a class"),
        ({"heatmap": torch.zeros(2, 3, 2)}, r"heatmap has shape \(2, 3, 2\); for these images it is \(3, rows, col"),
        ({"heatmap": torch.zeros(3, 6)}, r"heatmap has shape \(3, 6\)"),
        ({"heatmap": torch.tensor(0.0)}, r"heatmap has shape \(\)"),
        ({"heatmap": torch.zeros(3, 0, 2)}, r"heatmap has shape \(3, 0, 2\)"),
        ({"heatmap": torch.zeros(3, 25, 16)}, "of at most 24 rows and 16 columns"),
        ({"heatmap": torch.full((3, 3, 2), torch.nan)}, "heatmap holds NaN or infinite values"),
        ({"pixel_values": torch.full((3, 3, 24, 16), torch.nan)}, "pixel_values hold NaN or infinite values"),
        ({"pixel_values": torch.zeros(3, 24, 16)}, r"pixel_values has shape \(3, 24, 16\); it must be"),
        ({"steps": 14}, "steps is 14; it must be a multiple of 10"),
        ({"steps": 0}, "steps is 0"),
        ({"random_draws": 0}, "random_draws is 0; it must be at least 1"),
        ({"batch_size": 0}, "batch_size is 0; it must be at least 1"),
    ],
)
def test_what_cannot_be_used_is_said(model, pixels, arguments, message):
    given = {"pixel_values": pixels, "heatmap": torch.zeros(3, 3, 2)} | arguments
    with pytest.raises(InputError, match=message):
        faithfulness(model, **given)


@pytest.mark.parametrize("model_class", [ViTModel, ViTForMaskedPatchPrediction])
def test_a_model_without_classes_is_said(tiny_config, randomised, pixels, model_class):
    model = randomised(model_class(tiny_config))
    with pytest.raises(InputError, match=f"{model_class.__name__} gives no logits of classes"):
        faithfulness(model, pixels, torch.zeros(3, 3, 2))


def test_a_model_that_is_not_ready_is_said(model, pixels):
    with pytest.raises(InputError, match="training mode"):
        faithfulness(model.train(), pixels, torch.zeros(3, 3, 2))
    with torch.no_grad():
        model.classifier.bias[0] = torch.nan
    with pytest.raises(InputError, match="The model's logits are NaN or infinite"):
        faithfulness(model.eval(), pixels, torch.zeros(3, 3, 2))
