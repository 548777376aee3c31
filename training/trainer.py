"""transformers' Trainer, where a ViT needs something else of it."""

from typing import Any, cast

import torch
from transformers import PrinterCallback, Trainer
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput

from vitrail.modeling import ViTImageProcessor
from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.card import model_card
from vitrail.training.metrics import Judgements, compute_color_metrics, predicted_colors
from vitrail.training.progress import Progress
from vitrail.training.provenance import Provenance


class ViTTrainer(Trainer):
    """transformers' Trainer with Vitrail's model card and progress bar in place of the automatic ones.

    Attributes:
        results: the metrics of the weights as they are now, as the card reports them.
        pictures: the files beside the card that show what these weights do.
        method: rows of the card on how they came about, where that was not by training all of them.
        remark: sentences of the card on the results.
    """

    args: ViTTrainingArguments

    def __init__(self, *, provenance: Provenance, **kwargs):
        super().__init__(**kwargs)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(Progress())
        self.provenance = provenance
        self.results: dict[str, Any] = {}
        self.pictures: list[str] = []
        self.method: dict[str, str] = {}
        self.remark = ""
        self._evaluated: Any = None

    @property
    def judgements(self) -> Judgements:
        """What the last evaluation kept of every image, if it went by `judge`."""
        return Judgements(*self._evaluated)

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, **kwargs)
        self._evaluated = output.predictions
        return output

    def create_model_card(self, **kwargs) -> None:
        """Writes README.md; also called by the Trainer before every push."""
        if self.is_world_process_zero() and self.results:
            model = self.accelerator.unwrap_model(self.model)
            remote_code = not (model.config.is_stock and cast(ViTImageProcessor, self.processing_class).is_stock)
            story = (self.method, self.remark, self.pictures, remote_code)
            card = model_card(model, self.args, self.provenance, self.state, self.results, *story)
            card.save(f"{self.args.output_dir}/README.md")


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
