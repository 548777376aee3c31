"""One training run from the command line's arguments to a folder that anybody can use.

vitrail train --dataset digits --output_dir runs/digits
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from transformers import set_seed

from vitrail.modeling import InputError, ViTForImageClassification
from vitrail.publishing import Publication, Published, PublishingError
from vitrail.training.arguments import FROZEN, DataArguments, ModelArguments, ViTTrainingArguments, parse_arguments
from vitrail.training.augmentation import (
    EpochOfAugmentation,
    EvaluationTransform,
    TrainingTransform,
    class_labels,
    color_labels,
)
from vitrail.training.balancing import oversampled
from vitrail.training.building import build_model
from vitrail.training.data import load_images, load_splits, with_validation
from vitrail.training.interruption import one_sentence
from vitrail.training.loading import Batches, collate, settle_input
from vitrail.training.lora import LoraTrainer
from vitrail.training.loss import ClassificationLoss, balanced_class_weights
from vitrail.training.metrics import class_results, compute_metrics, judge
from vitrail.training.patch_dropout import PatchDropoutSchedule
from vitrail.training.pictures import save_confusions, save_mistakes, save_samples
from vitrail.training.precision import choose_attention
from vitrail.training.probes import FewShotTrainer, LinearProbeTrainer
from vitrail.training.progress import draw_bars_on_terminals_alone
from vitrail.training.provenance import provenance_of
from vitrail.training.publishing import prepare_publication, publish
from vitrail.training.resuming import Run, end_run, plan_run
from vitrail.training.trainer import MaskedPatchTrainer, ViTTrainer


@dataclass(frozen=True)
class TrainingResult:
    """What a run left behind.

    Attributes:
        output_dir: weights, processor, card, metrics and, of a classifier, pictures.
        metrics: what `all_results.json` holds.
        images: the number of images per split.
        samples: held-out images as PNG files to try a classifier on; without one, none.
        published: where `--push_to_hub` has put it, or why it has not; None without that flag.
    """

    output_dir: Path
    metrics: dict[str, Any]
    images: dict[str, int]
    samples: list[Path]
    published: Published | PublishingError | None


def train(argv: Sequence[str]) -> TrainingResult:
    """Trains as the flags say, evaluates the weights that are kept, and saves everything to `--output_dir`.

    Args:
        argv: the flags of `vitrail train`.

    Raises:
        InputError: a flag, the data set, an image, the base model or the machine cannot be used.
        Interrupted: by SIGINT or SIGTERM.
        PublishingError: `--push_to_hub` could never succeed; nothing has been trained.
    """
    draw_bars_on_terminals_alone()
    model_arguments, data_arguments, arguments = parse_arguments(argv)
    output_dir = _writable(Path(str(arguments.output_dir)))
    run = plan_run(model_arguments, data_arguments, arguments)
    with one_sentence(argv, output_dir):
        publication, *finished = _train(model_arguments, data_arguments, arguments, run)
    return TrainingResult(output_dir, *finished, publish(publication))


def _train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: ViTTrainingArguments,
    run: Run,
) -> tuple[Publication | None, dict[str, Any], dict[str, int], list[Path]]:
    """What is to be published, and what `TrainingResult` has of a run: its metrics, images and samples."""
    classifying = arguments.objective == "classification"
    set_seed(arguments.seed)
    splits = _read(data_arguments, arguments)
    images = {str(split): len(rows) for split, rows in splits.items()}
    if data_arguments.balanced_sampling:
        splits["train"] = oversampled(splits["train"], arguments.seed)
    names = splits["train"].features["label"].names if classifying else None
    model, processor = build_model(model_arguments, names)
    labels = class_labels if classifying else partial(color_labels, patch_shape=model.config.patch_shape)
    print(choose_attention(model, arguments, model.config.sequence_length))

    evaluation = EvaluationTransform(processor, labels)
    training = TrainingTransform(processor, data_arguments, labels, arguments.seed, model.config.num_labels)
    batches: dict[Any, Any] = {split: Batches(rows, evaluation, evaluation.still) for split, rows in splits.items()}
    if model_arguments.method not in FROZEN:
        batches["train"] = Batches(splits["train"], training, training.still)
    trainer_class = MaskedPatchTrainer
    if isinstance(model, ViTForImageClassification):
        trainer_class = _classifier_trainer(model_arguments, arguments, model, splits["train"])
    publication = prepare_publication(arguments)
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=batches["train"],
            eval_dataset=batches["validation"],
            data_collator=collate,
            callbacks=[
                EpochOfAugmentation(training),
                PatchDropoutSchedule(model.config, model_arguments.patch_dropout_until),
            ],
            processing_class=processor,
            provenance=provenance_of(model_arguments, data_arguments, arguments, images),
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # --report_to and the like
        raise InputError(f"The Trainer cannot start: {str(error).strip().splitlines()[0].rstrip('.')}.") from error
    print(settle_input(arguments, data_arguments, batches["train"], batches["validation"]))

    metrics = dict(trainer.train(resume_from_checkpoint=run.begin(arguments)).metrics)
    held_out = {"validation": "eval", "test": "test"}
    for split in [split for split in held_out if split in splits]:  # the last is the one that the pictures show
        metrics |= trainer.evaluate(batches[split], metric_key_prefix=held_out[split])
        if classifying:
            classes = class_results(trainer.judgements, model.config.labels)
            metrics |= {f"{held_out[split]}_{name}": figures for name, figures in classes.items()}
    trainer.results = metrics
    trainer.save_model()
    trainer.save_state()
    samples, output_dir = [], Path(str(arguments.output_dir))
    if trainer.is_world_process_zero():
        if classifying:  # the saved weights are whole, which those of a sharded model are not
            saved = ViTForImageClassification.from_pretrained(output_dir).to(arguments.device)
            shown = splits["test" if "test" in splits else "validation"]
            samples = save_samples(saved, processor, shown, output_dir)
            confusions = save_confusions(trainer.judgements, model.config.labels, output_dir)
            mistakes = save_mistakes(saved, processor, shown, trainer.judgements, output_dir)
            trainer.pictures = [confusions, mistakes] if mistakes else [confusions]
        trainer.create_model_card()
        end_run(output_dir, metrics)
    return publication, metrics, images, samples


def _read(data_arguments: DataArguments, arguments: ViTTrainingArguments) -> DatasetDict:
    """The splits, with a `validation` among them, and no more of their images than was asked for."""
    source = (
        data_arguments.dataset,
        data_arguments.dataset_config,
        data_arguments.dataset_revision,
        data_arguments.image_column,
    )
    labelled = arguments.objective == "classification"
    splits = load_splits(*source, data_arguments.label_column) if labelled else load_images(*source)
    splits, said = with_validation(splits, data_arguments.validation_fraction, arguments.seed)
    if said:
        print(said)
    return _subsample(splits, data_arguments, arguments.seed)


def _classifier_trainer(
    how: ModelArguments, arguments: ViTTrainingArguments, model: ViTForImageClassification, rows: Dataset
) -> Callable[..., ViTTrainer]:
    """What trains a classifier by `--method`, with its loss and metrics."""
    trainers: dict[str, Callable[..., ViTTrainer]] = {
        "full": ViTTrainer,
        "lora": partial(LoraTrainer, rank=how.lora_rank, alpha=how.lora_alpha),
        "linear-probe": LinearProbeTrainer,
        "few-shot": partial(FewShotTrainer, shots=how.shots, draws=how.shot_draws),
    }
    multi_label, weights = model.config.problem_type == "multi_label_classification", None
    if arguments.class_weights == "balanced":
        counts = np.bincount(rows["label"], minlength=len(model.config.labels))
        weights = balanced_class_weights(counts, len(rows), multi_label)
    return partial(
        trainers[how.method],
        compute_loss_func=ClassificationLoss(arguments.label_smoothing_factor, weights, multi_label),
        compute_metrics=partial(compute_metrics, num_labels=len(model.config.labels)),
        preprocess_logits_for_metrics=judge,
    )


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
