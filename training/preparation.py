"""What a run trains and evaluates on: its splits, read before or while they are used, and their way to the Trainer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from datasets import Dataset, DatasetDict, Features, IterableDataset

from vitrail.modeling import InputError
from vitrail.training.arguments import DataArguments, ViTTrainingArguments
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.balancing import oversampled
from vitrail.training.columns import label_names
from vitrail.training.data import class_counts, load_images, load_splits, with_validation
from vitrail.training.loading import Batches, settle_input
from vitrail.training.sources import is_streamable
from vitrail.training.streaming import Streams, first_images, hold_out, load_streams, samples_of, to_tensors
from vitrail.training.unreadable import SkippedImages, SplitTransform, check_images


def prepare(data: DataArguments, arguments: ViTTrainingArguments) -> "Tables | StreamedTables":
    """Reads the splits, with a `validation` among them, and no more of their images than was asked for.

    It prints what a user would not expect of them.

    Raises:
        InputError: the data set cannot be used.
    """
    source = data.dataset, data.dataset_config, data.dataset_revision, data.image_column
    labelled = arguments.objective == "classification"
    if data.streaming and is_streamable(data.dataset):
        streams, said = hold_out(
            load_streams(*source, data.label_column, labelled=labelled),
            data.validation_fraction,
            data.max_eval_samples,
        )
        if said:
            print(said)
        return _streamed(first_images(streams, _limits(streams.splits, data)), data, arguments)
    splits = load_splits(*source, data.label_column) if labelled else load_images(*source)
    splits, said = with_validation(splits, data.validation_fraction, arguments.seed)
    if said:
        print(said)
    splits = _subsample(splits, data, arguments.seed)
    workers = arguments.dataloader_num_workers or 0
    asked = splits
    splits, skipped = check_images(asked, data.on_bad_image, workers)
    for split, count in skipped.items():
        if count:
            print(f"Left out of the split {split!r}, because they cannot be read: {count:,} images.")
    step = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and len(splits["train"]) < step:
        raise InputError(
            f"--dataloader_drop_last leaves nothing of {len(splits['train']):,} training images, which are no batch of "
            f"{step}; leave it out."
        )
    if labelled:
        _require_readable_classes(asked["train"], splits["train"])
    images = {str(split): len(rows) for split, rows in splits.items()}
    if data.balanced_sampling:
        splits["train"] = oversampled(splits["train"], arguments.seed)
    return Tables(splits, images, skipped)


@dataclass(frozen=True)
class Tables:
    """Splits that have been read.

    Attributes:
        splits: rows with `image` (undecoded), `row` and, if classes are learned, `label`.
        images: the number of images per split, each counted once.
        skipped: how many of each split were left out because they cannot be read, if any were to be.
    """

    splits: DatasetDict
    images: dict[str, int]
    skipped: dict[str, int]

    @property
    def features(self) -> Features:
        """The columns' types."""
        return self.splits["train"].features

    def inputs(self, transforms: Mapping[str, EvaluationTransform]) -> dict[str, Any]:
        """What the Trainer takes of each split."""
        return {
            split: Batches(self.splits[split], SplitTransform(made, split), SplitTransform(made.still, split))
            for split, made in transforms.items()
        }

    def settle(self, arguments: ViTTrainingArguments, variations: DataArguments, inputs: dict[str, Any]) -> str:
        """A sentence on how images come to the model; see `settle_input`."""
        return settle_input(arguments, variations, inputs["train"], inputs["validation"])

    def rows(self, split: str) -> Dataset | None:
        """A split's rows, in the order in which they are evaluated."""
        return self.splits[split]

    def samples(self, split: str) -> Dataset:
        """Rows of a split to make pictures of."""
        return self.splits[split]

    def count(self, evaluated: dict[str, int]) -> None:
        """Takes note of how many images were evaluated; of tables it is known before."""


@dataclass(frozen=True)
class StreamedTables:
    """Splits that are read while they are used; attributes and methods are those of `Tables`.

    What is not known beforehand is missing from `images` and `skipped` until `count` is called.
    """

    streams: Streams
    seed: int
    shuffle_buffer: int
    batch_sizes: dict[str, int]
    images: dict[str, int]
    left_out: dict[str, SkippedImages]
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Any]:
        return self.streams.splits

    @property
    def features(self) -> Features:
        return self.streams.features

    def inputs(self, transforms: Mapping[str, EvaluationTransform]) -> dict[str, Any]:
        return {
            split: to_tensors(
                self.streams,
                split,
                SplitTransform(transform, split, self.left_out.get(split)),
                self.batch_sizes[split],
                (self.seed, self.shuffle_buffer) if split == "train" else None,
            )
            for split, transform in transforms.items()
        }

    def settle(self, arguments: ViTTrainingArguments, variations: DataArguments, inputs: dict[str, Any]) -> str:
        files = cast(IterableDataset, self.streams.splits["train"]).num_shards
        if not arguments.workers_given:
            arguments.dataloader_num_workers = min(arguments.dataloader_num_workers or 0, files)
        workers = arguments.dataloader_num_workers
        read = f"{workers} workers read {files:,} files" if workers else f"{files:,} files are read on the way"
        return f"Input: a stream; {read}."

    def rows(self, split: str) -> Dataset | None:
        return self.splits[split] if isinstance(self.splits[split], Dataset) else None

    def samples(self, split: str) -> Dataset:
        return samples_of(self.streams, split)

    def count(self, evaluated: dict[str, int]) -> None:
        self.skipped.update({split: len(images) for split, images in self.left_out.items()})
        self.images.update(evaluated)
        if self.streams.lengths["train"] is not None:
            self.images["train"] = self.streams.lengths["train"] - self.skipped.get("train", 0)


def _streamed(streams: Streams, data: DataArguments, arguments: ViTTrainingArguments) -> StreamedTables:
    ordered = sorted(streams.splits, key=lambda split: (split != "train", split != "validation"))
    images = {split: length for split in ordered if (length := streams.lengths[split]) is not None}
    if "train" not in images and arguments.max_steps <= 0:
        raise InputError(f"It is not known how many images {data.dataset} has; say how long to train with --max_steps.")
    workers = arguments.dataloader_num_workers or 0
    return StreamedTables(
        streams,
        arguments.seed,
        data.shuffle_buffer,
        dict.fromkeys(streams.splits, arguments.eval_batch_size) | {"train": arguments.train_batch_size},
        images,
        {split: SkippedImages(workers) for split in streams.splits if data.on_bad_image == "skip"},
    )


def _require_readable_classes(asked: Dataset, readable: Dataset) -> None:
    lost = (class_counts(asked) > 0) & (class_counts(readable) == 0)
    if lost.any():
        name = label_names(asked.features)[lost.argmax()]
        raise InputError(
            f"None of the training images of class {name!r} can be read; repair them, or remove the class."
        )


def _subsample(splits: DatasetDict, arguments: DataArguments, seed: int) -> DatasetDict:
    def at_most(rows: Dataset, limit: int | None) -> Dataset:
        return rows if limit is None or limit >= len(rows) else rows.shuffle(seed).select(range(limit))

    limits = _limits(splits, arguments)
    return DatasetDict({split: at_most(rows, limits[split]) for split, rows in splits.items()})


def _limits(splits: Mapping[Any, Any], arguments: DataArguments) -> dict[Any, int | None]:
    return dict.fromkeys(splits, arguments.max_eval_samples) | {"train": arguments.max_train_samples}
