"""Pre-training without labels by masked patch prediction: what is learned, measured, saved and reused."""

import json
import logging
import math
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file
from transformers import EvalPrediction

from vitrail.cli.main import main
from vitrail.modeling import (
    InputError,
    ViTForImageClassification,
    ViTForMaskedPatchPrediction,
    ViTImageProcessor,
)
from vitrail.training import train
from vitrail.training.arguments import parse_arguments
from vitrail.training.augmentation import EvaluationTransform, color_labels
from vitrail.training.data import load_images
from vitrail.training.metrics import compute_color_metrics, predicted_colors
from vitrail.training.provenance import Provenance
from vitrail.training.trainer import MaskedPatchTrainer


@pytest.fixture(scope="module")
def unlabelled_folder(tmp_path_factory):
    """40 PNGs without sub-folders, white on the left, and black or red on the right."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for index in range(40):
        image = Image.new("RGB", (24, 24), ("black", "red")[index % 2])
        image.paste("white", (0, 0, 12, 24))
        image.save(folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def run(unlabelled_folder, tiny_flags, tmp_path_factory):
    """A finished run on that folder, and its flags."""
    output_dir = tmp_path_factory.mktemp("run")
    flags = ["--objective", "masked-patch", *tiny_flags, "--dataset", str(unlabelled_folder)]
    flags += ["--learning_rate", "1e-2", "--validation_fraction", "0.25", "--flip", "0", "--crop_scale", "1"]
    flags += ["--num_train_epochs", "12", "--output_dir", str(output_dir), "--metric_for_best_model", "loss"]
    return train(flags), flags


def trainer_of(run, folder, **flags):
    """The trained model with all the images to evaluate on, in a Trainer of its own."""
    model = ViTForMaskedPatchPrediction.from_pretrained(run[0].output_dir)
    processor = ViTImageProcessor.from_pretrained(run[0].output_dir)
    transform = EvaluationTransform(processor, partial(color_labels, patch_shape=model.config.patch_shape))
    argv = ["--objective", "masked-patch", "--dataset", str(folder), "--output_dir", str(run[0].output_dir)]
    _, _, arguments = parse_arguments([*argv, *(f"--{name}={value}" for name, value in flags.items())])
    images: Any = load_images(str(folder))["train"].with_transform(transform)
    provenance = Provenance("x", None, None, None, {})
    return MaskedPatchTrainer(model=model, args=arguments, eval_dataset=images, provenance=provenance)


def test_it_learns_and_leaves_a_complete_folder(run):
    result, _ = run
    assert result.metrics == pytest.approx(json.loads((result.output_dir / "all_results.json").read_text()))
    assert result.metrics["train_loss"] < math.log(512)
    assert result.metrics["eval_loss"] < 0.5 * math.log(512)
    assert result.metrics["eval_accuracy"] > result.metrics["eval_commonest_share"] > 0
    assert (result.images, result.samples) == ({"train": 30, "validation": 10}, [])
    left = {path.name for path in result.output_dir.iterdir() if path.is_file()}
    files = {"model.safetensors", "config.json", "preprocessor_config.json", "README.md", "all_results.json"}
    assert left == files | {"trainer_state.json", "training_args.bin", "run.json"}


def test_the_card_says_what_was_trained_and_what_comes_next(run):
    result, _ = run
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.pipeline_tag == "image-feature-extraction"
    assert card.data.tags == ["vitrail", "vit", "masked-image-modeling"]
    assert card.data.eval_results[0].task_type == "masked-image-modeling"
    assert "pre-trained by masked patch prediction, without labels. It was trained from scratch on" in card.text
    figures = (result.metrics[f"eval_{name}"] for name in ("accuracy", "commonest_share", "loss"))
    assert "| validation | 10 | " + " | ".join(f"{figure:.4f}" for figure in figures) + " |" in card.text
    assert f"vitrail train --model {result.output_dir} --dataset" in card.text
    assert f'ViTForImageClassification.from_pretrained("{result.output_dir}", num_labels=10)' in card.text
    assert "samples_with_rollout" not in card.text


def test_every_evaluation_corrupts_the_same_patches_and_disturbs_nothing(run, unlabelled_folder):
    trainer = trainer_of(run, unlabelled_folder)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first, second = trainer.evaluate(), trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), state)
    names = ("eval_loss", "eval_accuracy", "eval_commonest_share")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert trainer_of(run, unlabelled_folder, seed=1).evaluate()["eval_loss"] != first["eval_loss"]


def test_figures_are_of_corrupted_patches_alone(run, unlabelled_folder):
    """The Trainer's, in batches of which the last is smaller, against the model's own outputs."""
    trainer = trainer_of(run, unlabelled_folder, per_device_eval_batch_size=16)
    metrics = trainer.evaluate()
    losses, right = [], []
    torch.manual_seed(trainer.args.seed)
    for batch in trainer.get_eval_dataloader():
        with torch.no_grad():
            out = trainer.model.eval()(**batch)
        mask = out.bool_masked_pos
        loss = torch.nn.functional.cross_entropy(out.logits[mask], batch["labels"][mask], reduction="none")
        losses += loss.tolist()
        right += (out.logits.argmax(-1) == batch["labels"])[mask].tolist()
    assert len(right) == 40 * 2  # half of four patches
    assert metrics["eval_accuracy"] == pytest.approx(np.mean(right))
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-5)


def test_predictions_of_other_patches_do_not_count():
    labels = torch.tensor([[5, 7, 7, 9], [7, 7, 5, 511]])
    corrupted = torch.tensor([[True, True, False, False], [True, False, False, True]])
    right = torch.tensor([[True, False, False, False], [True, True, True, False]])
    logits = torch.nn.functional.one_hot(torch.where(right, labels, 0), 512).float()
    predictions = predicted_colors((logits, corrupted), labels)
    assert predictions.tolist() == [[5, 0, -100, -100], [7, -100, -100, 0]]
    metrics = compute_color_metrics(EvalPrediction(predictions.numpy(), labels.numpy()))
    assert metrics == {"accuracy": 0.5, "commonest_share": 0.5}  # 5 and 7 of 5, 7, 7, 511; 7 twice


def test_a_classifier_takes_over_every_weight_and_says_that_its_head_is_new(run, image_folder, tmp_path, caplog):
    result, _ = run
    flags = ["--model", str(result.output_dir), "--dataset", str(image_folder), "--output_dir", str(tmp_path)]
    with caplog.at_level(logging.WARNING):
        train([*flags, "--max_steps", "1", "--learning_rate", "0", "--disable_tqdm", "true"])
    assert "The head is new and starts at zero: the checkpoint has none, the model has 2 classes" in caplog.text
    before, after = load_file(result.output_dir / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert after.keys() - before.keys() == {"classifier.weight", "classifier.bias"}
    assert before.keys() - after.keys() == {"mask_token", "color_classifier.weight", "color_classifier.bias"}
    assert all(torch.equal(before[name], after[name]) for name in before.keys() & after.keys())
    assert not after["classifier.weight"].any()
    model = ViTForImageClassification.from_pretrained(result.output_dir, num_labels=3)
    assert all(torch.equal(before[f"vit.{name}"], tensor) for name, tensor in model.vit.state_dict().items())


def test_pre_training_goes_on_from_a_checkpoint(run, tmp_path):
    result, flags = run
    more = ["--model", str(result.output_dir), "--output_dir", str(tmp_path), "--learning_rate", "0"]
    again = train([*flags, *more, "--num_train_epochs", "1"])
    assert again.metrics["eval_loss"] == pytest.approx(result.metrics["eval_loss"], abs=1e-6)
    assert f"fine-tuned from {result.output_dir.name}" in (tmp_path / "README.md").read_text()


def test_labels_are_ignored_and_the_next_step_is_said(image_folder, tiny_flags, tmp_path, capsys):
    flags = ["--objective", "masked-patch", "--dataset", str(image_folder), "--output_dir", str(tmp_path)]
    assert main(["train", *tiny_flags, *flags, "--max_steps", "1"]) == 0
    said = capsys.readouterr().out
    assert "% on the corrupted patches of the 5 images of the validation split.\n" in said
    assert said.endswith(f" train --model {tmp_path} --dataset LABELLED_IMAGES\n")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config_overrides", '{"num_channels": 1}'], "is about colours, but num_channels is 1"),
        (["--config_overrides", '{"patch_dropout_prob": 0.5}'], r"needs every patch, but patch_dropout_prob is 0\.5"),
        (["--label_column", "label"], "label_column is for classification; masked-patch learns from the images alone"),
        (["--metric_for_best_model", "f1_macro"], "metric_for_best_model must be one of accuracy, loss in"),
        (["--objective", "jigsaw"], "objective must be one of classification, masked-patch"),
        (
            ["--validation_fraction", "0.999"],
            "40 training images cannot be parted so that 99.9 % of them are set",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(unlabelled_folder, tmp_path, flags, message):
    argv = ["--objective", "masked-patch", "--dataset", str(unlabelled_folder), "--model", "Ti/16"]
    with pytest.raises(InputError, match=message) as caught:
        train([*argv, "--output_dir", str(tmp_path), *flags])
    assert "\n" not in str(caught.value)
