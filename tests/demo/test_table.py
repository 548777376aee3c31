"""Many images, archives of them, and what is wrong with some."""

import csv
import io
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.demo import table
from vitrail.demo.batch import cells
from vitrail.demo.engine import Engine, File
from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor, read_image


@pytest.fixture(scope="module")
def engine(animals, make_model, tmp_path_factory):
    several = make_model(
        tmp_path_factory.mktemp("models") / "several", seed=3, problem_type="multi_label_classification"
    )
    return Engine([str(animals), str(several)], open_to_all=False)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where temporary files go; nothing may be left there."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


def png(color, side=8):
    file = io.BytesIO()
    Image.new("RGB", (side, side), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    """A function that packs files by their names; the archive."""

    def pack(files, name="images.zip", packing=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / name, "w", packing) as packed:
            for inside, content in files.items():
                packed.writestr(inside, content)
        return File(tmp_path / name, name)

    return pack


def rows_of(engine, files, model="animals"):
    """All rows; as many images as were announced."""
    found = list(table.predictions(engine, model, files))
    assert len(found) == min(table.count_images(files), table.MOST_IMAGES)
    return [row for rows in found for row in rows]


def test_files_and_archives(engine, animals, archive, photo, scratch):
    files = {"red.png": png("red"), "deep/er/blue.png": png("blue"), "deep/": b"", "__MACOSX/._red.png": b"of a Mac"}
    rows = rows_of(engine, [File(photo, "my photo.png"), archive(files)])
    network, processor = ViTForImageClassification.from_pretrained(animals), ViTImageProcessor.from_pretrained(animals)
    sources = [photo, png("red"), png("blue")]
    for row, name, source in zip(rows, ["my photo.png", "red.png", "deep/er/blue.png"], sources, strict=True):
        probabilities = network(**processor(read_image(source), return_tensors="pt")).logits[0].detach().softmax(-1)
        best = int(probabilities.argmax())
        assert row == {
            "image": name,
            "label": network.config.labels[best],
            "probability": row["probability"],
            "error": "",
        }
        assert row["probability"] == pytest.approx(float(probabilities[best]), abs=1e-6)


def test_what_cannot_be_read_is_a_row(engine, archive, tmp_path, broken, scratch):
    (tmp_path / "empty.png").touch()
    inner = archive({"red.png": png("red")}, "inner.zip")
    files = {
        "notes.txt": b"text",
        "empty.png": b"",
        "half.png": png("red", 64)[:80],
        "inner.zip": inner.path.read_bytes(),
        "red.png": png("red"),
    }
    given = [File(broken, "broken.png"), File(tmp_path / "empty.png", "empty.png"), archive(files)]
    *bad, good = rows_of(engine, given)
    assert [row["image"] for row in bad] == ["broken.png", "empty.png", *list(files)[:-1]]
    for row in bad:
        assert row["error"].startswith(f"Cannot read the image {row['image']}: ")
        assert (row["label"], row["probability"]) == ("", None)
    assert (good["image"], good["error"]) == ("red.png", "")


def patched(file, find, offset, content):
    """The archive with other bytes in all its headers of a kind."""
    data = bytearray(file.path.read_bytes())
    place = data.find(find)
    while place >= 0:
        data[place + offset : place + offset + len(content)] = content
        place = data.find(find, place + 4)
    file.path.write_bytes(data)
    return file


LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


@pytest.mark.parametrize(
    ("headers", "packing", "reason"),
    [
        ([(LOCAL, 6, b"\x01\x00"), (CENTRAL, 8, b"\x01\x00")], zipfile.ZIP_DEFLATED, "encrypted"),
        ([(CENTRAL, 24, (10).to_bytes(4, "little"))], zipfile.ZIP_DEFLATED, "Bad CRC-32"),
        ([(LOCAL, 8, b"\x61\x00"), (CENTRAL, 10, b"\x61\x00")], zipfile.ZIP_DEFLATED, "compression"),
        ([(LOCAL, 30, b"another")], zipfile.ZIP_DEFLATED, "differ"),
        ([(LOCAL, 6, b"\x00\x08"), (LOCAL, 30, b"\xff")], zipfile.ZIP_DEFLATED, "decode"),
        ([(LOCAL, 37, b"\xff" * 8)], zipfile.ZIP_DEFLATED, "invalid block type"),
        ([(LOCAL, 37, b"\xff" * 8)], zipfile.ZIP_BZIP2, "Invalid data stream"),
        ([(LOCAL, 50, b"\xff" * 8)], zipfile.ZIP_LZMA, "Corrupt input data"),
        ([(CENTRAL, 42, (10**6).to_bytes(4, "little"))], zipfile.ZIP_STORED, ""),
    ],
    ids=str,
)
def test_members_that_cannot_be_unpacked(engine, archive, scratch, headers, packing, reason):
    file = archive({"red.png": png("red")}, packing=packing)
    for header in headers:
        patched(file, *header)
    (row,) = rows_of(engine, [file])
    assert (row["image"], row["label"]) == ("red.png", "")
    assert row["error"].startswith("Cannot unpack red.png: ")
    assert reason in row["error"]
    assert row["error"].endswith(".")


def test_a_size_that_is_a_lie_takes_no_memory(engine, archive, scratch):
    """It is said to have 4 GB, and has an ordinary image."""
    file = patched(archive({"red.png": png("red")}), CENTRAL, 24, (4 * 10**9).to_bytes(4, "little"))
    (row,) = rows_of(engine, [file])
    assert row["label"]


def test_damaged_archives_are_a_row(engine, archive, scratch):
    """They are cut off, or their table of contents is garbled; what comes after them is not held up."""
    cut, garbled, nameless = (
        archive({"red.png": png("red")}, f"{name}.zip") for name in ("cut", "garbled", "nameless")
    )
    cut.path.write_bytes(cut.path.read_bytes()[:-30])
    patched(garbled, CENTRAL, 0, b"none")
    patched(patched(nameless, CENTRAL, 8, b"\x00\x08"), CENTRAL, 46, b"\xff")
    *bad, good = rows_of(engine, [cut, garbled, nameless, archive({"red.png": png("red")})])
    assert [row["image"] for row in bad] == ["cut.zip", "garbled.zip", "nameless.zip"]
    assert all(row["error"].startswith("Cannot ") and row["image"] in row["error"] for row in bad)
    assert good["label"]


def test_large_members_are_not_unpacked(engine, archive, scratch, monkeypatch):
    monkeypatch.setattr(table, "_MOST_BYTES", 2_000_000)
    bad, good = rows_of(engine, [archive({"zeros.png": bytes(2_000_001), "red.png": png("red")})])
    assert bad["error"] == "zeros.png has more than 2 MB; make it smaller."
    assert good["label"]


def test_more_than_the_maximum(engine, archive, photo, scratch, monkeypatch):
    monkeypatch.setattr(table, "MOST_IMAGES", 3)
    given = [archive({f"{number}.png": png("red") for number in range(4)}), File(photo, "photo.png")]
    assert [row["image"] for row in rows_of(engine, given)] == ["0.png", "1.png", "2.png"]


def test_images_of_the_same_size_are_not_confused(engine, archive, scratch, monkeypatch):
    """Unpacked one after the other, faster than a file system's clock ticks."""
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: write(path, data) and os.utime(path, (0, 0)))
    colors = ["red", "blue", "lime", "black"]
    files = {}
    for number in range(12):
        Image.new("RGB", (8, 8), colors[number % 4]).save(file := io.BytesIO(), "BMP")
        files[f"{number}.bmp"] = file.getvalue()
    found = [row["probability"] for row in rows_of(engine, [archive(files)])]
    assert len(set(found[:4])) == 4
    assert found == found[:4] * 3


def test_every_class_of_at_least_a_half(engine, photo, scratch):
    file = File(photo, "photo.png")
    probabilities = engine.classify("several", file)
    expected = sorted(probabilities[probabilities >= 0.5].tolist(), reverse=True)
    assert 1 < len(expected) < 5
    assert [row["probability"] for row in rows_of(engine, [file], "several")] == pytest.approx(expected)


def test_what_is_stopped_leaves_nothing(engine, archive, scratch):
    found = table.predictions(engine, "animals", [archive({f"{number}.png": png("red") for number in range(4)})])
    next(found)
    assert len(list(scratch.iterdir())) == 1
    found.close()


def test_another_model_is_refused(engine, photo):
    with pytest.raises(InputError, match="is not on offer"):
        list(table.predictions(engine, "elephants", [File(photo, "photo.png")]))


def test_the_table_as_a_file_and_on_the_screen(tmp_path):
    rows = [
        {"image": "a, b.png", "label": 'the "cat"', "probability": np.float32(0.876).item(), "error": ""},
        {"image": "Größe.png", "label": "", "probability": None, "error": "Cannot read it."},
    ]
    table.write_table(rows, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    assert list(read[0]) == ["image", "label", "probability", "error"]
    assert read[0] == {name: str(value) for name, value in rows[0].items()}
    assert read[1] == {"image": "Größe.png", "label": "", "probability": "", "error": "Cannot read it."}
    assert cells(rows) == [["a, b.png", 'the "cat"', "87.6%", ""], ["Größe.png", "", "", "Cannot read it."]]
