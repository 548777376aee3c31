"""transformers' Trainer, where a ViT needs something else of it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, SchedulerType, Trainer, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from transformers.training_args import OptimizerNames

from vitrail.modeling import InputError, ViTImageProcessor
from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.card import model_card
from vitrail.training.ema import WeightAverage
from vitrail.training.metrics import compute_color_metrics, predicted_colors
from vitrail.training.optimization import Muon, parameter_groups
from vitrail.training.progress import Progress
from vitrail.training.provenance import Provenance
from vitrail.training.resumable_trainer import ResumableTrainer


class ViTTrainer(ResumableTrainer):
    """transformers' Trainer with a ViT's parameter groups, an average of the weights, and Vitrail's card and progress.

    Attributes:
        results: the metrics of the weights as they are now, as the card reports them.
        pictures: the files beside the card that show what these weights do.
        method: rows of the card on how they came about, where that was not by training all of them.
        remark: sentences of the card on the results.
        evaluated: what the last evaluation kept of the images of all processes, as `EvalLoopOutput`: the labels, and as
            predictions what `preprocess_logits_for_metrics` makes of the logits.
        weight_average: while it trains with `ema_decay`; afterwards the model's weights are the average.
    """

    def __init__(self, *, provenance: Provenance, **kwargs):
        with warnings.catch_warnings():  # of what `ClassificationLoss` can do
            warnings.filterwarnings("ignore", "Label smoothing is not compatible with multi-label")
            super().__init__(**kwargs)
        self.remove_callback(PrinterCallback if self.args.disable_tqdm else DEFAULT_PROGRESS_CALLBACK)
        self.add_callback(Progress())
        self.provenance = provenance
        self.results: dict[str, Any] = {}
        self.pictures: list[str] = []
        self.method: dict[str, str] = {}
        self.remark = ""
        self.evaluated: Any = None
        self.weight_average: WeightAverage | None = None
        self._initial_weights: dict[str, torch.Tensor] | None = None
        if self.args.fsdp and not self.is_fsdp_enabled:
            raise InputError("fsdp shards a model over several GPUs; here, leave it out.")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            for name in ("ema_decay", "muon_learning_rate"):
                if getattr(self.args, name) is not None:
                    raise InputError(f"{name} needs whole weights in every process, so neither FSDP nor DeepSpeed.")
        if self.args.early_stopping_patience is not None:
            self.add_callback(EarlyStoppingCallback(self.args.early_stopping_patience))

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: ViTTrainingArguments, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The optimiser of `--optim` for `parameter_groups`, or Muon for some of them and it for the others."""
        with _named(f"--optim {OptimizerNames(args.optim).value}"):
            optimizer_class, kwargs = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if not kwargs.keys().isdisjoint(("params", "model", "optimizer_dict")):
            if args.layer_lr_decay != 1 or args.muon_learning_rate is not None:
                raise InputError(
                    f"--optim {OptimizerNames(args.optim).value} groups the parameters itself; leave out "
                    "--layer_lr_decay and --muon_learning_rate."
                )
            return optimizer_class, kwargs
        kwargs["params"] = parameter_groups(
            model, args.learning_rate, args.weight_decay, args.layer_lr_decay, args.muon_learning_rate
        )
        if args.muon_learning_rate is None:
            return optimizer_class, kwargs
        return Muon, kwargs | {"rest": optimizer_class}

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's.

        Raises:
            InputError: it needs other `--lr_scheduler_kwargs`.
        """
        with _named(f"--lr_scheduler_type {SchedulerType(self.args.lr_scheduler_type).value}"):
            return super().create_scheduler(*args, **kwargs)

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs) -> Any:
        """In training as `compute_loss_func` says, if there is any; in evaluation the model's own, plain loss."""
        if model.training:
            return super().compute_loss(model, inputs, return_outputs, **kwargs)
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        """As the Trainer's, but that `dataloader_drop_last` is of training: an evaluation is of every image."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            return super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last

    def _inner_training_loop(self, batch_size: int | None = None, args: Any = None, **kwargs) -> TrainOutput:
        """All batch sizes that `auto_find_batch_size` tries begin with the same weights, and nothing else is left."""
        if self.args.auto_find_batch_size:
            model = cast("nn.Module", self.model)
            if self._initial_weights is None:
                self._initial_weights = {
                    name: tensor.to("cpu", copy=True) for name, tensor in model.state_dict().items()
                }
            model.load_state_dict(self._initial_weights)
            self.optimizer = None
            set_seed(self.args.seed)
        output = super()._inner_training_loop(batch_size, args, **kwargs)
        self._initial_weights = None
        return output

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: str | None) -> Any:
        prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.args.ema_decay is not None:
            self.remove_callback(WeightAverage)  # of a batch size that was too large
            self.weight_average = WeightAverage(self.args.ema_decay, cast("nn.Module", self.model))
            self.add_callback(self.weight_average)
            if resume_from_checkpoint is not None:
                self.weight_average.load(Path(resume_from_checkpoint))
        return prepared

    def _finalize_training(self, *args, **kwargs) -> TrainOutput:
        if self.weight_average is not None:  # before the best checkpoint is loaded, whose weights are an average
            self.weight_average.apply()
            self.weight_average = None
        return super()._finalize_training(*args, **kwargs)

    def evaluation_loop(self, *args, **kwargs) -> EvalLoopOutput:
        # Compiling for evaluation, and for the sizes of last batches, would take longer than it saves.
        uncompiled = torch.compiler.set_stance("force_eager") if self.args.torch_compile else nullcontext()
        with uncompiled, self.weight_average.applied() if self.weight_average else nullcontext():
            self.evaluated = super().evaluation_loop(*args, **kwargs)
        return self.evaluated

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Saves what evaluation measures; to a checkpoint also what training goes on from."""
        with self.weight_average.applied() if self.weight_average else nullcontext():
            super().save_model(output_dir, _internal_call)
        if self.weight_average is not None and output_dir is not None and self.args.should_save:
            self.weight_average.save(Path(output_dir))

    def create_model_card(self, **kwargs) -> None:
        """Writes README.md; also called by the Trainer before every push."""
        if self.is_world_process_zero() and self.results:
            model = self.accelerator.unwrap_model(self.model)
            remote_code = not (model.config.is_stock and cast(ViTImageProcessor, self.processing_class).is_stock)
            story = (self.method, self.remark, self.pictures, remote_code)
            card = model_card(model, self.args, self.provenance, self.state, self.results, *story)
            card.save(f"{self.args.output_dir}/README.md")


@contextmanager
def _named(flag: str) -> Iterator[None]:
    """What a flag's value lacks, in a sentence that names it."""
    try:
        yield
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"{flag} cannot be used: {str(error).strip().splitlines()[0].rstrip('.')}.") from error


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
