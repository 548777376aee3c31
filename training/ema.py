"""The exponential moving average of the weights, which is evaluated and kept instead of the weights themselves.

vitrail train --dataset FOLDER --model B/16 --ema_decay 0.999
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback


_FILE = "raw_weights.safetensors"


class WeightAverage(TrainerCallback):
    """The moving average of a model's trainable parameters in float32, updated after every optimiser step.

    Step t moves it by 1 - min(decay, (1 + t) / (10 + t)) of the way to the weights ("Adam", Section 7.2, with the
    warm-up of TensorFlow's `ExponentialMovingAverage`), so that early weights are soon forgotten.

    A checkpoint's `model.safetensors` is the average, as it was evaluated; `raw_weights.safetensors` beside it has the
    weights themselves, from which training resumes.

    Args:
        decay: in (0, 1), the share of the average that a step keeps.
        model: its parameters now are where the average starts.
    """

    def __init__(self, decay: float, model: nn.Module):
        self.decay = decay
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.average = {name: weight.detach().float().clone() for name, weight in self.parameters.items()}

    @torch.no_grad()
    def on_step_end(self, args, state, control, **kwargs) -> None:
        step = state.global_step
        weights = [weight.float() for weight in self.parameters.values()]
        torch._foreach_lerp_([*self.average.values()], weights, 1 - min(self.decay, (1 + step) / (10 + step)))

    @torch.no_grad()
    def apply(self) -> None:
        """Makes the average the model's weights."""
        torch._foreach_copy_([*self.parameters.values()], [*self.average.values()])

    @contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the average is the model's weights."""
        raw = [weight.detach().clone() for weight in self.parameters.values()]
        self.apply()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_([*self.parameters.values()], raw)

    def save(self, checkpoint: Path) -> None:
        """Writes what `load` needs beside the checkpoint's `model.safetensors`."""
        tensors = {name: weight.detach().contiguous() for name, weight in self.parameters.items()}
        for name, average in self.average.items():
            if tensors[name].dtype != average.dtype:  # then model.safetensors has it rounded
                tensors[f"average.{name}"] = average
        save_file(tensors, checkpoint / _FILE)

    @torch.no_grad()
    def load(self, checkpoint: Path) -> None:
        """Takes up the average and gives the model its raw weights back, from a checkpoint that the model was loaded
        from. One that was saved without an average is where the average starts.
        """
        if (checkpoint / _FILE).exists():
            tensors = load_file(checkpoint / _FILE)
            for name, weight in self.parameters.items():
                self.average[name].copy_(tensors.get(f"average.{name}", weight))
                weight.copy_(tensors[name])
