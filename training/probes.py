"""A linear head on a frozen backbone, whose features are computed once: a linear probe, and few-shot accuracy.

vitrail train --method linear-probe --model path/or/Hub-id --dataset path/to/folder
"""

import hashlib
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm
from transformers.trainer_utils import TrainOutput, speed_metrics

from vitrail.modeling import InputError, ViTForImageClassification
from vitrail.training.linear_heads import (
    LOGISTIC_C,
    LinearHead,
    best_logistic_regression,
    loss_of,
    regularised_least_squares,
    t_margin,
)
from vitrail.training.loading import Batches
from vitrail.training.trainer import ViTTrainer


@dataclass(frozen=True)
class Features:
    """What a frozen backbone makes of images; to the Trainer, a data set that gives whole batches.

    Attributes:
        features: (n, D), float32.
        labels: (n, ...), as the batches of the data set have them.
    """

    features: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.features)

    def __getitems__(self, keys: list[int]) -> dict[str, torch.Tensor]:
        return {"features": self.features[keys], "labels": self.labels[keys]}


class ProbeTrainer(ViTTrainer):
    """Learns a new linear head without steps, and evaluates it, on features that every image gives once.

    They are what the head reads: what `ViTForImageClassification.features` returns without a hidden layer and, for
    DeiT's two heads, the distillation token beside it. Those of a split are kept in `output_dir/_features`, under a
    name made of everything they depend on: the images, the backbone's weights, the processor and the precision.
    Flags of the optimiser, the schedule and the augmentation mean nothing here.

    Raises:
        InputError: the images are streamed.
    """

    model: ViTForImageClassification
    train_dataset: Dataset
    eval_dataset: Dataset

    def __init__(self, *, model: ViTForImageClassification, **kwargs: Any):
        model.reset_head()
        super().__init__(model=model, **kwargs)
        if not isinstance(self.train_dataset, Batches):
            raise InputError("A frozen backbone's features are kept by image, which streamed images do not allow.")
        self.state.epoch = cast(Any, None)  # else every metric would be said to be of epoch 0
        self._backbone = self._fingerprint_of_backbone()

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Fits the head and puts it into the model; there are no checkpoints to resume from."""
        start = time.time()
        fitted = self.fit()
        return TrainOutput(0, 0.0, speed_metrics("train", start, num_samples=len(self.train_dataset)) | fitted)

    def fit(self) -> dict[str, float]:
        """Puts a fitted head into the model; returns what there is to say of it, for `all_results.json`."""
        raise NotImplementedError  # each probe has its own

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As the Trainer does, on the split's features."""
        images = cast(Batches, self.eval_dataset if eval_dataset is None else eval_dataset)
        return super().evaluate(cast(Any, self.features_of(images)), *args, **kwargs)

    def predict(self, test_dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer does, on the split's features."""
        return super().predict(cast(Any, self.features_of(test_dataset)), *args, **kwargs)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """The loss, logits and labels of a batch of features."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad():
            parts = inputs["features"].chunk(len(self._heads), dim=1)
            logits = torch.stack([head(part) for head, part in zip(self._heads, parts)]).mean(0)
        loss = loss_of(logits, inputs["labels"])
        return (loss, None, None) if prediction_loss_only else (loss, logits, inputs["labels"])

    def features_of(self, images: Batches) -> Features:
        """The features of a split, from the cache if they are in it."""
        folder = Path(str(self.args.output_dir)) / "_features"
        path = folder / f"{self._backbone}-{_fingerprint_of(images.rows)}.safetensors"
        kept: list[dict[str, torch.Tensor] | None] = [None]
        if self.is_world_process_zero() and path.exists():
            kept = [load_file(path)]
        broadcast_object_list(kept)  # one process looks for all: the others may not see its disk
        if kept[0] is not None:
            return Features(**kept[0])
        features = self._computed(images)
        if self.is_world_process_zero():
            partial = path.with_suffix(".partial")
            try:
                folder.mkdir(exist_ok=True)
                save_file(asdict(features), partial)
                partial.replace(path)
            except (OSError, SafetensorError) as error:
                partial.unlink(missing_ok=True)
                raise InputError(f"Cannot keep the features in {folder}: {str(error).rstrip('.')}.") from error
        return features

    @property
    def _heads(self) -> list[torch.nn.Linear]:
        """The linear layers whose mean are the logits."""
        return [head for head in (self.model.classifier, self.model.distillation_classifier) if head is not None]

    def _put(self, head: LinearHead) -> None:
        """Makes `head` the model's own; where there are two, each has its share of the features."""
        for layer, weight in zip(self._heads, head.weight.chunk(len(self._heads), dim=1)):
            with torch.no_grad():
                layer.weight.copy_(weight * len(self._heads))
                layer.bias.copy_(head.bias)

    @torch.no_grad()
    def _computed(self, images: Batches) -> Features:
        self.model.eval()
        parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        quiet = self.args.disable_tqdm or not self.is_world_process_zero()
        with tqdm(total=len(images), desc="Features", unit=" images", disable=quiet) as progress:
            for inputs in self.get_test_dataloader(cast(Any, images)):
                inputs = self._prepare_inputs(inputs)
                with self.accelerator.autocast():
                    outputs = self.model.vit(inputs["pixel_values"])
                    read = [self.model.features(outputs)]
                    if self.model.distillation_classifier is not None:
                        read.append(outputs.last_hidden_state[:, 1])
                batch = torch.cat(read, dim=1).float(), inputs["labels"]
                features, labels = self.accelerator.gather_for_metrics(batch)
                parts.append((features.cpu(), labels.cpu()))
                progress.update(len(features))
        features, labels = zip(*parts)
        return Features(torch.cat(features), torch.cat(labels))

    def _fingerprint_of_backbone(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for name, tensor in self.model.vit.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
        settings = (
            self.model.config.to_dict(),
            self.processing_class,
            self.args.bf16,
            self.args.fp16,
            self.args.device,
        )
        digest.update(repr(settings).encode())
        return digest.hexdigest()


class LinearProbeTrainer(ProbeTrainer):
    """Multinomial logistic regression, or with several labels an image one binary one a class."""

    def fit(self) -> dict[str, float]:
        known = [self.features_of(cast(Batches, images)) for images in (self.train_dataset, self.eval_dataset)]
        training, validation = ((split.features, split.labels) for split in known)
        head, c = best_logistic_regression(training, validation, len(self.model.config.labels))
        self._put(head)
        self.method = {
            "method": f"linear probe: logistic regression on {head.weight.shape[1]:,} features of the frozen backbone",
            "penalty": f"L2, C = {c:.2g} for standardised features, of {LOGISTIC_C[0]:g} to {LOGISTIC_C[-1]:g} that of "
            "the lowest loss on the validation split",
        }
        return {"linear_probe_c": c}


class FewShotTrainer(ProbeTrainer):
    """The paper's few-shot accuracy: regularised least squares from features to {-1, 1}^K (Section 4.1).

    As many images of each class as there are shots are drawn from the training split again and again, with the seeds
    `--seed`, `--seed` + 1, ...; the model keeps the head of the first draw.

    Args:
        shots: images a class.
        draws: how often they are drawn.

    Raises:
        InputError: a class has fewer training images than shots, or an image can have several labels.
    """

    def __init__(self, *, shots: int, draws: int, **kwargs: Any):
        super().__init__(**kwargs)
        if self.model.config.is_multi_label:
            raise InputError("few-shot draws images class by class, which takes images with one label each.")
        self.shots, self.seeds = shots, range(self.args.seed, self.args.seed + draws)
        self._fitted: list[LinearHead] = []

    def fit(self) -> dict[str, float]:
        fitted = [self._least_squares(seed) for seed in self.seeds]
        self._fitted = [head for head, _ in fitted]
        head, strength = fitted[0]
        self._put(head)
        self.method = {
            "method": f"few-shot: least squares on {head.weight.shape[1]:,} features of the frozen backbone, targets "
            "-1 and 1",
            "shots": f"{self.shots} images a class, drawn from these",
            "penalty": f"{strength:g} times the squared weights of the standardised features, by leave-one-out",
        }
        return {"few_shot_penalty": strength}

    def evaluate(
        self, eval_dataset: Any = None, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any
    ) -> dict[str, float]:
        """Also the accuracy of every draw's head, their mean and, of several, half the width of its 95 % interval."""
        metrics = super().evaluate(eval_dataset, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        del metrics[f"{metric_key_prefix}_calibration_error"]  # of what are no probabilities
        held_out = self.features_of(cast(Batches, self.eval_dataset if eval_dataset is None else eval_dataset))
        features = held_out.features.double()
        hits = [(head(features).argmax(1) == held_out.labels).double().mean().item() for head in self._fitted]
        name = f"{metric_key_prefix}_few_shot_accuracy"
        metrics |= {f"{name}_seed_{seed}": accuracy for seed, accuracy in zip(self.seeds, hits)}
        metrics[f"{name}_mean"] = float(np.mean(hits))
        said = f"{metrics[f'{name}_mean']:.2%}"
        if len(hits) > 1:
            metrics[f"{name}_margin"] = t_margin(hits)
            said += f" ± {metrics[f'{name}_margin'] * 100:.2f} (95 % interval by Student's t)"
        split = "test" if metric_key_prefix == "test" else "validation"
        result = f"{self.shots} images a class reach {said} of the {split} split, the mean of {len(hits)} draws."
        if self.is_world_process_zero():
            print(result)
        self.remark = (
            f"Few-shot accuracy: {result} The table is of the head in this folder, that of the draw with seed "
            f"{self.seeds[0]}. Its logits are the regression's values around -1 and 1: their order means something, "
            "their softmax does not."
        )
        return metrics

    def _least_squares(self, seed: int) -> tuple[LinearHead, float]:
        names = self.model.config.labels
        images = cast(Batches, self.train_dataset)
        shots = draw_shots(cast(Any, images.rows["label"][:]), names, self.shots, seed)
        drawn = self.features_of(Batches(images.rows.select(shots), images.transform, images.still))
        targets = 2.0 * torch.nn.functional.one_hot(drawn.labels, len(names)) - 1
        return regularised_least_squares(drawn.features, targets)


def draw_shots(labels: list[int], names: list[str], shots: int, seed: int) -> list[int]:
    """The places of `shots` random images of each class.

    Args:
        labels: indices into `names`.
        names: the classes.
        shots: images a class.
        seed: decides which.

    Raises:
        InputError: a class has fewer images.
    """
    generator, classes = np.random.default_rng(seed), np.asarray(labels)
    drawn: list[int] = []
    for index, name in enumerate(names):
        members = np.flatnonzero(classes == index)
        if len(members) < shots:
            raise InputError(
                f"Class {name!r} has {len(members)} training images, fewer than --shots {shots}; lower it, or train on "
                "more images."
            )
        drawn += generator.choice(members, shots, replace=False).tolist()
    return drawn


def _fingerprint_of(rows: Dataset) -> str:
    """Tells rows by what they hold, and a file that they only name by its size and time."""
    digest = hashlib.blake2b(digest_size=8)
    row: Any
    for row in rows.with_format(None):
        digest.update(repr(row).encode())
        path = row["image"] and not row["image"]["bytes"] and row["image"]["path"]
        if path and os.path.isfile(path):
            file = os.stat(path)
            digest.update(f"{file.st_size} {file.st_mtime_ns}".encode())
    return digest.hexdigest()
