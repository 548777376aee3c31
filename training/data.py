"""Images from anywhere, in one form: splits with the columns `image`, `row` and, if wanted, `label`."""

import logging
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from datasets import Dataset, DatasetDict, Features, Image, Value

from vitrail.modeling import InputError
from vitrail.training.columns import choose_image, choose_label, encode, is_multi_label, label_feature, label_names
from vitrail.training.labels import class_names, is_list, name_all, require_one_kind
from vitrail.training.sources import read_source, reading, source_folder


logger = logging.getLogger(__name__)

_VALIDATION_NAMES = ("validation", "valid", "val", "dev")


def load_images(
    dataset: str, config: str | None = None, revision: str | None = None, image_column: str | None = None
) -> DatasetDict:
    """Reads the images of a data set, whether they have labels or not.

    Args:
        dataset: as `load_splits` takes it; the images of a folder may lie in it anyhow.
        config: the configuration of a Hub data set.
        revision: its branch, tag or commit.
        image_column: the column of images; by default the only one there is.

    Returns:
        splits with the columns `image` (undecoded) and `row` (the position in the split as it was read, from 0).

    Raises:
        InputError: there is no such data set, no images in it, or no column that can be the image.
    """
    images, _, _ = _read(dataset, config, revision, image_column)
    return images


def load_splits(
    dataset: str,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
) -> DatasetDict:
    """Reads a labelled image data set.

    Args:
        dataset: "digits" (scikit-learn's 1,797 images of 8x8 pixels, a fifth of them held out as `validation`), a Hub
            data set's id, a folder (one sub-folder of images a class; images and a `metadata.csv`, `.jsonl` or
            `.parquet` with their `file_name` and label; parquet, arrow or webdataset files; the output of
            `save_to_disk`), or such files: a path, a glob, or several of either between commas.
        config: the configuration of a Hub data set.
        revision: its branch, tag or commit.
        image_column: the column of images, of their bytes or of their paths; by default the only one there is.
        label_column: the column of classes, or of lists of classes; by default the only `ClassLabel`, else the one
            named `label`, `class` or the like, else the only column of strings, booleans or integers. A field of a
            column is written `column.field`.

    Returns:
        splits with the columns `image` (undecoded), `label` (one `ClassLabel` for all splits, or `List` of it) and
        `row` (the position in the split as it was read, from 0). A split without rows or labels is left out.

    Raises:
        InputError: there is no such data set, no images in it, no column that can be the image or the label, or a
            row whose label is missing or no class.
    """
    images, image_column, tables = _read(dataset, config, revision, image_column)
    tables = {split: rows.flatten() if _has_fields(rows.features) else rows for split, rows in tables.items()}
    label_column = choose_label(label_column, tables[_leading(tables)].features, image_column, dataset)
    features = {split: rows.features[label_column] for split, rows in tables.items() if label_column in rows.features}
    require_one_kind(features.values(), label_column, dataset)
    named = {split: name_all(tables[split][label_column][:], feature, split) for split, feature in features.items()}
    for split in tables:
        if not any(labels is not None for labels in named.get(split, ())):
            logger.warning("No row of split %r of %s has a label, so it is left out.", split, dataset)
            named.pop(split, None)
    if not named:
        raise InputError(f"No row of {dataset} has a label in column {label_column!r}.")
    for split, labels in named.items():
        if None in labels:
            row = labels.index(None)
            path = (images[split][row]["image"] or {}).get("path")
            raise InputError(
                f"Row {row:,} of split {split!r} of {dataset}{f' ({path})' if path else ''} has no label; remove such "
                "rows."
            )
    named = dict(sorted(named.items(), key=lambda item: item[0] != _leading(named)))  # its order of classes counts
    names = class_names([features[split] for split in named], named.values(), dataset)
    feature = label_feature(names, multi_label=is_list(features[next(iter(named))]))
    index = {name: position for position, name in enumerate(names)}
    return DatasetDict(
        {
            split: images[split].add_column(
                "label", cast(Any, [encode(each, index) for each in labels]), feature=feature
            )
            for split, labels in named.items()
        }
    )


def split_name(split: str) -> str:
    """The name under which `load_splits` returns a split: `valid`, `val` and `dev` are `validation`."""
    return "validation" if split in _VALIDATION_NAMES else split


def with_validation(splits: DatasetDict, fraction: float, seed: int) -> tuple[DatasetDict, str | None]:
    """Makes sure that there is a `validation` split beside `train`, and that what they ask can be learned.

    Args:
        splits: the output of `load_splits` or `load_images`.
        fraction: in (0, 1), the share of `train` to set aside when there is none; of images with one label each, the
            same in every class.
        seed: decides which images those are.

    Returns:
        the splits, and a sentence that says what was set aside (None when nothing was).

    Raises:
        InputError: there is no `train` split, it is too small to be divided, it has fewer than two classes, or not all
            those that the other splits have.
    """
    if "train" not in splits:
        raise InputError(f"The data set has no split 'train'; its splits are {', '.join(map(str, splits))}.")
    train = splits["train"]
    labelled = "label" in train.features
    if labelled:
        counts = {str(split): class_counts(rows) for split, rows in splits.items()}
        require_classes(train.features, counts, len(train))
    if "validation" in splits:
        return splits, None
    stratified = labelled and not is_multi_label(train.features)
    if stratified and 1 in (of_class := class_counts(train)):
        raise InputError(
            f"Class {label_names(train.features)[int(np.argmax(of_class == 1))]!r} has one image, too few for a "
            "validation split; add images of it, or give the data set a validation split."
        )
    try:
        parts = train.train_test_split(fraction, stratify_by_column="label" if stratified else None, seed=seed)
    except ValueError as error:
        raise InputError(
            f"{len(train)} training images cannot be parted so that {100 * fraction:g} % of them are set aside"
            f"{' with every class on both sides' if stratified else ''}; change --validation_fraction, or give the "
            "data set a validation split."
        ) from error
    said = (
        f"There is no validation split: {len(parts['test']):,} of {len(train):,} training images are set aside for it "
        f"({'stratified' if stratified else 'at random'}, seed {seed})."
    )
    return DatasetDict({**splits, "train": parts["train"], "validation": parts["test"]}), said


def class_counts(rows: Dataset) -> np.ndarray:
    """How many images of each class there are, (K,)."""
    labels = rows["label"][:]
    indices = [index for label in labels for index in label] if is_multi_label(rows.features) else labels
    return np.bincount(np.array(indices, dtype=np.int64), minlength=len(label_names(rows.features)))


def require_classes(features: Features, counts: Mapping[str, np.ndarray], images: int | None) -> None:
    """Makes sure that there is something to learn, and that all that is asked for later can be.

    Args:
        features: of the splits, with `label`.
        counts: the images of each class, (K,), of the splits, `train` among them.
        images: how many there are to train on, if that is known.

    Raises:
        InputError: nothing tells the training images apart, or they are not of a class that another split has.
    """
    names, multi_label, train = label_names(features), is_multi_label(features), counts["train"]
    if np.count_nonzero(train) < 2 and not multi_label:
        raise InputError(f"All training images are of the class {names[train.argmax()]!r}; there must be another.")
    if multi_label and ((train == 0) | (train == images)).all():
        raise InputError("All training images have the same classes, so that there is nothing to tell apart.")
    for split, held_out in counts.items():
        for missing in np.flatnonzero((held_out > 0) & (train == 0)):
            sentence = f"The class {names[missing]!r} is in the split {split!r}, but no training image has it"
            if not multi_label:
                raise InputError(f"{sentence}; add images of it to the split 'train', or remove those.")
            logger.warning("%s.", sentence)


def _leading(splits: Mapping[str, Any]) -> str:
    """The split whose columns are those that are looked for in all."""
    return "train" if "train" in splits else next(iter(splits))


def _has_fields(features: Features) -> bool:
    return any(isinstance(feature, dict) for feature in features.values())


def _read(
    dataset: str, config: str | None, revision: str | None, image_column: str | None
) -> tuple[DatasetDict, str, dict[str, Dataset]]:
    """The images of all splits with rows, the name of their column, and all other columns."""
    splits: dict[str, Dataset] = {}
    for split, rows in cast(DatasetDict, read_source(dataset, config, revision)).items():
        name = split_name(str(split))
        if len(rows):
            splits[str(split) if name in splits else name] = rows
        else:
            logger.warning("Split %r of %s has no rows, so it is left out.", str(split), dataset)
    if not splits:
        raise InputError(f"{dataset} has no rows.")
    leading = splits[_leading(splits)]
    first = cast(Any, leading.with_format("arrow"))[:1].to_pylist()[0]
    column = choose_image(image_column, leading.features, first, dataset)
    for split, rows in splits.items():
        if column not in rows.features:
            raise InputError(
                f"Split {split!r} of {dataset} has no column {column!r}, as others have; it has "
                f"{', '.join(rows.features)}."
            )
    images = DatasetDict({split: _images(rows, column, dataset) for split, rows in splits.items()})
    return images, column, {split: rows.remove_columns(column) for split, rows in splits.items()}


def _images(rows: Dataset, column: str, dataset: str) -> Dataset:
    rows = rows.select_columns(column).rename_columns({column: "image"} if column != "image" else {})
    feature = rows.features["image"]
    with reading(dataset):
        if isinstance(feature, Value) and "string" in feature.dtype:
            paths = [None if path is None else image_path(path, dataset) for path in rows["image"][:]]
            rows = Dataset.from_dict({"image": paths}, features=Features({"image": Image()}))
        rows = rows.cast_column("image", Image(decode=False))
    return rows.add_column("row", cast(Any, np.arange(len(rows))), feature=Value("int64"))


def image_path(path: str, dataset: str) -> str:
    """Where the image lies that a table names: beside the table, or from here."""
    beside = source_folder(dataset) / path
    return str(beside) if "://" not in path and beside.exists() else path
