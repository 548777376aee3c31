"""What a ViT looked at."""

from vitrail.inspection.attention import attention_maps, layer_attention
from vitrail.inspection.faithfulness import FaithfulnessOutput, Scores, faithfulness
from vitrail.inspection.figures import overlay, predictions_figure
from vitrail.inspection.observation import HeatmapOutput
from vitrail.inspection.relevance import RelevanceOutput, relevance
from vitrail.inspection.rollout import attention_rollout, rollout_by_depth


__all__ = [
    "FaithfulnessOutput",
    "HeatmapOutput",
    "RelevanceOutput",
    "Scores",
    "attention_maps",
    "attention_rollout",
    "faithfulness",
    "layer_attention",
    "overlay",
    "predictions_figure",
    "relevance",
    "rollout_by_depth",
]
