"""Classes with fewer images, shown more often.

vitrail train --dataset FOLDER --model B/16 --balanced_sampling true
"""

import numpy as np
from datasets import Dataset

from vitrail.modeling import InputError


def oversampled(rows: Dataset, seed: int) -> Dataset:
    """The rows, those of smaller classes repeated until each class has as many as the largest.

    Every row is repeated equally often, but for a remainder that is drawn without replacement.

    Args:
        rows: with a column `label` of class indices.
        seed: decides which rows the remainder is.

    Raises:
        InputError: a row has several classes, so that no repetition balances them.
    """
    labels = rows["label"][:]
    if isinstance(labels[0], list):
        raise InputError("balanced_sampling is for images of one class each; weigh several with --class_weights.")
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(np.asarray(labels) == index) for index in np.unique(labels)]
    largest = max(map(len, members))
    repeated = [
        np.concatenate([*[rows] * (largest // len(rows)), generator.permutation(rows)[: largest % len(rows)]])
        for rows in members
    ]
    return rows.select(np.sort(np.concatenate(repeated)))
