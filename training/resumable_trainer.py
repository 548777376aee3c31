"""The Trainer as which training stops at any moment and goes on as if it had not."""

import math
import shutil
import time
from collections.abc import Sized
from pathlib import Path
from signal import SIGTERM
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import nested_gather
from transformers.trainer_utils import has_length, rotate_checkpoints
from transformers.training_args import OptimizerNames

from vitrail.modeling import InputError
from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.interruption import Interrupted, SignalsAfterStep, TrainingFault
from vitrail.training.resuming import (
    discard_checkpoints,
    is_usable,
    move_whole,
    seal,
    sealed_progress,
    staging_folder,
)


class ResumableTrainer(Trainer):
    """transformers' Trainer whose checkpoints are whole, and from which training goes on as if it had not stopped.

    Beyond what the Trainer restores, these come back: what the logged losses are means of, the time spent, the counters
    of callbacks (early stopping's), and the best checkpoint, wherever the folder now lies. Every new best is saved.
    """

    args: ViTTrainingArguments

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.signals = SignalsAfterStep()
        self.add_callback(_Resumption(self))

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; SIGINT and SIGTERM end it after the step under way, with a checkpoint.

        Raises:
            Interrupted: by such a signal.
            TrainingFault: the loss or a weight is not finite.
        """
        with SignalsAfterStep() as self.signals:
            return super().train(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As the Trainer's; what goes to the output folder appears there whole, and is never pushed from here."""
        if output_dir is not None:
            super().save_model(output_dir, _internal_call=True)
            return
        folder = Path(str(self.args.output_dir))
        super().save_model(str(staging_folder(folder)), _internal_call=True)
        if self.args.should_save:
            move_whole(staging_folder(folder), folder)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As the Trainer's; a loss that is not finite ends the training before it reaches the weights."""
        loss = super().training_step(*args, **kwargs)
        if not torch.isfinite(loss):
            raise self._diverged(f"The loss became {loss.item()} at step {self.state.global_step + 1:,}")
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer's; a loss that is not finite is no result."""
        metrics = super().evaluate(*args, **kwargs)
        if not all(np.isfinite(value) for name, value in metrics.items() if name.endswith("_loss")):
            raise self._diverged(f"The validation loss is no number after step {self.state.global_step:,}")
        return metrics

    def _diverged(self, what: str) -> TrainingFault:
        flags = f"--restart --learning_rate {self.args.learning_rate / 10:g}"
        rate = self._get_learning_rate()
        return TrainingFault(f"{what}, at a learning rate of {rate:g}; lower --learning_rate", flags)

    # Checkpoints

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        if self._epoch_is_ending():  # what comes with its end, an evaluation perhaps, belongs to this checkpoint
            self.save_is_due = True
            return
        if not all(torch.isfinite(parameter).all() for parameter in model.parameters()):
            raise self._diverged(f"The weights are no numbers after step {self.state.global_step:,}")
        output_dir = Path(str(self.args.output_dir))
        checkpoint, deleted = output_dir / f"checkpoint-{self.state.global_step}", not output_dir.exists()
        limit, self.args.save_total_limit = self.args.save_total_limit, None  # none goes until the new one is whole
        sealed = False
        try:
            super()._save_checkpoint(model, trial)
            progress = self._progress()
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                seal(checkpoint, progress)
            sealed = True
        finally:
            self.args.save_total_limit = limit
            if self.args.should_save and not sealed:
                shutil.rmtree(checkpoint, ignore_errors=True)  # a full disk needs the space
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(output_dir), save_total_limit=limit, best_model_checkpoint=best)
        self.save_is_due = False
        if deleted:
            raise TrainingFault(f"{output_dir} was deleted during the training", flags="--resume_from_checkpoint last")

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if not is_usable(best):
            raise TrainingFault(f"The best checkpoint, {best}, is gone or incomplete")
        super()._load_best_model()

    def _epoch_is_ending(self) -> bool:
        return not self.epoch_has_ended and (
            self.state.epoch == int(self.state.epoch) or self.control.should_training_stop
        )

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        is_new_best = super()._determine_best_metric(metrics, trial)
        if is_new_best and self.args.load_best_model_at_end:
            self.control.should_save = True  # it is to be loaded at the end, so it must be there
        return is_new_best

    # Resuming

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        weights = Path(resume_from_checkpoint) / "model.safetensors"
        if weights.is_file():
            try:
                with safe_open(weights, framework="pt") as file:  # which has keys, but is no mapping
                    saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise InputError(f"{weights} is damaged: {error}.") from error
            assert self.model is not None  # the Trainer needs one
            wanted = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
            for name in sorted(saved.keys() | wanted.keys()):
                if saved.get(name) != wanted.get(name):
                    raise InputError(
                        f"{resume_from_checkpoint} is a checkpoint of another model: its {name} is "
                        f"{saved.get(name, 'missing')}, and here it is {wanted.get(name, 'missing')}."
                    )
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        optimizer: Any = self.optimizer
        options = [group.keys() for group in optimizer.param_groups]
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except (ValueError, RuntimeError, EOFError) as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise InputError(f"{checkpoint} is damaged, or was written by another optimiser: {reason}.") from error
        if options != [group.keys() for group in optimizer.param_groups]:
            name = OptimizerNames(self.args.optim).value
            raise InputError(f"{checkpoint} was written by another optimiser than --optim {name}.")

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        if resume_from_checkpoint is not None and self.args.logging_steps < 1:
            # A checkpoint has the steps that a share came to, and the Trainer would warn that the two differ.
            self.args.logging_steps = math.ceil(max_steps * self.args.logging_steps)
        trained = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        self.resumed_from = None if resume_from_checkpoint is None else Path(resume_from_checkpoint)
        if self.resumed_from is not None and self.state.best_global_step and self.args.load_best_model_at_end:
            best = self.resumed_from.with_name(f"checkpoint-{self.state.best_global_step}")
            if is_usable(best):
                self.state.best_model_checkpoint = str(best)
            else:
                print(f"The best checkpoint so far, {best}, is gone: the best is chosen among those to come.")
                self.state.best_metric = self.state.best_global_step = self.state.best_model_checkpoint = None
        progress = self._resumed_progress()
        if progress is None:
            return trained
        images, before = self._images(), progress["images"]
        if images is not None and before is not None and images != before:
            print(f"{self.resumed_from} was trained on {before:,} images, and goes on with {images:,}.")
        if images is not None:
            return trained
        # The Trainer counts a stream of unknown length as one epoch, though it may have been read again and again.
        epoch, steps = int(progress["epoch"]), int(progress["steps_in_epoch"])
        if steps == 0 and self.state.global_step < max_steps:
            self.state.epoch = epoch
        return epoch, steps * self.args.gradient_accumulation_steps

    def _images(self) -> int | None:
        """How many are trained on, where that is known."""
        return len(cast(Sized, self.train_dataset)) if has_length(self.train_dataset) else None

    def _resumed_progress(self) -> dict[str, Any] | None:
        return None if self.resumed_from is None else sealed_progress(self.resumed_from)

    def _load_callback_state(self) -> None:
        """Callbacks go on counting; their settings are those of this run's flags."""
        states: Any = self.state.stateful_callbacks  # a dictionary, once there is a state
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, ExportableState):
                saved = states.setdefault(type(callback).__name__, callback.state())
                vars(callback).update(saved["attributes"])

    def _run_epoch(
        self, *, epoch: int, epochs_trained: int, steps_trained_in_current_epoch: int, **kwargs: Any
    ) -> None:
        if self._training_has_ended():  # the checkpoint is the last one
            self.control.should_training_stop = True
            return
        batches = steps_trained_in_current_epoch if epoch == epochs_trained else 0
        self.epoch = epoch
        self.step_before_epoch = self.state.global_step - batches // self.args.gradient_accumulation_steps
        super()._run_epoch(
            epoch=epoch,
            epochs_trained=epochs_trained,
            steps_trained_in_current_epoch=steps_trained_in_current_epoch,
            **kwargs,
        )

    def _training_has_ended(self) -> bool:
        return self.state.global_step >= self.state.max_steps or any(
            callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
            if isinstance(callback, EarlyStoppingCallback)
        )

    def _finalize_training(self, trial: Any, num_train_samples: int, start_time: float) -> Any:
        return super()._finalize_training(trial, num_train_samples, start_time - self.seconds_before)

    # What a checkpoint of the Trainer's own leaves out

    def _progress(self) -> dict[str, Any]:
        losses: Any = nested_gather(self._tr_loss, self.args.parallel_mode)  # of all processes
        return {
            "loss_since_log": losses.mean().item(),
            "loss_until_log": self._total_loss_scalar,
            "last_log": self._globalstep_last_logged,
            "first_step": self._initial_global_step,
            "epoch": self.epoch + self.epoch_has_ended,
            "steps_in_epoch": 0 if self.epoch_has_ended else self.state.global_step - self.step_before_epoch,
            "images": self._images(),
            "seconds": self.seconds_before + time.monotonic() - self.began,
        }

    def restore_progress(self) -> None:
        """What the logged and final losses are means of, and the time spent, as they were at the checkpoint."""
        self.began, self.seconds_before = time.monotonic(), 0.0
        self.epoch_has_ended = self.save_is_due = False
        progress = self._resumed_progress()
        if progress is not None:
            self._tr_loss = torch.tensor(progress["loss_since_log"], device=self.args.device)
            self._total_loss_scalar = progress["loss_until_log"]
            self._globalstep_last_logged = progress["last_log"]
            self._initial_global_step = progress["first_step"]
            self.seconds_before = progress["seconds"]


class _Resumption(TrainerCallback):
    def __init__(self, trainer: ResumableTrainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.restore_progress()
        if args.should_save:
            folder = str(args.output_dir)
            discard_checkpoints(Path(folder), after=state.global_step)
            best = state.best_model_checkpoint  # what a kill kept from being rotated
            rotate_checkpoints(folder, save_total_limit=args.save_total_limit, best_model_checkpoint=best)

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.trainer.epoch_has_ended = False
        seed = np.random.SeedSequence([args.seed, state.global_step, args.process_index]).generate_state(1)
        torch.manual_seed(int(seed[0]))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self._must_stop():
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self.trainer.epoch_has_ended = True
        if self.trainer.save_is_due:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs) -> None:
        if not self.trainer.save_is_due and self._must_stop():
            raise Interrupted(self.trainer.signals.received or SIGTERM)

    def _must_stop(self) -> bool:
        """Whether any process was told to."""
        accelerator, received = self.trainer.accelerator, self.trainer.signals.received
        if accelerator.num_processes == 1:
            return received is not None
        if received is not None:
            accelerator.set_trigger()
        return accelerator.check_trigger()
