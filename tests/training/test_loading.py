"""Batches are the same from memory and from files, in one process and in several."""

import io

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from vitrail.modeling import InputError, ViTImageProcessor
from vitrail.training.arguments import DataArguments, parse_arguments
from vitrail.training.augmentation import EvaluationTransform, TrainingTransform
from vitrail.training.loading import Batches, collate, settle_input


PLAIN = {"crop_scale": 1.0, "flip": 0.0}
VARIED = {"crop_scale": 1.0, "flip": 0.5, "padding": 2, "erasing": 0.5, "mixup": 0.3}
CROPPED = {"crop_scale": 0.3, "flip": 0.5, "erasing": 0.5, "policy": "trivialaugment"}


def rows_of(size, count=20, form="PNG", mode="RGB"):
    generator = np.random.default_rng(0)
    images = []
    for _ in range(count):
        file = io.BytesIO()
        small = Image.fromarray(generator.integers(0, 256, (6, 5, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).convert(mode).save(file, form)
        images.append({"bytes": file.getvalue(), "path": None})
    columns = {"image": images, "label": [index % 3 for index in range(count)], "row": list(range(count))}
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.Value("int64"), "row": datasets.Value("int64")}
    )
    return datasets.Dataset.from_dict(columns, features=features)


def batches_of(rows, arguments, **fields):
    processor = ViTImageProcessor(**({"size": {"height": 16, "width": 24}} | fields))
    if arguments is None:
        transform = EvaluationTransform(processor)
    else:
        transform = TrainingTransform(processor, DataArguments(dataset="x", **arguments), num_labels=3)
    return Batches(rows, transform, transform.still)


def loaded(batches, **options):
    order = [19, 3, 4, 4, 0, 7, 8, 1]  # of which one is met twice, as when classes are balanced
    loader = DataLoader(batches, sampler=order, batch_size=3, collate_fn=collate, **options)
    return [(batch["pixel_values"], batch["labels"]) for batch in loader]


def assert_same(one, other):
    assert len(one) == len(other)
    for (pixels, labels), (other_pixels, other_labels) in zip(one, other):
        assert torch.equal(pixels, other_pixels)
        assert torch.equal(labels, other_labels)


@pytest.mark.parametrize("arguments", [None, PLAIN, VARIED, CROPPED], ids=["evaluation", "plain", "varied", "cropped"])
@pytest.mark.parametrize(
    ("form", "mode", "fields"),
    [
        ("PNG", "L", {"num_channels": 1}),
        ("PNG", "RGBA", {}),
        ("JPEG", "RGB", {"resample": 3}),
        ("JPEG", "L", {"fit": "pad"}),
    ],
    ids=["gray", "transparent", "bicubic", "padded"],
)
def test_memory_and_files_give_the_same_pixels(arguments, form, mode, fields):
    rows = rows_of((30, 28), form=form, mode=mode)
    from_files, from_memory = batches_of(rows, arguments, **fields), batches_of(rows, arguments, **fields)
    from_memory.keep()
    assert from_memory.kept is not None
    assert from_memory.kept.dtype == torch.uint8
    assert_same(loaded(from_memory), loaded(from_files))


@pytest.mark.parametrize("arguments", [None, VARIED, CROPPED], ids=["evaluation", "varied", "cropped"])
def test_workers_and_other_orders_give_the_same_pixels(arguments):
    rows = rows_of((30, 28), form="JPEG")
    batches = batches_of(rows, arguments)
    assert_same(loaded(batches, num_workers=1), loaded(batches))
    if arguments is CROPPED:
        one_by_one = [batches.__getitems__([key])["pixel_values"] for key in (5, 2, 9)]
        assert torch.equal(torch.cat(one_by_one), batches.__getitems__([5, 2, 9])["pixel_values"])


def test_workers_are_told_the_epoch():
    batches = batches_of(rows_of((30, 28)), VARIED)
    for epoch in (0, 1):
        batches.transform.epoch.fill_(epoch)
        assert_same(loaded(batches, num_workers=1), loaded(batches))


def test_what_differs_in_size_or_is_large_is_not_kept(monkeypatch):
    small, other = rows_of((30, 28)), rows_of((31, 28), count=40)
    mixed = datasets.concatenate_datasets([small, other])
    for rows, arguments, is_kept in (
        (mixed, CROPPED, False),
        (mixed, VARIED, True),  # of the model's size, whatever theirs
        (mixed, None, True),
        (rows_of((48, 32), form="JPEG"), CROPPED, False),  # whose crops are read at half their size
        (rows_of((48, 31), form="JPEG"), CROPPED, True),
    ):
        batches = batches_of(rows, arguments)
        batches.keep()
        assert (batches.kept is not None) == is_kept
    monkeypatch.setattr("vitrail.training.loading._KEPT", 20 * 3 * 16 * 24 - 1)
    batches = batches_of(small, None)
    batches.keep()
    assert batches.kept is None


def test_decoding_ahead_in_processes_is_the_same_and_names_what_is_damaged(monkeypatch):
    monkeypatch.setattr("vitrail.training.loading._MANY", 10)
    monkeypatch.setattr("vitrail.training.loading._CHUNK", 3)
    rows = rows_of((30, 28))
    batches = batches_of(rows, None)
    batches.keep()
    assert_same(loaded(batches), loaded(batches_of(rows, None)))
    damaged = rows.map(lambda row: {"image": {"bytes": row["image"]["bytes"][: -40 * (row["row"] == 13) or None]}})
    with pytest.raises(InputError, match="Cannot read the image of row 13 of the data set"):
        batches_of(damaged, None).keep()


@pytest.mark.parametrize(("cores", "processes", "expected"), [(1, 1, 0), (4, 1, 3), (8, 2, 3), (64, 1, 8), (4, 8, 0)])
def test_workers_are_as_many_as_cores_allow(monkeypatch, tmp_path, cores, processes, expected):
    monkeypatch.setattr("vitrail.training.arguments.usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    flags = ["--dataset", "digits", "--output_dir", str(tmp_path)]
    assert parse_arguments(flags)[2].dataloader_num_workers == expected
    assert parse_arguments([*flags, "--dataloader_num_workers", "2"])[2].dataloader_num_workers == 2


def test_what_is_kept_needs_no_workers_unless_they_are_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr("vitrail.training.arguments.usable_cores", lambda: 4)
    flags = ["--dataset", "digits", "--output_dir", str(tmp_path)]
    small, large = rows_of((30, 28)), rows_of((96, 64), form="JPEG")
    for rows, more, said, workers in (
        (small, [], "Input: 40 decoded images stay in memory (0 MB), no workers.", 0),
        (small, ["--dataloader_num_workers", "1"], "stay in memory (0 MB), 1 worker.", 1),
        (small, ["--policy", "randaugment"], "stay in memory (0 MB), 3 workers.", 3),
        (large, [], "Input: 20 decoded images stay in memory (0 MB), 3 workers.", 3),
    ):
        _, variations, arguments = parse_arguments([*flags, *more])
        training, validation = batches_of(rows, CROPPED), batches_of(rows, None)
        assert settle_input(arguments, variations, training, validation).endswith(said)
        assert arguments.dataloader_num_workers == workers
