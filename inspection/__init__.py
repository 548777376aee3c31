"""What a ViT looked at."""

from vitrail.inspection.attention import attention_maps
from vitrail.inspection.figures import depth_figure, heads_figure, overlay, predictions_figure, rollout_grid
from vitrail.inspection.paper_figures import (
    attention_distance,
    attention_distance_figure,
    figure_7,
    filters_figure,
    position_similarity,
    position_similarity_figure,
    principal_filters,
)
from vitrail.inspection.rollout import RolloutOutput, attention_rollout, rollout_by_depth


__all__ = [
    "RolloutOutput",
    "attention_distance",
    "attention_distance_figure",
    "attention_maps",
    "attention_rollout",
    "depth_figure",
    "figure_7",
    "filters_figure",
    "heads_figure",
    "overlay",
    "position_similarity",
    "position_similarity_figure",
    "predictions_figure",
    "principal_filters",
    "rollout_by_depth",
    "rollout_grid",
]
