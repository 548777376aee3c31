"""What a ViT looked at."""

from vitrail.inspection.attention import attention_maps
from vitrail.inspection.faithfulness import FaithfulnessOutput, Scores, faithfulness
from vitrail.inspection.figures import overlay, predictions_figure
from vitrail.inspection.relevance import RelevanceOutput, relevance
from vitrail.inspection.rollout import RolloutOutput, attention_rollout, rollout_by_depth


__all__ = [
    "FaithfulnessOutput",
    "RelevanceOutput",
    "RolloutOutput",
    "Scores",
    "attention_maps",
    "attention_rollout",
    "faithfulness",
    "overlay",
    "predictions_figure",
    "relevance",
    "rollout_by_depth",
]
