"""Batches for the Trainer, from files or from memory, and how many processes prepare them."""

from collections.abc import Callable
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from vitrail.training.arguments import ViTTrainingArguments, usable_cores
from vitrail.training.augmentation import EvaluationTransform, Rows
from vitrail.training.unreadable import naming_bad_images


_KEPT = 2**30  # bytes of a split's images that may stay in memory
_CHUNK = 32  # images that are decoded at a time, when all are decoded ahead
_MANY = 1000  # images, for which it is worth starting processes to decode them ahead


class Batches:
    """Rows of a data set that are asked for, and given to the Trainer, as whole batches.

    A `datasets.Dataset` with a transform fetches a batch's rows from Arrow, transforms them together and then makes an
    example of each, for a collator to put together again. Where images are small, that and decoding them takes many
    times as long as everything else; hence this class, and `as_it_is` for a collator.

    Args:
        rows: undecoded images with `row`, and labels if there are any.
        transform: makes a batch of them and of `key`, their places in `rows`.
        split: the rows', as errors call it.

    Attributes:
        kept: what `transform.still` made of all the images, if `keep` found that it fits into memory.
    """

    def __init__(self, rows: Dataset, transform: Callable[[Rows], Any], split: str):
        self.rows, self.transform, self.split = rows, transform, split
        self.kept: torch.Tensor | None = None
        self._columns: Rows = {}  # beside them

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[int]) -> Any:
        if self.kept is None:
            rows = cast(Rows, self.rows[keys])
            with naming_bad_images(rows, self.split):
                return self.transform(rows | {"key": keys})
        rows = {name: [values[key] for key in keys] for name, values in self._columns.items()}
        return self.transform(rows | {"image": self.kept[torch.tensor(keys)], "key": keys})

    def keep(self) -> None:
        """Decodes the images once and for all, if they then fit into a gigabyte.

        Raises:
            InputError: an image cannot be decoded.
        """
        assert isinstance(self.transform, EvaluationTransform)
        still = Batches(self.rows, self.transform.still, self.split)
        first = still.__getitems__(list(range(min(_CHUNK, len(self)))))
        if first is None or first[0].nbytes * len(self) > _KEPT:
            return
        kept = torch.empty((len(self), *first.shape[1:]), dtype=first.dtype)
        workers = usable_cores() if len(self) > _MANY else 0
        chunks = DataLoader(cast(Any, still), _CHUNK, collate_fn=as_it_is, num_workers=workers)
        for place, chunk in zip(kept.split(_CHUNK), chunks):
            if chunk is None or chunk.shape != place.shape:
                return
            place.copy_(chunk)
        self.kept, self._columns = kept, cast(Rows, self.rows.remove_columns("image")[:])


def as_it_is(batch: Any) -> Any:
    """A collator for batches that come ready."""
    return batch


def settle_input(arguments: ViTTrainingArguments, training: Batches, validation: Batches) -> str:
    """Keeps in memory what fits, and does without workers where that is enough.

    Returns:
        a sentence that says how images come to the model.

    Raises:
        InputError: an image cannot be decoded.
    """
    for batches in (training, validation):
        batches.keep()
    if training.kept is not None and not arguments.workers_given:
        arguments.dataloader_num_workers = 0  # what is left to do takes less than handing it to another process
    kept = [batches for batches in (training, validation) if batches.kept is not None]
    count, megabytes = sum(map(len, kept)), sum(batches.kept.nbytes for batches in kept) / 1e6
    workers = arguments.dataloader_num_workers
    images = (
        f"{count:,} decoded images stay in memory ({megabytes:,.0f} MB)" if kept else "images are decoded on the way"
    )
    prepared = f"{workers} worker{'s' if workers > 1 else ''} prepare them" if workers else "no workers are needed"
    return f"Input: {images}; {prepared}."
