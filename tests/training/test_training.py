"""Training runs from flags to folder: what is left behind, and that nothing is lost on the way."""

import json
import re
import shutil
import subprocess
import sys

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor
from vitrail.training import train
from vitrail.training.arguments import _REPORTERS
from vitrail.training.evaluation import evaluate


@pytest.fixture(scope="module")
def run(image_folder, tiny_flags, tmp_path_factory):
    """A finished run on the folder of bright and dark images, with a checkpoint of every epoch."""
    output_dir = tmp_path_factory.mktemp("run")
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(output_dir), "--save_total_limit", "9"]
    flags += ["--learning_rate", "1e-2", "--validation_fraction", "0.25"]
    return train(flags), flags


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_folder_is_complete_and_true(run, image_folder):
    result, _ = run
    results = json.loads((result.output_dir / "all_results.json").read_text())
    assert results["eval_accuracy"] == 1.0  # bright and dark: anybody can tell
    assert results["train_samples_per_second"] > 0
    assert results == result.metrics
    with Image.open(result.output_dir / "samples_with_rollout.png") as picture:
        assert picture.width > 500
    again = evaluate(str(result.output_dir), str(image_folder), "train")
    assert again["eval_accuracy"] == 1.0
    assert again["eval_samples"] == 48


def test_the_card_tells_the_truth(run, image_folder):
    result, _ = run
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.base_model is None
    assert card.data.datasets is None
    assert card.data.pipeline_tag == "image-classification"
    evaluation = card.data.eval_results[0]
    assert (evaluation.metric_type, evaluation.metric_value) == ("accuracy", 1.0)
    assert evaluation.dataset_name == image_folder.name
    assert "trained from scratch on" in card.text
    figures = (result.metrics[f"eval_{name}"] for name in ("accuracy", "f1_macro", "calibration_error", "loss"))
    assert f"| validation | 12 | {' | '.join(f'{figure:.4f}' for figure in figures)} |" in card.text
    assert "| images | 36 train, 12 validation |" in card.text


def test_the_best_checkpoint_is_what_is_saved(run):
    result, _ = run
    best = json.loads((result.output_dir / "trainer_state.json").read_text())["best_model_checkpoint"]
    last = max(result.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert best != str(last)  # else this would not tell best from last
    assert_same_weights(weights(result.output_dir), load_file(f"{best}/model.safetensors"))


def test_resuming_gives_the_very_same_weights(run, tmp_path):
    result, flags = run
    checkpoints = sorted(result.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(checkpoints[1], tmp_path / checkpoints[1].name)
    train([*flags, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "last"])
    assert_same_weights(weights(tmp_path / checkpoints[-1].name), weights(checkpoints[-1]))


def test_the_same_command_gives_the_same_number(run, tmp_path):
    result, flags = run
    again = train([*flags, "--output_dir", str(tmp_path)])
    assert_same_weights(weights(result.output_dir), weights(again.output_dir))
    assert again.metrics["eval_loss"] == result.metrics["eval_loss"]


def test_fine_tuning_starts_from_the_checkpoint(run, image_folder, tmp_path):
    result, _ = run
    flags = ["--model", str(result.output_dir), "--dataset", str(image_folder), "--output_dir", str(tmp_path)]
    train([*flags, "--max_steps", "1", "--learning_rate", "0", "--disable_tqdm", "true", "--max_train_samples", "8"])
    assert_same_weights(weights(tmp_path), weights(result.output_dir))
    card = ModelCard.load(tmp_path / "README.md")
    assert f"fine-tuned from {result.output_dir.name}" in card.text
    assert card.data.base_model is None  # a local folder is no id on the Hub


def test_as_many_classes_with_other_names_get_a_new_head(run, image_folder, tmp_path):
    result, _ = run
    folder = tmp_path / "pets"
    shutil.copytree(image_folder / "bright", folder / "cats")
    shutil.copytree(image_folder / "dark", folder / "dogs")
    flags = ["--model", str(result.output_dir), "--dataset", str(folder), "--output_dir", str(tmp_path / "run")]
    train([*flags, "--max_steps", "1", "--learning_rate", "0", "--disable_tqdm", "true"])
    tuned = weights(tmp_path / "run")
    assert not tuned["classifier.weight"].any()
    assert torch.equal(tuned["vit.layernorm.weight"], weights(result.output_dir)["vit.layernorm.weight"])


def test_a_place_that_cannot_be_written_is_named_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"Cannot write to --output_dir .*file: File exists"):
        train(["--dataset", "digits", "--output_dir", str(tmp_path / "file")])


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--optim", "lomo"], "--optim lomo cannot be used: "),
        (["--lr_scheduler_type", "cosine_with_min_lr"], "--lr_scheduler_type cosine_with_min_lr cannot be used: "),
        (["--dataloader_drop_last", "--per_device_train_batch_size", "99"], "--dataloader_drop_last leaves nothing of"),
    ],
    ids=["optimiser", "schedule", "batch"],
)
def test_what_cannot_be_trained_with_is_named(image_folder, tiny_flags, tmp_path, more, sentence):
    flags = [*tiny_flags, "--muon_learning_rate", "0", "--dataset", str(image_folder), "--output_dir", str(tmp_path)]
    with pytest.raises(InputError, match=sentence) as caught:
        train([*flags, *more])
    assert "\n" not in str(caught.value)


def test_evaluation_leaves_nothing_behind(run, image_folder, tmp_path, monkeypatch):
    result, _ = run
    monkeypatch.chdir(tmp_path)
    evaluate(str(result.output_dir), str(image_folder), "train")
    assert list(tmp_path.iterdir()) == []


def test_stock_transformers_serves_the_folder(run):
    """In a fresh process that cannot import vitrail: Auto classes, and the card's snippet as it is printed."""
    result, _ = run
    sample = result.samples[0]
    processor = ViTImageProcessor.from_pretrained(result.output_dir)
    pixels = processor(Image.open(sample), return_tensors="pt").pixel_values
    expected = ViTForImageClassification.from_pretrained(result.output_dir)(pixels).logits[0].tolist()
    (snippet,) = re.findall(r"```python\n(.*?)```", (result.output_dir / "README.md").read_text(), re.DOTALL)
    program = f"""
import sys
sys.modules["vitrail"] = None
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification
folder, sample = {str(result.output_dir)!r}, {str(sample)!r}
model = AutoModelForImageClassification.from_pretrained(folder)
pixels = AutoImageProcessor.from_pretrained(folder)(Image.open(sample), return_tensors="pt").pixel_values
assert type(model).__module__.startswith("transformers.")
logits = model(pixels).logits[0].tolist()
assert all(abs(own - stock) < 1e-6 for own, stock in zip({expected!r}, logits, strict=True)), logits
{snippet}
print(classify(sample)[0]["label"], classify(Image.new("L", (9, 9), 200))[0]["label"])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[{'label': '")
    assert done.stdout.split()[-1] == "bright"


def test_a_model_that_pools_by_attention_is_trained_and_shown(image_folder, tiny_flags, tmp_path):
    shape = json.loads(tiny_flags[tiny_flags.index("--config_overrides") + 1]) | {"pooling": "attention"}
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(tmp_path / "run")]
    result = train([*flags, "--config_overrides", json.dumps(shape), "--validation_fraction", "0.25"])
    assert "samples_with_rollout.png" in ModelCard.load(result.output_dir / "README.md").text
    with Image.open(result.output_dir / "samples_with_rollout.png") as picture:
        assert picture.width > 500


def test_a_model_of_gray_images_is_trained_evaluated_and_used(image_folder, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(tmp_path), "--learning_rate", "1e-2"]
    shape = json.loads(flags[flags.index("--config_overrides") + 1]) | {"num_channels": 1}
    result = train([*flags, "--config_overrides", json.dumps(shape), "--validation_fraction", "0.25"])
    assert result.metrics["eval_accuracy"] == 1.0
    assert evaluate(str(tmp_path), str(image_folder), "train")["eval_accuracy"] == 1.0
    processor, model = (kind.from_pretrained(tmp_path) for kind in (ViTImageProcessor, ViTForImageClassification))
    best = model(**processor(Image.new("RGBA", (9, 9), "pink"), return_tensors="pt")).logits.argmax().item()
    assert model.config.labels[best] == "bright"
    ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has a model of 1 channels, but prepares images of 3"):
        train([*flags, "--model", str(tmp_path), "--output_dir", str(tmp_path / "again")])


def test_truncated_image_is_named(image_folder, tiny_flags, tmp_path):
    folder = tmp_path / "images"
    shutil.copytree(image_folder, folder)
    broken = folder / "dark" / "07.jpg"
    broken.write_bytes(broken.read_bytes()[:300])
    flags = [*tiny_flags, "--dataset", str(folder), "--output_dir", str(tmp_path / "run")]
    for workers in ("0", "1"):
        with pytest.raises(InputError, match=r"Cannot read the image .*dark/07\.jpg"):
            train([*flags, "--dataloader_num_workers", workers])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "digits", "--model", "B/17"], "no variant 'B/17'"),
        (["--dataset", "digits", "--config_overrides", "{"], "config_overrides is not JSON"),
        (["--dataset", "digits", "--config_overrides", '{"depth": 3}'], "sets 'depth', which is no field of ViTConfig"),
        (["--dataset", "digits", "--config_overrides", "[1]"], "config_overrides must be a JSON object"),
        (
            ["--dataset", "digits", "--report_to", "trackio"],
            "report_to trackio needs .*: pip install trackio",
        ),
        (["--dataset", "digits", "--report_to", "nobody"], "The Trainer cannot start: nobody is not supported"),
        (["--dataset", "digits", "--recipe", "scratch-small"], "Say what to train with --model"),
        (["--dataset", "digits", "--resume_from_checkpoint", "nowhere"], "There is no checkpoint nowhere"),
        (["--dataset", "digits", "--resume_from_checkpoint", "last"], "There is no checkpoint in"),
    ],
)
def test_bad_flags_are_one_sentence(flags, message, tmp_path, monkeypatch):
    monkeypatch.setitem(_REPORTERS, "trackio", lambda: False)
    with pytest.raises(InputError, match=message):
        train([*flags, "--output_dir", str(tmp_path)])


def test_evaluation_matches_classes_by_name(run, image_folder, tmp_path):
    result, _ = run
    images = [str(path) for path in sorted(image_folder.rglob("*.jpg"))]  # bright, then dark

    def rows(*names):
        labels = datasets.ClassLabel(names=names)
        features = datasets.Features({"image": datasets.Image(), "label": labels})
        return datasets.Dataset.from_dict({"image": images, "label": [1] * 24 + [0] * 24}, features=features)

    rows("dark", "bright").save_to_disk(tmp_path / "swapped")
    assert evaluate(str(result.output_dir), str(tmp_path / "swapped"), "train")["eval_accuracy"] == 1.0
    rows("dark", "purple").save_to_disk(tmp_path / "strange")
    with pytest.raises(InputError, match="has a class 'purple' that the model does not know; it knows bright, dark"):
        evaluate(str(result.output_dir), str(tmp_path / "strange"), "train")
    with pytest.raises(InputError, match="has no split 'test'; its splits are train"):
        evaluate(str(result.output_dir), str(tmp_path / "swapped"), "test")
