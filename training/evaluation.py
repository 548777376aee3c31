"""Measuring a trained model on any labelled data set.

vitrail evaluate --model runs/digits --dataset digits
"""

import json
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from datasets import Dataset, Value
from transformers import Trainer, TrainingArguments

from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.data import load_splits, split_name
from vitrail.training.metrics import Judgements, class_results, compute_metrics, judge
from vitrail.training.pictures import save_confusions, save_mistakes
from vitrail.training.precision import choose_attention, has_fast_bf16


def evaluate(
    model: str,
    dataset: str,
    split: str | None = None,
    batch_size: int = 64,
    output: Path | None = None,
    **source: str | None,
) -> dict[str, Any]:
    """The loss and metrics of a model on one split of a data set, as a training reports them of its own.

    Args:
        model: a Hub id or folder.
        dataset: anything that `load_splits` reads.
        split: by default `test`, else `validation`.
        batch_size: images at a time.
        output: a folder for `evaluation.json`, which has the figures of each class too, and for the pictures.
        source: `config`, `revision`, `image_column` and `label_column`, as `load_splits` takes them.

    Raises:
        InputError: the model, data set or split cannot be used, or has classes that the model does not know, or the
            folder cannot be written.
    """
    if output is not None:
        try:
            output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"Cannot write to --output {output}: {error.strerror}.") from error
    splits = load_splits(dataset, **source)
    split = split_name(split or ("test" if "test" in splits else "validation"))
    if split not in splits:
        raise InputError(f"{dataset} has no split {split!r}; its splits are {', '.join(map(str, splits))}.")
    network = ViTForImageClassification.from_pretrained(model)
    processor = ViTImageProcessor.from_pretrained(model)
    rows = _with_labels_of(network, splits[split], dataset)
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
        choose_attention(network, arguments, network.config.sequence_length)
        trainer = Trainer(
            network,
            arguments,
            compute_metrics=partial(compute_metrics, num_labels=len(network.config.labels)),
            preprocess_logits_for_metrics=cast(Any, judge),
        )
        evaluated = trainer.predict(
            cast(Any, rows.with_transform(EvaluationTransform(processor))), metric_key_prefix="eval"
        )
    metrics = (evaluated.metrics or {}) | {"eval_split": split, "eval_samples": len(rows)}
    if output is not None:
        judgements = Judgements(*evaluated.predictions)
        classes = class_results(judgements, network.config.labels)
        whole = metrics | {f"eval_{name}": figures for name, figures in classes.items()}
        (output / "evaluation.json").write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
        save_confusions(judgements, network.config.labels, output)
        save_mistakes(network, processor, rows, judgements, output)
    return metrics


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
