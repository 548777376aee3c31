"""Images with any number of classes: the loss, the figures, and a run from a table to predictions."""

import json
import shutil

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from sklearn.metrics import average_precision_score, f1_score, precision_recall_fscore_support
from torch.nn import functional as F
from transformers import EvalPrediction, pipeline
from transformers import ViTForImageClassification as StockViT

from vitrail.cli.main import main
from vitrail.modeling import InputError, ViTForImageClassification
from vitrail.training import train
from vitrail.training.data import load_splits, with_validation
from vitrail.training.evaluation import evaluate
from vitrail.training.multi_label import compute_multi_label_metrics, multi_hot_labels, multi_label_class_results


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """48 images that have red, blue, both or neither in them, and the lists of those inks."""
    inks = [[], ["blue"], ["red"], ["red", "blue"]] * 12
    images = []
    for index, mixed in enumerate(inks):
        images.append(
            Image.new("RGB", (16, 16), tuple(index % 7 + 240 * (ink in mixed) for ink in ("red", "", "blue")))
        )
    features = datasets.Features({"image": datasets.Image(), "inks": datasets.List(datasets.Value("string"))})
    path = tmp_path_factory.mktemp("table") / "rows.parquet"
    datasets.Dataset.from_dict({"image": images, "inks": inks}, features=features).to_parquet(path)
    return path


@pytest.fixture(scope="module")
def run(table, tiny_flags, tmp_path_factory):
    """A finished run on that table, and its flags."""
    flags = [*tiny_flags, "--dataset", str(table), "--label_column", "inks", "--validation_fraction", "0.25"]
    flags += ["--flip", "0", "--crop_scale", "1", "--learning_rate", "1e-2", "--num_train_epochs", "8"]
    output_dir = tmp_path_factory.mktemp("run")
    return train([*flags, "--output_dir", str(output_dir)]), flags


@pytest.mark.parametrize("labels", [torch.tensor([[0.0, 1, 1, 0, 0], [0, 0, 0, 0, 0]]), torch.rand(2, 5)])
def test_the_loss_is_stock_transformers(tiny_model, labels):
    tiny_model.config.problem_type = "multi_label_classification"
    pixels = torch.randn(2, 3, 24, 16)
    out = tiny_model(pixels, labels=labels)
    assert out.loss.item() == pytest.approx(F.binary_cross_entropy_with_logits(out.logits, labels).item())
    assert torch.equal(tiny_model.probabilities(out.logits), out.logits.sigmoid())


def test_mixed_labels_leave_a_single_label_model_what_it_is(tiny_model):
    pixels, mixed = torch.randn(2, 3, 24, 16), torch.rand(2, 5).softmax(-1)
    out = tiny_model(pixels, labels=mixed)
    assert out.loss.item() == pytest.approx(F.cross_entropy(out.logits, mixed).item())
    assert tiny_model.config.problem_type is None
    single = torch.tensor([1, 2])
    assert tiny_model(pixels, labels=single).loss.item() == pytest.approx(F.cross_entropy(out.logits, single).item())
    assert torch.equal(tiny_model.probabilities(out.logits), out.logits.softmax(-1))


def test_figures_are_those_of_scikit_learn():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 4)).astype(np.float32)
    references = (generator.random((50, 4)) < 0.3).astype(np.float32)
    metrics = compute_multi_label_metrics(EvalPrediction(logits, references))
    loss = F.binary_cross_entropy_with_logits(torch.tensor(logits), torch.tensor(references))
    assert metrics["loss"] == pytest.approx(loss.item())
    assert metrics["mAP"] == pytest.approx(average_precision_score(references, logits))
    for average in ("micro", "macro"):
        assert metrics[f"f1_{average}"] == pytest.approx(f1_score(references, logits > 0, average=average))


def test_figures_of_classes_that_are_never_there():
    references = np.zeros((3, 2), dtype=np.float32)
    metrics = compute_multi_label_metrics(EvalPrediction(-np.ones((3, 2), dtype=np.float32), references))
    assert metrics == {"mAP": 0, "f1_micro": 0, "f1_macro": 0, "loss": pytest.approx(np.log1p(np.exp(-1)))}
    references[0, 1] = 1
    assert compute_multi_label_metrics(EvalPrediction(references - 0.5, references))["mAP"] == 1


@pytest.mark.parametrize("classes", [1, 3])
def test_classes_one_by_one(classes):
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(60, classes)).astype(np.float32)
    references = (generator.random((60, classes)) < 0.4).astype(np.float32)
    labels = ["red", "crane", "crane"][:classes]
    table = multi_label_class_results(logits, references, labels)["per_class"]
    assert list(table) == (["red"] if classes == 1 else ["red", "crane (1)", "crane (2)"])
    for k, figures in enumerate(table.values()):
        truth, decided = references[:, k], logits[:, k] > 0
        *expected, _ = precision_recall_fscore_support(truth, decided, average="binary")
        assert [figures[name] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
        assert figures["average_precision"] == pytest.approx(average_precision_score(truth, logits[:, k]))
        assert figures["support"] == truth.sum()
    nobody = multi_label_class_results(-np.ones((2, 1), np.float32), np.zeros((2, 1), np.float32), ["red"])
    assert set(nobody["per_class"]["red"].values()) == {None, 0}


def test_lists_become_ones_and_zeros(table):
    splits = load_splits(str(table), label_column="inks")
    assert splits["train"].features["label"].feature.names == ["blue", "red"]
    rows = splits["train"][:4]
    assert multi_hot_labels(rows, torch.empty(4), num_labels=2).tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    parts, said = with_validation(splits, 0.25, seed=0)
    assert len(parts["validation"]) == 12
    assert said is not None
    assert "(at random, seed 0)" in said


@pytest.mark.parametrize("labels", [[["a", "b"]] * 6, [[0, 1], [1, 0]] * 3], ids=["alike", "zeros and ones"])
def test_where_all_images_have_all_classes_there_is_nothing_to_learn(labels, tmp_path):
    rows = datasets.Dataset.from_dict({"image": [Image.new("L", (4, 4))] * 6, "label": labels})
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="All training images have the same classes, so that there is nothing to tell"):
        with_validation(load_splits(str(tmp_path)), 0.5, seed=0)


def test_a_run_learns_and_leaves_a_complete_folder(run, table):
    result, _ = run
    assert json.loads((result.output_dir / "config.json").read_text())["problem_type"] == "multi_label_classification"
    assert result.metrics["eval_mAP"] > 0.95
    assert "eval_accuracy" not in result.metrics
    again = evaluate(str(result.output_dir), str(table), "train", label_column="inks")
    assert again["eval_f1_micro"] > 0.8
    assert (result.output_dir / "samples_with_rollout.png").exists()
    card = ModelCard.load(result.output_dir / "README.md")
    assert card.data.eval_results[0].metric_type == "mAP"
    assert "whether an image has it; an image may have several or none" in card.text
    assert "| split | images | Mean average precision | Micro-F1 | Macro-F1 | Loss |" in card.text
    assert "the best of training by `mAP`" in card.text
    assert "| class | average precision | precision | recall | F1 | images |" in card.text
    assert "| blue | " in card.text
    assert "for which it names one all the same" not in card.text


def test_an_unfinished_run_goes_on(run, tmp_path, capsys):
    result, flags = run
    shutil.copytree(result.output_dir, tmp_path / "run")
    (tmp_path / "run" / "all_results.json").unlink()
    settings = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(settings | {"output_dir": str(tmp_path / "run")}))
    again = train([*flags, "--output_dir", str(tmp_path / "run")])
    assert "Resuming from" in capsys.readouterr().out
    assert again.metrics["eval_mAP"] == result.metrics["eval_mAP"]


def test_predictions_are_each_for_itself(run, capsys, tmp_path):
    result, _ = run
    for name, colour in (("both", (243, 3, 243)), ("none", (3, 3, 3))):
        Image.new("RGB", (16, 16), colour).save(tmp_path / f"{name}.png")
    model, sources = str(result.output_dir), [str(tmp_path / f"{name}.png") for name in ("both", "none")]
    table = tmp_path / "out.csv"
    assert main(["predict", "--model", model, *sources, "--output", str(table)]) == 0
    said = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {label for path, label, _ in said if path == sources[0]} == {"blue", "red"}
    assert [float(score.strip("%")) < 50 for path, _, score in said if path == sources[1]] == [True]
    assert len(table.read_text().splitlines()) == 1 + len(said)
    stock = {
        entry["label"]: entry["score"]
        for entry in pipeline("image-classification", StockViT.from_pretrained(model), image_processor=model)(
            sources[0]
        )
    }
    ours = {label: float(score.strip("%")) / 100 for path, label, score in said if path == sources[0]}
    assert ours == pytest.approx(stock, abs=2e-3)


def test_one_kind_of_model_is_not_the_other(run, table, image_folder, tiny_flags, tmp_path):
    result, _ = run
    with pytest.raises(
        InputError, match=r"has one class per image, but .* has learned any number of classes per image"
    ):
        evaluate(str(result.output_dir), str(image_folder), "train")
    with pytest.raises(InputError, match="metric_for_best_model mAP is for images with any number of labels"):
        train(
            [
                *tiny_flags,
                "--dataset",
                str(image_folder),
                "--metric_for_best_model",
                "mAP",
                "--output_dir",
                str(tmp_path),
            ]
        )
    inks = datasets.Dataset.from_parquet(str(table)).map(lambda row: {"inks": "red" if row["inks"] else "blue"})
    inks.cast_column("inks", datasets.Value("string")).to_parquet(tmp_path / "single.parquet")
    single = [
        "--model",
        str(result.output_dir),
        "--dataset",
        str(tmp_path / "single.parquet"),
        "--label_column",
        "inks",
    ]
    train(
        [*single, "--max_steps", "1", "--learning_rate", "0", "--disable_tqdm", "true", "--output_dir", str(tmp_path)]
    )
    model = ViTForImageClassification.from_pretrained(tmp_path)
    assert model.config.problem_type is None
    assert not model.classifier.weight.any()  # it had as many classes of the same names, but learned something else
