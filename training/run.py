"""One training run from the command line's arguments to a folder that anybody can use.

vitrail train --dataset digits --output_dir runs/digits
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import set_seed
from transformers.image_utils import SizeDict
from transformers.trainer_utils import get_last_checkpoint

from vitrail.inspection import attention_rollout, predictions_figure
from vitrail.modeling import (
    InputError,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedPatchPrediction,
    ViTImageProcessor,
    read_image,
)
from vitrail.modeling.configuration_vit import VARIANTS
from vitrail.training.arguments import DataArguments, ModelArguments, ViTTrainingArguments, parse_arguments
from vitrail.training.augmentation import EvaluationTransform, TrainingTransform, class_labels, color_labels
from vitrail.training.card import Provenance
from vitrail.training.data import load_images, load_splits, with_validation
from vitrail.training.metrics import compute_metrics
from vitrail.training.trainer import MaskedPatchTrainer, ViTTrainer


_SAMPLES = 8


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
        model, processor = _build(model_arguments, splits["train"].features["label"].names)
        labels, trainer_class = class_labels, partial(ViTTrainer, compute_metrics=compute_metrics)
    else:
        model, processor = _build(model_arguments, None)
        labels, trainer_class = partial(color_labels, patch_shape=model.config.patch_shape), MaskedPatchTrainer

    evaluation, training = EvaluationTransform(processor, labels), TrainingTransform(processor, data_arguments, labels)
    transforms = dict.fromkeys(splits, evaluation) | {"train": training}
    transformed: dict[Any, Any] = {split: rows.with_transform(transforms[split]) for split, rows in splits.items()}
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

    trainer.results = metrics
    trainer.save_model()
    trainer.save_state()
    trainer.save_metrics("all", metrics, combined=False)
    samples = []
    if isinstance(model, ViTForImageClassification):
        samples = _save_samples(model, processor, splits["validation"], output_dir)
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


def _build(
    arguments: ModelArguments, labels: list[str] | None
) -> tuple[ViTForImageClassification | ViTForMaskedPatchPrediction, ViTImageProcessor]:
    """A classifier of these labels, or without any a model for masked patch prediction, and its processor."""
    if arguments.model is None:
        raise InputError(f"Say what to train with --model: a Hub id, a folder, or a variant of {', '.join(VARIANTS)}.")
    model_class = ViTForMaskedPatchPrediction if labels is None else ViTForImageClassification
    fields = _overrides(arguments)
    if labels is not None:
        fields |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
        }
    looks_like_variant = len(arguments.model.split("/")) == 2 and arguments.model.split("/")[1].isdecimal()
    if arguments.model in VARIANTS or (looks_like_variant and not Path(arguments.model).exists()):
        model = model_class(ViTConfig.from_variant(arguments.model, **fields))
        processor = ViTImageProcessor(num_channels=model.config.num_channels)
    else:
        model = model_class.from_pretrained(arguments.model, **fields)
        processor = ViTImageProcessor.from_pretrained(arguments.model)
        before = ViTConfig.from_pretrained(arguments.model, image_size=model.config.image_size).labels
        if isinstance(model, ViTForImageClassification) and before != model.config.labels:
            model.reset_head()  # which may have had as many classes, but others or in another order
    if processor.num_channels != model.config.num_channels:
        raise InputError(
            f"{arguments.model} has a model of {model.config.num_channels} channels, but prepares images of "
            f"{processor.num_channels}; save a ViTImageProcessor(num_channels={model.config.num_channels}) there."
        )
    height, width = model.config.image_shape
    if processor.output_size != (height, width):  # then the image is fitted, by default squashed, to the model's size
        size = SizeDict(height=height, width=width)
        if processor.fit == "crop" and height == width:
            processor.size, processor.crop_size = SizeDict(shortest_edge=height), size
        else:
            processor.size, processor.do_center_crop = size, False
    return model, processor


def _overrides(arguments: ModelArguments) -> dict:
    try:
        fields = json.loads(arguments.config_overrides or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"config_overrides is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InputError(f"config_overrides must be a JSON object like '{{\"num_hidden_layers\": 6}}', not {fields}.")
    unknown = fields.keys() - ViTConfig().to_dict().keys()
    if unknown:
        raise InputError(f"config_overrides sets {sorted(unknown)[0]!r}, which is no field of ViTConfig.")
    sizes = {"image_size": arguments.image_size, "patch_size": arguments.patch_size}
    return fields | {name: size for name, size in sizes.items() if size is not None}


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


def _save_samples(
    model: ViTForImageClassification, processor: ViTImageProcessor, rows: Dataset, output_dir: Path
) -> list[Path]:
    """Saves a few held-out images, and a figure of what the model says and where it looks."""
    names = rows.features["label"].names
    chosen: dict[str, list] = rows.shuffle(seed=0)[:_SAMPLES]
    images = [read_image(image["bytes"] or image["path"]) for image in chosen["image"]]
    truths = [names[label] for label in chosen["label"]]
    model.eval()
    out = attention_rollout(model, processor(images, return_tensors="pt").pixel_values.to(model.device))
    assert out.logits is not None  # a classifier has them
    best = out.logits.float().softmax(-1).max(-1)
    predictions = [names[index] for index in best.indices.tolist()]
    regions = [processor.seen_region(*image.size) for image in images]
    figure = predictions_figure(images, out.heatmap, predictions, best.values.tolist(), truths, regions)
    figure.savefig(output_dir / "samples_with_rollout.png", dpi=120)
    return [_save_sample(image, output_dir / "samples" / f"{i}.png") for i, image in enumerate(images)]


def _save_sample(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path
