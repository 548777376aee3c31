"""Heads fitted to frozen features: against scikit-learn, and from flags to a folder like any other."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from scipy import stats
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from transformers import pipeline

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor
from vitrail.training import train
from vitrail.training.arguments import parse_arguments
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.card import Provenance
from vitrail.training.data import load_splits
from vitrail.training.evaluation import evaluate
from vitrail.training.linear_heads import (
    LOGISTIC_C,
    RIDGE_STRENGTHS,
    Standardisation,
    best_logistic_regression,
    logistic_regression,
    loss_of,
    regularised_least_squares,
    t_margin,
)
from vitrail.training.loading import Batches, collate
from vitrail.training.probes import ProbeTrainer, draw_shots


def samples(count: int, width: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of unequal scale, (n, D), and classes that they tell a little of, each there at least once."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    features = torch.randn(count, width, generator=generator) + torch.nn.functional.one_hot(labels, width)
    return features * torch.logspace(-2, 2, width) + 5, labels


# The fits


@pytest.mark.parametrize("c", [1e-3, 1.0])
def test_logistic_regression_is_scikit_learns(c):
    features, labels = samples(90, 6, 3)
    features = Standardisation.of(features)(features)
    ours = logistic_regression(features, labels, 3, c)
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=1000).fit(features.numpy(), labels.numpy())
    torch.testing.assert_close(ours.weight, torch.tensor(theirs.coef_), atol=1e-4, rtol=1e-3)
    # a constant added to every class changes nothing
    intercept = torch.tensor(theirs.intercept_)
    torch.testing.assert_close(ours.bias - ours.bias.mean(), intercept - intercept.mean(), atol=1e-4, rtol=1e-3)


def test_several_labels_an_image_are_as_many_binary_regressions():
    features, labels = samples(60, 5, 3)
    features = Standardisation.of(features)(features)
    several = torch.stack([labels == 0, labels != 2], dim=1).float()
    ours = logistic_regression(features, several, 2, 0.1)
    for index in range(2):
        theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(features.numpy(), several[:, index].numpy())
        torch.testing.assert_close(ours.weight[index], torch.tensor(theirs.coef_[0]), atol=1e-4, rtol=1e-3)


def test_the_best_c_is_that_of_the_lowest_validation_loss():
    training, validation = samples(40, 8, 4), samples(200, 8, 4, seed=1)
    head, c = best_logistic_regression(training, validation, 4)
    standardisation = Standardisation.of(training[0])
    losses = {}
    for candidate in LOGISTIC_C:
        fitted = logistic_regression(standardisation(training[0]), training[1], 4, candidate)
        losses[candidate] = float(loss_of(fitted(standardisation(validation[0])), validation[1]))
    assert c == min(losses, key=losses.__getitem__)
    assert LOGISTIC_C[0] < c < LOGISTIC_C[-1]
    assert float(loss_of(head(validation[0].double()), validation[1])) == pytest.approx(losses[c], abs=1e-4)


@pytest.mark.parametrize(("count", "width", "classes"), [(10, 32, 5), (60, 7, 3), (4, 32, 4)])
def test_least_squares_are_scikit_learns_ridge(count, width, classes):
    """More features than examples, fewer, and one example a class."""
    features, labels = samples(count, width, classes)
    targets = 2.0 * torch.nn.functional.one_hot(labels, classes) - 1
    head, strength = regularised_least_squares(features, targets)
    standardised = Standardisation.of(features)(features).numpy()
    best = RidgeCV(alphas=RIDGE_STRENGTHS).fit(standardised, targets.double().numpy())
    assert strength == best.alpha_
    ridge = Ridge(alpha=strength).fit(standardised, targets.double().numpy())
    unseen = samples(20, width, classes, seed=1)[0]
    expected = ridge.predict(Standardisation.of(features)(unseen).numpy())
    torch.testing.assert_close(head(unseen.double()), torch.tensor(expected), atol=1e-9, rtol=1e-7)


def test_a_feature_that_never_varies_is_no_trouble():
    features, labels = samples(30, 4, 3)
    features[:, 0] = 3.0
    targets = 2.0 * torch.nn.functional.one_hot(labels, 3) - 1
    for head in (best_logistic_regression((features, labels), (features, labels), 3)[0],
                 regularised_least_squares(features, targets)[0]):  # fmt: skip
        assert head.weight.isfinite().all()
        assert head.weight[:, 0].abs().max() < 1e-6


def test_the_interval_is_students():
    values = [0.6, 0.62, 0.55, 0.7]
    interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert t_margin(values) == pytest.approx((interval.high - interval.low) / 2)


def test_shots_are_of_every_class_and_of_no_image_twice():
    labels = np.random.default_rng(0).integers(0, 3, 100).tolist()
    drawn = draw_shots(labels, ["a", "b", "c"], 7, seed=1)
    assert len(set(drawn)) == 21
    assert np.bincount(np.asarray(labels)[drawn]).tolist() == [7, 7, 7]
    assert drawn == draw_shots(labels, ["a", "b", "c"], 7, seed=1) != draw_shots(labels, ["a", "b", "c"], 7, seed=2)
    with pytest.raises(InputError, match="Class 'd' has 0 training images, fewer than --shots 7"):
        draw_shots(labels, ["a", "b", "c", "d"], 7, seed=1)


# From flags to folder

KINDS = {
    "plain": {},
    "hidden layer": {"representation_size": 12, "id2label": {0: "bright", 1: "dark"}},  # the very classes of the data
    "distilled": {"use_distillation_token": True, "use_distillation_head": True},
    "token and mean": {"pooling": "token_and_mean"},
    "attention": {"pooling": "attention"},
}


@pytest.fixture
def pretrained(randomised, tmp_path):
    """A function from a kind to the folder of a model with random weights and two classes."""

    def save(kind: str) -> Path:
        fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        config = ViTConfig(**(fields | {"image_size": 16, "patch_size": 8, "num_labels": 2} | KINDS[kind]))
        randomised(ViTForImageClassification(config)).save_pretrained(tmp_path / "pretrained")
        ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "pretrained")
        return tmp_path / "pretrained"

    return save


@pytest.fixture
def flags(image_folder, tmp_path):
    """Flags of a run on the folder of bright and dark images, into `tmp_path / "run"`."""
    return [
        *("--dataset", str(image_folder), "--output_dir", str(tmp_path / "run"), "--validation_fraction", "0.25"),
        *("--disable_tqdm", "true", "--per_device_eval_batch_size", "10"),
    ]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("plain", "linear-probe"),
        ("hidden layer", "linear-probe"),
        ("distilled", "few-shot"),
        ("token and mean", "few-shot"),
        ("attention", "linear-probe"),
    ],
)
def test_the_folder_holds_the_backbone_and_the_head_of_the_figures(kind, method, pretrained, flags, image_folder):
    base = pretrained(kind)
    result = train([*flags, "--model", str(base), "--method", method])
    before, after = (load_file(folder / "model.safetensors") for folder in (base, result.output_dir))
    backbone = [name for name in before if name.startswith("vit.")]
    assert all(torch.equal(before[name], after[name]) for name in backbone)
    assert {name.split(".")[0] for name in after.keys() - set(backbone)} <= {"classifier", "distillation_classifier"}

    everything = evaluate(str(result.output_dir), str(image_folder), "train")  # by the whole model, from images
    assert everything["eval_accuracy"] == result.metrics["eval_accuracy"] == 1.0
    results = json.loads((result.output_dir / "all_results.json").read_text())
    assert results == json.loads(json.dumps(result.metrics))
    assert "epoch" not in results
    assert (result.output_dir / "samples_with_rollout.png").exists()
    text = ModelCard.load(result.output_dir / "README.md").text
    assert f"| recipe | {method} |" in text
    assert not any(untrue in text for untrue in ("optimiser", "epochs", "learning rate", "best of training"))

    model = ViTForImageClassification.from_pretrained(result.output_dir)
    assert model.config.labels == ["bright", "dark"]
    assert model.pre_logits is None
    if kind == "plain":
        assert f"C = {results['linear_probe_c']:.2g} for standardised features" in text
        classify = pipeline("image-classification", str(result.output_dir))
        assert type(classify.model).__module__.startswith("transformers.")
        pixels = ViTImageProcessor.from_pretrained(base)(Image.open(result.samples[0]), return_tensors="pt")
        best = model(**pixels).logits.argmax()
        assert classify(str(result.samples[0]))[0]["label"] == model.config.labels[best]


def test_logits_of_features_are_those_of_images(pretrained, flags, image_folder):
    """What the evaluation sums up, beside the saved model on the same images."""
    result = train([*flags, "--model", str(pretrained("distilled")), "--method", "linear-probe"])
    kept = [load_file(path) for path in (result.output_dir / "_features").iterdir()]
    assert sorted(len(split["features"]) for split in kept) == [12, 36]
    model = ViTForImageClassification.from_pretrained(result.output_dir).eval()
    processor = ViTImageProcessor.from_pretrained(result.output_dir)
    training = max(kept, key=lambda split: len(split["features"]))
    every = processor([Image.open(path) for path in sorted(image_folder.rglob("*.jpg"))], return_tensors="pt")
    logits = model(**every).logits
    first, second = training["features"].chunk(2, dim=1)
    of_features = (model.classifier(first) + model.distillation_classifier(second)) / 2
    distances = torch.cdist(of_features, logits).min(dim=1).values  # in whatever order the split came
    assert distances.max() < 1e-4
    assert logits.std() > 0.1


def test_features_are_computed_once(pretrained, image_folder, tmp_path, monkeypatch):
    base = pretrained("plain")
    rows = load_splits(str(image_folder))["train"]
    computed: list[int] = []
    compute = ProbeTrainer._computed
    monkeypatch.setattr(
        ProbeTrainer, "_computed", lambda self, images: computed.append(len(images)) or compute(self, images)
    )

    def features(rows=rows, *flags, weight=0.0, mean=0.5):
        processor = ViTImageProcessor.from_pretrained(base, image_mean=[mean] * 3)
        model = ViTForImageClassification.from_pretrained(base)
        model.vit.layernorm.bias.data += weight
        transform = EvaluationTransform(processor)
        images = Batches(rows, transform, transform.still)
        arguments = parse_arguments(["--dataset", "x", "--output_dir", str(tmp_path), *flags])[2]
        provenance = Provenance("x", None, None, None, {})
        kwargs = {"train_dataset": images, "eval_dataset": images, "data_collator": collate}
        kwargs |= {"processing_class": processor, "provenance": provenance}
        return ProbeTrainer(model=model, args=arguments, **kwargs).features_of(images)

    first, again = features(), features()
    assert computed == [48]
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert first.labels.tolist() == rows["label"][:]
    features(rows.select(range(5, 15)))
    assert computed.pop() == 10
    other = [features(weight=1e-3), features(mean=0.4), features(rows, "--bf16", "true")]
    assert computed == [48] * 4
    os.utime(next(image_folder.rglob("*.jpg")))  # as if it had been replaced
    features()
    assert computed == [48] * 5
    assert all(not torch.equal(first.features, each.features) for each in other)


def test_few_shot_figures_are_of_all_draws_and_the_head_is_the_firsts(pretrained, flags, image_folder):
    base = ViTForImageClassification.from_pretrained(pretrained("plain"))
    with torch.no_grad():
        base.vit.layernorm.weight.mul_(1e-2)  # features that tell less
    base.save_pretrained(base.name_or_path)
    flags = [*flags, "--model", base.name_or_path, "--method", "few-shot", "--shots", "1", "--seed", "3"]
    result = train([*flags, "--shot_draws", "4"])
    draws = [result.metrics[f"eval_few_shot_accuracy_seed_{seed}"] for seed in (3, 4, 5, 6)]
    assert result.metrics["eval_few_shot_accuracy_mean"] == pytest.approx(np.mean(draws))
    assert result.metrics["eval_few_shot_accuracy_margin"] == pytest.approx(t_margin(draws))
    assert result.metrics["eval_accuracy"] == draws[0]
    text = ModelCard.load(result.output_dir / "README.md").text
    assert f"1 images a class reach {np.mean(draws):.2%} ± " in text
    assert "that of the draw with seed 3" in text

    single = train([*flags, "--shot_draws", "1"])
    assert "eval_few_shot_accuracy_margin" not in single.metrics
    assert single.metrics["eval_few_shot_accuracy_mean"] == draws[0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--method", "half"], "method must be one of full, lora, linear-probe, few-shot"),
        (["--method", "few-shot", "--shots", "0"], "shots must be at least 1"),
        (["--method", "few-shot", "--shot_draws", "0"], "shot_draws must be at least 1"),
        (["--method", "lora", "--lora_rank", "0"], "lora_rank must be at least 1"),
        (["--method", "lora", "--lora_alpha", "nan"], "lora_alpha must be a number > 0"),
        (["--method", "lora", "--objective", "masked-patch"], "method lora is for classification"),
        (["--method", "linear-probe", "--model", "B/16"], "B/16 starts from nothing"),
        (["--method", "few-shot", "--resume_from_checkpoint", "last"], "no checkpoints to resume from"),
    ],
)
def test_bad_flags_are_one_sentence(flags, message):
    with pytest.raises(InputError, match=message):
        parse_arguments(["--dataset", "x", *flags])


def test_too_many_shots_are_one_sentence(pretrained, flags):
    with pytest.raises(InputError, match="Class 'bright' has 18 training images, fewer than --shots 19"):
        train([*flags, "--model", str(pretrained("plain")), "--method", "few-shot", "--shots", "19"])
