"""What a ViT looked at."""

from vitrail.inspection.figures import overlay, predictions_figure
from vitrail.inspection.rollout import RolloutOutput, attention_rollout


__all__ = ["RolloutOutput", "attention_rollout", "overlay", "predictions_figure"]
