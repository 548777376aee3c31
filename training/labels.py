"""What a column of labels says of every image: one class or, where it holds lists, any number of them."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from datasets import ClassLabel, Features, LargeList, List, Value

from vitrail.modeling import InputError


logger = logging.getLogger(__name__)

_NAMES = ("label", "labels", "class", "classes", "category", "categories", "target", "cls")
_PLAIN = ("string", "large_string", "string_view", "bool", "int", "uint", "float")
# The class of an image, or all of its classes, by name; None where it has no label.
Named: TypeAlias = str | tuple[str, ...] | None


def label_candidates(features: Features) -> list[str]:
    """The columns that may be the label: those of classes, else those named so, else all of text and whole numbers."""
    columns = {
        name: feature for name, feature in features.items() if holds_classes(feature) and not name.startswith("__")
    }
    classes = [name for name, feature in columns.items() if isinstance(item_of(feature), ClassLabel)]
    named = [name for name in columns if _is_named_so(name)]
    plain = [name for name, feature in columns.items() if isinstance(feature, Value) and "float" not in feature.dtype]
    both = [name for name in named if name in classes]
    others = [name for name in features if _is_named_so(name)]  # which hold none, as will be said
    return next((found for found in (both, classes, named, plain, list(columns), others) if found), [])


def _is_named_so(column: str) -> bool:
    return column.rsplit(".", 1)[-1].lower() in _NAMES


def holds_classes(feature: Any) -> bool:
    """Whether a column of this type may hold classes, or lists of them."""
    item = item_of(feature)
    return isinstance(item, ClassLabel) or (isinstance(item, Value) and item.dtype.startswith(_PLAIN))


def is_list(feature: Any) -> bool:
    """Whether an image has any number of classes there, not one."""
    return isinstance(feature, (List, LargeList, list))


def item_of(feature: Any) -> Any:
    """The type of a class, alone or in lists."""
    if isinstance(feature, list):
        return feature[0]
    return feature.feature if isinstance(feature, (List, LargeList)) else feature


def name_of(value: Any, feature: Any, split: str, row: int) -> Named:
    """The class or classes that one value of a column stands for.

    Raises:
        InputError: it stands for none, as a broken number or an index without a name.
    """
    item = item_of(feature)
    if not is_list(feature):
        return _name(value, item, split, row)
    if value is None:
        return None
    names = [_name(each, item, split, row) for each in value]
    if None in names:
        raise InputError(f"Row {row:,} of split {split!r} lists a class that is empty; remove it from the list.")
    return tuple(dict.fromkeys(name for name in names if name is not None))


def _name(value: Any, feature: Any, split: str, row: int) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(feature, ClassLabel):
        if value == -1:
            return None
        if not 0 <= value < len(feature.names):
            raise InputError(
                f"Row {row:,} of split {split!r} has the class {value}, but there are names for {len(feature.names)}."
            )
        return feature.names[value]
    if isinstance(value, float):
        if not value.is_integer():
            raise InputError(
                f"Row {row:,} of split {split!r} has the label {value:g}, which is no class; classes are names or "
                "whole numbers."
            )
        value = int(value)
    return str(value) if str(value).strip() else None


def name_all(values: Sequence[Any], feature: Any, split: str) -> list[Named]:
    """`name_of` every value.

    Raises:
        InputError: also where lists are not of classes, but say of each class whether the image has it.
    """
    if is_list(feature) and isinstance(item_of(feature), Value):
        lists = [value for value in values if value is not None]
        lengths, items = {len(value) for value in lists}, {item for value in lists for item in value}
        if len(lengths) == 1 and items <= {0, 1} and any(len(set(value)) < len(value) for value in lists):
            raise InputError(
                f"The labels of split {split!r} are lists of {lengths.pop()} zeros and ones; list the classes that an "
                "image has, by name or number."
            )
    return [name_of(value, feature, split, row) for row, value in enumerate(values)]


def each_name(named: Iterable[Named]) -> Iterable[str]:
    """Every class of every image, one by one."""
    for names in named:
        if names is not None:
            yield from (names,) if isinstance(names, str) else names


def class_names(features: Iterable[Any], splits: Iterable[Iterable[Named]], dataset: str) -> list[str]:
    """All classes: in the order in which columns declare them, then the others sorted, whole numbers by their size.

    Raises:
        InputError: there are so many that they cannot be classes.
    """
    declared = dict.fromkeys(
        name for feature in features if isinstance(item := item_of(feature), ClassLabel) for name in item.names
    )
    counts: dict[str, int] = defaultdict(int)
    for named in splits:
        for name in each_name(named):
            counts[name] += name not in declared
    others = {name: count for name, count in counts.items() if count}
    if len(others) > 20 and sum(others.values()) < 2 * len(others):
        raise InputError(
            f"The labels of {dataset} are {len(others):,} different values of {sum(others.values()):,}, {min(others)} "
            "for one: hardly classes; choose another column with --label_column."
        )
    names = [*declared, *sorted(others, key=_order)]
    alike: dict[str, list[str]] = defaultdict(list)
    for name in names:
        alike[name.strip().casefold()].append(name)
    if same := [group for group in alike.values() if len(group) > 1]:
        logger.warning("The classes %r and %r are taken as two, though they are spelt almost alike.", *same[0][:2])
    return names


def count_classes(named: Iterable[Named], index: Mapping[str, int]) -> np.ndarray:
    """How many images of each class there are, (K,)."""
    indices = [index[name] for name in each_name(named)]
    return np.bincount(np.array(indices, dtype=np.int64), minlength=len(index))


def _order(name: str) -> tuple[float, str]:
    digits = name.removeprefix("-")
    return (int(name), name) if digits.isascii() and digits.isdigit() else (math.inf, name)
