"""What is to be shown of a prediction."""

from dataclasses import dataclass
from typing import Literal


Method = Literal["rollout", "attention", "relevance", "gradient_rollout"]
Fusion = Literal["mean", "max", "min"]

OF_A_CLASS = ("relevance", "gradient_rollout")


@dataclass(frozen=True)
class Question:
    """Which map of a prediction.

    Attributes:
        method: "rollout" or "attention", where the model looked; "relevance" or "gradient_rollout", what spoke for a
            class.
        target: the number of the class that relevance is about; by default the predicted one.
        head_fusion: of rollout and attention.
        discard_ratio: in [0, 1), of rollout.
        patch: row and column of the patch whose attention is asked for instead of the head's.
    """

    method: Method = "rollout"
    target: int | None = None
    head_fusion: Fusion = "mean"
    discard_ratio: float = 0.0
    patch: tuple[int, int] | None = None
