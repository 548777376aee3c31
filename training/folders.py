"""Folders of image files on this disk: a sub-folder for every class, or a metadata file that lists the images.

They are walked here rather than by `datasets`' own builder, which takes a class `train` or a file `dog_test.jpg` for a
split and then leaves out all others, and forgets every label when one image lies at another depth.
"""

import csv
import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage

from vitrail.modeling import InputError


logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
# What people call their splits, and what they are called here.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


@cache
def image_suffixes() -> frozenset[str]:
    """The endings, in lower case, of files that Pillow opens."""
    return frozenset(ending for ending, kind in PILImage.registered_extensions().items() if kind in PILImage.OPEN)


def files_below(root: Path) -> list[PurePosixPath]:
    """All files of a folder and the folders below it, relative to it and sorted, but hidden ones.

    Raises:
        InputError: a folder cannot be read, or a name is not UTF-8 and so cannot be kept in a table.
    """

    def cannot_list(error: OSError):
        raise InputError(f"Cannot read the folder {error.filename}: {error.strerror}.") from error

    found, seen = [], set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=cannot_list):
        real = os.path.realpath(folder)
        if real in seen:  # a link that leads back
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith((".", "__")))
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    for file in found:
        if not _is_utf8(str(file)):
            raise InputError(f"The name of the file {os.fsencode(file)!r} is not UTF-8; rename it.")
    return sorted(PurePosixPath(file.relative_to(root).as_posix()) for file in found)


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_image_folder(root: Path, files: list[PurePosixPath]) -> DatasetDict:
    """The images of a folder, undecoded, with whatever is known of each.

    Sub-folders that are all called like splits are those; below them, or else at the top, every sub-folder is a class
    with all that is in it. Where there is a metadata file, it alone says which images there are and what they show.

    Args:
        root: the folder.
        files: the output of `files_below`.

    Returns:
        splits with the column `image`, and `label` or the columns of the metadata.

    Raises:
        InputError: a metadata file cannot be used, or some sub-folders are called like splits and others are not.
    """
    images = [file for file in files if file.suffix.lower() in image_suffixes()]
    metadata = [file for file in files if file.name.lower() in METADATA_NAMES]
    known = {*images, *metadata, PurePosixPath("README.md")}
    if others := [file for file in files if file not in known]:
        _say_left_out(others, root, "no image has such a name")
    return _from_metadata(root, images, metadata) if metadata else _from_classes(root, images)


def _from_classes(root: Path, images: list[PurePosixPath]) -> DatasetDict:
    splits = _by_split(root, images)
    names = sorted({name for split in splits.values() for inner in split.values() if (name := _top(inner)) is not None})
    loaded = {}
    for split, paths in splits.items():
        columns: dict[str, list] = {"image": [str(root / path) for path in paths]}
        features = Features({"image": Image()})
        if names:
            index = {None: None} | {name: position for position, name in enumerate(names)}
            columns["label"] = [index[_top(inner)] for inner in paths.values()]
            features["label"] = ClassLabel(names=names)
        loaded[split] = Dataset.from_dict(columns, features=features)
    return DatasetDict(loaded)


# Images' paths below the root, and those below the folder whose sub-folders are classes.
_Paths = dict[PurePosixPath, PurePosixPath]


def _by_split(root: Path, images: list[PurePosixPath]) -> dict[str, _Paths]:
    paths = _unwrapped({path: path for path in images})
    tops = {_top(inner) for inner in paths.values()}
    of_splits = {top for top in tops if top is not None and top.lower() in SPLIT_NAMES}
    if not of_splits or (of_splits != tops and all(len(inner.parts) < 3 for inner in paths.values())):
        return {"train": paths}  # a class may well be called `train`
    if of_splits != tops:
        other = min(map(str, tops - of_splits - {None}), default=None)
        beside = "images" if other is None else f"the sub-folder {other!r}, which is no split's name,"
        raise InputError(f"{root} holds {beside} beside the split {min(of_splits)!r}; move it into a split, or away.")
    paths = _unwrapped(paths, kept=1)
    splits: dict[str, _Paths] = defaultdict(dict)
    for path, inner in paths.items():
        splits[SPLIT_NAMES[inner.parts[0].lower()]][path] = PurePosixPath(*inner.parts[1:])
    return dict(splits)


def _unwrapped(paths: _Paths, kept: int = 0) -> _Paths:
    """Without folders, below the first `kept`, that hold nothing but one folder of folders, as archives leave them."""
    while len({inner.parts[kept] for inner in paths.values()}) == 1:
        name = next(iter(paths.values())).parts[kept].lower()
        if name in SPLIT_NAMES or any(len(inner.parts) < kept + 3 for inner in paths.values()):
            break
        paths = {path: PurePosixPath(*inner.parts[:kept], *inner.parts[kept + 1 :]) for path, inner in paths.items()}
    return paths


def _top(path: PurePosixPath) -> str | None:
    return path.parts[0] if len(path.parts) > 1 else None


def _from_metadata(root: Path, images: list[PurePosixPath], metadata: list[PurePosixPath]) -> DatasetDict:
    if len({file.suffix.lower() for file in metadata}) > 1:
        raise InputError(f"{root} holds {metadata[0]} and {metadata[-1]}; leave metadata files of one kind there.")
    rows: list[tuple[PurePosixPath, dict[str, Any]]] = []
    for file in metadata:
        read = {".csv": _read_csv, ".jsonl": _read_jsonl, ".parquet": _read_parquet}[file.suffix.lower()]
        count = len(rows)
        for number, row in enumerate(read(root / file)):
            name = row.pop("file_name", None)
            if not isinstance(name, str) or not name.strip():
                raise InputError(f"Row {number:,} of {root / file} has no file_name.")
            path = PurePosixPath(os.path.normpath(file.parent / name.replace("\\", "/")))
            if path.is_absolute() or path.parts[0] == "..":
                raise InputError(f"Row {number:,} of {root / file} names {name}, which lies outside of {root}.")
            rows.append((path, row))
        if len(rows) == count:
            raise InputError(f"{root / file} has no rows.")
    _say_what_differs(root, images, [path for path, _ in rows])
    columns = dict.fromkeys(column for _, row in rows for column in row)
    place = {
        path: split for split, paths in _by_split(root, sorted({path for path, _ in rows})).items() for path in paths
    }
    splits: dict[str, list[tuple[PurePosixPath, dict[str, Any]]]] = defaultdict(list)
    for path, row in rows:
        splits[place[path]].append((path, row))
    return DatasetDict({split: _table(root, splits[split], columns) for split in splits})


def _say_what_differs(root: Path, images: list[PurePosixPath], listed: list[PurePosixPath]) -> None:
    if unlisted := sorted(set(images) - set(listed)):
        _say_left_out(unlisted, root, "no metadata lists it")
    if repeated := [path for path, count in Counter(listed).items() if count > 1]:
        logger.warning("The metadata of %s lists %s more than once, for one of %d.", root, repeated[0], len(repeated))


def _say_left_out(files: list[PurePosixPath], root: Path, why: str) -> None:
    more = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    logger.warning("Left out of %s, because %s: %s%s.", root, why, files[0], more)


def _table(root: Path, rows: list[tuple[PurePosixPath, dict[str, Any]]], columns: dict[str, None]) -> Dataset:
    values: dict[str, list] = {column: [row.get(column) for _, row in rows] for column in columns}
    try:
        features = Features.from_arrow_schema(pa.table(values).schema)
        values["image"], features["image"] = [str(root / path) for path, _ in rows], Image()
        return Dataset.from_dict(values, features=features)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"A column of the metadata of {root} mixes types: {error}.") from error


def _read_csv(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.reader(lines, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                return
            _require_columns(header, file)
            for values in reader:
                if not values:
                    continue
                if len(values) > len(header):
                    raise InputError(
                        f"Line {reader.line_num:,} of {file} has {len(values)} fields, but there are {len(header)} "
                        "columns; put fields that hold commas into quotes."
                    )
                yield {name: value or None for name, value in zip(header, values)}
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {file} as a table of UTF-8: {error}.") from error


def _read_jsonl(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputError(f"Line {number:,} of {file} is no JSON object.")
                _require_columns(list(row), file)
                yield row
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"Cannot read {file} as lines of JSON: {error}.") from error


def _read_parquet(file: Path) -> Iterator[dict[str, Any]]:
    try:
        table = pq.read_table(file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"Cannot read {file}: {' '.join(str(error).split()).rstrip('.')}.") from error
    _require_columns(table.column_names, file)
    yield from table.to_pylist()


def _require_columns(names: list[str], file: Path) -> None:
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InputError(f"{file} has more than one column {repeated[0]!r}; rename or remove them.")
    if "file_name" not in names:
        raise InputError(f"{file} has no column file_name; its columns are {', '.join(names)}.")
