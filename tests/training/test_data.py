"""Data sets of every form become the same columns; bad ones are named in one sentence."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage

from vitrail.modeling import InputError
from vitrail.training.columns import label_names
from vitrail.training.data import load_images, load_splits, with_validation


def table(labels, feature, count=6, **columns):
    images = [PILImage.new("L", (4, 4), 40 * index) for index in range(count)]
    features = datasets.Features({"picture": datasets.Image(), "kind": feature})
    rows = datasets.Dataset.from_dict({"picture": images, "kind": labels}, features=features)
    for name, values in columns.items():
        rows = rows.add_column(name, values)
    return rows


def names_and_labels(splits, split="train"):
    return label_names(splits[split].features), splits[split]["label"][:]


def L(dtype):
    return datasets.List(datasets.Value(dtype))


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
        ([10.0, 2, 10, 2, 7, 7], datasets.Value("float64"), ["2", "7", "10"], [2, 0, 2, 0, 1, 1]),
        (["010", "2", "010", "2", "7", "7"], datasets.Value("string"), ["2", "7", "010"], [2, 0, 2, 0, 1, 1]),
        ([["b"], ["b", "a"], [], ["a"], ["a", "a"], ["b"]], L("string"), ["a", "b"], [[1], [1, 0], [], [0], [0], [1]]),
        ([[1], [3, 1], [], [3], [3], [1]], L("int16"), ["1", "3"], [[0], [1, 0], [], [1], [1], [0]]),
        ([1, 0, 1, 1, 0, 0], datasets.ClassLabel(names=["no", "yes"]), ["no", "yes"], [1, 0, 1, 1, 0, 0]),
    ],
    ids=["strings", "booleans", "integers", "floats", "digits", "lists of strings", "lists of integers", "classes"],
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
        (lambda path: None, "There is no file or folder .*, and a data set's id"),
        (lambda path: path.mkdir(), "is empty; it should hold images, with a sub-folder for every class if any"),
        (lambda path: (path.mkdir(), (path / "notes.txt").write_text("hello")), "has no image column; its columns are"),
        (lambda path: path.write_text("hello"), r"is neither a folder nor a \.parquet, \.arrow or \.tar file"),
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
    with pytest.raises(InputError, match=r"Column 'picture' of .* does not hold classes, but the images"):
        load_splits(str(tmp_path / "rows.parquet"), label_column="picture")
    table([None] * 6, datasets.Value("string")).to_parquet(tmp_path / "blank.parquet")
    with pytest.raises(InputError, match=r"No row of .* has a label in column 'kind'"):
        load_splits(str(tmp_path / "blank.parquet"))
    bare = datasets.DatasetDict({"train": rows, "test": rows.remove_columns("kind")})
    bare.save_to_disk(tmp_path / "bare")
    assert list(load_splits(str(tmp_path / "bare"))) == ["train"]


@pytest.mark.parametrize(
    ("labels", "feature", "message"),
    [
        (
            [0.5, 1, 2, 0, 1, 2],
            datasets.Value("float32"),
            "Row 0 of split 'train' has the label 0.5, which is no class",
        ),
        (
            [0, 1, float("inf"), 0, 1, 0],
            datasets.Value("float32"),
            "Row 2 of split 'train' has the label inf, which is",
        ),
        ([0, 1, float("nan"), 0, 1, 0], datasets.Value("float32"), "Row 2 of split 'train' of .* has no label"),
        (["a", "b", " ", "a", "b", "a"], datasets.Value("string"), "Row 2 of split 'train' of .* has no label"),
        ([[0], None, [1], [0], [1], [1]], L("int64"), "Row 1 of split 'train' of .* has no label"),
        ([[0], [1, None], [1], [0], [1], [1]], L("int64"), "Row 1 of split 'train' lists a class that is empty"),
        ([[0, 0], [0, 1]] * 3, L("int64"), "labels of split 'train' are lists of 2 zeros and ones; list the classes"),
        ([0, 1] * 3, datasets.Value("timestamp[s]"), r"Column 'kind' of .* does not hold classes, but timestamp"),
    ],
)
def test_labels_that_are_no_classes_are_named(tmp_path, labels, feature, message):
    path = tmp_path / "rows.parquet"
    table(labels, feature).to_parquet(path)
    with pytest.raises(InputError, match=message):
        load_splits(str(path), label_column="kind")


def test_names_of_files_are_no_classes(tmp_path):
    table([f"{index}.png" for index in range(30)], datasets.Value("string"), count=30).to_parquet(
        tmp_path / "a.parquet"
    )
    with pytest.raises(
        InputError, match=r"are 30 different values of 30, 0\.png for one: hardly classes; choose another"
    ):
        load_splits(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("form", ["bytes and path", "bytes", "paths"])
def test_images_of_tables_that_know_no_images(tmp_path, form):
    contents = []
    for index in range(4):
        PILImage.new("L", (4, 4), 40 * index).save(tmp_path / f"{index}.png")
        contents.append((tmp_path / f"{index}.png").read_bytes())
    (tmp_path / "tables").mkdir()
    images = {
        "bytes and path": [{"bytes": content, "path": "x"} for content in contents],
        "bytes": contents,
        "paths": [f"../{index}.png" for index in range(4)],
    }[form]
    pq.write_table(pa.table({"picture": images, "kind": ["a", "b"] * 2}), tmp_path / "tables" / "rows.parquet")
    splits = load_splits(str(tmp_path / "tables" / "rows.parquet"))
    read = [image["bytes"] or Path(image["path"]).read_bytes() for image in splits["train"]["image"]]
    assert (read, names_and_labels(splits)) == (contents, (["a", "b"], [0, 1, 0, 1]))


def test_files_are_given_by_glob_or_one_by_one(tmp_path):
    for name in ("train-0", "train-1", "test [x]", "other", "one more"):
        table(["a", "b"] * 3, datasets.Value("string")).to_parquet(tmp_path / f"{name}.parquet")
    splits = load_splits(f"{tmp_path}/t*.parquet")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 12, "test": 6}
    assert len(load_splits(f"{tmp_path}/other.parquet, {tmp_path}/one*")["train"]) == 12
    assert len(load_splits(f"{tmp_path}/other.parquet,{tmp_path}/oth*")["train"]) == 6
    with pytest.raises(InputError, match=r"There is no file .*/none\*"):
        load_splits(f"{tmp_path}/none*")
    for gone in (f"{tmp_path}/gone", "gone.parquet", "./gone"):
        with pytest.raises(InputError, match=rf"There is no file or folder {gone}, and a data set's id on the Hub is"):
            load_splits(gone)
    with pytest.raises(InputError, match=r"names a split and one more\.parquet does not; rename it, or"):
        load_splits(str(tmp_path))


def test_splits_may_have_other_columns_and_none(tmp_path, caplog):
    rows = table([0, 1] * 3, datasets.ClassLabel(names=["no", "yes"]))
    rows.to_parquet(tmp_path / "train.parquet")
    table(["yes"] * 6, datasets.Value("string"), place=["x"] * 6).to_parquet(tmp_path / "test.parquet")
    rows.select([]).to_parquet(tmp_path / "validation.parquet")
    splits = load_splits(str(tmp_path), label_column="kind")
    assert names_and_labels(splits, "test") == (["no", "yes"], [1] * 6)
    assert [f"Split 'validation' of {tmp_path} has no rows, so it is left out."] == caplog.messages
    rows.remove_columns("picture").to_parquet(tmp_path / "test.parquet")
    with pytest.raises(InputError, match=r"Split 'test' of .* has no column 'picture', as others have; it has kind"):
        load_splits(str(tmp_path), label_column="kind")


def test_a_saved_split_without_rows_is_named(tmp_path):
    rows = table(["a", "b"] * 3, datasets.Value("string"))
    datasets.DatasetDict(train=rows, test=rows.select([])).save_to_disk(tmp_path / "saved")
    with pytest.raises(InputError, match="holds a split without rows, which cannot be loaded; save it without"):
        load_splits(str(tmp_path / "saved"))


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (
            ["a", "b"],
            ["a", "c"],
            "The class 'c' is in the split 'test', but no training image has it; add images of it",
        ),
        (["a", "a"], ["a", "a"], "All training images are of the class 'a'; there must be another"),
    ],
)
def test_what_cannot_be_learned_is_named(tmp_path, train, test, message):
    for split, labels in (("train", train), ("test", test)):
        table(labels * 3, datasets.Value("string")).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(InputError, match=message):
        with_validation(load_splits(str(tmp_path)), 0.5, seed=0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"Cannot read the data set .*rows\.parquet: Parquet file size is 0 bytes"),
        (b"x" * 99, r"Cannot read the data set .*rows\.parquet: Parquet magic bytes not found"),
        (None, r"rows\.parquet has more than one column 'kind'"),
    ],
    ids=["empty", "noise", "columns of one name"],
)
def test_damaged_tables_are_one_sentence(tmp_path, content, message):
    path = tmp_path / "rows.parquet"
    if content is None:
        pq.write_table(pa.Table.from_arrays([pa.array(["a"])] * 2, names=["kind", "kind"]), path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_splits(str(path))
    assert "\n" not in str(caught.value)
