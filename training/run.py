"""One training run from the command line's arguments to a folder that anybody can use.

vitrail train --dataset digits --output_dir runs/digits
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

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
from vitrail.training.building import build_model, check_model
from vitrail.training.columns import is_multi_label, label_names
from vitrail.training.data import class_counts
from vitrail.training.interruption import one_sentence
from vitrail.training.loading import collate
from vitrail.training.lora import LoraTrainer
from vitrail.training.loss import ClassificationLoss, balanced_class_weights
from vitrail.training.metrics import Judgements, compute_metrics, judge
from vitrail.training.multi_label import (
    compute_multi_label_metrics,
    multi_hot_labels,
    results_by_class,
    with_metric,
)
from vitrail.training.patch_dropout import PatchDropoutSchedule
from vitrail.training.pictures import sample_files, save_confusions, save_mistakes, save_samples
from vitrail.training.precision import describe_precision
from vitrail.training.preparation import StreamedTables, Tables, prepare
from vitrail.training.probes import FewShotTrainer, LinearProbeTrainer
from vitrail.training.progress import draw_bars_on_terminals_alone
from vitrail.training.provenance import provenance_of
from vitrail.training.publishing import prepare_publication, publish
from vitrail.training.resuming import Run, end_run, note_publication, plan_run, results_of
from vitrail.training.trainer import MaskedPatchTrainer, ViTTrainer


_PREFIXES = {"train": "train", "validation": "eval", "test": "test"}  # of splits' figures, as the Trainer's


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
        if run.only_to_publish:
            print(f"{output_dir} holds the finished model of this very run; what remains is to publish it.")
            publication, metrics = prepare_publication(arguments), results_of(output_dir)
        else:
            publication, metrics = _train(model_arguments, data_arguments, arguments, run)
        published = publish(publication)
        if isinstance(published, Published):
            note_publication(output_dir, published.url)
    counts = {split: metrics.get(f"{prefix}_samples") for split, prefix in _PREFIXES.items()}
    images = {split: count for split, count in counts.items() if count is not None}
    samples = sample_files(output_dir) if arguments.objective == "classification" else []
    return TrainingResult(output_dir, metrics, images, samples, published)


def _train(
    model_arguments: ModelArguments,
    data_arguments: DataArguments,
    arguments: ViTTrainingArguments,
    run: Run,
) -> tuple[Publication | None, dict[str, Any]]:
    """What is to be published, and what `all_results.json` then holds."""
    classifying = arguments.objective == "classification"
    check_model(model_arguments)
    set_seed(arguments.seed)
    data = prepare(data_arguments, arguments)
    multi_label = classifying and is_multi_label(data.features)
    given, arguments = arguments, with_metric(arguments, multi_label)
    model, processor = build_model(model_arguments, label_names(data.features) if classifying else None, multi_label)
    labels = class_labels if classifying else partial(color_labels, patch_shape=model.config.patch_shape)
    if multi_label:
        labels = partial(multi_hot_labels, num_labels=len(model.config.labels))
    print(describe_precision(arguments))

    evaluation = EvaluationTransform(processor, labels)
    training = TrainingTransform(processor, data_arguments, labels, arguments.seed, model.config.num_labels)
    transforms = dict.fromkeys(map(str, data.splits), evaluation)
    if model_arguments.method not in FROZEN:
        transforms["train"] = training
    inputs = data.inputs(transforms)
    trainer_class = MaskedPatchTrainer
    if isinstance(model, ViTForImageClassification):
        trainer_class = _classifier_trainer(model_arguments, arguments, model, data)
    publication = prepare_publication(arguments)
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=inputs["train"],
            eval_dataset=inputs["validation"],
            data_collator=collate,
            callbacks=[
                EpochOfAugmentation(training),
                PatchDropoutSchedule(model, model_arguments.patch_dropout_until),
            ],
            processing_class=processor,
            provenance=provenance_of(model_arguments, data_arguments, arguments, data.images),
        )
    except (ValueError, ImportError, RuntimeError, OSError) as error:  # --report_to and the like
        raise InputError(f"The Trainer cannot start: {str(error).strip().splitlines()[0].rstrip('.')}.") from error
    print(data.settle(arguments, data_arguments, inputs))

    metrics = dict(trainer.train(resume_from_checkpoint=run.begin(given)).metrics)
    counted = {}
    for split in [split for split in ("validation", "test") if split in inputs]:  # the pictures show the last
        metrics |= trainer.evaluate(inputs[split], metric_key_prefix=_PREFIXES[split])
        counted[split] = len(trainer.evaluated.label_ids)
        if classifying:
            classes = results_by_class(trainer.evaluated, model.config.labels, multi_label)
            metrics |= {f"{_PREFIXES[split]}_{name}": figures for name, figures in classes.items()}
    data.count(counted)
    metrics |= {f"{_PREFIXES[split]}_samples": count for split, count in data.images.items()}
    metrics |= {f"skipped_images_{split}": count for split, count in data.skipped.items()}
    trainer.results = metrics
    trainer.save_model()
    trainer.save_state()
    output_dir = Path(str(arguments.output_dir))
    if trainer.is_world_process_zero():
        if classifying:  # the saved weights are whole, which those of a sharded model are not
            saved: Any = ViTForImageClassification.from_pretrained(output_dir)
            saved.to(arguments.device)
            shown = "test" if "test" in inputs else "validation"
            save_samples(saved, processor, data.samples(shown), output_dir)
            if not multi_label:
                judgements = Judgements(*trainer.evaluated.predictions)
                confusions = save_confusions(judgements, model.config.labels, output_dir)
                mistakes = save_mistakes(saved, processor, data.rows(shown), judgements, output_dir)
                trainer.pictures = [confusions, mistakes] if mistakes else [confusions]
        trainer.create_model_card()
        end_run(output_dir, metrics)
    return publication, metrics


def _classifier_trainer(
    how: ModelArguments,
    arguments: ViTTrainingArguments,
    model: ViTForImageClassification,
    data: Tables | StreamedTables,
) -> Callable[..., ViTTrainer]:
    """What trains a classifier by `--method`, with its loss and metrics."""
    trainers: dict[str, Callable[..., ViTTrainer]] = {
        "full": ViTTrainer,
        "lora": partial(LoraTrainer, rank=how.lora_rank, alpha=how.lora_alpha),
        "linear-probe": LinearProbeTrainer,
        "few-shot": partial(FewShotTrainer, shots=how.shots, draws=how.shot_draws),
    }
    multi_label, weights = model.config.is_multi_label, None
    if arguments.class_weights == "balanced":
        rows = data.samples("train")
        weights = balanced_class_weights(class_counts(rows), len(rows), multi_label)
    loss = ClassificationLoss(arguments.label_smoothing_factor, weights, multi_label)
    if multi_label:
        return partial(trainers[how.method], compute_loss_func=loss, compute_metrics=compute_multi_label_metrics)
    return partial(
        trainers[how.method],
        compute_loss_func=loss,
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
