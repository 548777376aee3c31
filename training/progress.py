"""What a terminal shows of a training as it goes on, and what a log file keeps of it."""

import sys
import time
from typing import Any, cast

import datasets
import huggingface_hub.utils
import transformers.utils.logging
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length


_SPLITS = {"eval": "validation", "test": "test"}
_UNSAID = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
_NEWS = 0.1  # how much the last step counts in the speed that is shown


def draw_bars_on_terminals_alone() -> None:
    """Turns off the bars of `datasets`, `huggingface_hub` and `transformers` where they would go to a file."""
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
        huggingface_hub.utils.disable_progress_bars()
        transformers.utils.logging.disable_progress_bar()


class Progress(TrainerCallback):
    """How far a training is, its loss, images/s and the time left; and the figures of every evaluation.

    On a terminal that is a bar with the figures above it; elsewhere, and with `--disable_tqdm`, a line for each log and
    evaluation, on stdout.
    """

    def __init__(self):
        self._bar: tqdm | None = None
        self._evaluation_bar: tqdm | None = None
        self._images_per_step = 0.0
        self._seconds_per_step = 0.0
        self._start, self._before = 0.0, 0.0  # when this training and the step under way began
        self._first_step = 0
        self._training = False
        self._loss = ""

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        self._training = True
        self._start = self._before = time.monotonic()
        self._first_step, self._seconds_per_step = state.global_step, 0.0
        self._images_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        if has_length(train_dataloader) and args.max_steps <= 0:  # the last batch of an epoch may be smaller
            self._images_per_step = len(cast(Any, train_dataloader).dataset) * args.num_train_epochs / state.max_steps
        if self._bar is not None:
            self._bar.close()  # a batch too large for the memory has made the training begin anew
            self._bar = None
        if _draws(args, state):
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                file=sys.stdout,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}",
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        now = time.monotonic()
        news = _NEWS if self._seconds_per_step else 1.0
        self._seconds_per_step += news * (now - self._before - self._seconds_per_step)
        self._before = now
        if self._bar is not None:
            self._bar.set_description_str(self._said(state), refresh=False)
            self._bar.update()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._before = time.monotonic()

    def on_prediction_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        eval_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if not _draws(args, state) or not has_length(eval_dataloader):
            return
        if self._evaluation_bar is None:
            self._evaluation_bar = tqdm(
                total=len(cast(Any, eval_dataloader).dataset),
                desc="evaluation",
                unit=" images",
                file=sys.stdout,
                dynamic_ncols=True,
                leave=False,
                bar_format="{percentage:3.0f}%|{bar:20}| {desc}, {rate_noinv_fmt}, {remaining} left",
            )
        self._evaluation_bar.update(args.eval_batch_size * args.world_size)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        logs = logs or {}
        if self._evaluation_bar is not None:
            self._evaluation_bar.close()
            self._evaluation_bar = None
        if not state.is_world_process_zero:
            return
        if "loss" in logs:
            self._loss = f"loss {logs['loss']:.4g}, "
            if self._bar is None:
                print(self._said(state), flush=True)
        for prefix, split in _SPLITS.items():
            if f"{prefix}_loss" in logs:
                figures = {name.removeprefix(f"{prefix}_"): value for name, value in logs.items()}
                told = [name for name in figures if f"{prefix}_{name}" in logs and name not in _UNSAID]
                said = ", ".join(f"{name.replace('_', ' ')} {figures[name]:.4g}" for name in told)
                weights = _position(state) if self._training else "kept weights"
                tqdm.write(f"{weights}, {split}: {said}", file=sys.stdout)
                sys.stdout.flush()
        self._before = time.monotonic()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._training = False
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _said(self, state: TrainerState) -> str:
        speed = self._images_per_step / max(self._seconds_per_step, 1e-9)
        done, left = state.global_step - self._first_step, state.max_steps - state.global_step
        seconds = (time.monotonic() - self._start) / max(done, 1) * left  # with evaluations, as there were so far
        rate = f"{speed:,.{1 if speed < 10 else 0}f} images/s"
        return f"{_position(state)}, {self._loss}{rate}, {tqdm.format_interval(seconds)} left"


def _draws(args: TrainingArguments, state: TrainerState) -> bool:
    return state.is_world_process_zero and not args.disable_tqdm and sys.stdout.isatty()


def _position(state: TrainerState) -> str:
    if state.num_train_epochs == sys.maxsize:  # as the Trainer counts the epochs of images without number
        return f"step {state.global_step:,} of {state.max_steps:,}"
    return f"epoch {state.epoch or 0:.2f} of {state.num_train_epochs}"
