"""Data sets that are read while they are used, of a length that may be unknown."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any, cast

import fsspec
import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, IterableDatasetDict, Value

from vitrail.modeling import InputError
from vitrail.training.columns import choose_image, choose_label, encode, label_feature, label_names
from vitrail.training.data import image_path, require_classes, split_name
from vitrail.training.labels import (
    Named,
    class_names,
    count_classes,
    is_list,
    item_of,
    name_all,
    name_of,
    require_one_kind,
)
from vitrail.training.sources import read_column, read_source, reading
from vitrail.training.unreadable import SplitTransform, fingerprint


logger = logging.getLogger(__name__)

# How many of the first images are set aside where there is no validation split, unless the user says how many.
_VALIDATION_IMAGES = 1000


@dataclass(frozen=True)
class Streams:
    """The splits of a data set that is read while it is used.

    Attributes:
        name: the data set's, as errors call it.
        splits: rows with `image` (undecoded), `row` and, if wanted, `label`. `row` counts what a reading process has
            met, so that it is a place in the split only where one process reads the files in their order.
        features: their types.
        lengths: the rows of each split; None where that is not known before they are read.
        counts: the images of each class, (K,), of the splits whose labels were read beforehand.
    """

    name: str
    splits: dict[str, IterableDataset | Dataset]
    features: Features
    lengths: dict[str, int | None]
    counts: dict[str, np.ndarray]


class Stream(torch.utils.data.IterableDataset):
    """What is trained or evaluated on: a stream's tensors, with its length if known, which `datasets` does not tell.

    Args:
        rows: what `pixel_values` and `labels` come from.
        name: the data set's, as errors call it.
        length: of rows, if known; the Trainer counts epochs by it.

    Raises:
        InputError: while it is read, the data set turns out to be damaged or out of reach.
    """

    def __init__(self, rows: IterableDataset, name: str, length: int | None = None):
        self.rows, self.name, self.length = rows, name, length

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        with reading(self.name):
            yield from self.rows

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("The length of the stream is not known.")
        return self.length

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch, so that each is shuffled in its own way."""
        self.rows.set_epoch(epoch)


def load_streams(
    dataset: str,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    labelled: bool = True,
) -> Streams:
    """What `load_splits` or, if not labelled, `load_images` reads, without reading it all.

    It must be `is_streamable`. The classes must be known beforehand. Where their column does not name them, or nothing
    tells how many rows there are, the labels are read once: of files on this disk, and of parquet files anywhere,
    which keep columns apart.

    Raises:
        InputError: there is no such data set, it has no column that can be the image or the label, or its classes
            cannot be known without reading all of it.
    """
    source = dataset, config, revision
    splits = _sources(*source)
    leading = splits["train"] if "train" in splits else next(iter(splits.values()), None)
    first = None if leading is None else _first(leading, dataset)
    if leading is None or first is None:
        raise InputError(f"{dataset} has no rows.")
    image_column = choose_image(image_column, _known(leading), first, dataset)
    features = Features({"row": Value("int64"), "key": Value("int64"), "image": Image(decode=False)})
    lengths = {split: _declared_length(rows) for split, rows in splits.items()}
    rows: dict[str, IterableDataset | Dataset]
    if not labelled:
        rows = {split: _rows(rows, image_column, split, dataset) for split, rows in splits.items()}
        return Streams(dataset, rows, features, lengths, {})
    label_column = choose_label(label_column, _fields(_known(leading), image_column), image_column, dataset)
    splits = {split: rows for split, rows in splits.items() if _has_label(rows, label_column, split, dataset)}
    if not splits:
        raise InputError(f"No row of {dataset} has a label in column {label_column!r}.")
    kinds = {split: _fields(_known(rows))[label_column] for split, rows in splits.items()}
    require_one_kind(kinds.values(), label_column, dataset)
    named: dict[str, list[Named]] = {}
    declared = all(isinstance(item_of(kind), ClassLabel) for kind in kinds.values())
    if not declared or any(lengths[split] is None for split in splits):
        named = _named(source, label_column, _top(label_column, _known(leading)), kinds)
    if not (declared or named):
        raise InputError(
            f"Column {label_column!r} of {dataset} does not say which classes there are, and a stream must know "
            "them beforehand; leave out --streaming."
        )
    names = class_names(kinds.values(), named.values(), dataset)
    features["label"] = label_feature(names, multi_label=is_list(next(iter(kinds.values()))))
    index = {name: position for position, name in enumerate(names)}
    rows = {
        split: _rows(rows, image_column, split, dataset, _Label(label_column, kinds[split], split, index))
        for split, rows in splits.items()
    }
    lengths = {split: len(named[split]) if split in named else lengths[split] for split in splits}
    counts = {split: count_classes(values, index) for split, values in named.items()}
    return Streams(dataset, rows, features, lengths, counts)


def hold_out(streams: Streams, fraction: float, images: int | None) -> tuple[Streams, str | None]:
    """`with_validation` of streams: where there is no such split, the first images are kept in memory as one.

    Args:
        streams: the output of `load_streams`.
        fraction: in (0, 1), the most of the training images that are set aside, where it is known how many there are.
        images: how many to set aside; by default 1,000.

    Raises:
        InputError: also when the first images are of too few classes to stand for all, as where classes follow one
            another.
    """
    if "train" not in streams.splits:
        raise InputError(f"The data set has no split 'train'; its splits are {', '.join(streams.splits)}.")
    labelled = "label" in streams.features
    if "train" in streams.counts:
        require_classes(streams.features, streams.counts, streams.lengths["train"])
    if "validation" in streams.splits:
        return streams, None
    length, count = streams.lengths["train"], images or _VALIDATION_IMAGES
    if length is not None:
        count = max(1, min(count, round(fraction * length)))
    train = cast(IterableDataset, streams.splits["train"])
    held = _in_memory(islice(Stream(train, streams.name), count), streams.features)
    if labelled and not is_list(streams.features["label"]):
        classes, found = len(label_names(streams.features)), len(set(held["label"]))
        expected = classes * (1 - (1 - 1 / classes) ** len(held))  # of as many images, each of any class
        if found <= expected * 2 / 3:
            raise InputError(
                f"The first {len(held):,} training images of {streams.name} are of {found} of {classes} classes, too "
                "few to validate with; give it a validation split, raise --max_eval_samples, or leave out --streaming."
            )
    known = {fingerprint(image) for image in held["image"]}
    rest = train.filter(partial(_is_not_among, known=known))
    if next(iter(Stream(rest, streams.name)), None) is None:
        raise InputError(
            f"{streams.name} has no more training images than the {len(held):,} that would be set aside to validate; "
            "lower --max_eval_samples, or leave out --streaming."
        )
    left = None if length is None else max(1, length - len(held))
    said = (
        f"There is no validation split: the first {len(held):,} training images are set aside for it, with all that "
        "are the same."
    )
    splits = streams.splits | {"train": rest, "validation": held}
    return replace(streams, splits=splits, lengths=streams.lengths | {"train": left, "validation": len(held)}), said


def first_images(streams: Streams, limits: dict[str, int | None]) -> Streams:
    """At most so many images of each split, the first that are met."""
    splits, lengths = dict(streams.splits), dict(streams.lengths)
    for split, limit in limits.items():
        length = lengths[split]
        if limit is not None and (length is None or limit < length):
            splits[split] = splits[split].take(limit)
            lengths[split] = limit
    return replace(streams, splits=splits, lengths=lengths)


def to_tensors(
    streams: Streams, split: str, transform: SplitTransform, batch_size: int, shuffle: tuple[int, int] | None = None
) -> Any:
    """What a Trainer takes of a split.

    Args:
        streams: the splits.
        split: one of them.
        transform: rows to tensors, `batch_size` of them at once.
        batch_size: as in the loader, so that the transform sees its batches.
        shuffle: the seed, and how many rows to hold and draw from; by default they come as they are.
    """
    rows = streams.splits[split]
    if isinstance(rows, Dataset):
        return rows.with_transform(transform)
    if shuffle is not None:
        seed, buffer_size = shuffle
        rows = rows.shuffle(seed, buffer_size=buffer_size)
    rows = rows.map(transform, batched=True, batch_size=batch_size, remove_columns=list(streams.features))
    return Stream(rows, streams.name, streams.lengths[split] if shuffle is not None else None)


def samples_of(streams: Streams, split: str, count: int = 64) -> Dataset:
    """A few rows of a split in memory."""
    rows = streams.splits[split]
    if isinstance(rows, Dataset):
        return rows
    return _in_memory(
        islice(Stream(rows.shuffle(0, buffer_size=_VALIDATION_IMAGES), streams.name), count), streams.features
    )


def _sources(dataset: str, config: str | None, revision: str | None) -> dict[str, IterableDataset]:
    splits = {}
    sources = cast(IterableDatasetDict, read_source(dataset, config, revision, streaming=True))
    for split, rows in sorted(sources.items(), key=lambda item: item[0] != "train"):  # its order of classes counts
        if rows.features is None:
            raise InputError(f"The columns of {dataset} are not known before it is read; leave out --streaming.")
        splits[split_name(str(split))] = rows.decode(False)  # first of all: of the Hub's folders it undoes a step
    return splits


def _first(rows: IterableDataset, dataset: str) -> dict[str, Any] | None:
    with reading(dataset):
        return next(iter(rows), None)


def _declared_length(rows: IterableDataset) -> int | None:
    infos: dict[Any, Any] = rows.info.splits or {}
    return infos[str(rows.split)].num_examples or None if str(rows.split) in infos else None


def _known(rows: IterableDataset) -> Features:
    """The columns' types, which `_sources` has made sure are known."""
    return cast(Features, rows.features)


def _fields(features: Features, image_column: str = "") -> Features:
    """The columns but the image, and in place of columns with fields these, as `column.field`."""
    fields = {}
    for name, feature in features.items():
        if isinstance(feature, dict) and name != image_column:
            fields |= {f"{name}.{field}": kind for field, kind in feature.items()}
        elif name != image_column:
            fields[name] = feature
    return Features(fields)


def _top(column: str, features: Features) -> str:
    return column if column in features else column.split(".", 1)[0]


def _value(row: dict[str, Any], column: str) -> Any:
    if column in row:
        return row[column]
    top, field = column.split(".", 1)
    return None if row[top] is None else row[top][field]


def _has_label(rows: IterableDataset, column: str, split: str, dataset: str) -> bool:
    fields, first = _fields(_known(rows)), _first(rows, dataset)
    if column in fields and first is not None and split == "train":
        return True  # a row without a label is then an error, the first one like any other
    if column in fields and first is not None and name_of(_value(first, column), fields[column], split, 0) is not None:
        return True
    logger.warning("The first row of split %r of %s has no label, so the split is left out.", split, dataset)
    return False


def _named(
    source: tuple[str, str | None, str | None], column: str, top: str, kinds: dict[str, Any]
) -> dict[str, list[Named]]:
    """The labels of all splits, where reading them is cheap."""
    dataset, named = source[0], {}
    for split, rows in (read_column(*source, top) or {}).items():
        split = split_name(str(split))
        if split in kinds:
            with reading(dataset):
                values = [_value(row, column) for row in rows.select_columns([top])]
            named[split] = name_all(values, kinds[split], split)
            if None in named[split]:
                raise InputError(
                    f"Row {named[split].index(None):,} of split {split!r} of {dataset} has no label; remove such rows."
                )
    return named


@dataclass(frozen=True)
class _Label:
    """What reads the label of a split's rows, by the column's type and the classes' names."""

    column: str
    kind: Any
    split: str
    index: dict[str, int]

    def of(self, row: dict[str, Any], number: int) -> int | list[int]:
        named = name_of(_value(row, self.column), self.kind, self.split, number)
        if named is None:
            raise InputError(f"Row {number:,} of split {self.split!r} has no label; remove such rows.")
        return encode(named, self.index)


def _rows(
    rows: IterableDataset, image_column: str, split: str, dataset: str, label: _Label | None = None
) -> IterableDataset:
    """The rows of `Streams`."""
    columns = _known(rows)
    if image_column not in columns:
        raise InputError(f"Split {split!r} of {dataset} has no column {image_column!r}, as others have.")
    wanted = {image_column} if label is None else {image_column, _top(label.column, columns)}
    made = partial(_row, image_column=image_column, label=label, dataset=dataset)
    return rows.select_columns(sorted(wanted)).map(made, with_indices=True, remove_columns=sorted(wanted))


def _row(row: dict[str, Any], index: int, image_column: str, label: _Label | None, dataset: str) -> dict[str, Any]:
    made = {"image": _image(row[image_column], dataset), "row": index, "key": index}
    return made if label is None else made | {"label": label.of(row, index)}


def _image(value: Any, dataset: str) -> dict[str, Any] | None:
    if isinstance(value, bytes):
        return {"bytes": value, "path": None}
    if isinstance(value, str):
        value = {"bytes": None, "path": image_path(value, dataset)}
    if value is None:
        return None
    value = {"bytes": value.get("bytes"), "path": value.get("path")}
    if not value["bytes"] and value["path"] and "://" in value["path"]:  # still where it came from
        with (
            suppress(OSError),
            fsspec.open(value["path"], "rb") as file,
        ):  # else it counts as an image that is not there
            value["bytes"] = cast(Any, file).read()
    return value if value["bytes"] or value["path"] else None


def _in_memory(rows: Iterator[dict[str, Any]], features: Features) -> Dataset:
    """Rows as a table; files' names are left out where there are bytes, or `datasets` would look for them here."""
    kept = [
        row | {"image": row["image"] and row["image"] | ({"path": None} if row["image"]["bytes"] else {})}
        for row in rows
    ]
    return Dataset.from_list(kept, features=features)


def _is_not_among(row: dict[str, Any], known: set[int]) -> bool:
    return fingerprint(row["image"]) not in known
