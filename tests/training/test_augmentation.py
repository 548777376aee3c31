"""What training does to images before the model sees them."""

import io
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF
from transformers import TrainerState

from vitrail.modeling import InputError, ViTImageProcessor, mean_color_classes
from vitrail.training.arguments import DataArguments
from vitrail.training.augmentation import (
    Draws,
    EpochOfAugmentation,
    EvaluationTransform,
    TrainingTransform,
    affine,
    color_labels,
    crop_box,
    erased,
    shifted,
)


@pytest.fixture
def rows():
    """Four 30x20 images of smooth noise as undecoded rows."""
    noise = torch.rand(4, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    images = []
    for picture in torch.nn.functional.interpolate(noise, (20, 30), mode="bicubic").clip(0, 1):
        file = io.BytesIO()
        Image.fromarray(np.uint8(255 * picture.permute(1, 2, 0).numpy())).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
    return {"image": images, "label": [2, 0, 1, 1], "row": [0, 1, 2, 3], "key": [0, 1, 2, 3]}


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
    rows = {name: [values[0]] * 4 if name != "key" else values for name, values in rows.items()}
    processor = ViTImageProcessor(size={"height": 20, "width": 30}, **fields)
    for change in ({"crop_scale": 0.3}, {"rotation": 20.0}, {"scaling": 0.3}, {"translation": 0.2}):
        pixels = TrainingTransform(processor, no_variation(**change))(rows)["pixel_values"]
        assert len({image.numpy().tobytes() for image in pixels}) == 4, change


@pytest.mark.parametrize(
    ("angle", "scale", "right", "down"), [(1, 0, 0, 0), (0, 1, 0, 0), (0, -1, 0, 0), (0, 0, 1, -0.5), (-0.5, 0.4, 0, 0)]
)
def test_batched_affine_is_torchvisions(angle, scale, right, down):
    """On an image that is not square, in the middle, where both interpolate inside it."""
    picture = torch.rand(1, 3, 6, 9, generator=torch.Generator().manual_seed(3))
    picture = torch.nn.functional.interpolate(picture, (60, 90), mode="bicubic", antialias=True)
    ours = affine(picture, 30, 0.2, 0.1, np.array([angle, scale, right, down], float)[:, None])
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


VARIATIONS = {
    "crop_scale": 0.3,
    "flip": 0.5,
    "rotation": 20.0,
    "scaling": 0.3,
    "translation": 0.2,
    "padding": 3,
    "erasing": 0.7,
    "policy": "randaugment",
}


@pytest.mark.parametrize(
    "changes",
    [{name: value} for name, value in VARIATIONS.items()] + [{"policy": "trivialaugment"}, VARIATIONS],
    ids=lambda changes: " ".join(changes),
)
def test_a_variation_is_of_the_seed_the_epoch_and_the_key_alone(rows, changes):
    """Whatever the batch, the order and what was drawn before; and without touching torch's own generator."""
    rows = {name: values * 4 for name, values in rows.items()} | {"key": list(range(16))}
    processor = ViTImageProcessor(size={"height": 16, "width": 24})

    def pixels(seed, epoch, places):
        transform = TrainingTransform(processor, no_variation(**changes), seed=seed)
        transform.epoch.fill_(epoch)
        batch = transform({name: [values[place] for place in places] for name, values in rows.items()})
        return batch["pixel_values"]

    before = torch.get_rng_state()
    whole = pixels(1, 2, list(range(16)))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    for places in ([5], [11, 3, 5, 0], list(range(15, -1, -1))):
        assert torch.equal(pixels(1, 2, places), whole[places])
    for seed, epoch in ((1, 3), (2, 2)):
        assert not torch.equal(pixels(seed, epoch, list(range(16))), whole)


def test_draws_are_uniform_and_independent():
    keys = range(4096)
    first = Draws(0, 0, keys).uniform(8)
    samples = [first, Draws(0, 1, keys).uniform(8), Draws(1, 0, keys).uniform(8)]
    assert first.shape == (8, 4096)
    for numbers in samples:
        counts = np.histogram(numbers, bins=64, range=(0, 1))[0]
        assert ((counts - 512) ** 2 / 512).sum() < 110  # chi-squared of 63 degrees: 1 in 5,000
    flat = np.stack([numbers.ravel() for numbers in samples] + [first[::-1].ravel(), np.roll(first, 1, axis=1).ravel()])
    correlations = np.corrcoef(flat) - np.eye(len(flat))
    assert abs(correlations).max() < 0.025  # 4.5 standard deviations
    assert Draws(0, 0, [2**40]).uniform(1) != Draws(0, 0, [0]).uniform(1)


def boxes_of_torchvision(transform, names, height, width):
    torch.manual_seed(0)
    params = [transform.make_params([torch.empty(3, height, width)]) for _ in range(1500)]
    return np.array([[param[name] for name in names] for param in params], float)


def assert_alike(ours, theirs, height, width):
    ours = np.array(ours, float)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= (height, width)).all()
    errors = abs(ours.mean(0) - theirs.mean(0)) / (theirs.std(0) / len(theirs) ** 0.5 + 1e-9)
    assert errors.max() < 4.5  # standard errors
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.1, atol=0.05)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (20, 200), (100, 50), (4, 4)])
def test_crops_are_distributed_as_torchvisions(height, width):
    transform = v2.RandomResizedCrop(8, scale=(0.3, 1.0))
    theirs = boxes_of_torchvision(transform, ("top", "left", "height", "width"), height, width)
    ours = [crop_box(numbers, 0.3, height, width) for numbers in Draws(0, 0, range(1500)).uniform(40).T.tolist()]
    assert_alike(ours, theirs, height, width)


def test_erased_parts_are_distributed_as_torchvisions():
    height, width = 375, 500  # in long images torchvision erases no part as high or wide as the image
    theirs = boxes_of_torchvision(v2.RandomErasing(p=1.0), ("i", "j", "h", "w"), height, width)
    images = torch.zeros(1, 1, height, width, dtype=torch.uint8).expand(1500, -1, -1, -1)
    numbers = Draws(0, 0, range(1500)).uniform(41)
    ours = []
    for part in range(0, 1500, 100):
        painted = erased(images[:100], 1.0, torch.ones(1, 1, 1).byte(), numbers[:, part : part + 100])[:, 0]
        for mask in painted:
            rows, columns = mask.any(1).nonzero()[[0, -1], 0], mask.any(0).nonzero()[[0, -1], 0]
            ours.append([rows[0], columns[0], rows[1] - rows[0] + 1, columns[1] - columns[0] + 1])
    assert_alike(ours, theirs, height, width)


def test_shifting_is_cropping_what_was_padded():
    images = torch.randint(0, 256, (40, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    numbers = Draws(0, 0, range(40)).uniform(2)
    ours = shifted(images, 2, numbers)
    places = (5 * numbers).astype(int)
    for image, moved, top, left in zip(images, ours, *places.tolist()):
        assert torch.equal(moved, tvF.crop(tvF.pad(image, [2]), top, left, 5, 7))
    assert len(set(zip(*places.tolist()))) > 15  # of 25


def test_erasing_paints_one_box_the_mean_colour():
    images = torch.randint(0, 256, (200, 3, 12, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    colour = torch.tensor([300, 301, 302])[:, None, None]  # which no image has
    result = erased(images.int(), 0.25, colour, Draws(0, 0, range(200)).uniform(41))
    painted = (result == colour).all(1)
    assert torch.equal(result.movedim(1, -1)[~painted], images.int().movedim(1, -1)[~painted])
    count = 0
    for mask in painted:
        if mask.any():
            rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
            assert mask.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
            count += 1
    assert 30 < count < 70
    processor = ViTImageProcessor(size={"height": 12, "width": 16})
    transform = TrainingTransform(processor, no_variation(erasing=1.0))
    gray = torch.full((1, 3, 1, 1), 1.0) * transform.gray
    normalised = processor.rescale_and_normalize(gray, True, 1 / 255, True, processor.image_mean, processor.image_std)
    assert normalised.abs().max() < 0.01


@pytest.mark.parametrize("changes", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}], ids=str)
def test_mixing_blends_a_batch_and_its_labels_alike(rows, changes):
    processor = ViTImageProcessor(size={"height": 20, "width": 30})
    plain = TrainingTransform(processor, no_variation())(rows)["pixel_values"]
    transform = TrainingTransform(processor, no_variation(**changes), num_labels=4)
    kinds = set()
    for epoch in range(12):
        transform.epoch.fill_(epoch)
        batch = transform(rows)
        labels, pixels = batch["labels"], batch["pixel_values"]
        assert labels.shape == (4, 4)
        torch.testing.assert_close(labels.sum(1), torch.ones(4))
        own = labels[0, 2].item()  # the others have other classes
        blended = own * plain + (1 - own) * plain.roll(1, 0)
        taken = (pixels == plain.roll(1, 0)).all(1)
        if torch.allclose(pixels, blended, atol=1e-5):
            kinds.add("mixup")
        else:
            kinds.add("cutmix")
            assert torch.equal(torch.where(taken[:, None], plain.roll(1, 0), plain), pixels)
            assert taken[0].float().mean() == pytest.approx(1 - own, abs=1e-5)
        assert torch.equal(transform(rows)["pixel_values"], pixels)
    assert kinds == set(changes)


def test_colors_are_those_of_the_varied_picture(rows):
    """Also where it is erased."""
    processor = ViTImageProcessor(size={"height": 16, "width": 24})
    seen = []

    def labels(rows, images):
        seen.append(images)
        return color_labels(rows, images, (8, 4))

    batch = TrainingTransform(processor, no_variation(**VARIATIONS), labels)(rows)
    shown = batch["pixel_values"] * torch.tensor(processor.image_std)[:, None, None]
    shown = (shown + torch.tensor(processor.image_mean)[:, None, None]) * 255
    torch.testing.assert_close(seen[0].float(), shown, atol=1e-3, rtol=0)
    assert torch.equal(batch["labels"], mean_color_classes(seen[0] / 255, (8, 4)))


def test_the_epoch_is_counted_from_where_a_training_goes_on(rows):
    transform = TrainingTransform(ViTImageProcessor(), no_variation())
    callback = EpochOfAugmentation(transform)
    for begun, expected in ((0, [0, 1, 2]), (3.0, [3, 4]), (1.5, [1, 2])):
        state = TrainerState(epoch=begun)
        callback.on_train_begin(None, state, None)
        for epoch in expected:
            callback.on_epoch_begin(None, state, None)
            assert transform.epoch.item() == epoch
