"""Low-rank adaptation ("LoRA: Low-Rank Adaptation of Large Language Models"), by PEFT.

vitrail train --method lora --model path/or/Hub-id --dataset path/to/folder
"""

from typing import Any

from transformers.trainer_utils import TrainOutput

from vitrail.modeling import ViTForImageClassification
from vitrail.training.trainer import ViTTrainer


_ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "fc1", "fc2"]


class LoraTrainer(ViTTrainer):
    """Trains low-rank additions to the backbone's dense layers, and the whole head; the rest stays as it was.

    Checkpoints hold the additions beside the weights that they add to. Once training has ended they are merged, so that
    what is evaluated, saved and shown is an ordinary model.

    Args:
        rank: of the additions.
        alpha: they are scaled by alpha / rank.
    """

    def __init__(self, *, model: ViTForImageClassification, rank: int, alpha: float, **kwargs: Any):
        from peft import LoraConfig, LoraModel  # an extra of its own

        parameters = model.num_parameters()
        # The additions go into the model itself, so that it keeps its class and checkpoints are like any other's.
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_ADAPTED)  # pyright: ignore[reportArgumentType]
        self._additions: LoraModel | None = LoraModel(model, config, "default")
        for name, parameter in model.named_parameters():
            if not name.startswith("vit."):
                parameter.requires_grad_(True)
        self.trained_parameters = model.num_parameters(only_trainable=True)
        super().__init__(model=model, **kwargs)
        self.method = {
            "method": f"LoRA of rank {rank}, alpha {alpha:g}, merged into the weights",
            "trained": f"{self.trained_parameters:,} parameters beside {parameters:,}, the head's among both",
        }

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """As the Trainer does; then the additions are merged."""
        if self.is_world_process_zero():
            print(f"{self.method['method']}: trains {self.method['trained']}.")
        trained = super().train(*args, **kwargs)
        self.merge()
        trained.metrics["trained_parameters"] = self.trained_parameters
        return trained

    def merge(self) -> None:
        """Adds the additions to the weights, in place; without effect the second time."""
        if self._additions is not None:
            self._additions.merge_and_unload()
            self._additions = None

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes a checkpoint as it is when the Trainer asks, and otherwise a merged model."""
        if not _internal_call:
            self.merge()
        super().save_model(output_dir, _internal_call)
