"""What a ViT looked at."""

from vitrail.inspection.attention import attention_maps
from vitrail.inspection.figures import overlay, predictions_figure
from vitrail.inspection.relevance import RelevanceOutput, relevance
from vitrail.inspection.rollout import RolloutOutput, attention_rollout, rollout_by_depth


__all__ = [
    "RelevanceOutput",
    "RolloutOutput",
    "attention_maps",
    "attention_rollout",
    "overlay",
    "predictions_figure",
    "relevance",
    "rollout_by_depth",
]
