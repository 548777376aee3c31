"""One training run from the command line's arguments to a folder that anybody can use.

vitrail train --dataset digits --output_dir runs/digits
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from datasets import Dataset, DatasetDict
from transformers import set_seed
from transformers.trainer_utils import get_last_checkpoint

from vitrail.modeling import InputError, ViTForImageClassification
from vitrail.modeling.configuration_vit import VARIANTS
from vitrail.training.arguments import DataArguments, ModelArguments, ViTTrainingArguments, parse_arguments
from vitrail.training.augmentation import EvaluationTransform, TrainingTransform, class_labels, color_labels
from vitrail.training.building import build_model
from vitrail.training.card import Provenance
from vitrail.training.columns import is_multi_label, label_names
from vitrail.training.data import load_images, load_splits, with_validation
from vitrail.training.metrics import compute_metrics
from vitrail.training.multi_label import choose_metric, compute_multi_label_metrics, multi_hot_labels
from vitrail.training.pictures import save_samples
from vitrail.training.sources import is_streamable
from vitrail.training.streaming import first_images, hold_out, load_streams, samples_of, to_tensors
from vitrail.training.trainer import MaskedPatchTrainer, ViTTrainer
from vitrail.training.unreadable import SkippedImages, SplitTransform, check_images


# What an evaluation's figures begin with, and the split that it is of.
_EVALUATED = {"eval": "validation", "test": "test"}


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        output_dir: weights, processor, card, metrics and, of a classifier, pictures.
        metrics: what `all_results.json` holds.
        images: the number of images per split.
        samples: held-out images as PNG files to try a classifier on; without one, none.
    """

    output_dir: Path
    metrics: dict[str, float]
    images: dict[str, int]
    samples: list[Path]


def train(argv: Sequence[str]) -> TrainingResult:
    """Trains as the flags say, evaluates the weights that are kept, and saves everything to `--output_dir`.

    Args:
        argv: the flags of `vitrail train`.

    Raises:
        InputError: a flag, the data set, an image or the base model cannot be used.
    """
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    output_dir = _writable(Path(str(arguments.output_dir)))
    checkpoint = _checkpoint(arguments)
    classifying = arguments.objective == "classification"
    set_seed(arguments.seed)
    source = (
        data_arguments.dataset,
        data_arguments.dataset_config,
        data_arguments.dataset_revision,
        data_arguments.image_column,
    )
    workers, fraction = arguments.dataloader_num_workers, data_arguments.validation_fraction
    if data_arguments.streaming and is_streamable(data_arguments.dataset):
        streams = load_streams(*source, data_arguments.label_column, labelled=classifying)
        streams, said = hold_out(streams, fraction, data_arguments.max_eval_samples)
        streams = first_images(streams, _limits(streams.splits, data_arguments))
        splits, features, skipped = streams.splits, streams.features, {}
        images = {split: length for split, length in streams.lengths.items() if length is not None}
        if "train" not in images and arguments.max_steps <= 0:
            raise InputError(
                f"It is not known how many images {source[0]} has; say how long to train with --max_steps."
            )
    else:
        streams, splits = (
            None,
            load_splits(*source, data_arguments.label_column) if classifying else load_images(*source),
        )
        splits, said = with_validation(splits, fraction, arguments.seed)
        splits = _subsample(splits, data_arguments, arguments.seed)
        splits, skipped = check_images(splits, data_arguments.on_bad_image, workers)
        features = splits["train"].features
        images = {str(split): len(rows) for split, rows in splits.items()}
    if said:
        print(said)
    for split, count in skipped.items():
        if count:
            print(f"{count:,} images of the split {split!r} cannot be read and are left out.")
    if classifying:
        multi_label = is_multi_label(features)
        choose_metric(arguments, multi_label)
        names = label_names(features)
        model, processor = build_model(model_arguments, names, multi_label)
        labels = partial(multi_hot_labels, num_labels=len(names)) if multi_label else class_labels
        metrics_of = compute_multi_label_metrics if multi_label else compute_metrics
        trainer_class = partial(ViTTrainer, compute_metrics=metrics_of)
    else:
        model, processor = build_model(model_arguments, None)
        labels, trainer_class = partial(color_labels, patch_shape=model.config.patch_shape), MaskedPatchTrainer

    evaluation, training = EvaluationTransform(processor, labels), TrainingTransform(processor, data_arguments, labels)
    transforms = dict.fromkeys(splits, evaluation) | {"train": training}
    left_out = {split: SkippedImages(workers) for split in splits if streams and data_arguments.on_bad_image == "skip"}
    named = {split: SplitTransform(transforms[split], str(split), left_out.get(split)) for split in splits}
    transformed: dict[Any, Any]
    if streams is None:
        transformed = {split: rows.with_transform(named[split]) for split, rows in splits.items()}
    else:
        sizes = dict.fromkeys(splits, arguments.eval_batch_size) | {"train": arguments.train_batch_size}
        shuffles = {"train": (arguments.seed, data_arguments.shuffle_buffer)}
        transformed = {
            split: to_tensors(streams, split, named[split], sizes[split], shuffles.get(split)) for split in splits
        }
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=transformed["train"],
            eval_dataset=transformed["validation"],
            processing_class=processor,
            provenance=_provenance(model_arguments, data_arguments, images),
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # --report_to, --push_to_hub and the like
        raise InputError(f"The Trainer cannot start: {str(error).strip().splitlines()[0].rstrip('.')}.") from error
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trained.metrics | trainer.evaluate()
    if "test" in transformed:
        metrics |= trainer.evaluate(transformed["test"], metric_key_prefix="test")
    if streams is not None:
        skipped = {split: len(images) for split, images in left_out.items()}
        images |= {split: metrics[f"{prefix}_samples"] for prefix, split in _EVALUATED.items() if split in splits}
        images |= {"train": images["train"] - skipped.get("train", 0)} if "train" in images else {}
    metrics |= {f"skipped_images_{split}": count for split, count in skipped.items()}

    trainer.results = metrics
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("all", metrics, combined=False)
    samples = []
    if isinstance(model, ViTForImageClassification):
        held_out = samples_of(streams, "validation") if streams else splits["validation"]
        samples = save_samples(model, processor, held_out, output_dir)
    trainer.create_model_card()
    if arguments.push_to_hub:
        trainer.push_to_hub()
    return TrainingResult(output_dir, metrics, images, samples)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise InputError(f"Cannot write to --output_dir {folder}: {error.strerror}.") from error
    return folder


def _subsample(splits: DatasetDict, arguments: DataArguments, seed: int) -> DatasetDict:
    def at_most(rows: Dataset, limit: int | None) -> Dataset:
        return rows if limit is None or limit >= len(rows) else rows.shuffle(seed).select(range(limit))

    limits = _limits(splits, arguments)
    return DatasetDict({split: at_most(rows, limits[split]) for split, rows in splits.items()})


def _limits(splits: Iterable[Any], arguments: DataArguments) -> dict[Any, int | None]:
    return dict.fromkeys(splits, arguments.max_eval_samples) | {"train": arguments.max_train_samples}


def _provenance(model: ModelArguments, data: DataArguments, images: dict[str, int]) -> Provenance:
    local_data = data.dataset == "digits" or Path(data.dataset).exists()
    base = None if model.model in VARIANTS else model.model
    local_base = base is None or Path(base).exists()
    return Provenance(
        dataset="scikit-learn's handwritten digits" if data.dataset == "digits" else Path(data.dataset).name,
        dataset_id=None if local_data else data.dataset,
        base_model=Path(base).name if base and local_base else base,
        base_model_id=None if local_base else base,
        images=images,
    )


def _checkpoint(arguments: ViTTrainingArguments) -> str | None:
    """The folder to resume from: `--resume_from_checkpoint FOLDER`, or `last` for the newest in the output folder."""
    resume = arguments.resume_from_checkpoint
    if resume == "last":
        found = get_last_checkpoint(arguments.output_dir) if Path(str(arguments.output_dir)).is_dir() else None
        if found is None:
            raise InputError(f"There is no checkpoint in {arguments.output_dir} to resume from.")
        return found
    if resume is not None and not (Path(resume) / "trainer_state.json").is_file():
        raise InputError(f"There is no checkpoint {resume} to resume from; `last` takes the newest one.")
    return resume
