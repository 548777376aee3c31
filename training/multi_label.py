"""Images with any number of classes: their labels as 0 and 1 for each, and what an evaluation measures of them."""

from collections.abc import Sequence
from copy import copy
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from transformers import EvalPrediction
from transformers.trainer_utils import EvalLoopOutput, PredictionOutput

from vitrail.modeling import InputError
from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.metrics import Judgements, by_class, class_results


_FEATURES = datasets.Features(
    {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.List(datasets.Value("float32"))}
)


def multi_hot_labels(rows: dict[str, list[Any]], images: torch.Tensor, num_labels: int) -> torch.Tensor:
    """The rows' lists of classes as (B, num_labels) float: 1 where the image has the class, else 0."""
    labels = torch.zeros(len(rows["label"]), num_labels)
    for row, classes in zip(labels, rows["label"]):
        row[classes] = 1.0
    return labels


class MeanAveragePrecision(evaluate.Metric):
    """The mean over classes of the area under precision over recall, in [0, 1], of scores (n, K) in any unit.

    Classes without an image among the references have no recall and are left out; without any class it is 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(self, predictions, references) -> dict[str, float]:
        precisions = _average_precisions(np.array(predictions), np.array(references))
        return {"mAP": 0.0 if np.isnan(precisions).all() else float(np.nanmean(precisions))}


class MultiLabelF1(evaluate.Metric):
    """The harmonic mean of precision and recall of 0 and 1 (n, K), in [0, 1].

    `f1_micro` is that of all decisions together, `f1_macro` the mean over classes, in which a class that is neither
    present nor predicted counts 0.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(self, predictions, references) -> dict[str, float]:
        decided, truth = np.array(predictions), np.array(references)
        right, all_of_both = (decided * truth).sum(axis=0), decided.sum(axis=0) + truth.sum(axis=0)  # (K,)
        by_class = 2 * right / np.maximum(all_of_both, 1)
        micro = 2 * right.sum() / max(all_of_both.sum(), 1)
        return {"f1_micro": float(micro), "f1_macro": float(by_class.mean())}


def compute_multi_label_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Mean average precision, loss and, of classes with a probability above one half, F1: of logits and labels (n, K).

    The loss is that of each image once, where the Trainer's own counts those twice that fill up processes.
    """
    logits, references = np.asarray(prediction.predictions), np.asarray(prediction.label_ids)
    results = MeanAveragePrecision(keep_in_memory=True).compute(predictions=logits, references=references) or {}
    decided = (logits > 0).astype(np.float32)  # where the sigmoid is above one half
    results |= {"loss": float(np.mean(np.logaddexp(0, logits) - logits * references))}  # binary cross-entropy
    return results | (MultiLabelF1(keep_in_memory=True).compute(predictions=decided, references=references) or {})


def multi_label_class_results(logits: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> dict[str, dict]:
    """`class_results` of logits and labels (n, K): for each class `average_precision` too, and no confusion matrix."""
    decided, support = (logits > 0).sum(axis=0), references.sum(axis=0).astype(int)
    right = ((logits > 0) * references).sum(axis=0)
    with np.errstate(invalid="ignore"):  # where there is nothing to divide by
        columns = {
            "average_precision": _average_precisions(logits, references),
            "precision": right / decided,
            "recall": right / support,
            "f1": 2 * right / (decided + support),
            "support": support,
        }
    return {"per_class": by_class(labels, columns)}


def results_by_class(
    evaluated: EvalLoopOutput | PredictionOutput, labels: Sequence[str], multi_label: bool
) -> dict[str, dict]:
    """What is to be said of each class after an evaluation: `class_results`, or `multi_label_class_results`.

    Args:
        evaluated: what it kept of n images: `Judgements`, or of a multi-label model logits and labels (n, K).
        labels: the K classes' names.
        multi_label: which of the two.
    """
    if multi_label:
        return multi_label_class_results(np.asarray(evaluated.predictions), np.asarray(evaluated.label_ids), labels)
    return class_results(Judgements(*evaluated.predictions), labels)


def _average_precisions(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Of each class, (K,); NaN of one without an image."""
    return np.array([average_precision_score(t, s) if t.any() else np.nan for s, t in zip(scores.T, truth.T)])


def with_metric(arguments: ViTTrainingArguments, multi_label: bool) -> ViTTrainingArguments:
    """The arguments with what the best evaluation is chosen by: multi-label models have no accuracy, the default.

    It is a copy, so that a run that is resumed finds the settings it was given.

    Raises:
        InputError: the metric asked for is not measured of such labels.
    """
    asked = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    if not multi_label and asked in ("mAP", "f1_micro"):
        raise InputError(f"metric_for_best_model {asked} is for images with any number of labels; these have one each.")
    settled = copy(arguments)
    if multi_label and asked == "accuracy":
        settled.metric_for_best_model = "mAP"
    return settled
