"""What an evaluation measures, as `evaluate` metrics that need no network."""

from typing import Any, cast

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score
from transformers import EvalPrediction


_FEATURES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})


class Accuracy(evaluate.Metric):
    """The share of predictions equal to their references, in [0, 1]."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(evaluate.Metric):
    """The mean over classes of the harmonic mean of precision and recall, in [0, 1]; classes count alike."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(description=str(self.__doc__), citation="", features=_FEATURES)

    def _compute(self, predictions, references) -> dict[str, float]:
        return {"f1_macro": float(f1_score(references, predictions, average="macro", zero_division=cast(Any, 0)))}


def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy and macro-F1 of logits (n, num_labels) against class indices (n,)."""
    predictions = np.argmax(prediction.predictions, axis=-1)
    results: dict[str, float] = {}
    for metric in (Accuracy(keep_in_memory=True), MacroF1(keep_in_memory=True)):
        results |= metric.compute(predictions=predictions, references=prediction.label_ids) or {}
    return results


_NOT_CORRUPTED = -100  # of the patches whose prediction counts for nothing; the Trainer pads with it, too


def predicted_colors(outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """What an evaluation keeps of logits (B, N, 512) and corrupted patches (B, N): the latter's classes, (B, N)."""
    logits, corrupted = outputs
    return logits.argmax(-1).masked_fill(~corrupted, _NOT_CORRUPTED)


def compute_color_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Accuracy of `predicted_colors` against colour classes (n, N), over the corrupted patches alone.

    `commonest_share` is the accuracy of always guessing the commonest of their classes: what knowing nothing achieves.
    """
    corrupted = prediction.predictions != _NOT_CORRUPTED
    predictions, labels = np.asarray(prediction.predictions)[corrupted], np.asarray(prediction.label_ids)[corrupted]
    accuracy = Accuracy(keep_in_memory=True).compute(predictions=predictions, references=labels) or {}
    return accuracy | {"commonest_share": float(np.bincount(labels).max() / len(labels))}
