"""One training run from the command line's arguments to a folder that anybody can use.

vitrail train --dataset digits --output_dir runs/digits
"""

from collections.abc import Sequence
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
from vitrail.training.augmentation import (
    EpochOfAugmentation,
    EvaluationTransform,
    TrainingTransform,
    class_labels,
    color_labels,
)
from vitrail.training.building import build_model
from vitrail.training.card import Provenance
from vitrail.training.data import load_images, load_splits, with_validation
from vitrail.training.loading import Batches, collate, settle_input
from vitrail.training.metrics import compute_metrics
from vitrail.training.pictures import save_samples
from vitrail.training.trainer import MaskedPatchTrainer, ViTTrainer


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
    splits = load_splits(*source, data_arguments.label_column) if classifying else load_images(*source)
    splits, said = with_validation(splits, data_arguments.validation_fraction, arguments.seed)
    if said:
        print(said)
    splits = _subsample(splits, data_arguments, arguments.seed)
    images = {str(split): len(rows) for split, rows in splits.items()}
    if classifying:
        model, processor = build_model(model_arguments, splits["train"].features["label"].names)
        labels, trainer_class = class_labels, partial(ViTTrainer, compute_metrics=compute_metrics)
    else:
        model, processor = build_model(model_arguments, None)
        labels, trainer_class = partial(color_labels, patch_shape=model.config.patch_shape), MaskedPatchTrainer

    evaluation = EvaluationTransform(processor, labels)
    training = TrainingTransform(processor, data_arguments, labels, arguments.seed, model.config.num_labels)
    batches: dict[Any, Any] = {split: Batches(rows, evaluation, evaluation.still) for split, rows in splits.items()}
    batches["train"] = Batches(splits["train"], training, training.still)
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=batches["train"],
            eval_dataset=batches["validation"],
            data_collator=collate,
            callbacks=[EpochOfAugmentation(training)],
            processing_class=processor,
            provenance=_provenance(model_arguments, data_arguments, images),
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # --report_to, --push_to_hub and the like
        raise InputError(f"The Trainer cannot start: {str(error).strip().splitlines()[0].rstrip('.')}.") from error
    print(settle_input(arguments, data_arguments, batches["train"], batches["validation"]))
    trained = trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trained.metrics | trainer.evaluate()
    if "test" in batches:
        metrics |= trainer.evaluate(batches["test"], metric_key_prefix="test")

    trainer.results = metrics
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("all", metrics, combined=False)
    samples = []
    if isinstance(model, ViTForImageClassification):
        samples = save_samples(model, processor, splits["validation"], output_dir)
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

    limits: dict[Any, int | None] = dict.fromkeys(splits, arguments.max_eval_samples) | {
        "train": arguments.max_train_samples
    }
    return DatasetDict({split: at_most(rows, limits[split]) for split, rows in splits.items()})


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
