"""Images that cannot be read: each named with its split and row, or left out and counted."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from vitrail.modeling import InputError
from vitrail.training import train
from vitrail.training.data import load_splits
from vitrail.training.evaluation import evaluate
from vitrail.training.unreadable import SkippedImages, SplitTransform, check_images


@pytest.fixture
def damaged(image_folder, tmp_path):
    """The folder of bright and dark images, split, with two bad images to train on and one to test on."""
    folder = tmp_path / "images"
    for split in ("train", "test"):
        shutil.copytree(image_folder, folder / split)
    for name, content in (("train/dark/07", b""), ("train/bright/00", b"no image"), ("test/dark/23", None)):
        broken = folder / f"{name}.jpg"
        broken.write_bytes(broken.read_bytes()[:300] if content is None else content)
    return folder


@pytest.fixture
def tables(damaged, tmp_path):
    """The same in parquet files."""
    for split, rows in load_splits(str(damaged)).items():
        images = [{"bytes": Path(image["path"]).read_bytes(), "path": None} for image in rows["image"]]
        features = datasets.Features({"image": datasets.Image(), "label": rows.features["label"]})
        rows = datasets.Dataset.from_dict({"image": images, "label": rows["label"][:]}, features=features)
        rows.shuffle(0).to_parquet(tmp_path / "tables" / f"{split}.parquet")
    return tmp_path / "tables"


@pytest.mark.parametrize("form", ["damaged", "tables"])
def test_bad_images_are_left_out_and_counted(form, request, tiny_flags, tmp_path, capsys):
    source = request.getfixturevalue(form)
    flags = [*tiny_flags, "--dataset", str(source), "--output_dir", str(tmp_path / "run"), "--max_steps", "2"]
    flags += ["--validation_fraction", "0.25", "--eval_strategy", "no", "--on_bad_image", "skip"]
    result = train(flags)
    results = json.loads((tmp_path / "run" / "all_results.json").read_text())
    left_out = {split: results[f"skipped_images_{split}"] for split in ("train", "validation", "test")}
    assert (left_out["train"] + left_out["validation"], left_out["test"]) == (2, 1)
    assert sum(result.images.values()) == 2 * 48 - 3
    assert "Left out of the split 'test', because they cannot be read: 1 images." in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "run" / "README.md").text
    assert "| unreadable, left out |" in card
    assert "1 test |" in card
    measured = evaluate(str(tmp_path / "run"), str(source), on_bad_image="skip")
    assert (measured["skipped_images_test"], measured["eval_samples"]) == (1, 47)
    with pytest.raises(InputError, match=r"Cannot read the image in row \d+ of split 'test'.*; repair or remove it"):
        evaluate(str(tmp_path / "run"), str(source))


def test_bad_images_of_a_stream_are_left_out_and_counted(tables, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--dataset", str(tables), "--streaming", "--output_dir", str(tmp_path / "run")]
    flags += ["--max_eval_samples", "12", "--validation_fraction", "0.25", "--num_train_epochs", "2"]
    with pytest.raises(InputError, match=r"(Cannot read the|There is no) image in row \d+ of split '\w+'"):
        train(flags)
    result = train([*flags, "--max_eval_samples", "48", "--on_bad_image", "skip"])
    results = result.metrics
    assert results["skipped_images_train"] + results["skipped_images_validation"] == 2
    assert results["skipped_images_test"] == 1
    assert sum(result.images.values()) == 2 * 48 - 3
    measured = evaluate(str(tmp_path / "run"), str(tables), streaming=True, on_bad_image="skip")
    assert (measured["skipped_images_test"], measured["eval_samples"]) == (1, 47)


def rows_with(images):
    features = datasets.Features({"image": datasets.Image(decode=False), "row": datasets.Value("int64")})
    return datasets.DatasetDict(
        {
            "train": datasets.Dataset.from_dict(
                {"image": images, "row": range(100, 100 + len(images))}, features=features
            )
        }
    )


def test_images_that_are_not_there_are_found_before_any_work(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    good, gone = {"bytes": None, "path": str(tmp_path / "a.png")}, {"bytes": None, "path": str(tmp_path / "b.png")}
    empty = {"bytes": b"", "path": None}
    for bad, message in ((None, ""), (gone, r" \(.*b\.png\)"), (empty, "")):
        splits = rows_with([good, good, bad, good])
        with pytest.raises(InputError, match=rf"^There is no image in row 102 of split 'train'{message}; repair or"):
            check_images(splits, "error", workers=0)
        kept, skipped = check_images(splits, "skip", workers=0)
        assert (kept["train"]["row"][:], skipped) == ([100, 101, 103], {"train": 1})
    with pytest.raises(InputError, match="None of the 2 images of split 'train' can be read"):
        check_images(rows_with([gone, None]), "skip", workers=0)


def test_an_image_is_checked_alike_in_other_processes(damaged):
    splits = load_splits(str(damaged))
    (alone, counts), (beside, again) = (check_images(splits, "skip", workers) for workers in (0, 1))
    assert counts == again == {"train": 2, "test": 1}
    assert alone["train"]["row"][:] == beside["train"]["row"][:]


def test_another_mistake_than_the_image_is_not_blamed_on_it():
    def fail(rows):
        raise InputError("The moon is full.")

    with pytest.raises(InputError, match=r"^The moon is full\.$"):
        SplitTransform(fail, "train")({"image": [], "row": []})


def test_an_image_is_counted_once():
    skipped = SkippedImages(workers=2)
    images = [{"bytes": b"a", "path": None}, {"bytes": b"b", "path": "x"}, {"bytes": b"a", "path": "y"}, None]
    assert [skipped.add(image) for image in images] == [True, True, False, True]
    assert [skipped.add(image) for image in images] == [False] * 4
    assert len(skipped) == 3
    assert torch.equal(skipped._tables[1], torch.zeros_like(skipped._tables[1]))


def test_a_class_of_which_nothing_can_be_read_is_named(tiny_flags, image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "images")
    for file in (tmp_path / "images" / "dark").iterdir():
        file.write_bytes(b"no image")
    flags = [*tiny_flags, "--dataset", str(tmp_path / "images"), "--output_dir", str(tmp_path / "run")]
    with pytest.raises(InputError, match="None of the training images of class 'dark' can be read; repair them, or"):
        train([*flags, "--on_bad_image", "skip", "--validation_fraction", "0.25"])
