"""What `vitrail train` can be told: ours, transformers' `TrainingArguments`, and recipes that set both.

vitrail train --dataset digits --recipe digits --num_train_epochs 20
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments

from vitrail.modeling import InputError
from vitrail.modeling.configuration_vit import VARIANTS


_RECIPES = resources.files("vitrail.training.recipes")
RECIPE_NAMES = sorted(path.name.removesuffix(".yaml") for path in _RECIPES.iterdir() if path.name.endswith(".yaml"))


# What can be learned, and by which figures the best of a training can be chosen.
OBJECTIVES = {
    "classification": ("accuracy", "f1_macro", "loss", "mAP", "f1_micro"),  # the last two of multi-label models alone
    "masked-patch": ("accuracy", "loss"),
}
ON_BAD_IMAGE = ("error", "skip")


@dataclass
class ModelArguments:
    """Which ViT is trained."""

    model: str | None = field(
        default=None,
        metadata={
            "help": f"A Hub id or folder to fine-tune, or a variant to train from scratch: {', '.join(VARIANTS)}."
        },
    )
    image_size: int | None = field(default=None, metadata={"help": "The side of the model's input in pixels."})
    patch_size: int | None = field(default=None, metadata={"help": "The side of a patch in pixels."})
    config_overrides: str | None = field(
        default=None, metadata={"help": "Other fields of ViTConfig as JSON, e.g. '{\"num_hidden_layers\": 6}'."}
    )


@dataclass
class DataArguments:
    """What it learns from, and how the images are varied."""

    dataset: str = field(
        metadata={
            "help": "'digits', a Hub data-set id, a folder of images (one sub-folder a class, or a metadata.csv with "
            "file_name and label), or .parquet, .arrow or .tar files: their folder, paths or globs, between commas."
        }
    )
    dataset_config: str | None = field(default=None, metadata={"help": "The configuration of a Hub data set."})
    dataset_revision: str | None = field(
        default=None, metadata={"help": "The branch, tag or commit of a Hub data set."}
    )
    streaming: bool = field(
        default=False,
        metadata={"help": "Read Hub data sets and files while they are used, as images in folders always are."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Draw each image of a stream at random from so many that are held in memory."}
    )
    on_bad_image: str = field(
        default="error",
        metadata={"help": "What to do about an image that cannot be read: error, or skip, which counts them."},
    )
    image_column: str | None = field(
        default=None, metadata={"help": "Default: the one column of images, of files' bytes, or of their paths."}
    )
    label_column: str | None = field(
        default=None, metadata={"help": "Default: the one column of classes, or of lists of them."}
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "The share of the training split set aside when there is no validation split."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on at most so many random images."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Evaluate on at most so many random images."})
    crop_scale: float = field(
        default=0.35,
        metadata={"help": "Random crops keep at least this share of the area; 1 squashes the whole image."},
    )
    flip: float = field(
        default=0.5, metadata={"help": "Probability of a horizontal flip; 0 where it changes the label."}
    )
    rotation: float = field(default=0.0, metadata={"help": "Rotate by up to so many degrees."})
    scaling: float = field(default=0.0, metadata={"help": "Scale by up to this share, up and down."})
    translation: float = field(default=0.0, metadata={"help": "Shift by up to this share of the side."})

    def __post_init__(self):
        _require(self.shuffle_buffer >= 1, "shuffle_buffer must be at least 1")
        _require(self.on_bad_image in ON_BAD_IMAGE, f"on_bad_image must be one of {', '.join(ON_BAD_IMAGE)}")
        _require(0 < self.validation_fraction < 1, "validation_fraction must lie between 0 and 1")
        _require(self.max_train_samples is None or self.max_train_samples >= 1, "max_train_samples must be at least 1")
        _require(self.max_eval_samples is None or self.max_eval_samples >= 1, "max_eval_samples must be at least 1")
        _require(0 < self.crop_scale <= 1, "crop_scale must be more than 0 and at most 1")
        _require(0 <= self.flip <= 1, "flip must lie between 0 and 1")
        _require(self.rotation >= 0, "rotation must be at least 0")
        _require(0 <= self.scaling < 1, "scaling must be at least 0 and less than 1")
        _require(0 <= self.translation <= 1, "translation must lie between 0 and 1")


@dataclass
class ViTTrainingArguments(TrainingArguments):
    """transformers' `TrainingArguments` with defaults that suit fine-tuning a ViT."""

    recipe: str | None = field(
        default=None,
        metadata={"help": f"Settings to start from, which flags override: {', '.join(RECIPE_NAMES)}."},
    )
    objective: str = field(
        default="classification",
        metadata={
            "help": f"What is learned: {' or '.join(OBJECTIVES)}, which is pre-training on images without labels."
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "The peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate's way down."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or their share when below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay."})
    per_device_train_batch_size: int = field(default=32, metadata={"help": "Images a step and device."})
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Images a step and device in evaluation."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(
        default="epoch", metadata={"help": "When to write a checkpoint: no, steps, epoch or best."}
    )
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the best evaluated weights, not the last."}
    )
    metric_for_best_model: str | None = field(default="accuracy", metadata={"help": "What best means."})
    logging_steps: float = field(default=0.05, metadata={"help": "Log every so many steps, or this share of all."})

    def __post_init__(self):
        _require(self.per_device_train_batch_size >= 1, "per_device_train_batch_size must be at least 1")
        _require(self.per_device_eval_batch_size >= 1, "per_device_eval_batch_size must be at least 1")
        _require(math.isfinite(self.learning_rate) and self.learning_rate >= 0, "learning_rate must be a number >= 0")
        _require(self.seed >= 0, "seed must be at least 0")
        _require(self.dataloader_num_workers >= 0, "dataloader_num_workers must be at least 0")
        _require(self.objective in OBJECTIVES, f"objective must be one of {', '.join(OBJECTIVES)}")
        metrics = OBJECTIVES[self.objective]
        metric = (self.metric_for_best_model or "loss").removeprefix("eval_")
        _require(metric in metrics, f"metric_for_best_model must be one of {', '.join(metrics)} in {self.objective}")
        _require(not self.prediction_loss_only, "prediction_loss_only would leave no accuracy to report")
        _require(
            not self.batch_eval_metrics, "batch_eval_metrics is not supported; evaluation takes all logits at once"
        )
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False  # there is nothing to choose from
        self.remove_unused_columns = False  # rows become tensors lazily, after the Trainer would look for its columns
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()


_GROUPS: Any = (ModelArguments, DataArguments, ViTTrainingArguments)


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, ViTTrainingArguments]:
    """The command line, over the recipe, over the defaults.

    Without `--recipe`, `--dataset digits` takes the recipe of that name and a variant to train from scratch takes
    `scratch-small`; without `--output_dir`, the run goes to `runs/` and the data set's name.

    Raises:
        InputError: an unknown flag or recipe, or a value that does not fit.
    """
    parser = _Parser(_GROUPS, prog="vitrail train", allow_abbrev=False)
    given, _ = parser.parse_known_args(argv)
    recipe = given.recipe or _default_recipe(given.dataset, given.model)
    if recipe is not None:
        parser.set_defaults(**_read_recipe(recipe, {action.dest for action in parser._actions}), recipe=recipe)
    if given.output_dir is None:
        source = Path(given.dataset)
        parser.set_defaults(output_dir=str(Path("runs") / (source.stem if source.is_file() else source.resolve().name)))
    try:
        *parsed, unknown = parser.parse_args_into_dataclasses(
            list(argv), return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError, OSError) as error:
        raise InputError(" ".join(str(error).split())) from error
    if unknown:
        parser.error(f"there is no flag {unknown[0]}")
    model, data, training = cast("tuple[ModelArguments, DataArguments, ViTTrainingArguments]", tuple(parsed))
    _require(
        training.objective == "classification" or data.label_column is None,
        f"label_column is for classification; {training.objective} learns from the images alone",
    )
    return model, data, training


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(f"{sentence}.")


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}; `vitrail train --help` lists the flags.")


def _default_recipe(dataset: str, model: str | None) -> str | None:
    if dataset == "digits" and model is None:
        return "digits"
    return "scratch-small" if model in VARIANTS else None


def _read_recipe(name: str, known: set[str]) -> dict:
    if name not in RECIPE_NAMES:
        raise InputError(f"There is no recipe {name!r}; the recipes are {', '.join(RECIPE_NAMES)}.")
    recipe = yaml.safe_load((_RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    unknown = recipe.keys() - known
    if unknown:
        raise InputError(f"The recipe {name!r} sets {sorted(unknown)[0]!r}, which is no argument of `vitrail train`.")
    return recipe
