"""Images from anywhere, in one form: splits with the columns `image`, `row` and, if wanted, `label`."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError
from PIL import Image as PILImage

from vitrail.modeling import InputError


_BUILDERS = {".parquet": "parquet", ".arrow": "arrow"}
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
    return _images(_read(dataset, config, revision), image_column, dataset)


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
            data set's id, a folder (one sub-folder of images a class; parquet, arrow or webdataset files; the output
            of `save_to_disk`), or one parquet or arrow file.
        config: the configuration of a Hub data set.
        revision: its branch, tag or commit.
        image_column: the column of images; by default the only one there is.
        label_column: the column of classes; by default the only `ClassLabel`, else `label` or `labels`, else the only
            column of strings, booleans or integers.

    Returns:
        splits with the columns `image` (undecoded), `label` (one `ClassLabel` for all splits) and `row` (the position
        in the split as it was read, from 0). A split without labels is left out.

    Raises:
        InputError: there is no such data set, no images in it, or no column that can be the image or the label.
    """
    splits = _read(dataset, config, revision)
    features = next(iter(splits.values())).features
    images = _images(splits, image_column, dataset)
    label_column = _choose(label_column, _label_candidates(features), "label", features, dataset)
    if not isinstance(features[label_column], (ClassLabel, Value)):
        raise InputError(f"Column {label_column!r} of {dataset} does not hold one class per image.")

    labels = {split: _class_names(rows, label_column) for split, rows in splits.items()}
    labels = {split: values for split, values in labels.items() if any(value is not None for value in values)}
    if not labels:
        raise InputError(f"No row of {dataset} has a label in column {label_column!r}.")
    for split, values in labels.items():
        if None in values:
            raise InputError(
                f"Row {values.index(None)} of split {str(split)!r} of {dataset} has no label; remove such rows."
            )
    names = _ordered_names([splits[split].features[label_column] for split in labels], labels.values())
    index = {name: position for position, name in enumerate(names)}
    label = ClassLabel(names=[str(name) for name in names])
    indices = {split_name(str(split)): [index[value] for value in values] for split, values in labels.items()}
    return DatasetDict({split: images[split].add_column("label", indices[split], feature=label) for split in indices})


def split_name(split: str) -> str:
    """The name under which `load_splits` returns a split: `valid`, `val` and `dev` are `validation`."""
    return "validation" if split in _VALIDATION_NAMES else split


def with_validation(splits: DatasetDict, fraction: float, seed: int) -> tuple[DatasetDict, str | None]:
    """Makes sure that there is a `validation` split beside `train`.

    Args:
        splits: the output of `load_splits` or `load_images`.
        fraction: in (0, 1), the share of `train` to set aside when there is none; of labelled images, the same in every
            class.
        seed: decides which images those are.

    Returns:
        the splits, and a sentence that says what was set aside (None when nothing was).

    Raises:
        InputError: there is no `train` split, or it is too small to be divided.
    """
    if "train" not in splits:
        raise InputError(f"The data set has no split 'train'; its splits are {', '.join(map(str, splits))}.")
    if "validation" in splits:
        return splits, None
    train = splits["train"]
    labelled = "label" in train.features
    if labelled:
        names = train.features["label"].names
        counts = np.bincount(train["label"], minlength=len(names))
        if 1 in counts:
            raise InputError(
                f"Class {names[int(np.argmax(counts == 1))]!r} has one image, too few for a validation split; "
                "add images of it, or give the data set a validation split."
            )
    try:
        parts = train.train_test_split(fraction, stratify_by_column="label" if labelled else None, seed=seed)
    except ValueError as error:
        raise InputError(
            f"{len(train)} training images are too few to set {fraction:.0%} of them aside"
            f"{' with every class among them' if labelled else ''}; raise --validation_fraction, or give the data set "
            "a validation split."
        ) from error
    said = (
        f"There is no validation split: {len(parts['test']):,} of {len(train):,} training images are set aside for it "
        f"({'stratified' if labelled else 'at random'}, seed {seed})."
    )
    return DatasetDict({**splits, "train": parts["train"], "validation": parts["test"]}), said


def _read(dataset: str, config: str | None, revision: str | None) -> DatasetDict:
    if dataset == "digits":
        return _digits()
    path = Path(dataset)
    if path.is_file() and path.suffix not in _BUILDERS:
        raise InputError(f"{dataset} is neither a folder nor a {' or '.join(_BUILDERS)} file.")
    if path.is_dir() and not any(file.is_file() for file in path.rglob("*")):
        raise InputError(
            f"The folder {dataset} is empty; it should hold images, with a sub-folder for every class if any."
        )
    try:
        if path.is_file():
            loaded = load_dataset(_BUILDERS[path.suffix], data_files=str(path))
        elif (path / "dataset_dict.json").exists() or (path / "state.json").exists():
            loaded = load_from_disk(path)
        else:
            loaded = load_dataset(str(path.resolve()) if path.exists() else dataset, config, revision=revision)
    except (OSError, ValueError, DatasetGenerationError) as error:
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        raise InputError(f"Cannot read the data set {dataset}: {reason}.") from error
    return loaded if isinstance(loaded, DatasetDict) else DatasetDict({"train": loaded})


def _digits() -> DatasetDict:
    from sklearn.datasets import load_digits  # slow to import, and wanted for this data set alone
    from sklearn.model_selection import train_test_split

    digits: Any = load_digits()
    images = [PILImage.fromarray((image * (255 / 16)).astype(np.uint8)) for image in digits.images]  # 17 levels of ink
    parts = train_test_split(images, digits.target.tolist(), test_size=0.2, stratify=digits.target, random_state=0)
    features = Features({"image": Image(), "label": ClassLabel(names=[str(digit) for digit in range(10)])})
    train, validation = (
        Dataset.from_dict({"image": images, "label": labels}, features=features)
        for images, labels in ((parts[0], parts[2]), (parts[1], parts[3]))
    )
    return DatasetDict({"train": train, "validation": validation})


def _images(splits: DatasetDict, image_column: str | None, dataset: str) -> DatasetDict:
    features = next(iter(splits.values())).features
    image_column = _choose(image_column, _image_candidates(features), "image", features, dataset)
    if not isinstance(features[image_column], Image):
        raise InputError(f"Column {image_column!r} of {dataset} does not hold images.")
    return DatasetDict(
        {
            split_name(str(split)): rows.select_columns(image_column)
            .rename_columns({image_column: "image"})
            .cast_column("image", Image(decode=False))
            .add_column("row", np.arange(len(rows)), feature=Value("int64"))
            for split, rows in splits.items()
        }
    )


def _choose(wanted: str | None, candidates: list[str], kind: str, features: Features, dataset: str) -> str:
    if wanted is None and len(candidates) == 1:
        return candidates[0]
    if wanted is not None and wanted in features:
        return wanted
    columns = ", ".join(features)
    if wanted is not None:
        raise InputError(f"{dataset} has no column {wanted!r}; its columns are {columns}.")
    if kind == "label" and list(features) == ["image"] and Path(dataset).is_dir():
        raise InputError(f"The images of {dataset} have no classes; give each of two or more classes a sub-folder.")
    problem = f"more than one {kind} column" if candidates else f"no {kind} column"
    raise InputError(f"{dataset} has {problem}; its columns are {columns}: choose one with --{kind}_column.")


def _image_candidates(features: Features) -> list[str]:
    return [name for name, feature in features.items() if isinstance(feature, Image)]


def _label_candidates(features: Features) -> list[str]:
    classes = [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
    named = [name for name in ("label", "labels") if name in features]
    plain = [
        name
        for name, feature in features.items()
        if isinstance(feature, Value) and feature.dtype.startswith(("string", "large_string", "bool", "int", "uint"))
    ]
    return next((found for found in (classes, named, plain) if found), [])


def _class_names(rows: Dataset, column: str) -> list:
    """The class of every row, by name where the column has names; None where there is none."""
    if column not in rows.features:
        return [None] * len(rows)
    feature, values = rows.features[column], rows[column][:]
    if isinstance(feature, ClassLabel):
        return [None if value in (None, -1) else feature.names[value] for value in values]
    return values


def _ordered_names(features: list, splits: Iterable[list]) -> list:
    """All classes: in the order that the splits declare them, or sorted."""
    if isinstance(features[0], ClassLabel):
        return list(dict.fromkeys(name for feature in features for name in feature.names))
    return sorted({value for values in splits for value in values})
