"""Images that cannot be read: found before training or on the way, named, and left out where that is wished."""

import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import torch
from datasets import Dataset, DatasetDict
from torch.utils.data import DataLoader, get_worker_info
from tqdm import tqdm

from vitrail.modeling import InputError, read_image


Rows = dict[str, list[Any]]

_WAY_OUT = "repair or remove it, or leave such images out with --on_bad_image skip."
_BATCH = 256


def check_images(splits: DatasetDict, on_bad_image: str, workers: int) -> tuple[DatasetDict, dict[str, int]]:
    """Finds images that are not there or, if they are to be skipped, that cannot be decoded.

    Args:
        splits: the output of `load_splits` or `load_images`.
        on_bad_image: "error", or "skip", which decodes every image once.
        workers: processes that decode beside this one.

    Returns:
        the splits with readable images alone and, if they are to be skipped, of each how many were left out.

    Raises:
        InputError: an image is not there and is not to be skipped, or none of a split can be read.
    """
    if on_bad_image == "error":
        for split, rows in splits.items():
            if (problem := next(_missing(rows, str(split)), None)) is not None:
                raise InputError(f"{problem.rstrip('.')}; {_WAY_OUT}")
        return splits, {}
    kept, skipped = {}, {}
    for split, rows in splits.items():
        good = [position for position, problem in enumerate(_problems(rows, str(split), workers)) if problem is None]
        if not good:
            raise InputError(f"None of the {len(rows):,} images of split {str(split)!r} can be read.")
        kept[split], skipped[str(split)] = rows if len(good) == len(rows) else rows.select(good), len(rows) - len(good)
    return DatasetDict(kept), skipped


def problem_of(image: dict[str, Any] | None, row: int, split: str) -> str | None:
    """What keeps an undecoded image from being read, in a sentence; None if nothing does."""
    place = f"row {row:,} of split {split!r}"
    if image is None or not (image["bytes"] or image["path"]):
        return f"There is no image in {place}."
    name = f"in {place}" + (f" ({image['path']})" if image["path"] else "")
    try:
        read_image(image["bytes"] or image["path"], name=name)
    except InputError as error:
        return str(error)
    return None


def _missing(rows: Dataset, split: str) -> Iterator[str]:
    """The problems that show without decoding."""
    for table in rows.select_columns(["image", "row"]).with_format("arrow").iter(1000):
        images = table["image"].combine_chunks()
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(images, "bytes")), 0)
        for index in pc.indices_nonzero(pc.equal(lengths, 0)).to_pylist():
            image = images[index].as_py()
            if image is None or image["path"] is None or not Path(image["path"]).is_file():
                yield str(problem_of(image, table["row"][index].as_py(), split))


def _problems(rows: Dataset, split: str, workers: int) -> Iterator[str | None]:
    checked: Any = rows.with_transform(partial(_decode, split=split))
    loader = DataLoader(checked, batch_size=_BATCH, num_workers=workers, collate_fn=list)
    for batch in tqdm(loader, desc=f"Checking {split}", unit="batch", disable=len(loader) == 1):
        yield from (row["problem"] for row in batch)


def _decode(rows: Rows, split: str) -> dict[str, list[str | None]]:
    return {"problem": [problem_of(image, row, split) for image, row in zip(rows["image"], rows["row"])]}


def fingerprint(image: dict[str, Any] | None) -> int:
    """64 bits by which an undecoded image is known again wherever it comes up."""
    source = b"" if image is None else image["bytes"] or str(image["path"]).encode()
    return int.from_bytes(hashlib.blake2b(source, digest_size=8).digest(), signed=True)


class SkippedImages:
    """Counts the different images that were left out, in all workers of all epochs.

    Args:
        workers: the loader's; each has a table of its own in memory that all share, so that none waits for another.
    """

    _CAPACITY = 10_000

    def __init__(self, workers: int):
        self._tables = torch.zeros(max(workers, 1), self._CAPACITY, dtype=torch.int64).share_memory_()

    def add(self, image: dict[str, Any] | None) -> bool:
        """Whether this process leaves the image out for the first time.

        Raises:
            InputError: it is one of too many to be a few bad ones.
        """
        worker = get_worker_info()
        table = self._tables[worker.id if worker else 0]
        count, known = int(table.count_nonzero()), fingerprint(image)
        if known in table[:count].tolist():
            return False
        if count == self._CAPACITY:
            raise InputError(f"More than {count:,} images of the stream cannot be read.")
        table[count] = known
        return True

    def __len__(self) -> int:
        return len(set(self._tables[self._tables != 0].tolist()))


class SplitTransform:
    """A transform of rows to tensors that names the split and row of an image which cannot be read, or leaves it out.

    Args:
        transform: what it makes tensors of are rows with `image`, `row` and more.
        split: the rows' split.
        skipped: takes the images that are left out; without it there is an error.
    """

    def __init__(self, transform: Callable[[Rows], Any], split: str, skipped: SkippedImages | None = None):
        self.transform, self.split, self.skipped = transform, split, skipped

    def __call__(self, rows: Rows) -> Any:
        try:
            return self.transform(rows)
        except InputError as error:
            problems = _decode(rows, self.split)["problem"]
            bad = [index for index, problem in enumerate(problems) if problem is not None]
            if not bad:
                raise  # of something else
            if self.skipped is None:
                raise InputError(f"{str(problems[bad[0]]).rstrip('.')}; {_WAY_OUT}") from error
        for index in bad:
            if self.skipped.add(rows["image"][index]):
                tqdm.write(f"Skipped: {problems[index]}")
        good = {
            name: [each for each, problem in zip(values, problems) if problem is None] for name, values in rows.items()
        }
        return self.transform(good) if len(bad) < len(problems) else {"pixel_values": [], "labels": []}
