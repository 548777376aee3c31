"""The training loss of a classifier; evaluation reports the model's own, plain one.

vitrail train --dataset FOLDER --model B/16 --label_smoothing_factor 0.1 --class_weights balanced
"""

import numpy as np
import torch
from torch.nn import functional as F
from transformers.modeling_outputs import ImageClassifierOutput


class ClassificationLoss:
    """Cross-entropy, or binary cross-entropy when an image can have several classes; for `compute_loss_func`.

    Args:
        label_smoothing: in [0, 1); this share of every target is spread evenly over all classes ("Rethinking the
            Inception Architecture", Section 7) or, of several, moves each target towards one half.
        class_weights: (num_labels,), how much a target counts; of several classes, only where the class is present.
        multi_label: whether an image can have several classes.
    """

    def __init__(self, label_smoothing: float, class_weights: torch.Tensor | None, multi_label: bool):
        self.label_smoothing, self.class_weights, self.multi_label = label_smoothing, class_weights, multi_label

    def __call__(
        self, outputs: ImageClassifierOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """This batch's share of the mean over all batches of an optimiser step, in nats.

        Args:
            outputs: with `logits` (B, num_labels).
            labels: class indices (B,), probabilities (B, num_labels), or any number of ones (B, num_labels).
            num_items_in_batch: the elements of the labels of all those batches; by default, of this one.
        """
        assert outputs.logits is not None
        logits = outputs.logits.float()
        weights = None if self.class_weights is None else self.class_weights.to(logits.device)
        if self.multi_label:
            targets = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
            loss = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
            return loss / (labels.numel() if num_items_in_batch is None else num_items_in_batch)
        # A mean weighted by the batch's own classes would make the gradient depend on how a step is cut into batches.
        loss = F.cross_entropy(logits, labels, weight=weights, label_smoothing=self.label_smoothing, reduction="sum")
        images = len(labels) if num_items_in_batch is None else num_items_in_batch * len(labels) / labels.numel()
        return loss / images


def balanced_class_weights(counts: np.ndarray, images: int, multi_label: bool) -> torch.Tensor:
    """Weights that let every class count alike, (K,).

    Args:
        counts: (K,), the training images of each class.
        images: how many training images there are.
        multi_label: whether an image can have several classes.

    Returns:
        of n images, n_c of them of class c: n / (K n_c), whose mean over the images is 1; where they can have several
        classes, (n - n_c) / n_c, so that presence and absence count alike. A class without images counts as one image.
    """
    counts = counts.clip(min=1)
    weights = (images - counts) / counts if multi_label else images / (len(counts) * counts)
    return torch.tensor(weights, dtype=torch.float32)
