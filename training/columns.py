"""Which columns of a data set are the image and the label, and what the label's column becomes."""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from datasets import ClassLabel, Features, Image, List, Value

from vitrail.modeling import InputError
from vitrail.training.folders import image_suffixes
from vitrail.training.labels import Named, holds_classes, is_list, label_candidates


def choose_image(wanted: str | None, features: Features, first: Mapping[str, Any], dataset: str) -> str:
    """The column of images: the wanted one, or the only one that can be.

    Args:
        wanted: its name, or None.
        features: the columns' types.
        first: one row, undecoded; a column of text is one of images if this row's text ends like an image's name.
        dataset: as errors call it.

    Raises:
        InputError: it is not there, holds no images, or there are several.
    """
    column = _choose(wanted, _image_candidates(features, first), "image", list(features), dataset)
    if not (_kind_of_image(features[column]) or _is_text(features[column])):
        raise InputError(f"Column {column!r} of {dataset} does not hold images.")
    if wanted and isinstance(first[column], str) and PurePath(first[column]).suffix.lower() not in image_suffixes():
        raise InputError(f"Column {column!r} of {dataset} does not hold images: it says {first[column]!r}.")
    return column


def choose_label(wanted: str | None, features: Features, image_column: str, dataset: str) -> str:
    """The column of labels: the wanted one, or the only one that can be.

    Raises:
        InputError: it is not there, cannot hold classes, or there are several.
    """
    if not features and wanted is None and Path(dataset).is_dir():
        raise InputError(f"The images of {dataset} have no classes; give each of two or more classes a sub-folder.")
    if wanted == image_column:
        raise InputError(f"Column {wanted!r} of {dataset} does not hold classes, but the images.")
    column = _choose(wanted, label_candidates(features), "label", [image_column, *features], dataset)
    if not holds_classes(features[column]):
        kind = f", but {features[column].dtype}" if isinstance(features[column], Value) else ""
        raise InputError(f"Column {column!r} of {dataset} does not hold classes{kind}.")
    return column


def label_feature(names: list[str], multi_label: bool) -> ClassLabel | List:
    """The type of a column of classes, or of lists of them."""
    return List(ClassLabel(names=names)) if multi_label else ClassLabel(names=names)


def label_names(features: Features) -> list[str]:
    """The classes of the column `label`, by index."""
    feature = features["label"]
    return (feature.feature if is_list(feature) else feature).names


def is_multi_label(features: Features) -> bool:
    """Whether an image may have any number of the classes."""
    return is_list(features["label"])


def encode(named: Named, index: Mapping[str, int]) -> int | list[int]:
    """The index of a class, or of each of several."""
    assert named is not None  # rows without a label have been refused
    return index[named] if isinstance(named, str) else [index[name] for name in named]


def _choose(wanted: str | None, candidates: list[str], kind: str, columns: list[str], dataset: str) -> str:
    listed = ", ".join(columns)
    if wanted is not None:
        if wanted not in columns:
            raise InputError(f"{dataset} has no column {wanted!r}; its columns are {listed}.")
        return wanted
    if len(candidates) == 1:
        return candidates[0]
    problem = f"more than one {kind} column" if candidates else f"no {kind} column"
    raise InputError(f"{dataset} has {problem}; its columns are {listed}: choose one with --{kind}_column.")


def _image_candidates(features: Features, first: Mapping[str, Any]) -> list[str]:
    kinds = {name: _kind_of_image(feature) for name, feature in features.items()}
    images = [name for name, kind in kinds.items() if kind == "image"]
    files = [name for name, kind in kinds.items() if kind == "file"]
    named = [
        name
        for name, feature in features.items()
        if _is_text(feature)
        and not name.startswith("__")
        and PurePath(str(first[name])).suffix.lower() in image_suffixes()
    ]
    return images or files or named


def _kind_of_image(feature: Any) -> str | None:
    """Whether these are images by their type, or files' bytes as tables keep them that know no images."""
    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, dict):
        return "file" if feature.keys() <= {"bytes", "path"} and "bytes" in feature else None
    return "file" if isinstance(feature, Value) and feature.dtype in ("binary", "large_binary") else None


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string", "string_view")
