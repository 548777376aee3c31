"""Most of a training on some of the patches, its end on all of them.

A step without half of the patches costs little more than half, and learns nearly as much; a last part with all of them
makes the model used to what it will see ("Scaling Language-Image Pre-training via Masking", Section 3, there "unmasked
tuning").
"""

from transformers import TrainerCallback

from vitrail.modeling import ViTConfig


class PatchDropoutSchedule(TrainerCallback):
    """Leaves patches out in the first part of the steps alone.

    Args:
        config: the model's; its `patch_dropout_prob` is the share that is left out, and 0 afterwards.
        until: in (0, 1], that part.
    """

    def __init__(self, config: ViTConfig, until: float):
        self.config, self.until, self.share = config, until, config.patch_dropout_prob

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        leaving_out = state.global_step < self.until * state.max_steps
        self.config.patch_dropout_prob = self.share if leaving_out else 0.0
