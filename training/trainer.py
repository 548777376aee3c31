"""transformers' Trainer, where a ViT needs something else of it."""

import torch
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.card import Provenance, model_card
from vitrail.training.metrics import compute_color_metrics, predicted_colors


class ViTTrainer(Trainer):
    """transformers' Trainer with Vitrail's model card in place of the automatic one.

    Attributes:
        results: the metrics of the weights as they are now, as the card reports them.
    """

    args: ViTTrainingArguments

    def __init__(self, *, provenance: Provenance, **kwargs):
        super().__init__(**kwargs)
        self.provenance = provenance
        self.results: dict[str, float] = {}

    def create_model_card(self, **kwargs) -> None:
        """Writes README.md; also called by the Trainer before every push."""
        if self.is_world_process_zero() and self.results:
            card = model_card(self.accelerator.unwrap_model(self.model), self.args, self.provenance, self.results)
            card.save(f"{self.args.output_dir}/README.md")

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        prefix = kwargs["metric_key_prefix"]
        output.metrics[f"{prefix}_samples"] = output.num_samples  # which of a stream nobody knows beforehand
        return output


class MaskedPatchTrainer(ViTTrainer):
    """For `ViTForMaskedPatchPrediction`: every evaluation corrupts the same patches, so that figures compare.

    They are drawn from `--seed`; training draws as if there had been no evaluation.
    """

    def __init__(self, **kwargs):
        super().__init__(
            compute_metrics=compute_color_metrics, preprocess_logits_for_metrics=predicted_colors, **kwargs
        )

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        device = self.args.device
        with torch.random.fork_rng([] if device.type == "cpu" else [device]):
            torch.manual_seed(self.args.seed)
            return super().evaluation_loop(*args, **kwargs)
