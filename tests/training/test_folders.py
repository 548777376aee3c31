"""Folders as people have them: which images there are, in which split, of which class."""

import json
import os
import shutil

import datasets
import pytest
from PIL import Image

from vitrail.modeling import InputError
from vitrail.training.data import load_images, load_splits


def fill(folder, **counts):
    """PNG files in sub-folders; `__` stands for a slash."""
    for name, count in counts.items():
        place = folder / name.replace("__", "/")
        place.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            Image.new("L", (4, 4), index).save(place / f"{index}.png")
    return folder


def summary(folder):
    splits = load_splits(str(folder))
    return {
        split: {name: rows["label"][:].count(index) for index, name in enumerate(rows.features["label"].names)}
        for split, rows in splits.items()
    }


@pytest.mark.parametrize(
    ("counts", "found"),
    [
        ({"cat": 2, "dog": 3}, {"train": {"cat": 2, "dog": 3}}),
        ({"train": 2, "bus": 3}, {"train": {"bus": 3, "train": 2}}),
        ({"a__b__cat": 2, "a__b__dog": 3}, {"train": {"cat": 2, "dog": 3}}),
        ({"cat": 2, "dog__big": 1, "dog__small": 1}, {"train": {"cat": 2, "dog": 2}}),
        (
            {"Training__cat": 2, "Training__dog": 1, "val__dog": 3},
            {"train": {"cat": 2, "dog": 1}, "validation": {"cat": 0, "dog": 3}},
        ),
        (
            {"x__train__images__cat": 2, "x__train__images__dog": 1, "x__test__images__dog": 3},
            {"train": {"cat": 2, "dog": 1}, "test": {"cat": 0, "dog": 3}},
        ),
        ({"train__a": 1, "train__b": 1}, {"train": {"a": 1, "b": 1}}),
    ],
    ids=["classes", "class called train", "wrapped", "nested", "splits", "wrapped splits", "one split"],
)
def test_sub_folders_are_classes_or_splits(tmp_path, counts, found):
    assert summary(fill(tmp_path, **counts)) == found


def test_names_of_files_and_odd_characters_change_nothing(tmp_path):
    folder = fill(tmp_path / "[a]*? ü", **{"ca[t]": 2, "Käse 🧀": 2})
    for name in ("my_test_shot.PNG", "train.1.png"):
        shutil.copy(folder / "ca[t]" / "0.png", folder / "ca[t]" / name)
    assert summary(folder) == {"train": {"Käse 🧀": 2, "ca[t]": 4}}


def test_what_is_no_image_is_left_out_and_said(tmp_path, caplog):
    fill(tmp_path, cat=2, dog=2, empty=0, __MACOSX=2)
    for name in (".DS_Store", "cat/._0.png", "README.md", "cat/notes.txt", "emu.heic"):
        (tmp_path / name).write_text("x")
    os.symlink(tmp_path, tmp_path / "loop")
    assert summary(tmp_path) == {"train": {"cat": 2, "dog": 2}}
    said = f"Left out of {tmp_path}, because no image has such a name: cat/notes.txt and 1 more."
    assert caplog.messages == [said]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"train__cat": 1, "train__dog": 1, "more__cat": 1}, "holds the sub-folder 'more', which is no split's name"),
        ({"cat": 1, "dog": 1, "": 1}, r"Row 0 of split 'train' of .* \(.*0\.png\) has no label"),
        ({"": 3}, "have no classes; give each of two or more classes a sub-folder"),
    ],
)
def test_images_without_a_place_are_named(tmp_path, counts, message):
    with pytest.raises(InputError, match=message):
        load_splits(str(fill(tmp_path, **counts)))
    if "more__cat" not in counts:
        assert len(load_images(str(tmp_path))["train"]) == 3


def test_other_things_than_images_are_named(tmp_path):
    fill(tmp_path, cat=1, dog=1)
    (tmp_path / "rows.parquet").write_text("x")
    with pytest.raises(InputError, match=r"holds both images and tables, cat/0\.png and rows\.parquet for two"):
        load_splits(str(tmp_path))
    (tmp_path / "zipped").mkdir()
    (tmp_path / "zipped" / "all.zip").write_text("x")
    with pytest.raises(InputError, match=r"holds all\.zip, which is packed; unpack it"):
        load_splits(str(tmp_path / "zipped"))
    (tmp_path / "rows.parquet").unlink()
    os.rename(tmp_path / "cat" / "0.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        load_splits(str(tmp_path))


def write(folder, text, name="metadata.csv"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def test_metadata_says_which_images_there_are(tmp_path, caplog):
    fill(tmp_path, pictures=5)
    write(
        tmp_path, "\ufefffile_name,label\r\n" + "".join(f"pictures/{i}.png,{('NA', '01')[i % 2]}\r\n" for i in range(4))
    )
    splits = load_splits(str(tmp_path))
    assert splits["train"].features["label"].names == ["01", "NA"]
    assert splits["train"]["label"][:] == [1, 0, 1, 0]
    assert [image["path"] for image in splits["train"]["image"]] == [f"{tmp_path}/pictures/{i}.png" for i in range(4)]
    assert caplog.messages == [f"Left out of {tmp_path}, because no metadata lists it: pictures/4.png."]


@pytest.mark.parametrize("place", ["root", "splits"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_metadata_of_every_form_and_place(tmp_path, form, place):
    fill(tmp_path, train=4, test=2)
    counts = {"train": 4, "test": 2}
    files = {"": [f"{split}/{i}.png" for split, count in counts.items() for i in range(count)]}
    if place == "splits":
        files = {f"{split}/": [f"{i}.png" for i in range(count)] for split, count in counts.items()}
    for where, names in files.items():
        rows = [{"file_name": name, "label": "ab"[i % 2]} for i, name in enumerate(names)]
        path = tmp_path / f"{where}metadata.{form}"
        if form == "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows))
        elif form == "parquet":
            datasets.Dataset.from_list(rows).to_parquet(path)
        else:
            datasets.Dataset.from_list(rows).to_csv(path)
    assert summary(tmp_path) == {"train": {"a": 2, "b": 2}, "test": {"a": 1, "b": 1}}


def test_metadata_may_list_classes(tmp_path):
    rows = [{"file_name": f"{index}.png", "label": ["x", "y"][:index]} for index in range(3)]
    write(fill(tmp_path, **{"": 3}), "\n".join(map(json.dumps, rows)), "metadata.jsonl")
    assert load_splits(str(tmp_path))["train"]["label"][:] == [[], [0], [0, 1]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("file_name,label\n", "has no rows"),
        ("file_name;label\n0.png;a\n", "has no column file_name; its columns are file_name;label"),
        ("file_name,label,label\n0.png,a,b\n", "has more than one column 'label'"),
        ("file_name,label\n0.png,a,b\n", "Line 2 of .* has 3 fields, but there are 2 columns"),
        ("file_name,label\n,a\n", "Row 0 of .* has no file_name"),
        ("file_name,label\n../../0.png,a\n", r"Row 0 of .* names \.\./\.\./0\.png, which lies outside of"),
        ("file_name,label\n/etc/passwd,a\n", "Row 0 of .* names /etc/passwd, which lies outside of"),
        ("file_name,label\n0.png,a\n1.png,\n", r"Row 1 of split 'train' of .* \(.*1\.png\) has no label"),
        (b"file_name,label\n0.png,\xe4\n", "Cannot read .* as a table of UTF-8"),
        ('file_name,label\n0.png,"a\n', "Cannot read .* as a table of UTF-8: unexpected end of data"),
    ],
)
def test_metadata_that_cannot_be_used_is_one_sentence(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as caught:
        load_splits(str(write(fill(tmp_path, **{"": 2}), text)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "as lines of JSON"), ("[1]", "Line 1 of .* is no JSON object"), ('{"label": 1}', "has no column file_name")],
)
def test_lines_that_are_no_metadata_are_one_sentence(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_splits(str(write(fill(tmp_path, **{"": 2}), text, "metadata.jsonl")))
