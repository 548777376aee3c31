"""Measuring a trained model on any labelled data set.

vitrail evaluate --model runs/digits --dataset digits
"""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from datasets import Dataset, DatasetDict
from transformers import Trainer, TrainingArguments

from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor
from vitrail.training.augmentation import EvaluationTransform, class_labels
from vitrail.training.columns import is_multi_label, label_feature, label_names
from vitrail.training.data import load_splits, split_name
from vitrail.training.metrics import Judgements, compute_metrics, judge
from vitrail.training.multi_label import compute_multi_label_metrics, multi_hot_labels, results_by_class
from vitrail.training.pictures import save_confusions, save_mistakes
from vitrail.training.precision import has_fast_bf16
from vitrail.training.sources import is_streamable
from vitrail.training.streaming import load_streams, to_tensors
from vitrail.training.unreadable import SkippedImages, SplitTransform, check_images


def evaluate(
    model: str,
    dataset: str,
    split: str | None = None,
    batch_size: int = 64,
    output: Path | None = None,
    streaming: bool = False,
    on_bad_image: str = "error",
    **source: str | None,
) -> dict[str, Any]:
    """The loss and metrics of a model on one split of a data set, as a training reports them of its own.

    Args:
        model: a Hub id or folder.
        dataset: anything that `load_splits` reads.
        split: by default `test`, else `validation`.
        batch_size: images at a time.
        output: a folder for `evaluation.json`, which has the figures of each class too, and for the pictures, of
            which there are none of a multi-label model, and no single images of a stream.
        streaming: whether to read Hub data sets and files while they are used.
        on_bad_image: "error", or "skip", which counts what was left out as `skipped_images_` and the split.
        source: `config`, `revision`, `image_column` and `label_column`, as `load_splits` takes them.

    Raises:
        InputError: the model, data set, split or an image cannot be used, or the folder cannot be written; there are
            classes that the model does not know, or lists of them where it has learned one per image, or the other way
            round.
    """
    if batch_size < 1:
        raise InputError("batch_size must be at least 1.")
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write to --output {output}: {error.strerror}.") from error
    streams = load_streams(dataset, **cast(Any, source)) if streaming and is_streamable(dataset) else None
    splits: Any = streams.splits if streams else load_splits(dataset, **source)
    split = split_name(split or ("test" if "test" in splits else "validation"))
    if split not in splits:
        raise InputError(f"{dataset} has no split {split!r}; its splits are {', '.join(map(str, splits))}.")
    network = ViTForImageClassification.from_pretrained(model)
    processor = ViTImageProcessor.from_pretrained(model)
    multi_label = network.config.is_multi_label
    features = streams.features if streams else splits[split].features
    if is_multi_label(features) != multi_label:
        kinds = ("one class per image", "any number of classes per image")
        raise InputError(f"{dataset} has {kinds[not multi_label]}, but {model} has learned {kinds[multi_label]}.")
    index = _index_of_model(network, label_names(features), dataset)
    labels = partial(multi_hot_labels, num_labels=len(network.config.labels)) if multi_label else class_labels
    transform = EvaluationTransform(processor, labels)
    rows = None
    if streams:
        left_out = SkippedImages(workers=0)
        streamed = streams.splits[split].map(partial(_relabelled, index=index))
        streams = replace(streams, splits={split: cast(Any, streamed)})
        named = SplitTransform(transform, split, left_out if on_bad_image == "skip" else None)
        inputs = to_tensors(streams, split, named, batch_size)
    else:
        rows = _with_labels_of(network, splits[split], index)
        checked, counts = check_images(DatasetDict({split: rows}), on_bad_image, workers=0)
        rows, left_out = checked[split], range(counts.get(split, 0))
        inputs = rows.with_transform(SplitTransform(transform, split))
    with TemporaryDirectory() as folder:  # a Trainer wants one, though nothing is left in it
        arguments = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
            bf16=has_fast_bf16(use_cpu=False),
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=not sys.stderr.isatty(),
        )
        measures: dict[str, Any] = {"compute_metrics": compute_multi_label_metrics}
        if not multi_label:
            measures["compute_metrics"] = partial(compute_metrics, num_labels=len(network.config.labels))
            measures["preprocess_logits_for_metrics"] = judge
        trainer = Trainer(network, arguments, **measures)
        evaluated = trainer.predict(cast(Any, inputs), metric_key_prefix="eval")
    images = len(cast(Any, evaluated.label_ids))
    metrics = (evaluated.metrics or {}) | {"eval_split": split, "eval_samples": images}
    if on_bad_image == "skip":
        metrics[f"skipped_images_{split}"] = len(left_out)
    if output is not None:
        classes = results_by_class(evaluated, network.config.labels, multi_label)
        whole = metrics | {f"eval_{name}": figures for name, figures in classes.items()}
        if not multi_label:
            judgements = Judgements(*evaluated.predictions)
            save_confusions(judgements, network.config.labels, output)
            save_mistakes(network, processor, rows, judgements, output)
        (output / "evaluation.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    return metrics


def _index_of_model(model: ViTForImageClassification, names: list[str], dataset: str) -> list[int]:
    """The model's index of each class, matched by name."""
    known = model.config.labels
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise InputError(f"{dataset} has a class {unknown[0]!r} that the model does not know; it knows {listed}.")
    return [known.index(name) for name in names]


def _with_labels_of(model: ViTForImageClassification, rows: Dataset, index: list[int]) -> Dataset:
    """The same rows with the model's class indices."""
    labels = [_relabelled({"label": label}, index)["label"] for label in rows["label"]]
    feature = label_feature(model.config.labels, model.config.is_multi_label)
    return rows.remove_columns("label").add_column("label", cast(Any, labels), feature=feature)


def _relabelled(row: dict[str, Any], index: list[int]) -> dict[str, Any]:
    label = row["label"]
    return {"label": [index[each] for each in label] if isinstance(label, list) else index[label]}
