"""Checkpoints in: whatever ViT a person has found -> the fields of `ViTConfig` and tensors by vitrail's names.

A folder or repository with transformers' or timm's config.json, or a `.npz` file of the paper's code, is read once,
explicitly; nothing is registered with transformers, so what is saved afterwards has the model's own names. Every tensor
is accounted for.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)

from .errors import InputError
from .geometry import pair
from .npz_checkpoints import from_npz, read_npz
from .timm_checkpoints import from_timm
from .timm_preprocessing import processor_from_timm
from .transformers_checkpoints import MODEL_TYPES, config_from_transformers, from_transformers, left_out


# The arguments of `from_pretrained` that say where files come from, and those that Auto classes and pipelines add.
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_AUTO_KWARGS = ("_from_auto", "_from_pipeline", "trust_remote_code", "code_revision", "adapter_kwargs")
# One file, or the index of several; in transformers' order, which decides where a folder holds more than one.
_WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)

_BASE = "vit."
# The tensors of each objective's head: classification, and masked patch prediction.
_OBJECTIVES = (("classifier.", "distillation_classifier.", "pre_logits."), ("color_classifier.", "mask_token"))


@dataclass(frozen=True)
class Checkpoint:
    """A model as it was found, in vitrail's terms.

    Attributes:
        config: the fields of `ViTConfig`.
        state_dict: tensors by vitrail's names, the base model's under `vit.`.
        left_out: the names of tensors that nothing here uses: stock ViT's pooler, mask token and pixel decoder.
    """

    config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    left_out: Sequence[str] = ()


def split_hub_kwargs(kwargs: dict) -> tuple[dict, dict]:
    """Parts `from_pretrained`'s keyword arguments into those that say where files come from and the rest."""
    hub_kwargs = {name: value for name, value in kwargs.items() if name in _HUB_KWARGS}
    return hub_kwargs, {
        name: value for name, value in kwargs.items() if name not in _HUB_KWARGS and name not in _AUTO_KWARGS
    }


def read_config(source: str | Path, image_size: Any = None, **hub_kwargs) -> dict[str, Any]:
    """The fields of `ViTConfig` for a checkpoint; of transformers' ones without a look at the weights.

    Raises:
        InputError: there is no such checkpoint, or it holds something else than a ViT.
    """
    config = _config_json(source, **hub_kwargs)
    if config is None or "architecture" in config:
        return read_checkpoint(source, image_size, **hub_kwargs).config
    return config_from_transformers(config)


def read_checkpoint(source: str | Path, image_size: Any = None, **hub_kwargs) -> Checkpoint:
    """A checkpoint: a Hub id, a folder, a weights file with its config.json beside it, or a `.npz` file.

    Args:
        source: which.
        image_size: pixels, or (height, width), for a `.npz` file that was trained on a grid that is not square.
        hub_kwargs: `revision`, `token`, ... of a Hub repository.

    Raises:
        InputError: there is no such checkpoint, it holds something else than a ViT, or a file of it is damaged.
    """
    config = _config_json(source, **hub_kwargs)
    if config is None:
        return Checkpoint(*from_npz(read_npz(source), str(source), image_size))
    tensors = _read_tensors(source, **hub_kwargs)
    if "architecture" in config:
        return Checkpoint(*from_timm(config, tensors, source=str(source)))
    unused = left_out(tensors, config["model_type"])
    tensors = from_transformers(tensors, config["model_type"])
    fields = config_from_transformers(config)
    if "distillation_classifier.weight" in tensors:  # whatever the file says
        fields["use_distillation_head"] = True
    return Checkpoint(fields, tensors, unused)


def read_preprocessing(source: str | Path, **hub_kwargs) -> dict[str, Any] | None:
    """The fields of an image processor that a checkpoint without a preprocessor_config.json implies, or None.

    Of timm's they stand in config.json. The paper's code squashes an image to the model's size and scales it to [-1, 1]
    (`input_pipeline.py`), as a `ViTImageProcessor` does that is told nothing else.

    Raises:
        InputError: there is no such checkpoint, or it holds something else than a ViT.
    """
    config = _config_json(source, **hub_kwargs)
    if config is None:
        model = read_checkpoint(source).config
        height, width = pair(model["image_size"])
        return {"size": {"height": height, "width": width}, "num_channels": model["num_channels"]}
    return processor_from_timm(config) if "architecture" in config else None


def is_npz(source: str | Path) -> bool:
    """Whether a checkpoint is a file of the paper's code, by its name."""
    return Path(source).suffix == ".npz" and not Path(source).is_dir()


def _config_json(source: str | Path, **hub_kwargs) -> dict[str, Any] | None:
    """The config.json of a ViT; None for a `.npz` file, which needs none."""
    if is_npz(source):
        return None
    folder = Path(source).parent if Path(source).is_file() else source
    try:
        config, _ = PreTrainedConfig.get_config_dict(folder, **hub_kwargs)
    except OSError as error:
        path = Path(folder, "config.json")
        if path.is_file():
            raise InputError(f"{path} is not valid JSON.") from error
        config = {}  # transformers raises for most of what cannot be found, and returns this for the rest
    except (TypeError, AttributeError) as error:
        raise InputError(f"The config.json of {source} is not a JSON object.") from error
    if not config:
        raise InputError(
            f"{source} is neither a folder with a config.json, nor a .npz file, nor a model on the Hub that can be "
            "reached."
        )
    if not isinstance(config, dict):
        raise InputError(f"The config.json of {source} is not a JSON object.")
    is_timm = isinstance(config.get("architecture"), str) and isinstance(config.get("pretrained_cfg", {}), dict)
    if config.get("model_type") not in MODEL_TYPES and not is_timm:
        raise InputError(
            f"{source} holds a model of type {config.get('model_type')!r}; vitrail loads models of type "
            f"{', '.join(map(repr, MODEL_TYPES))}, and timm's ViTs."
        )
    return config


def _read_tensors(source: str | Path, **hub_kwargs) -> dict[str, torch.Tensor]:
    """The tensors of one file, or of the shards that an index names; safetensors before pickles."""
    if Path(source).is_file():
        return _read_file(Path(source))

    def find(filename: str) -> Path | None:
        found = cached_file(source, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)
        return None if found is None else Path(found)

    for name in _WEIGHTS:
        if (path := find(name)) is None:
            continue
        tensors: dict[str, torch.Tensor] = {}
        for filename in _shards(path) if name.endswith(".index.json") else [name]:
            if (shard := find(filename)) is None:
                raise InputError(f"{source} has no {filename}, which its index names.")
            tensors |= _read_file(shard)
        return tensors
    raise InputError(f"{source} has no {SAFE_WEIGHTS_NAME} and no {WEIGHTS_NAME}.")


def _shards(index: Path) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return sorted({Path(name).name for name in weight_map.values()})
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} is no index of weights; fetch or save it again.") from error


def _read_file(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is not a complete safetensors file ({error}); fetch or save it again.") from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds more than tensors, and unpickling that could run any code; ask for a "
            "safetensors file."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        raise InputError(f"{path} is not a complete file of PyTorch weights; fetch or save it again.") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in loaded.items()
    ):
        raise InputError(f"{path} is no table of tensors by name.")
    return loaded


def fit_to_model(
    state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], source: str
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Makes sure that a checkpoint's tensors are exactly those that a model needs.

    Heads of other objectives are left out. The last layer of a head for another number of classes gives way to zeros:
    "a zero-initialized D x K feedforward layer" (Section 3.2).

    Args:
        state_dict: the checkpoint's tensors by vitrail's names.
        expected: the model's tensors by name; only their shapes are read.
        source: what to call the checkpoint in messages.

    Returns:
        the model's tensors, and what is new about the head (None when the checkpoint's own is kept).

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    has_base_prefix = any(name.startswith(_BASE) for name in expected)
    needed = {name if has_base_prefix else _BASE + name: tuple(tensor.shape) for name, tensor in expected.items()}
    new_head = None
    for objective in _OBJECTIVES:
        found = {name: tensor for name, tensor in state_dict.items() if name.startswith(objective)}
        wanted = {name: shape for name, shape in needed.items() if name.startswith(objective)}
        if wanted and (new_head := _what_is_new(found, wanted)) is None:
            continue
        state_dict = {name: tensor for name, tensor in state_dict.items() if name not in found}
        for name, shape in wanted.items():
            keep = name in found and not _is_output(name)
            state_dict[name] = found[name] if keep else _initial(name, shape)

    _complain(source, "lacks", needed.keys() - state_dict.keys())
    _complain(source, "has unexpected", state_dict.keys() - needed.keys())
    for name, shape in sorted(needed.items()):
        if (found := tuple(state_dict[name].shape)) != shape:
            raise InputError(f"{source} has {name} with shape {found}, but the model needs {shape}.")
        if not state_dict[name].is_floating_point():
            raise InputError(f"{source} has {name} in whole numbers; weights are floating-point numbers.")
    if not has_base_prefix:
        state_dict = {name.removeprefix(_BASE): tensor for name, tensor in state_dict.items()}
    return state_dict, new_head


def _what_is_new(found: dict[str, torch.Tensor], wanted: dict[str, tuple[int, ...]]) -> str | None:
    """Says what is wrong with the checkpoint's head for this model; None where it fits, or is merely damaged."""
    if not any(_is_output(name) for name in found):
        classes = next(shape[0] for name, shape in wanted.items() if _is_output(name))
        return f"the checkpoint has none, the model has {classes} classes"
    for name, (classes, *_) in wanted.items():
        if _is_output(name) and name in found and found[name].ndim and len(found[name]) != classes:
            return f"the checkpoint's has {len(found[name])} classes, the model's {classes}"
    return None


def _is_output(name: str) -> bool:
    return name.partition(".")[0].endswith("classifier")


def _initial(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Zeros, except for a hidden layer of the head, which would never leave them."""
    tensor = torch.zeros(shape)
    return nn.init.xavier_uniform_(tensor) if name == "pre_logits.weight" else tensor


def _complain(source: str, verb: str, names: set[str]) -> None:
    if names:
        first, *others = sorted(names)
        more = f" and {len(others)} other tensors" if others else ""
        raise InputError(f"{source} {verb} {first}{more}; it does not hold this model's weights.")
