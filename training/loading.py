"""Batches for the Trainer, from files or from memory, and how many processes prepare them."""

from collections.abc import Callable
from typing import Any, cast

import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import default_data_collator

from vitrail.training.arguments import DataArguments, ViTTrainingArguments, usable_cores
from vitrail.training.augmentation import Rows


_KEPT = 2**30  # bytes of a split's images that may stay in memory
_CHUNK = 32  # images that are decoded at a time, when all are decoded ahead
_MANY = 1000  # images, for which it is worth starting processes to decode them ahead


class Batches:
    """Rows of a data set that are asked for, and given to the Trainer, as whole batches.

    A `datasets.Dataset` with a transform fetches a batch's rows from Arrow, transforms them together and then makes an
    example of each, for a collator to put together again. Where images are small, that and decoding them takes many
    times as long as everything else; hence this class, and `collate`.

    Args:
        rows: undecoded images with `row`, and labels if there are any.
        transform: makes a batch of them and of `key`, their places in `rows`: an `EvaluationTransform`.
        still: its `still`.

    Attributes:
        kept: what `still` made of all the images, if `keep` found that it fits into memory.
    """

    def __init__(
        self,
        rows: Dataset,
        transform: Callable[[Rows], dict[str, torch.Tensor]],
        still: Callable[[Rows], torch.Tensor | None],
    ):
        self.rows, self.transform, self.still = rows, transform, still
        self.kept: torch.Tensor | None = None
        self._columns: Rows = {}  # beside them

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[int]) -> dict[str, torch.Tensor]:
        if self.kept is None:
            rows = cast(Rows, self.rows[keys])
        else:
            rows = {name: [values[key] for key in keys] for name, values in self._columns.items()}
            rows |= {"image": self.kept[torch.tensor(keys)]}
        return self.transform(rows | {"key": keys})

    def keep(self) -> None:
        """Decodes the images once and for all, if they then fit into a gigabyte.

        Raises:
            InputError: an image cannot be decoded.
        """
        first = self._stilled([0])
        if first is None or first.nbytes * len(self) > _KEPT:
            return
        kept = torch.empty((len(self), *first.shape[1:]), dtype=first.dtype)
        workers = usable_cores() if len(self) > _MANY else 0
        generator = torch.Generator()  # or else the loader would take a number from everybody's
        places: Any = range(len(self))
        chunks = DataLoader(places, _CHUNK, collate_fn=self._stilled, num_workers=workers, generator=generator)
        for place, chunk in zip(kept.split(_CHUNK), chunks):
            if chunk is None or chunk.shape != place.shape:
                return
            place.copy_(chunk)
        self.kept, self._columns = kept, cast(Rows, self.rows.remove_columns("image")[:])

    def _stilled(self, keys: list[int]) -> torch.Tensor | None:
        return self.still(cast(Rows, self.rows[keys]))


def collate(batch: Any) -> Any:
    """Leaves a batch that comes whole as it is, and stacks the examples of a stream."""
    return batch if isinstance(batch, dict) else default_data_collator(batch)


def settle_input(
    arguments: ViTTrainingArguments, variations: DataArguments, training: Batches, validation: Batches
) -> str:
    """Keeps in memory what fits, and does without workers, unless they were asked for, where that is enough.

    Returns:
        a sentence that says how images come to the model.

    Raises:
        InputError: an image cannot be decoded.
    """
    for batches in (training, validation):
        batches.keep()
    if training.kept is not None and variations.policy == "none" and not arguments.workers_given:
        arguments.dataloader_num_workers = 0  # whole batches are varied in less time than processes take to start
    workers = arguments.dataloader_num_workers
    kept = [batches.kept for batches in (training, validation) if batches.kept is not None]
    count, megabytes = sum(map(len, kept)), sum(pixels.nbytes for pixels in kept) / 1e6
    images = f"{count:,} decoded images stay in memory ({megabytes:,.0f} MB)" if kept else "images are read as needed"
    prepared = f"{workers} worker{'s' if workers > 1 else ''}" if workers else "no workers"
    return f"Input: {images}, {prepared}."
