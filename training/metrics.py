"""What an evaluation measures, as `evaluate` metrics that need no network."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import datasets
import evaluate
import numpy as np
import torch
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support
from torch.nn import functional as F
from transformers import EvalPrediction


_FEATURES = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

CALIBRATION_BINS = 15  # as in Guo et al. (2017)
_TOP = 5


class Judgements(NamedTuple):
    """What an evaluation keeps of its n images, so that its memory does not grow with the number of classes.

    Attributes:
        predictions: (n,) the likeliest class of each.
        probabilities: (n,) how likely it is, in (0, 1].
        ranks: (n,) how many classes come before the true one, in [0, K).
        losses: (n,) the cross-entropy in nats, -log of the true class's probability.
        references: (n,) the true class.
    """

    predictions: np.ndarray
    probabilities: np.ndarray
    ranks: np.ndarray
    losses: np.ndarray
    references: np.ndarray


def judge(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """`Judgements` of logits (B, K) against class indices (B,): the Trainer's `preprocess_logits_for_metrics`.

    It is a plain tuple because the Trainer cannot join named ones. Of classes equally likely the first comes first.
    """
    logits = logits.float()
    best = logits.softmax(-1).max(-1)
    true = logits.gather(-1, labels[:, None])
    earlier = torch.arange(logits.shape[-1], device=logits.device) < labels[:, None]
    ranks = ((logits > true) | (logits == true) & earlier).sum(-1)
    return logits.argmax(-1), best.values, ranks, F.cross_entropy(logits, labels, reduction="none"), labels


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


class CalibrationError(evaluate.Metric):
    """The expected calibration error, in [0, 1]: how far probabilities are from the share of them that comes true.

    Predictions are the probabilities of the predicted classes, references whether these are right. The distance between
    mean probability and accuracy in each of 15 equally wide bins, weighted by the images in it (equation 3).
    """

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features({"predictions": datasets.Value("float64"), "references": datasets.Value("bool")})
        citation = "Guo et al., On Calibration of Modern Neural Networks, 2017, https://arxiv.org/abs/1706.04599"
        return evaluate.MetricInfo(description=str(self.__doc__), citation=citation, features=features)

    def _compute(self, predictions, references) -> dict[str, float]:
        edges = np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1]
        bins = np.digitize(predictions, edges, right=True)  # each bin has its upper edge, not its lower
        distances = np.bincount(bins, np.asarray(predictions) - np.asarray(references, dtype=float))
        return {"calibration_error": float(np.abs(distances).sum() / len(bins))}


def compute_metrics(prediction: EvalPrediction, num_labels: int) -> dict[str, float]:
    """Accuracy, macro-F1, calibration error and, among more than five classes, top-5 accuracy.

    Args:
        prediction: its predictions are `Judgements`.
        num_labels: K, how many classes there are.
    """
    judgements = Judgements(*prediction.predictions)
    references = judgements.references
    results: dict[str, float] = {}
    for metric in (Accuracy(keep_in_memory=True), MacroF1(keep_in_memory=True)):
        results |= metric.compute(predictions=judgements.predictions, references=references) or {}
    right = judgements.predictions == references
    calibration = CalibrationError(keep_in_memory=True)
    results |= calibration.compute(predictions=judgements.probabilities, references=right) or {}
    results["loss"] = float(judgements.losses.mean())  # the Trainer's own counts images twice that fill up processes
    if num_labels > _TOP:
        results["top5_accuracy"] = float((judgements.ranks < _TOP).mean())
    return results


def class_results(judgements: Judgements, labels: Sequence[str]) -> dict[str, dict[str, dict]]:
    """What is to be said of each class; it nests, and is no part of `compute_metrics` because the Trainer logs that.

    Args:
        judgements: of n images.
        labels: the K classes' names.

    Returns:
        `per_class`: of each name `precision`, `recall`, `f1` in [0, 1] and `support`, its number of images; None where
            there is nothing to divide by.
        `confusion_matrix`: of each name the names it was taken for, and how often; those it never was are left out.
    """
    names, references = _distinct(labels), judgements.references
    columns = precision_recall_fscore_support(
        references, judgements.predictions, labels=range(len(names)), zero_division=cast(Any, np.nan)
    )
    per_class = by_class(labels, dict(zip(("precision", "recall", "f1", "support"), cast(Any, columns))))
    confusion: dict[str, dict[str, int]] = {name: {} for name in names}
    pairs, counts = np.unique(np.stack([references, judgements.predictions]), axis=1, return_counts=True)
    for truth, prediction, count in zip(*pairs.tolist(), counts.tolist()):
        confusion[names[truth]][names[prediction]] = count
    return {"per_class": per_class, "confusion_matrix": confusion}


def by_class(labels: Sequence[str], columns: dict[str, np.ndarray]) -> dict[str, dict[str, float | None]]:
    """Columns (K,) as a dictionary for each class's name, with None for NaN."""
    figures = [[None if np.isnan(value) else value.item() for value in column] for column in columns.values()]
    return {name: dict(zip(columns, row)) for name, row in zip(_distinct(labels), zip(*figures))}


def _distinct(labels: Sequence[str]) -> list[str]:
    """The names; of those that several classes share, as ImageNet's two cranes do, each with its class's index."""
    counts = Counter(labels)
    return [name if counts[name] == 1 else f"{name} ({index})" for index, name in enumerate(labels)]


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
