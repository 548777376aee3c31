"""Data sets that are read while they are used: what is trained on, how long, and what cannot be streamed."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from torch.utils.data import DataLoader

from vitrail.modeling import InputError
from vitrail.training import train
from vitrail.training.data import load_splits
from vitrail.training.evaluation import evaluate
from vitrail.training.sources import is_streamable
from vitrail.training.streaming import Stream, first_images, hold_out, load_streams, to_tensors
from vitrail.training.unreadable import SplitTransform


def shades(count, first=0):
    """Images and labels, bright and dark by turns, no two alike."""
    generator = np.random.default_rng(first)
    labels = [("bright", "dark")[index % 2] for index in range(count)]
    bases = [20 if label == "dark" else 180 for label in labels]
    return [Image.fromarray(np.uint8(base + generator.integers(0, 50, (20, 30, 3)))) for base in bases], labels


def table(images, labels, feature=None):
    features = datasets.Features({"image": datasets.Image(), "label": feature or datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


def write_tar(path, images, labels):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for index, (image, label) in enumerate(zip(images, labels)):
            png = io.BytesIO()
            image.save(png, "PNG")
            for ending, content in (("png", png.getvalue()), ("txt", label.encode())):
                member = tarfile.TarInfo(f"{index:03}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module", params=["parquet", "tar"], ids=str)
def streamed(request, tmp_path_factory):
    """A folder of 40 images to train on, in two files, and 12 to test on, as strings."""
    folder = tmp_path_factory.mktemp(request.param) / "data"
    for name, count, first in (("train-0", 20, 0), ("train-1", 20, 1), ("test", 12, 2)):
        images, labels = shades(count, first)
        if request.param == "tar":
            write_tar(folder / f"{name}.tar", images, labels)
        else:
            table(images, labels).to_parquet(folder / f"{name}.parquet")
    return folder


def test_a_stream_is_what_is_read_otherwise(streamed):
    splits, streams = load_splits(str(streamed)), load_streams(str(streamed))
    assert streams.lengths == {"train": 40, "test": 12} == {split: len(rows) for split, rows in splits.items()}
    for split, rows in splits.items():
        met = list(Stream(streams.splits[split], "data"))
        assert [row["row"] for row in met] == [row["key"] for row in met] == rows["row"][:]
        assert [row["label"] for row in met] == rows["label"][:]
        assert [row["image"]["bytes"] for row in met] == [image["bytes"] for image in rows["image"]]
    assert streams.features["label"] == splits["train"].features["label"]
    assert streams.counts["train"].tolist() == [20, 20]


@pytest.mark.parametrize("streamed", ["parquet"], indirect=True)
def test_training_and_evaluation_from_a_stream(streamed, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--dataset", str(streamed), "--streaming", "--output_dir", str(tmp_path)]
    result = train(
        [
            *flags,
            "--dataloader_num_workers",
            "0",
            "--learning_rate",
            "1e-2",
            "--max_eval_samples",
            "10",
            "--validation_fraction",
            "0.25",
        ]
    )
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert (state["global_step"], result.metrics["epoch"]) == (4 * 4, 4)  # 30 images in batches of 8
    assert (tmp_path / "confusion_matrix.png").exists()
    assert sum("eval_loss" in entry for entry in state["log_history"]) >= 4
    assert result.metrics["test_accuracy"] == 1.0
    assert result.images == {"train": 30, "validation": 10, "test": 10}
    assert "| images | 30 train, 10 validation, 10 test |" in ModelCard.load(tmp_path / "README.md").text
    again, whole = (evaluate(str(tmp_path), str(streamed), streaming=streaming) for streaming in (True, False))
    assert again["eval_samples"] == whole["eval_samples"] == 12
    assert again["eval_loss"] == pytest.approx(whole["eval_loss"], abs=1e-6)


def test_a_stream_of_unknown_length_needs_steps(tiny_flags, tmp_path, monkeypatch):
    write_tar(tmp_path / "data" / "train.tar", *shades(40))
    write_tar(tmp_path / "data" / "test.tar", *shades(12, 1))
    monkeypatch.setattr("vitrail.training.streaming._named", lambda *_: {})
    monkeypatch.setattr("vitrail.training.streaming.class_names", lambda *_: ["bright", "dark"])
    flags = [*tiny_flags, "--dataset", f"{tmp_path}/data", "--streaming", "--output_dir", str(tmp_path)]
    with pytest.raises(InputError, match="does not say which classes there are, and a stream must know them"):
        train(flags)
    monkeypatch.setattr("vitrail.training.streaming.item_of", lambda _: datasets.ClassLabel(names=["bright", "dark"]))
    with pytest.raises(InputError, match="has no more training images than the 40 that would be set aside"):
        train(flags)
    flags += ["--max_eval_samples", "10"]
    with pytest.raises(
        InputError, match=r"is not known how many images .* has; say how long to train with --max_steps"
    ):
        train(flags)
    result = train([*flags, "--max_steps", "5"])  # of four in an epoch
    card = ModelCard.load(tmp_path / "README.md").text
    assert "| images | 10 validation, 10 test |" in card
    assert "| epochs | 5 steps of 5 |" in card
    assert result.images == {"validation": 10, "test": 10}


def test_what_is_held_out_is_not_trained_on(streamed):
    streams, said = hold_out(load_streams(str(streamed)), 0.25, None)
    assert said is not None
    assert said.startswith("There is no validation split: the first 10 training images are set aside for it")
    held = [image["bytes"] for image in streams.splits["validation"]["image"]]
    rest = [row["image"]["bytes"] for row in streams.splits["train"]]
    assert (len(held), len(rest), streams.lengths["train"]) == (10, 30, 30)
    assert not set(held) & set(rest)
    assert hold_out(streams, 0.25, None) == (streams, None)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_every_image_is_met_once_an_epoch_in_another_order(streamed, workers):
    streams, _ = hold_out(load_streams(str(streamed)), 0.25, None)

    def tensors(rows):
        return {"pixel_values": torch.zeros(len(rows["key"]), 1), "labels": torch.tensor(rows["label"])}

    seen = []
    transform = SplitTransform(lambda rows: tensors(rows) | {"sum": [sum(i["bytes"]) for i in rows["image"]]}, "train")
    stream = to_tensors(streams, "train", transform, batch_size=8, shuffle=(0, 16))
    loader = DataLoader(stream, batch_size=8, num_workers=workers)
    assert len(loader) == 4
    for epoch in (0, 0, 1):
        stream.set_epoch(epoch)
        seen.append([value for batch in loader for value in batch["sum"].tolist()])
    assert seen[0] == seen[1] != seen[2]
    assert sorted(seen[0]) == sorted(seen[2])
    assert len(set(seen[0])) == 30


def test_first_images_are_at_most_so_many(streamed):
    streams = first_images(load_streams(str(streamed)), {"train": 7, "test": 100})
    assert streams.lengths == {"train": 7, "test": 12}
    assert {split: sum(1 for _ in rows) for split, rows in streams.splits.items()} == streams.lengths


def test_images_one_class_after_the_other_cannot_be_held_out(tmp_path):
    images, labels = shades(20)
    order = np.argsort(labels, kind="stable")
    table([images[i] for i in order], sorted(labels)).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"first 5 training images of .* are of 1 of 2 classes, too few to validate"):
        hold_out(load_streams(str(tmp_path / "rows.parquet")), 0.25, None)


def test_declared_classes_are_not_read_but_rows_without_one_are_named(tmp_path):
    images, _ = shades(6)
    feature = datasets.ClassLabel(names=["no", "yes"])
    table(images, [-1] * 6, feature).to_parquet(tmp_path / "test.parquet")
    for row in (0, 3):
        labels = [0, 1, 0, 1, 1, 1]
        labels[row] = -1
        table(images, labels, feature).to_parquet(tmp_path / "train.parquet")
        with pytest.raises(InputError, match=rf"Row {row} of split 'train' of .* has no label"):
            load_streams(str(tmp_path))


def test_images_without_labels_are_streamed(streamed):
    streams = load_streams(str(streamed), labelled=False)
    assert list(streams.features) == ["row", "key", "image"]
    assert sum(1 for _ in streams.splits["train"]) == 40
    assert hold_out(streams, 0.2, 5)[0].lengths["validation"] == 5


def test_what_is_read_one_by_one_anyway_is_not_streamed(image_folder, tmp_path, streamed):
    table(*shades(4)).save_to_disk(tmp_path / "saved")
    streamable = {
        source: is_streamable(str(source)) for source in ("digits", image_folder, tmp_path / "saved", streamed)
    }
    assert list(streamable.values()) == [False, False, False, True]


def test_a_stream_that_breaks_off_is_one_sentence(tmp_path):
    write_tar(tmp_path / "rows.tar", *shades(40))
    streams = load_streams(str(tmp_path / "rows.tar"))
    whole = (tmp_path / "rows.tar").read_bytes()
    (tmp_path / "rows.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"Cannot read the data set .*rows\.tar"):
        list(Stream(streams.splits["train"], str(tmp_path / "rows.tar")))
