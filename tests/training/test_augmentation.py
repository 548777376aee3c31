"""What training does to images before the model sees them."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

from vitrail.modeling import InputError, ViTImageProcessor, mean_color_classes
from vitrail.training.arguments import DataArguments
from vitrail.training.augmentation import BatchedRandomAffine, EvaluationTransform, TrainingTransform, color_labels


@pytest.fixture
def rows():
    """Four 30x20 images of smooth noise as undecoded rows."""
    noise = torch.rand(4, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    images = []
    for picture in torch.nn.functional.interpolate(noise, (20, 30), mode="bicubic").clip(0, 1):
        file = io.BytesIO()
        Image.fromarray(np.uint8(255 * picture.permute(1, 2, 0).numpy())).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    return {"image": images, "label": [2, 0, 1, 1], "row": [0, 1, 2, 3]}


def no_variation(**changes):
    plain = {"crop_scale": 1.0, "flip": 0.0, "rotation": 0.0, "scaling": 0.0, "translation": 0.0}
    return DataArguments(dataset="x", **(plain | changes))


SETTINGS = [
    {},
    {"do_normalize": False},
    {"do_rescale": False},
    {"rescale_factor": 1 / 127.5},
    {"resample": 3},
    {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.9, 0.8, 0.7]},
    {"size": {"shortest_edge": 24}, "do_center_crop": True, "crop_size": {"height": 16, "width": 24}},
    {"fit": "pad"},
    {"fit": "crop"},
    {"num_channels": 1},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_variation_training_sees_what_evaluation_sees(rows, settings):
    processor = ViTImageProcessor(**({"size": {"height": 16, "width": 24}} | settings))
    training, evaluation = TrainingTransform(processor, no_variation())(rows), EvaluationTransform(processor)(rows)
    assert training["pixel_values"].shape == (4, processor.num_channels, 16, 24)
    torch.testing.assert_close(
        training["pixel_values"], evaluation["pixel_values"], atol=1e-6, rtol=0, check_dtype=False
    )
    assert training["labels"].tolist() == evaluation["labels"].tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_evaluation_is_the_processor_itself(rows, settings):
    processor = ViTImageProcessor(**({"size": {"height": 16, "width": 24}} | settings))
    images = [Image.open(io.BytesIO(image["bytes"])) for image in rows["image"]]
    expected = processor(images, return_tensors="pt").pixel_values
    assert torch.equal(EvaluationTransform(processor)(rows)["pixel_values"], expected)


@pytest.mark.parametrize("settings", [fields for fields in SETTINGS if "num_channels" not in fields], ids=str)
def test_colors_are_those_before_normalisation(rows, settings):
    labels = partial(color_labels, patch_shape=(8, 4))
    del rows["label"]
    processor = ViTImageProcessor(**({"size": {"height": 16, "width": 24}} | settings))
    images = [Image.open(io.BytesIO(image["bytes"])) for image in rows["image"]]
    plain = processor(images, do_normalize=False, do_rescale=True, rescale_factor=1 / 255, return_tensors="pt")
    expected = mean_color_classes(plain.pixel_values, (8, 4))
    assert expected.shape == (4, 12)
    assert len(expected.unique()) > 10
    assert torch.equal(EvaluationTransform(processor, labels)(rows)["labels"], expected)
    assert torch.equal(TrainingTransform(processor, no_variation(), labels)(rows)["labels"], expected)
    mirrored = TrainingTransform(processor, no_variation(flip=1.0), labels)(rows)["labels"]
    assert torch.equal(mirrored.view(4, 2, 6), expected.view(4, 2, 6).flip(-1))


def test_a_row_without_an_image_is_named(rows):
    rows["image"][2] = None
    with pytest.raises(InputError, match="Row 2 of the data set has no image"):
        EvaluationTransform(ViTImageProcessor())(rows)


def test_certain_flip_mirrors_every_image(rows):
    processor = ViTImageProcessor(size={"height": 20, "width": 30})
    plain = TrainingTransform(processor, no_variation())(rows)["pixel_values"]
    flipped = TrainingTransform(processor, no_variation(flip=1.0))(rows)["pixel_values"]
    assert torch.equal(flipped, plain.flip(-1))


@pytest.mark.parametrize("fields", [{}, {"num_channels": 1}, {"fit": "pad"}], ids=str)
def test_every_image_draws_its_own_variation(rows, fields):
    rows = {key: [values[0]] * 4 for key, values in rows.items()}
    processor = ViTImageProcessor(size={"height": 20, "width": 30}, **fields)
    for change in ({"crop_scale": 0.3}, {"rotation": 20.0}, {"scaling": 0.3}, {"translation": 0.2}):
        pixels = TrainingTransform(processor, no_variation(**change))(rows)["pixel_values"]
        assert len({image.numpy().tobytes() for image in pixels}) == 4, change


@pytest.mark.parametrize(
    ("angle", "scale", "right", "down"), [(1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 1, -0.5), (-0.5, 0.4, 0, 0)]
)
def test_batched_affine_is_torchvisions(monkeypatch, angle, scale, right, down):
    """On an image that is not square, in the middle, where both interpolate inside it."""
    picture = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(3))
    picture = torch.nn.functional.interpolate(picture, (60, 90), mode="bicubic", antialias=True)
    draws = (torch.tensor([angle, scale, right, down]).float()[:, None] + 1) / 2
    monkeypatch.setattr(torch, "rand", lambda *shape: draws)
    ours = BatchedRandomAffine(rotation=30, scaling=0.2, translation=0.1)(picture)
    theirs = tvF.affine(
        picture,
        angle=-30 * angle,
        translate=[-9 * right, -6 * down],
        scale=1 + 0.2 * scale,
        shear=[0, 0],
        interpolation=InterpolationMode.BILINEAR,
    )
    middle = (..., slice(20, 40), slice(30, 60))
    torch.testing.assert_close(ours[middle], theirs[middle], atol=0.02, rtol=0)
