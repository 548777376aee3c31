"""transformers' Trainer, where a ViT needs something else of it."""

from transformers import Trainer

from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.card import Provenance, model_card


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
