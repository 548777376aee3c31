"""What `vitrail train` can be told: ours, transformers' `TrainingArguments`, and recipes that set both.

vitrail train --dataset digits --recipe digits --num_train_epochs 20
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_tensorboard_available, is_trackio_available
from transformers.training_args import OptimizerNames
from transformers.utils import is_peft_available

from vitrail.modeling import InputError
from vitrail.modeling.configuration_vit import VARIANTS
from vitrail.training.precision import has_fast_bf16


_RECIPES = resources.files("vitrail.training.recipes")
RECIPE_NAMES = sorted(path.name.removesuffix(".yaml") for path in _RECIPES.iterdir() if path.name.endswith(".yaml"))


# What can be learned, and by which figures the best of a training can be chosen.
OBJECTIVES = {
    "classification": ("accuracy", "f1_macro", "loss", "mAP", "f1_micro"),  # the last two of multi-label models alone
    "masked-patch": ("accuracy", "loss"),
}
ON_BAD_IMAGE = ("error", "skip")

_MOST_WORKERS = 8
POLICIES = ("none", "randaugment", "trivialaugment")
# How much of a model learns; the recipe of the same name goes with each but the first.
METHODS = ("full", "lora", "linear-probe", "few-shot")
FROZEN = ("linear-probe", "few-shot")


_REPORTERS = {"tensorboard": is_tensorboard_available, "trackio": is_trackio_available}


@dataclass
class ModelArguments:
    """Which ViT is trained, and how much of it."""

    model: str | None = field(
        default=None,
        metadata={
            "help": f"A Hub id or folder to fine-tune, or a variant to train from scratch: {', '.join(VARIANTS)}."
        },
    )
    image_size: int | None = field(default=None, metadata={"help": "The side of the model's input in pixels."})
    patch_size: int | None = field(default=None, metadata={"help": "The side of a patch in pixels."})
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Leave out the last layer's branches this often, earlier ones' less."}
    )
    patch_dropout_prob: float | None = field(
        default=None, metadata={"help": "The share of an image's patches left out in training."}
    )
    patch_dropout_until: float = field(
        default=1.0, metadata={"help": "Leave patches out in this first part of the training; then see them all."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Other fields of ViTConfig as JSON, e.g. '{\"num_hidden_layers\": 6}'."}
    )
    method: str = field(
        default="full",
        metadata={
            "help": f"What learns: {', '.join(METHODS)}. linear-probe and few-shot fit a head to the frozen backbone's "
            "features without steps or augmentation, and do not heed the flags of these."
        },
    )
    lora_rank: int = field(default=16, metadata={"help": "The rank of what lora adds to each dense layer."})
    lora_alpha: float = field(default=32.0, metadata={"help": "lora scales it by alpha / rank."})
    shots: int = field(default=5, metadata={"help": "Training images a class in few-shot."})
    shot_draws: int = field(default=5, metadata={"help": "How often few-shot draws them, with seed, seed + 1, ..."})

    def __post_init__(self):
        _require(self.method in METHODS, f"method must be one of {', '.join(METHODS)}")
        _require(self.method != "lora" or is_peft_available(), "method lora needs PEFT: pip install 'vitrail[lora]'")
        _require(0 <= self.patch_dropout_until <= 1, "patch_dropout_until must lie between 0 and 1")
        _require(self.lora_rank >= 1, "lora_rank must be at least 1")
        _require(math.isfinite(self.lora_alpha) and self.lora_alpha > 0, "lora_alpha must be a number > 0")
        _require(self.shots >= 1, "shots must be at least 1")
        _require(self.shot_draws >= 1, "shot_draws must be at least 1")


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
    balanced_sampling: bool = field(
        default=False, metadata={"help": "Repeat images of smaller classes until all are as large as the largest."}
    )
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
    padding: int = field(default=0, metadata={"help": "Shift by up to so many whole pixels."})
    policy: str = field(
        default="none",
        metadata={
            "help": f"Random colours and distortions: {', '.join(POLICIES)}. They never mirror, but shear, shift and, "
            "where that may change the label, rotate: randaugment by 9 degrees, trivialaugment by up to 135."
        },
    )
    erasing: float = field(
        default=0.0, metadata={"help": "Probability of painting over a random part (RandomErasing)."}
    )
    mixup: float = field(
        default=0.0, metadata={"help": "Alpha of MixUp, which blends pairs of images and their labels; 0 is off."}
    )
    cutmix: float = field(
        default=0.0,
        metadata={
            "help": "Alpha of CutMix, which pastes a part of one image into another; with MixUp, one of them a batch."
        },
    )

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
        _require(self.padding >= 0, "padding must be at least 0")
        _require(self.policy in POLICIES, f"policy must be one of {', '.join(POLICIES)}")
        _require(0 <= self.erasing <= 1, "erasing must lie between 0 and 1")
        _require(math.isfinite(self.mixup) and self.mixup >= 0, "mixup must be a number >= 0")
        _require(math.isfinite(self.cutmix) and self.cutmix >= 0, "cutmix must be a number >= 0")


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
    license: str | None = field(
        default=None,
        metadata={
            "help": "The model's licence, for its card: a name of the Hub's like apache-2.0 (default: its base's)."
        },
    )
    learning_rate: float = field(default=1e-4, metadata={"help": "The peak learning rate of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate's way down."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Steps of warm-up, or their share when below 1."})
    weight_decay: float = field(default=0.01, metadata={"help": "Decoupled weight decay."})
    bf16: bool | None = field(
        default=None,
        metadata={"help": "Compute in bfloat16 over float32 weights; by default where the hardware has it."},
    )
    layer_lr_decay: float = field(
        default=1.0, metadata={"help": "The learning rate of a layer is this share of the next one's; 1 is no decay."}
    )
    muon_learning_rate: float | None = field(
        default=None, metadata={"help": "Train the matrices of the layers by Muon at this rate, 0.02 say; 0: not."}
    )
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Evaluate and keep a moving average of the weights, with this decay, 0.999 say; 0: do not."},
    )
    class_weights: str | None = field(
        default=None, metadata={"help": "'balanced' lets every class count alike in the training loss."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop when so many evaluations in a row were no better than the best."}
    )
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
    hub_strategy: str = field(
        default="end",
        metadata={
            "help": "When push_to_hub publishes: at the end. transformers' other values are taken and mean the same; "
            "neither checkpoints nor unfinished models go to the Hub."
        },
    )
    logging_steps: float = field(default=0.05, metadata={"help": "Log every so many steps, or this share of all."})
    dataloader_num_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that prepare images; by default one less than there are cores, at most "
            f"{_MOST_WORKERS}, and none where all images are kept decoded, without a policy."
        },
    )
    restart: bool = field(
        default=False, metadata={"help": "Discard an unfinished run in --output_dir instead of going on with it."}
    )
    workers_given: bool = field(init=False, default=False)

    def __post_init__(self):
        _require(self.objective in OBJECTIVES, f"objective must be one of {', '.join(OBJECTIVES)}")
        _require(self.per_device_train_batch_size >= 1, "per_device_train_batch_size must be at least 1")
        _require(self.per_device_eval_batch_size >= 1, "per_device_eval_batch_size must be at least 1")
        _require(self.gradient_accumulation_steps >= 1, "gradient_accumulation_steps must be at least 1")
        _require(self.num_train_epochs > 0 or self.max_steps > 0, "num_train_epochs must be more than 0")
        _require(math.isfinite(self.learning_rate) and self.learning_rate >= 0, "learning_rate must be a number >= 0")
        _require(math.isfinite(self.weight_decay) and self.weight_decay >= 0, "weight_decay must be a number >= 0")
        _require(math.isfinite(self.max_grad_norm) and self.max_grad_norm >= 0, "max_grad_norm must be a number >= 0")
        _require(0 < self.layer_lr_decay <= 1, "layer_lr_decay must be more than 0 and at most 1")
        _require(
            math.isfinite(self.muon_learning_rate or 0) and (self.muon_learning_rate or 0) >= 0,
            "muon_learning_rate must be a number >= 0",
        )
        self.muon_learning_rate = self.muon_learning_rate or None
        self.ema_decay = self.ema_decay or None
        _require(self.ema_decay is None or 0 < self.ema_decay < 1, "ema_decay must be at least 0 and less than 1")
        _require(
            self.ema_decay is None or not OptimizerNames(self.optim).value.startswith("schedule_free"),
            "ema_decay does not go with a schedule-free --optim, which averages the weights itself",
        )
        _require(self.class_weights in (None, "balanced"), "class_weights must be 'balanced', or left out")
        _require(0 <= self.label_smoothing_factor < 1, "label_smoothing_factor must be at least 0 and less than 1")
        _require(
            self.objective == "classification" or (not self.label_smoothing_factor and self.class_weights is None),
            f"label_smoothing_factor and class_weights are for classification, not for {self.objective}",
        )
        patience = self.early_stopping_patience
        _require(patience is None or patience >= 1, "early_stopping_patience must be at least 1")
        _require(
            patience is None or self.eval_strategy != "no",
            "early_stopping_patience needs evaluations: --eval_strategy epoch or steps",
        )
        _require(0 <= self.seed < 2**32, "seed must be at least 0 and less than 2^32")
        self.workers_given = self.dataloader_num_workers is not None
        if self.dataloader_num_workers is None:
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that share this machine's cores
            self.dataloader_num_workers = max(0, min(usable_cores() // processes - 1, _MOST_WORKERS))
        _require(self.dataloader_num_workers >= 0, "dataloader_num_workers must be at least 0")
        _require(
            not self.dataloader_persistent_workers,
            "dataloader_persistent_workers is not supported; the Trainer would measure every split on the first one's "
            "images, and a resumed training would differ",
        )
        _require(
            self.license is None or re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license) is not None,
            "license must be a name of the Hub's like apache-2.0, cc-by-4.0 or other",
        )
        metrics = OBJECTIVES[self.objective]
        metric = (self.metric_for_best_model or "loss").removeprefix("eval_")
        _require(metric in metrics, f"metric_for_best_model must be one of {', '.join(metrics)} in {self.objective}")
        _require(not self.prediction_loss_only, "prediction_loss_only would leave no accuracy to report")
        _require(
            not self.batch_eval_metrics, "batch_eval_metrics is not supported; evaluation takes all logits at once"
        )
        _require(not self.save_only_model, "save_only_model would leave nothing to go on from after an interruption")
        _require(
            not self.restart or self.resume_from_checkpoint != "last",
            "restart discards what resume_from_checkpoint last would go on from; give one of them",
        )
        if self.data_seed is None:
            self.data_seed = self.seed  # and not what the random generator was last seeded with
        if "no" in (self.eval_strategy, self.save_strategy):
            self.load_best_model_at_end = False  # there is nothing to choose from
        if self.bf16 is None:
            self.bf16 = not self.fp16 and has_fast_bf16(self.use_cpu)
        self.use_cpu |= not torch.accelerator.is_available()  # or TrainingArguments takes bfloat16 for a GPU's alone
        if self.ddp_find_unused_parameters is None:
            self.ddp_find_unused_parameters = False  # there are none, and looking for them costs time in every step
        self.remove_unused_columns = False  # rows become tensors lazily, after the Trainer would look for its columns
        self.run_name = self.run_name or self.output_dir  # else the final evaluation would be a run of its own
        super().__post_init__()
        for reporter, available in _REPORTERS.items():
            installed = reporter not in (self.report_to or []) or available()
            _require(installed, f"report_to {reporter} needs a package that is not installed: pip install {reporter}")
        self.dataloader_pin_memory &= torch.accelerator.is_available()

    def _process_fsdp_args(self) -> dict[str, Any] | None:
        plugin: dict[str, Any] | None = super()._process_fsdp_args()
        if plugin is not None:  # Accelerate shards the patch embeddings itself; more around them would be too much
            plugin.setdefault("transformer_cls_names_to_wrap", "ViTLayer")
        return plugin


_GROUPS: Any = (ModelArguments, DataArguments, ViTTrainingArguments)


def parse_arguments(argv: Sequence[str]) -> tuple[ModelArguments, DataArguments, ViTTrainingArguments]:
    """The command line, over the recipe, over the defaults.

    Without `--recipe`, `--method` and `--dataset digits` take the recipe of that name, a variant to train from scratch
    takes `scratch-small` or, to learn without labels, `masked-patch`, and a checkpoint to classify `finetune`; without
    `--output_dir`, the run goes to `runs/` and the data set's name.

    Raises:
        InputError: an unknown flag or recipe, or a value that does not fit.
    """
    parser = _Parser(_GROUPS, prog="vitrail train", allow_abbrev=False)
    given, _ = parser.parse_known_args(argv)
    recipe = given.recipe or _default_recipe(given)
    if recipe is not None:
        settings = recipe_settings(recipe)
        if unknown := settings.keys() - {action.dest for action in parser._actions}:
            raise InputError(f"The recipe {recipe!r} sets {min(unknown)!r}, which is no argument of `vitrail train`.")
        parser.set_defaults(**settings, recipe=recipe)
    if given.dataset == "digits":
        parser.set_defaults(flip=0.0)  # whatever recipe there is, a digit in a mirror is none
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
    _require(
        training.objective == "classification" or not (data.mixup or data.cutmix),
        f"mixup and cutmix are for classification; {training.objective} has no labels to mix",
    )
    _require(
        training.objective == "classification" or not data.balanced_sampling,
        f"balanced_sampling is for classification; {training.objective} knows no classes",
    )
    _require(
        model.method != "few-shot" or not data.balanced_sampling,
        "method few-shot draws as many images of every class as of any other; leave out balanced_sampling",
    )
    if data.streaming:
        _require(model.method not in FROZEN, f"method {model.method} keeps features by image; leave out streaming")
        balanced = "balanced_sampling" if data.balanced_sampling else training.class_weights and "class_weights"
        _require(not balanced, f"{balanced} counts the images of each class beforehand; leave out streaming")
    if model.method != "full":
        _require(training.objective == "classification", f"method {model.method} is for classification")
        _require(
            model.model not in VARIANTS,
            f"method {model.method} builds on what a model has learned, and {model.model} starts from nothing: give "
            "--model a Hub id or a folder",
        )
    _require(
        model.method not in FROZEN or training.resume_from_checkpoint is None,
        f"method {model.method} has no checkpoints to resume from; run it again, and it finds the features it has kept",
    )
    return model, data, training


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _require(holds: bool, sentence: str) -> None:
    if not holds:
        raise InputError(f"{sentence}.")


class _Parser(HfArgumentParser):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        bf16 = self._option_string_actions["--bf16"]
        bf16.nargs, bf16.const = "?", True  # HfArgumentParser forgets the bare flag where a bool may be None

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message[0].upper()}{message[1:]}; `vitrail train --help` lists the flags.")


def _default_recipe(given: argparse.Namespace) -> str | None:
    if given.method in METHODS[1:]:
        return given.method
    if given.model is None:
        return "digits" if given.dataset == "digits" else None
    if given.objective == "masked-patch":
        return given.objective if given.model in VARIANTS else None
    return "scratch-small" if given.model in VARIANTS else "finetune"


def recipe_settings(name: str) -> dict[str, Any]:
    """What a recipe sets, by the arguments' names.

    Raises:
        InputError: there is none of that name.
    """
    if name not in RECIPE_NAMES:
        raise InputError(f"There is no recipe {name!r}; the recipes are {', '.join(RECIPE_NAMES)}.")
    return yaml.safe_load((_RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
