"""What the pictures beside a model show."""

import warnings

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from vitrail.inspection import predictions_figure
from vitrail.inspection.figures import MISSING, legible
from vitrail.modeling import ViTImageProcessor
from vitrail.training import pictures
from vitrail.training.metrics import Judgements, judge
from vitrail.training.pictures import confusion_figure, sample_files, save_confusions, save_mistakes, save_samples


def guesses(number, images=2000, wrong=0.2):
    generator = np.random.default_rng(0)
    references = generator.integers(0, number, images)
    others = (references + generator.integers(1, 1 + number, images)) % number
    return np.where(generator.random(images) < wrong, others, references), references


def test_few_classes_have_their_numbers():
    predictions, references = np.array([0, 0, 0, 1, 0]), np.array([0, 0, 0, 0, 1])
    (axis,) = confusion_figure(predictions, references, ["$x^2$", "a\nb"]).axes
    assert {text.get_text(): text.get_position() for text in axis.texts} == {
        "75%\n3": (0, 0),
        "25%\n1": (1, 0),
        "100%\n1": (0, 1),
    }
    assert [label.get_text() for label in axis.get_yticklabels()] == ["$x^2$", "a b"]
    assert axis.get_title() == "60.00% of 5 images are right"


def test_many_classes_have_colours_and_a_list():
    predictions, references = guesses(40)
    labels = [f"class {index} $\\frac{{" for index in range(40)]
    matrix, listed, _ = confusion_figure(predictions, references, labels).axes
    assert not matrix.texts
    shares = matrix.images[0].get_array()
    assert shares.shape == (40, 40)
    np.testing.assert_allclose(shares.sum(1), 1)  # of each class's images, all went somewhere
    wrong = predictions != references
    pairs, counts = np.unique(np.stack([references, predictions])[:, wrong], axis=1, return_counts=True)
    assert [patch.get_width() for patch in listed.patches] == sorted(counts, reverse=True)[:30]
    truth, guess = pairs[:, counts.argmax()]
    assert listed.get_yticklabels()[0].get_text() == f"{legible(labels[truth], 24)} → {legible(labels[guess], 24)}"


def test_very_many_classes_share_cells():
    predictions, references = guesses(21_000, images=30_000)
    matrix = confusion_figure(predictions, references, [str(index) for index in range(21_000)]).axes[0].images[0]
    assert matrix.get_array().shape == (400, 400)
    assert matrix.get_array().max() == 1


def test_without_mistakes_there_is_no_list():
    _, references = guesses(40)
    assert len(confusion_figure(references, references, [str(index) for index in range(40)]).axes) == 2  # and the scale


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("  a\n b\t", "a b"),
        ("a name of many letters", "a name of…tters"),
        ("猫", MISSING),
        ("\x07\udcff", 2 * MISSING),
        ("", ""),
    ],
)
def test_a_name_is_made_legible(text, shown):
    assert legible(text, 15) == shown


@pytest.fixture
def classified(tiny_model):
    """Twelve images of which the model thinks what it thinks, and its processor."""
    generator = np.random.default_rng(0)
    images = [Image.fromarray(np.uint8(generator.integers(0, 255, (24, 16, 3)))) for _ in range(12)]
    labels = ["a|b", "猫", "$x_{$", "x" * 300, "two\nlines"]
    tiny_model.config.id2label = dict(enumerate(labels))
    features = Features({"image": ImageFeature(), "label": ClassLabel(num_classes=5)})
    rows = Dataset.from_dict({"image": images, "label": [index % 5 for index in range(12)]}, features=features)
    processor = ViTImageProcessor(size={"height": 24, "width": 16})
    with torch.no_grad():
        logits = tiny_model(processor(images, return_tensors="pt").pixel_values).logits
    rows = rows.cast_column("image", ImageFeature(decode=False))
    return (
        tiny_model,
        processor,
        rows,
        Judgements(*(each.numpy() for each in judge(logits, torch.tensor(rows["label"])))),
    )


def test_the_worst_mistakes_are_those_of_the_highest_loss(classified, tmp_path, monkeypatch):
    model, processor, rows, judgements = classified
    drawn = []
    monkeypatch.setattr(pictures, "predictions_figure", lambda *args: drawn.append(args) or predictions_figure(*args))
    with warnings.catch_warnings(action="error"):  # as of a letter that the font lacks
        assert save_mistakes(model, processor, rows, judgements, tmp_path) == "worst_mistakes.png"
    wrong = np.flatnonzero(judgements.ranks > 0)
    worst = wrong[(-judgements.losses[wrong]).argsort(kind="stable")][:8]
    _, _, predictions, probabilities, truths, _, likely = drawn[0]
    assert truths == [model.config.labels[label] for label in judgements.references[worst]]
    assert predictions == [model.config.labels[label] for label in judgements.predictions[worst]]
    np.testing.assert_allclose(probabilities, judgements.probabilities[worst], rtol=1e-4)
    np.testing.assert_allclose(-np.log(likely), judgements.losses[worst], rtol=1e-4)

    right = judgements._replace(predictions=judgements.references)
    assert save_mistakes(model, processor, rows, right, tmp_path) is None
    assert not (tmp_path / "worst_mistakes.png").exists()  # the one of before would be a lie


def test_pictures_of_odd_names_are_drawn(classified, tmp_path):
    model, processor, rows, judgements = classified
    assert save_confusions(judgements, model.config.labels, tmp_path) == "confusion_matrix.png"
    save_samples(model, processor, rows, tmp_path)
    assert len(sample_files(tmp_path)) == 8
    for name in ("confusion_matrix.png", "samples_with_rollout.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 300
