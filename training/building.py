"""The model and processor that a training starts from: a variant with new weights, or anybody's checkpoint."""

import json
from pathlib import Path

from transformers.image_utils import SizeDict

from vitrail.modeling import (
    InputError,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedPatchPrediction,
    ViTImageProcessor,
)
from vitrail.modeling.configuration_vit import VARIANTS
from vitrail.training.arguments import ModelArguments


def check_model(arguments: ModelArguments) -> None:
    """Finds what is wrong with the model that is asked for, without its weights, before any data is read.

    Raises:
        InputError: there is no such model, or it cannot have such a configuration.
    """
    if arguments.model is None:
        raise InputError(f"Say what to train with --model: a Hub id, a folder, or a variant of {', '.join(VARIANTS)}.")
    _config(arguments.model, _overrides(arguments))


def build_model(
    arguments: ModelArguments, labels: list[str] | None, multi_label: bool = False
) -> tuple[ViTForImageClassification | ViTForMaskedPatchPrediction, ViTImageProcessor]:
    """A classifier of these labels, or without any a model for masked patch prediction, and its processor.

    With `multi_label`, an image has any number of the labels, else exactly one.
    """
    assert arguments.model is not None  # as `check_model` has found
    model_class = ViTForMaskedPatchPrediction if labels is None else ViTForImageClassification
    fields = _overrides(arguments)
    if labels is not None:
        fields |= {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "multi_label_classification" if multi_label else None,
        }
    if _is_variant(arguments.model):
        model = model_class(_config(arguments.model, fields))
        processor = ViTImageProcessor(num_channels=model.config.num_channels)
    else:
        model = model_class.from_pretrained(arguments.model, **fields)
        processor = ViTImageProcessor.from_pretrained(arguments.model)
        before = ViTConfig.from_pretrained(arguments.model, image_size=model.config.image_size)
        same = (before.labels, before.is_multi_label) == (model.config.labels, model.config.is_multi_label)
        if isinstance(model, ViTForImageClassification) and not same:
            model.reset_head()  # which may have had as many classes, but others or in another order
    if processor.num_channels != model.config.num_channels:
        raise InputError(
            f"{arguments.model} has a model of {model.config.num_channels} channels, but prepares images of "
            f"{processor.num_channels}; save a ViTImageProcessor(num_channels={model.config.num_channels}) there."
        )
    height, width = model.config.image_shape
    if processor.output_size != (height, width):  # then the image is fitted, by default squashed, to the model's size
        size = SizeDict(height=height, width=width)
        if processor.fit == "crop" and height == width:
            processor.size, processor.crop_size = SizeDict(shortest_edge=height), size
        else:
            processor.size, processor.do_center_crop = size, False
    return model, processor


def _is_variant(model: str) -> bool:
    """Whether that is, or with a misprint was to be, the name of a variant."""
    looks_so = len(model.split("/")) == 2 and model.split("/")[1].isdecimal()
    return model in VARIANTS or (looks_so and not Path(model).exists())


def _config(model: str, fields: dict) -> ViTConfig:
    if _is_variant(model):
        return ViTConfig.from_variant(model, **fields)
    return ViTConfig.from_pretrained(model, **fields)


def _overrides(arguments: ModelArguments) -> dict:
    try:
        fields = json.loads(arguments.config_overrides or "{}")
    except json.JSONDecodeError as error:
        raise InputError(f"config_overrides is not JSON: {error}.") from error
    if not isinstance(fields, dict):
        raise InputError(f"config_overrides must be a JSON object like '{{\"num_hidden_layers\": 6}}', not {fields}.")
    unknown = fields.keys() - ViTConfig().to_dict().keys()
    if unknown:
        raise InputError(f"config_overrides sets {sorted(unknown)[0]!r}, which is no field of ViTConfig.")
    flags = {
        "image_size": arguments.image_size,
        "patch_size": arguments.patch_size,
        "drop_path_rate": arguments.drop_path_rate,
        "patch_dropout_prob": arguments.patch_dropout_prob,
    }
    return fields | {name: value for name, value in flags.items() if value is not None}
