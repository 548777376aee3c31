"""Other people's weights: from the names on their disk to ours, every tensor accounted for.

A checkpoint is read into a state dict, renamed once by the tables below and compared with what the model expects.
Nothing is registered with transformers, so what is saved afterwards has the model's own names.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from .errors import InputError


# The arguments of `from_pretrained` that say where files come from.
_HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

# Stock ViT as transformers 4 wrote it, and as transformers 5 still writes it; left to right.
_TRANSFORMERS_VIT = (
    (r"\bencoder\.layer\.", "layers."),
    (r"\battention\.attention\.(query|key|value)\.", lambda match: f"attention.{match[1][0]}_proj."),
    (r"\battention\.output\.dense\.", "attention.o_proj."),
    (r"\bintermediate\.dense\.", "mlp.fc1."),
    (r"(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
)

_BASE, _HEAD = "vit.", "classifier."


def split_hub_kwargs(kwargs: dict) -> tuple[dict, dict]:
    """Parts `from_pretrained`'s keyword arguments into those that say where files come from and the rest."""
    hub_kwargs = {name: value for name, value in kwargs.items() if name in _HUB_KWARGS}
    return hub_kwargs, {name: value for name, value in kwargs.items() if name not in _HUB_KWARGS}


def read_state_dict(source: str | Path, **hub_kwargs) -> dict[str, torch.Tensor]:
    """The tensors of a folder or Hub repository, from one safetensors file or from the shards that its index names.

    Raises:
        InputError: there are no safetensors, or a file of them is damaged.
    """

    def find(filename: str) -> str | None:
        return cached_file(source, filename, _raise_exceptions_for_missing_entries=False, **hub_kwargs)

    filenames = [SAFE_WEIGHTS_NAME]
    if (index := find(SAFE_WEIGHTS_INDEX_NAME)) is not None:
        filenames = sorted(set(json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()))
    state_dict = {}
    for filename in filenames:
        path = find(filename)
        if path is None:
            raise InputError(f"{source} has no {filename}; vitrail reads weights from safetensors files.")
        try:
            state_dict |= load_file(path)
        except SafetensorError as error:
            raise InputError(f"{path} is not a complete safetensors file ({error}); fetch or save it again.") from error
    return state_dict


def fit_to_model(
    state_dict: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], source: str
) -> tuple[dict[str, torch.Tensor], str | None]:
    """Renames a checkpoint's tensors to a model's names and makes sure that they are exactly those that it needs.

    A pre-training head is left out, and a classification head for another number of classes gives way to zeros ("we
    remove the whole pre-trained prediction head and attach a zero-initialized D x K feedforward layer", Section 3.2).

    Args:
        state_dict: the checkpoint's tensors by name.
        expected: the model's tensors by name; only their shapes are read.
        source: what to call the checkpoint in messages.

    Returns:
        the model's tensors, and what is new about the head (None when the checkpoint's own is kept).

    Raises:
        InputError: a tensor is missing, unexpected or of another shape.
    """
    has_head = any(name.startswith(_HEAD) for name in expected)
    state_dict = {_current_name(name): tensor for name, tensor in state_dict.items()}
    base = {name.removeprefix(_BASE): tensor for name, tensor in state_dict.items() if not name.startswith(_HEAD)}
    base = {name: tensor for name, tensor in base.items() if not name.startswith("pooler.")}
    fitted = {_BASE + name: tensor for name, tensor in base.items()} if has_head else base

    new_head = None
    if has_head:
        head = {name: tensor for name, tensor in state_dict.items() if name.startswith(_HEAD)}
        classes = expected[_HEAD + "weight"].shape[0]
        if not head:
            new_head = f"the checkpoint has none, the model has {classes} classes"
        elif head[_HEAD + "weight"].shape[0] != classes:
            new_head = f"the checkpoint's has {head[_HEAD + 'weight'].shape[0]} classes, the model's {classes}"
        if new_head:
            head = {name: torch.zeros(expected[name].shape) for name in expected if name.startswith(_HEAD)}
        fitted |= head

    _complain(source, "lacks", expected.keys() - fitted.keys())
    _complain(source, "has unexpected", fitted.keys() - expected.keys())
    for name in sorted(expected):
        found, wanted = tuple(fitted[name].shape), tuple(expected[name].shape)
        if found != wanted:
            raise InputError(f"{source} has {name} with shape {found}, but the model needs {wanted}.")
    return fitted, new_head


def _current_name(name: str) -> str:
    for pattern, replacement in _TRANSFORMERS_VIT:
        name = re.sub(pattern, replacement, name)
    return name


def _complain(source: str, verb: str, names: set[str]) -> None:
    if names:
        first, *others = sorted(names)
        more = f" and {len(others)} other tensors" if others else ""
        raise InputError(f"{source} {verb} {first}{more}; it does not hold this model's weights.")
