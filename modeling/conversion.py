"""Checkpoints out: from whatever was found to a format that other people's code reads.

vitrail convert runs/digits exported --to timm
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from .checkpoints import Checkpoint, read_checkpoint
from .configuration_vit import ViTConfig
from .errors import InputError
from .image_processing_vit import ViTImageProcessor
from .masked_patch_prediction import ViTForMaskedPatchPrediction
from .modeling_vit import ViTForImageClassification, ViTModel
from .npz_checkpoints import from_npz, to_npz
from .timm_checkpoints import from_timm, to_timm
from .transformers_checkpoints import config_from_transformers, from_transformers, to_transformers


Format = Literal["vitrail", "transformers", "timm", "npz"]

# Fields that do not change what a trained model computes at its own resolution.
_NOT_COMPARED = {
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "patch_dropout_prob"),
    *("initializer_range", "layer_scale_init_value", "position_resize", "interpolate_pos_encoding"),
    "reshape_hidden_states",
}
# Fields that differ where another one does, which says it better.
_CONSEQUENCES = {"image_size", "patch_size", "num_prefix_positions", "hidden_act", "position_placement"}


def convert(source: str | Path, destination: str | Path, to: Format = "vitrail", **hub_kwargs: Any) -> list[str]:
    """Writes a checkpoint in another format, and reads it back to make sure that it is the same model, bit for bit.

    Args:
        source: what `ViTForImageClassification.from_pretrained` takes.
        destination: a folder, or a path ending in `.npz` for the paper's format.
        to: `"vitrail"`; `"transformers"`, stock ViT, DeiT or DINOv2 by names that versions 4 and 5 read; `"timm"`,
            for `timm.create_model("local-dir:...")`; or `"npz"`.
        hub_kwargs: `revision`, `token`, ... of a Hub repository.

    Returns:
        sentences on what the other code does differently at other resolutions, or does not keep.

    Raises:
        InputError: the source cannot be read, or the format cannot express the model.
    """
    destination = Path(destination)
    if (to == "npz") != (destination.suffix == ".npz"):
        raise InputError(f"{destination} should {'' if to == 'npz' else 'not '}end in .npz for the format {to}.")
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise InputError(f"{destination} exists already; give a new place, so that nothing is lost.")
    checkpoint = read_checkpoint(source, **hub_kwargs)
    config = ViTConfig.from_dict(checkpoint.config)
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.state_dict.items()}
    if to == "vitrail":
        with _writing(destination):
            _save(tensors, source, destination, **hub_kwargs)
        saved = read_checkpoint(destination)
        _require_same(to, config, tensors, ViTConfig.from_dict(saved.config), saved.state_dict)
        return _left_out(checkpoint)
    if unknown := {"mask_token", "color_classifier.weight"} & tensors.keys():
        raise InputError(f"The format {to} cannot express {min(unknown)}, a part of masked patch prediction.")
    fields = config.to_dict()
    processor = _processor(source, **hub_kwargs)
    try:
        if to == "npz":
            arrays = to_npz(fields, tensors)
            fields_again, tensors_again = from_npz(arrays, str(destination), config.image_size)
        elif to == "timm":
            config_json, renamed = to_timm(fields, tensors, processor and processor.to_dict())
            fields_again, tensors_again = from_timm(config_json, renamed, source=str(destination))
        else:
            config_json, renamed = to_transformers(fields, tensors)
            fields_again = config_from_transformers(config_json)
            tensors_again = from_transformers(renamed, config_json["model_type"])
    except InputError as error:
        raise InputError(f"{to} cannot express this model: {error}") from error
    again = ViTConfig.from_dict(fields_again)
    _require_same(to, config, tensors, again, tensors_again)

    with _writing(destination):
        if to == "npz":
            destination.parent.mkdir(parents=True, exist_ok=True)
            with destination.open("wb") as file:
                np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        else:
            destination.mkdir(parents=True, exist_ok=True)
            (destination / "config.json").write_text(json.dumps(config_json, indent=2) + "\n", encoding="utf-8")
            separate = {name: tensor.contiguous().clone() for name, tensor in renamed.items()}
            save_file(separate, destination / "model.safetensors", metadata={"format": "pt"})
            if to == "transformers" and processor is not None:
                processor.save_pretrained(destination)
    _require_same(to, config, tensors, again, read_checkpoint(destination, config.image_size).state_dict)
    return _left_out(checkpoint) + _remarks(to, config, again, processor)


@contextmanager
def _writing(destination: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"Cannot write to {destination}: {error.strerror or error}.") from error


def _save(tensors: dict[str, torch.Tensor], source: str | Path, destination: Path, **hub_kwargs: Any) -> None:
    model_class = ViTModel
    if "classifier.weight" in tensors:
        model_class = ViTForImageClassification
    elif "color_classifier.weight" in tensors:
        model_class = ViTForMaskedPatchPrediction
    model_class.from_pretrained(source, **hub_kwargs).save_pretrained(destination)
    if (processor := _processor(source, **hub_kwargs)) is not None:
        processor.save_pretrained(destination)


def _processor(source: str | Path, **hub_kwargs: Any) -> ViTImageProcessor | None:
    try:
        return ViTImageProcessor.from_pretrained(source, **hub_kwargs)
    except InputError:
        return None  # weights alone are a checkpoint, too


def _require_same(
    to: Format,
    config: ViTConfig,
    tensors: dict[str, torch.Tensor],
    again: ViTConfig,
    tensors_again: dict[str, torch.Tensor],
) -> None:
    computed, computed_again = _computed(config, tensors), _computed(again, tensors)
    for name, value in sorted(computed.items(), key=lambda item: item[0] in _CONSEQUENCES):
        if computed_again[name] != value:
            nearest = computed_again[name]
            raise InputError(f"{to} cannot express {name}={value!r}; the nearest model there has {nearest!r}.")
    for name in sorted(tensors.keys() | tensors_again.keys()):
        if name not in tensors or name not in tensors_again:
            raise InputError(f"{to} cannot express the tensor {name}.")
        if not torch.equal(tensors[name], tensors_again[name].to(tensors[name].dtype)):
            raise InputError(f"{to} cannot hold the tensor {name} exactly.")


def _computed(config: ViTConfig, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The fields that decide what a model with these tensors computes."""
    names = [name for name in ViTConfig.__annotations__ if name not in _NOT_COMPARED and name != "model_type"]
    fields = {name: getattr(config, name) for name in names}
    fields |= {"image_size": config.image_shape, "patch_size": config.patch_shape}
    if config.resnet_depths is None:
        fields["resnet_width"] = fields["resnet_numerics"] = None
    else:
        fields["resnet_depths"] = list(config.resnet_depths)
    if config.use_swiglu:
        fields["hidden_act"] = None
    if config.position_embedding == "none":
        fields["position_placement"] = None
    if "classifier.weight" not in tensors:  # then nobody reads the mean beside the class token
        fields["pooling"] = config.pooling.replace("token_and_mean", "token")
        fields["use_distillation_head"] = fields["representation_size"] = None
    return fields


def _left_out(checkpoint: Checkpoint) -> list[str]:
    return [f"Left out, as nothing here uses it: {', '.join(checkpoint.left_out)}."] if checkpoint.left_out else []


def _remarks(to: Format, config: ViTConfig, again: ViTConfig, processor: ViTImageProcessor | None) -> list[str]:
    remarks = []
    if config.position_embedding == "learned_1d" and again.position_resize != config.position_resize:
        remarks.append(
            f"At other resolutions the logits differ: {to} resizes position embeddings by {again.position_resize}, "
            f"this model by {config.position_resize}."
        )
    if config.labels != again.labels:
        remarks.append(f"{to} does not keep the names of the classes.")
    if to == "transformers" and processor is not None and not processor.is_stock:
        remarks.append("Stock image processors do not prepare images so; AutoImageProcessor needs trust_remote_code.")
    return remarks
