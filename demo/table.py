"""Many image files, also in zip archives -> a row for each prediction; a file that cannot be read is a row, too."""

from __future__ import annotations

import csv
import lzma
import zlib
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import BadZipFile, ZipFile, ZipInfo

from vitrail.demo.engine import Engine, File


COLUMNS: tuple[str, ...] = ("image", "label", "probability", "error")
MOST_IMAGES = 1000
_MOST_BYTES = 50_000_000  # of one image in an archive, unpacked
# What the standard library raises for an archive that is damaged, or packed in a way it does not know.
_DAMAGED = (BadZipFile, RuntimeError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)

Row = dict[str, Any]


def predictions(engine: Engine, model: str, files: Iterable[File]) -> Iterator[list[Row]]:
    """The rows of each image in turn, of at most `MOST_IMAGES`: one, or for a multi-label model one for every class of
    at least one half.

    Args:
        engine: what answers.
        model: the name of the one that is asked.
        files: images and zip archives of them.

    Raises:
        InputError: the model cannot be asked.
    """
    from vitrail.modeling import InputError

    multi_label = engine.model(model).config.is_multi_label
    labels = engine.model(model).labels
    with TemporaryDirectory(prefix="vitrail-") as scratch:
        for name, found in islice(_images(files, Path(scratch)), MOST_IMAGES):
            if isinstance(found, str):
                yield [_row(name, error=found)]
                continue
            try:
                probabilities = engine.classify(model, found)
            except InputError as error:
                yield [_row(name, error=str(error))]
                continue
            best = probabilities.argsort(kind="stable")[::-1].tolist()
            said = max(1, int((probabilities >= 0.5).sum())) if multi_label else 1
            yield [_row(name, labels[index], float(probabilities[index])) for index in best[:said]]


def count_images(files: Iterable[File]) -> int:
    """How many `predictions` there will be."""
    total = 0
    for file in files:
        if _is_archive(file.path):
            with ZipFile(file.path) as archive:
                total += len(_members(archive))
        else:
            total += 1
    return min(total, MOST_IMAGES)


def write_table(rows: Iterable[Row], path: Path) -> None:
    """All rows as CSV."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def _images(files: Iterable[File], scratch: Path) -> Iterator[tuple[str, File | str]]:
    """The name of each image and its file or, where there is none, why; of an archive one is unpacked at a time.

    Each under another path, or two of the same size could be taken for one where a file system's clock is slow.
    """
    numbers = count()
    for file in files:
        if not _is_archive(file.path):
            yield file.name, file
            continue
        with ZipFile(file.path) as archive:
            for member in _members(archive):
                try:
                    with archive.open(member) as stream:
                        content = stream.read(_MOST_BYTES + 1)  # its own word on its size may be a lie
                except _DAMAGED as error:
                    yield member.filename, f"Cannot unpack {member.filename}: {str(error).rstrip('.')}."
                    continue
                if len(content) > _MOST_BYTES:
                    yield (
                        member.filename,
                        f"{member.filename} has more than {_MOST_BYTES // 10**6} MB; make it smaller.",
                    )
                    continue
                unpacked = scratch / str(next(numbers))
                unpacked.write_bytes(content)
                yield member.filename, File(unpacked, member.filename)
                unpacked.unlink()


def _is_archive(path: Path) -> bool:
    """Whether it is a zip archive that can be listed; any other file is taken for an image, and refused as one."""
    try:
        ZipFile(path).close()
    except _DAMAGED:
        return False
    return True


def _members(archive: ZipFile) -> list[ZipInfo]:
    """The files of an archive that somebody put there, not those that a Mac adds."""
    return [
        member for member in archive.infolist() if not member.is_dir() and not member.filename.startswith("__MACOSX/")
    ]


def _row(image: str, label: str = "", probability: float | None = None, error: str = "") -> Row:
    return dict(zip(COLUMNS, (image, label, probability, error)))
