"""Metrics, offline, against figures worked out by hand and other implementations."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from transformers import EvalPrediction

from vitrail.training.metrics import CALIBRATION_BINS, Judgements, class_results, compute_metrics, judge


def judged(logits, references):
    """As the Trainer hands it on: NumPy arrays in a plain tuple."""
    kept = judge(torch.as_tensor(logits), torch.as_tensor(references))
    return EvalPrediction(tuple(tensor.numpy() for tensor in kept), np.asarray(references))


@pytest.fixture(scope="module")
def guesses():
    """Logits of 500 images in 7 classes, somewhat better than chance, and the truth; the last class never occurs."""
    generator = np.random.default_rng(0)
    references = generator.integers(0, 6, 500)
    logits = generator.normal(size=(500, 7)) + 1.5 * np.eye(7)[references]
    return logits.astype(np.float32), references


def test_accuracy_and_macro_f1():
    metrics = compute_metrics(judged(np.eye(3)[[0, 0, 1, 2, 1]], [0, 1, 1, 2, 2]), num_labels=3)
    assert metrics["accuracy"] == 3 / 5
    # F1 by class: 0: P 1/2, R 1 -> 2/3; 1: P 1/2, R 1/2 -> 1/2; 2: P 1, R 1/2 -> 2/3
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)
    assert "top5_accuracy" not in metrics  # of three classes it says nothing


def test_what_is_kept_of_an_image(guesses):
    logits, references = guesses
    kept = Judgements(*judged(logits, references).predictions)
    order = (-logits).argsort(axis=1)
    assert (kept.predictions == order[:, 0]).all()
    assert (kept.ranks == (order == references[:, None]).argmax(axis=1)).all()
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(kept.probabilities, shares.max(1), rtol=1e-5)
    np.testing.assert_allclose(kept.losses, -np.log(shares[np.arange(500), references]), rtol=1e-4)


def test_top_5_is_sklearns(guesses):
    logits, references = guesses
    top5 = top_k_accuracy_score(references, logits, k=5, labels=range(7))
    assert compute_metrics(judged(logits, references), num_labels=7)["top5_accuracy"] == pytest.approx(top5)


def test_a_head_of_zeros_is_right_by_chance_alone():
    references = np.arange(8).repeat(3)
    metrics = compute_metrics(judged(np.zeros((24, 8)), references), num_labels=8)
    assert (metrics["accuracy"], metrics["top5_accuracy"]) == (1 / 8, 5 / 8)
    assert metrics["calibration_error"] == 0  # it says 1/8, and so it is


def test_calibration_error_is_equation_3(guesses):
    """Bin by bin, (m-1)/M < p <= m/M, as the paper writes it; with a probability of exactly 1 among them."""
    logits, references = guesses
    logits = logits.copy()
    logits[0, references[0]], logits[1, 0] = 200, 200
    kept = Judgements(*judged(logits, references).predictions)
    assert kept.probabilities.max() == 1
    right, expected = kept.predictions == references, 0.0
    for m in range(1, CALIBRATION_BINS + 1):
        inside = (kept.probabilities > (m - 1) / CALIBRATION_BINS) & (kept.probabilities <= m / CALIBRATION_BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - kept.probabilities[inside].mean())
    metrics = compute_metrics(judged(logits, references), num_labels=7)
    assert metrics["calibration_error"] == pytest.approx(expected, rel=1e-5)
    assert expected > 0.01


def test_classes_one_by_one(guesses):
    logits, references = guesses
    predictions = judged(logits, references)
    names = ["a", "b", "crane", "d", "crane", "f", "g"]
    results = class_results(Judgements(*predictions.predictions), names)
    unique = ["a", "b", "crane (2)", "d", "crane (4)", "f", "g"]
    matrix = [[results["confusion_matrix"][truth].get(name, 0) for name in unique] for truth in unique]
    assert matrix == confusion_matrix(references, logits.argmax(1), labels=range(7)).tolist()
    table = results["per_class"]
    assert [table[name]["support"] for name in unique] == np.bincount(references, minlength=7).tolist()
    assert table["g"]["recall"] is None  # there is no image of it
    assert table["g"]["precision"] == 0
    f1 = [figures["f1"] for figures in table.values() if figures["f1"] is not None]
    assert compute_metrics(predictions, num_labels=7)["f1_macro"] == pytest.approx(np.mean(f1))
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_what_nobody_predicts_has_no_precision():
    results = class_results(Judgements(*judged(np.eye(3)[[0, 0]], [0, 1]).predictions), list("abc"))
    assert results["per_class"]["b"] == {"precision": None, "recall": 0, "f1": 0, "support": 1}
    assert results["per_class"]["c"] == {"precision": None, "recall": None, "f1": None, "support": 0}


def test_memory_is_of_images_not_of_classes():
    kept = judge(torch.zeros(10, 20_000), torch.zeros(10, dtype=torch.long))
    assert [tensor.shape for tensor in kept] == [(10,)] * 5
