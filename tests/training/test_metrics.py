"""Metrics, offline, against figures worked out by hand."""

import numpy as np
import pytest
from transformers import EvalPrediction

from vitrail.training.metrics import compute_metrics


def test_accuracy_and_macro_f1():
    logits = np.eye(3)[[0, 0, 1, 2, 1]]  # predictions 0 0 1 2 1
    references = np.array([0, 1, 1, 2, 2])
    metrics = compute_metrics(EvalPrediction(logits, references))
    assert metrics["accuracy"] == 3 / 5
    # F1 by class: 0: P 1/2, R 1 -> 2/3; 1: P 1/2, R 1/2 -> 1/2; 2: P 1, R 1/2 -> 2/3
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
