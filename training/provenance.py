"""Where a model comes from: what its card says besides the figures."""

from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub.repocard import metadata_load
from transformers import TrainingArguments
from transformers.utils import cached_file

from vitrail.modeling.configuration_vit import VARIANTS
from vitrail.training.arguments import (
    FROZEN,
    DataArguments,
    ModelArguments,
    ViTTrainingArguments,
    recipe_settings,
)


# Of transformers' arguments those that change what is learned; the others say where, how often or how fast.
_LEARNING = {
    *("adam_beta1", "adam_beta2", "adam_epsilon", "auto_find_batch_size", "bf16", "bf16_full_eval", "data_seed"),
    *("dataloader_drop_last", "deepspeed", "fp16", "fp16_full_eval", "fsdp", "full_determinism"),
    *("gradient_accumulation_steps", "label_smoothing_factor", "learning_rate", "lr_scheduler_kwargs"),
    *("lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs", "optim", "optim_args"),
    *("optim_target_modules", "per_device_train_batch_size", "seed", "tf32", "torch_compile"),
    *("torch_compile_backend", "torch_compile_mode", "train_sampling_strategy", "warmup_steps", "weight_decay"),
}
# Of ours those that change nothing, or that have a place of their own in the card.
_ELSEWHERE = {
    *("dataset", "dataset_config", "dataset_revision", "image_column", "label_column", "license", "model"),
    *("objective", "on_bad_image", "recipe", "shuffle_buffer", "validation_fraction"),
}
# All that there is to say of a method which takes no steps and varies no image.
_OF_FEATURES = {
    *("bf16", "config_overrides", "fp16", "image_size", "max_eval_samples", "max_train_samples", "method"),
    *("patch_size", "seed", "shot_draws", "shots"),
}
_LICENSE_FIELDS = ("license", "license_name", "license_link")


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from.

    Attributes:
        dataset: the data set's name as a reader knows it.
        dataset_id: its id on the Hub, if that is where it is.
        base_model: the checkpoint that was fine-tuned; None when trained from scratch.
        base_model_id: its id on the Hub, if that is where it is.
        images: the number of images per split, where it is known.
        dataset_config, dataset_revision: the configuration and revision of a data set on the Hub, where one was named.
        license: `license` and, if it is another than the Hub lists, `license_name` and `license_link`; empty when
            nobody has said.
        license_inherited: whether it is the base model's.
        settings: the arguments that say how the model was trained, by their flags' names, where they are not
            transformers' defaults or ours, or the recipe has a say in them; and what is done to the images, in any
            case.
    """

    dataset: str
    dataset_id: str | None
    base_model: str | None
    base_model_id: str | None
    images: dict[str, int]
    dataset_config: str | None = None
    dataset_revision: str | None = None
    license: dict[str, str] = field(default_factory=dict)
    license_inherited: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def provenance_of(
    model: ModelArguments,
    data: DataArguments,
    training: ViTTrainingArguments,
    images: dict[str, int],
) -> Provenance:
    """What the arguments of a training say of where its model comes from.

    Args:
        model, data, training: as `parse_arguments` returns them.
        images: the number of images per split.
    """
    local_data = data.dataset == "digits" or Path(data.dataset).exists()
    base = None if model.model in VARIANTS else model.model
    local_base = base is None or Path(base).exists()
    inherited = _license_of(base) if base and not training.license else {}
    return Provenance(
        dataset="scikit-learn's handwritten digits" if data.dataset == "digits" else Path(data.dataset).resolve().name,
        dataset_id=None if local_data else data.dataset,
        base_model=Path(base).resolve().name if base and local_base else base,
        base_model_id=None if local_base else base,
        images=images,
        dataset_config=data.dataset_config,
        dataset_revision=data.dataset_revision,
        license={"license": training.license} if training.license else inherited,
        license_inherited=bool(inherited),
        settings=_settings(model, data, training),
    )


def _settings(model: ModelArguments, data: DataArguments, training: ViTTrainingArguments) -> dict[str, Any]:
    """What stands in `Provenance.settings`."""
    stock = {argument.name: argument.default for argument in fields(TrainingArguments)}
    of_recipe = recipe_settings(training.recipe).keys() if training.recipe else ()
    settings = {}
    for group in (model, data, training):
        for argument in fields(group):
            name, value = argument.name, getattr(group, argument.name)
            value = value.value if isinstance(value, Enum) else value
            changed = value != stock.get(name, argument.default) and value not in (None, {}, [])
            always = isinstance(group, DataArguments) and value not in (None, 0, "none")
            told = name in _LEARNING if name in stock else argument.init and name not in _ELSEWHERE
            heeded = model.method not in FROZEN or name in _OF_FEATURES
            if told and heeded and (changed or always or name in of_recipe):
                settings[name] = value
    return settings


def _license_of(base: str) -> dict[str, str]:
    """The licence that the card of a base model states, if it has a card and the card is to be had."""
    if Path(base).exists() and not Path(base).is_dir():
        return {}  # a file of weights
    card = cached_file(
        base,
        "README.md",
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    if card is None:
        return {}
    try:
        metadata = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError):  # of somebody else, who may have written anything
        return {}
    stated = {name: metadata[name] for name in _LICENSE_FIELDS if isinstance(metadata.get(name), str)}
    return stated if "license" in stated else {}
