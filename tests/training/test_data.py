"""Data sets of every form become the same columns; bad ones are named in one sentence."""

import datasets
import numpy as np
import pytest
from PIL import Image as PILImage

from vitrail.modeling import InputError
from vitrail.training.data import load_images, load_splits, with_validation


def table(labels, feature, count=6, **columns):
    images = [PILImage.new("L", (4, 4), 40 * index) for index in range(count)]
    features = datasets.Features({"picture": datasets.Image(), "kind": feature})
    rows = datasets.Dataset.from_dict({"picture": images, "kind": labels}, features=features)
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def names_and_labels(splits, split="train"):
    return splits[split].features["label"].names, splits[split]["label"][:]


def test_digits_are_split_by_fifths_alike_in_every_class_and_every_time():
    splits, again = load_splits("digits"), load_splits("digits")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1437, "validation": 360}
    assert splits["validation"]["image"][:] == again["validation"]["image"][:]
    counts = np.bincount(splits["validation"]["label"])
    assert counts.min() >= 35
    assert counts.max() <= 37
    train = {image["bytes"] for image in splits["train"]["image"]}
    assert sum(image["bytes"] in train for image in splits["validation"]["image"]) == 0


def test_image_folder(image_folder):
    splits = load_splits(str(image_folder))
    assert splits["train"].column_names == ["image", "row", "label"]
    names, labels = names_and_labels(splits)
    assert (names, np.bincount(labels).tolist()) == (["bright", "dark"], [24, 24])


@pytest.mark.parametrize(
    ("labels", "feature", "names", "indices"),
    [
        (["b", "a", "b", "a", "c", "b"], datasets.Value("string"), ["a", "b", "c"], [1, 0, 1, 0, 2, 1]),
        ([True, False, True, True, False, True], datasets.Value("bool"), ["False", "True"], [1, 0, 1, 1, 0, 1]),
        ([10, 2, 10, 2, 7, 7], datasets.Value("int32"), ["2", "7", "10"], [2, 0, 2, 0, 1, 1]),
        ([1, 0, 1, 1, 0, 0], datasets.ClassLabel(names=["no", "yes"]), ["no", "yes"], [1, 0, 1, 1, 0, 0]),
    ],
    ids=["strings", "booleans", "integers", "classes"],
)
def test_labels_of_every_type_become_classes(tmp_path, labels, feature, names, indices):
    path = tmp_path / "rows.parquet"
    table(labels, feature).to_parquet(path)
    assert names_and_labels(load_splits(str(path))) == (names, indices)


@pytest.mark.parametrize("form", ["parquet", "arrow", "save_to_disk", "folder of parquet"])
def test_local_files_of_every_form(tmp_path, form):
    rows = table(["b", "a"] * 3, datasets.Value("string"))
    path = tmp_path / "data"
    if form == "save_to_disk":
        datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(path)
    elif form == "folder of parquet":
        for split in ("train", "test"):
            rows.to_parquet(path / f"{split}-00000-of-00001.parquet")
    elif form == "arrow":
        path = tmp_path / "rows.arrow"
        with datasets.arrow_writer.ArrowWriter(path=str(path), features=rows.features) as writer:
            writer.write_table(rows.data.table)
            writer.finalize()
    else:
        path = tmp_path / "rows.parquet"
        rows.to_parquet(path)
    splits = load_splits(str(path))
    assert names_and_labels(splits) == (["a", "b"], [1, 0] * 3)
    assert splits["train"]["row"][:] == list(range(6))
    assert ("test" in splits) == (form in ("save_to_disk", "folder of parquet"))


def test_columns_are_chosen_or_asked_for(tmp_path):
    path = tmp_path / "rows.parquet"
    table(["b", "a"] * 3, datasets.Value("string"), place=["x"] * 6).to_parquet(path)
    message = "has more than one label column; its columns are picture, kind, place: choose one with --label_column"
    with pytest.raises(InputError, match=message):
        load_splits(str(path))
    assert names_and_labels(load_splits(str(path), label_column="kind"))[0] == ["a", "b"]
    with pytest.raises(InputError, match="has no column 'sort'; its columns are picture, kind, place"):
        load_splits(str(path), label_column="sort")
    with pytest.raises(InputError, match=r"Column 'place' of .* does not hold images"):
        load_splits(str(path), label_column="kind", image_column="place")


def test_unlabelled_split_is_left_out_but_an_unlabelled_row_is_named(tmp_path):
    feature = datasets.ClassLabel(names=["no", "yes"])
    rows = table([0, 1] * 3, feature)
    datasets.DatasetDict({"train": rows, "test": table([-1] * 6, feature)}).save_to_disk(tmp_path / "hidden")
    assert list(load_splits(str(tmp_path / "hidden"))) == ["train"]
    table([0, 1, 0, None, 1, 1], feature).save_to_disk(tmp_path / "gap")
    with pytest.raises(InputError, match=r"Row 3 of split 'train' .* has no label"):
        load_splits(str(tmp_path / "gap"))


def test_made_validation_split_is_stratified_seeded_and_said(image_folder):
    splits = load_splits(str(image_folder))
    parts, said = with_validation(splits, 0.25, seed=1)
    assert said == ("There is no validation split: 12 of 48 training images are set aside for it (stratified, seed 1).")
    assert np.bincount(parts["validation"]["label"]).tolist() == [6, 6]
    assert sorted(parts["train"]["row"][:] + parts["validation"]["row"][:]) == list(range(48))
    assert parts["validation"]["row"][:] == with_validation(splits, 0.25, seed=1)[0]["validation"]["row"][:]
    assert with_validation(parts, 0.25, seed=1) == (parts, None)


@pytest.mark.parametrize("form", ["folder", "folder of classes", "parquet"])
def test_images_are_read_without_labels(tmp_path, image_folder, form):
    if form == "folder":
        for index in range(8):
            PILImage.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    elif form == "parquet":
        table([None, "x"] * 4, datasets.Value("string"), count=8).to_parquet(tmp_path / "rows.parquet")
    splits = load_images(str(image_folder if form == "folder of classes" else tmp_path))
    assert splits["train"].column_names == ["image", "row"]
    count = len(splits["train"])
    assert count == (48 if form == "folder of classes" else 8)
    parts, said = with_validation(splits, 0.25, seed=1)
    message = f"There is no validation split: {count // 4} of {count} training images are set aside for it "
    assert said == f"{message}(at random, seed 1)."
    assert sorted(parts["train"]["row"][:] + parts["validation"]["row"][:]) == list(range(count))


def test_one_image_cannot_be_split(tmp_path):
    table(["a"] * 5 + ["rare"], datasets.Value("string")).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="Class 'rare' has one image"):
        with_validation(load_splits(str(tmp_path / "rows.parquet")), 0.2, seed=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "Cannot read the data set .*"),
        (lambda path: path.mkdir(), "is empty; it should hold images, with a sub-folder for every class if any"),
        (lambda path: (path.mkdir(), (path / "notes.txt").write_text("hello")), "has no image column; its columns are"),
        (lambda path: path.write_text("hello"), r"is neither a folder nor a \.parquet or \.arrow file"),
    ],
    ids=["nothing", "empty folder", "folder of text", "text file"],
)
def test_what_is_no_data_set_is_one_sentence(tmp_path, make, message):
    path = tmp_path / "data"
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        load_splits(str(path))
    assert "\n" not in str(caught.value)


def test_folder_without_classes_has_no_label_column(tmp_path):
    for index in range(3):
        PILImage.new("RGB", (8, 8)).save(tmp_path / f"{index}.png")
    with pytest.raises(InputError, match="have no classes; give each of two or more classes a sub-folder"):
        load_splits(str(tmp_path))


def test_real_data_set(assets):
    splits = load_splits(str(assets / "fashion-mnist"))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 60_000, "test": 10_000}
    assert splits["train"].features["label"].names[9] == "Ankle boot"


def test_splits_that_count_their_classes_differently_are_matched_by_name(tmp_path):
    train = table([0, 1] * 3, datasets.ClassLabel(names=["no", "yes"]))
    test = table([0, 0, 0, 1, 1, 1], datasets.ClassLabel(names=["yes", "no"]))
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path)
    splits = load_splits(str(tmp_path))
    assert names_and_labels(splits) == (["no", "yes"], [0, 1] * 3)
    assert names_and_labels(splits, "test") == (["no", "yes"], [1, 1, 1, 0, 0, 0])


def test_columns_that_cannot_be_labels_are_named(tmp_path):
    rows = table(["a", "b"] * 3, datasets.Value("string"))
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"Column 'picture' of .* does not hold one class per image"):
        load_splits(str(tmp_path / "rows.parquet"), label_column="picture")
    table([None] * 6, datasets.Value("string")).to_parquet(tmp_path / "blank.parquet")
    with pytest.raises(InputError, match=r"No row of .* has a label in column 'kind'"):
        load_splits(str(tmp_path / "blank.parquet"))
    bare = datasets.DatasetDict({"train": rows, "test": rows.remove_columns("kind")})
    bare.save_to_disk(tmp_path / "bare")
    assert list(load_splits(str(tmp_path / "bare"))) == ["train"]
