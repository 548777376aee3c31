"""Measuring a trained model on any labelled data set.

vitrail evaluate --model runs/digits --dataset digits
"""

from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from datasets import Dataset, Value
from transformers import Trainer, TrainingArguments

from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.data import load_splits, split_name
from vitrail.training.metrics import compute_metrics
from vitrail.training.precision import choose_attention, has_fast_bf16


def evaluate(
    model: str, dataset: str, split: str | None = None, batch_size: int = 64, **source: str | None
) -> dict[str, float]:
    """Accuracy, macro-F1 and loss of a model on one split of a data set.

    Args:
        model: a Hub id or folder.
        dataset: anything that `load_splits` reads.
        split: by default `test`, else `validation`.
        batch_size: images at a time.
        source: `config`, `revision`, `image_column` and `label_column`, as `load_splits` takes them.

    Raises:
        InputError: the model, data set or split cannot be used, or has classes that the model does not know.
    """
    splits = load_splits(dataset, **source)
    split = split_name(split or ("test" if "test" in splits else "validation"))
    if split not in splits:
        raise InputError(f"{dataset} has no split {split!r}; its splits are {', '.join(map(str, splits))}.")
    network = ViTForImageClassification.from_pretrained(model)
    processor = ViTImageProcessor.from_pretrained(model)
    rows = _with_labels_of(network, splits[split], dataset).with_transform(EvaluationTransform(processor))
    with TemporaryDirectory() as folder:  # a Trainer wants one, though nothing is left in it
        arguments = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.accelerator.is_available(),
            bf16=has_fast_bf16(use_cpu=False),
            use_cpu=not torch.accelerator.is_available(),
        )
        choose_attention(network, arguments, network.config.sequence_length)
        trainer = Trainer(network, arguments, eval_dataset=cast(Any, rows), compute_metrics=compute_metrics)
        metrics = trainer.evaluate()
    return metrics | {"eval_split": split, "eval_samples": len(rows)}


def _with_labels_of(model: ViTForImageClassification, rows: Dataset, dataset: str) -> Dataset:
    """The same rows with the model's class indices, matched by the classes' names."""
    names = rows.features["label"].names
    known = model.config.labels
    if unknown := [name for name in names if name not in known]:
        listed = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
        raise InputError(f"{dataset} has a class {unknown[0]!r} that the model does not know; it knows {listed}.")
    index = [known.index(name) for name in names]
    labels = [index[label] for label in rows["label"]]
    return rows.remove_columns("label").add_column("label", labels, feature=Value("int64"))
