"""What a ViT looked at."""

from vitrail.inspection.attention import attention_by_depth, attention_maps, layer_attention
from vitrail.inspection.faithfulness import FaithfulnessOutput, Scores, faithfulness
from vitrail.inspection.figures import depth_figure, heads_figure, overlay, predictions_figure, rollout_grid
from vitrail.inspection.observation import HeatmapOutput
from vitrail.inspection.occlusion import OcclusionOutput, occlusion
from vitrail.inspection.paper_figures import (
    attention_distance,
    attention_distance_figure,
    figure_7,
    filters_figure,
    position_similarity,
    position_similarity_figure,
    principal_filters,
)
from vitrail.inspection.relevance import RelevanceOutput, relevance, relevance_by_depth
from vitrail.inspection.rollout import attention_rollout, rollout_by_depth


__all__ = [
    "FaithfulnessOutput",
    "HeatmapOutput",
    "OcclusionOutput",
    "RelevanceOutput",
    "Scores",
    "attention_by_depth",
    "attention_distance",
    "attention_distance_figure",
    "attention_maps",
    "attention_rollout",
    "depth_figure",
    "faithfulness",
    "figure_7",
    "filters_figure",
    "heads_figure",
    "layer_attention",
    "occlusion",
    "overlay",
    "position_similarity",
    "position_similarity_figure",
    "predictions_figure",
    "principal_filters",
    "relevance",
    "relevance_by_depth",
    "rollout_by_depth",
    "rollout_grid",
]
