"""The training loss against torch's and the model's own, cut into batches in any way; balanced classes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from vitrail.modeling import InputError, ViTForImageClassification
from vitrail.training.arguments import parse_arguments
from vitrail.training.balancing import oversampled
from vitrail.training.card import Provenance
from vitrail.training.loss import ClassificationLoss, balanced_class_weights
from vitrail.training.trainer import ViTTrainer


GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(12, 5, generator=GENERATOR)
INDICES = torch.randint(5, (12,), generator=GENERATOR)
PROBABILITIES = torch.rand(12, 5, generator=GENERATOR).softmax(dim=1)
SEVERAL = (torch.rand(12, 5, generator=GENERATOR) < 0.5).float()
WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0])
LOSSES = {
    "plain": (ClassificationLoss(0.0, None, False), INDICES, F.cross_entropy(LOGITS, INDICES)),
    "smoothed": (ClassificationLoss(0.1, None, False), INDICES, F.cross_entropy(LOGITS, INDICES, label_smoothing=0.1)),
    "soft": (ClassificationLoss(0.0, None, False), PROBABILITIES, -(PROBABILITIES * LOGITS.log_softmax(1)).sum() / 12),
    "weighted": (
        ClassificationLoss(0.0, WEIGHTS, False),
        INDICES,
        (F.cross_entropy(LOGITS, INDICES, reduction="none") * WEIGHTS[INDICES]).mean(),
    ),
    "weighted, soft, smoothed": (
        ClassificationLoss(0.2, WEIGHTS, False),
        PROBABILITIES,
        -((0.8 * PROBABILITIES + 0.2 / 5) * WEIGHTS * LOGITS.log_softmax(1)).sum() / 12,
    ),
    "several": (ClassificationLoss(0.0, None, True), SEVERAL, F.binary_cross_entropy_with_logits(LOGITS, SEVERAL)),
    "several, weighted, smoothed": (
        ClassificationLoss(0.2, WEIGHTS, True),
        SEVERAL,
        F.binary_cross_entropy_with_logits(LOGITS, 0.8 * SEVERAL + 0.1, pos_weight=WEIGHTS),
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_the_textbooks_and_adds_up_over_unequal_batches(name):
    loss, labels, expected = LOSSES[name]
    assert loss(SimpleNamespace(logits=LOGITS), labels).item() == pytest.approx(expected.item(), rel=1e-6)
    parts = [
        loss(SimpleNamespace(logits=logits), some, num_items_in_batch=labels.ne(-100).sum())
        for logits, some in zip(LOGITS.split(5), labels.split(5))
    ]
    assert sum(parts).item() == pytest.approx(expected.item(), rel=1e-6)


def test_hard_labels_are_soft_ones():
    for smoothing, weights in ((0.0, None), (0.3, WEIGHTS)):
        loss = ClassificationLoss(smoothing, weights, False)
        outputs = SimpleNamespace(logits=LOGITS)
        assert loss(outputs, INDICES).item() == pytest.approx(loss(outputs, F.one_hot(INDICES, 5).float()).item())


def test_balanced_weights_are_scikit_learns():
    expected = compute_class_weight("balanced", classes=np.arange(5), y=INDICES.numpy())
    weights = balanced_class_weights(INDICES.bincount(minlength=5).numpy(), 12, multi_label=False)
    assert weights.numpy() == pytest.approx(expected)
    assert weights[INDICES].mean().item() == pytest.approx(1.0)
    several = balanced_class_weights(SEVERAL.sum(0).numpy(), 12, multi_label=True)
    assert several.tolist() == pytest.approx(((SEVERAL == 0).sum(0) / SEVERAL.sum(0)).tolist())
    assert balanced_class_weights(np.array([2, 0]), 2, multi_label=False).isfinite().all()


def test_oversampling_shows_every_class_equally_often_and_every_row_at_least_once():
    labels = [0] * 7 + [1] * 3 + [3] * 2
    rows = Dataset.from_dict(
        {"label": labels, "row": list(range(12))}, Features({"label": ClassLabel(num_classes=4), "row": Value("int64")})
    )
    balanced = oversampled(rows, seed=0)
    assert np.bincount(balanced["label"], minlength=4).tolist() == [7, 7, 0, 7]
    times = np.bincount(balanced["row"], minlength=12)
    assert sorted(times[:7]) == [1] * 7
    assert sorted(times[7:10]) == [2, 2, 3]
    assert sorted(times[10:]) == [3, 4]
    assert balanced["row"][:] == oversampled(rows, seed=0)["row"][:]
    assert any(balanced["row"][:] != oversampled(rows, seed=seed)["row"][:] for seed in range(1, 9))
    with pytest.raises(InputError, match="balanced_sampling is for images of one class each"):
        oversampled(Dataset.from_dict({"label": [[0], [0, 1]]}), seed=0)


@pytest.mark.parametrize("name", ["weighted", "weighted, soft, smoothed", "several, weighted, smoothed"])
def test_accumulated_steps_are_one_big_batch_and_evaluation_is_plain(name, tiny_model, tmp_path):
    """The last of the accumulated batches is smaller; evaluation's loss is the model's own."""
    loss, labels, _ = LOSSES[name]
    pixels = torch.randn(12, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    rows = [{"pixel_values": pixel, "labels": label} for pixel, label in zip(pixels, labels)]
    weights = {key: value.clone() for key, value in tiny_model.state_dict().items()}

    def trained(*flags):
        model = ViTForImageClassification(tiny_model.config)
        model.load_state_dict(weights)
        argv = ["--dataset", "x", "--output_dir", str(tmp_path), "--max_steps", "1", "--save_strategy", "no"]
        argv += ["--eval_strategy", "no", "--optim", "sgd", "--learning_rate", "0.1", "--warmup_steps", "0"]
        argv += [
            "--disable_tqdm",
            "true",
            "--bf16",
            "false",
            "--label_smoothing_factor",
            "0.3",
            *flags,
        ]  # of the loss alone
        arguments = parse_arguments(argv)[2]
        provenance = Provenance("x", None, None, None, {})
        trainer = ViTTrainer(
            model=model, args=arguments, train_dataset=rows, compute_loss_func=loss, provenance=provenance
        )
        trainer.train()
        return trainer

    whole = trained("--per_device_train_batch_size", "12")
    parts = trained("--per_device_train_batch_size", "5", "--gradient_accumulation_steps", "3")
    for one, other in zip(whole.model.parameters(), parts.model.parameters()):
        assert torch.allclose(one, other, atol=1e-6)
    assert not torch.equal(whole.model.classifier.weight, weights["classifier.weight"])
    if not loss.multi_label:
        plain = F.cross_entropy(whole.model(pixels).logits, labels).item()
        assert whole.evaluate(rows)["eval_loss"] == pytest.approx(plain, rel=1e-5)
