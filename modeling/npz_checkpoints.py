"""The paper's own checkpoints: the `.npz` files of its Flax code (`vit_jax`) and of "How to train your ViT?", and back.

Everything about the model can be read from the names and shapes in such a file. Dense kernels lie there as (in, out),
split by head in attention, and convolutions as (height, width, in, out).
"""

from __future__ import annotations

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import InputError
from .geometry import pair, resnet_stride
from .tensor_names import inverted, rename


_RESNET = "vit.embeddings.patch_embeddings.resnet."
_UNIT, _THEIR_UNIT = _RESNET + "stages.{}.{}.", "block{+1}.unit{+1}."
_LAYER, _THEIR_LAYER = "vit.layers.{}.", "Transformer.encoderblock_{}."
_NAMES = {  # with dots where the files have slashes
    "vit.embeddings.cls_token": "cls",
    "vit.embeddings.position_embeddings": "Transformer.posembed_input.pos_embedding",
    "vit.embeddings.patch_embeddings.projection": "embedding",
    _RESNET + "root.conv": "conv_root",
    _RESNET + "root.norm": "gn_root",
    _UNIT + "conv1": _THEIR_UNIT + "conv1",
    _UNIT + "conv2": _THEIR_UNIT + "conv2",
    _UNIT + "conv3": _THEIR_UNIT + "conv3",
    _UNIT + "norm1": _THEIR_UNIT + "gn1",
    _UNIT + "norm2": _THEIR_UNIT + "gn2",
    _UNIT + "norm3": _THEIR_UNIT + "gn3",
    _UNIT + "shortcut.conv": _THEIR_UNIT + "conv_proj",
    _UNIT + "shortcut.norm": _THEIR_UNIT + "gn_proj",
    _LAYER + "layernorm_before": _THEIR_LAYER + "LayerNorm_0",
    _LAYER + "attention.q_proj": _THEIR_LAYER + "MultiHeadDotProductAttention_1.query",
    _LAYER + "attention.k_proj": _THEIR_LAYER + "MultiHeadDotProductAttention_1.key",
    _LAYER + "attention.v_proj": _THEIR_LAYER + "MultiHeadDotProductAttention_1.value",
    _LAYER + "attention.o_proj": _THEIR_LAYER + "MultiHeadDotProductAttention_1.out",
    _LAYER + "layernorm_after": _THEIR_LAYER + "LayerNorm_2",
    _LAYER + "mlp.fc1": _THEIR_LAYER + "MlpBlock_3.Dense_0",
    _LAYER + "mlp.fc2": _THEIR_LAYER + "MlpBlock_3.Dense_1",
    "vit.layernorm": "Transformer.encoder_norm",
    "pre_logits": "pre_logits",
    "classifier": "head",
}
# The published files count all of a block's modules together; the Flax of today counts each class for itself.
_BY_CLASS = {
    _THEIR_LAYER + "LayerNorm_1": _THEIR_LAYER + "LayerNorm_2",
    _THEIR_LAYER + "MultiHeadDotProductAttention_0": _THEIR_LAYER + "MultiHeadDotProductAttention_1",
    _THEIR_LAYER + "MlpBlock_0": _THEIR_LAYER + "MlpBlock_3",
}
_WRAPPERS = ("opt.target.", "params.", "target.")  # under which a whole training state files its parameters


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a `.npz` file by name; pickled objects are not read.

    Raises:
        InputError: there is no such file, it is damaged, or holds objects that could run code.
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.") from error
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a complete .npz file of arrays alone; fetch it again.") from error
    if strange := [name for name, array in arrays.items() if array.dtype.kind not in "fiu"]:
        raise InputError(f"{path} has {strange[0]}, which holds no numbers; it is no file of weights.")
    return {name: array.astype(array.dtype.newbyteorder("="), copy=False) for name, array in arrays.items()}


def from_npz(
    arrays: dict[str, np.ndarray], source: str, image_size: Any = None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The fields of `ViTConfig` and the tensors under vitrail's names.

    Args:
        arrays: as `read_npz` gives them.
        source: what to call the file in messages.
        image_size: pixels, or (height, width), where the grid is not square, which a file does not say.

    Raises:
        InputError: the arrays are not those of a Vision Transformer, or of one whose grid is not known.
    """
    tensors = _with_our_names(arrays)
    for name, theirs in (
        ("vit.embeddings.patch_embeddings.projection.weight", "embedding/kernel"),
        (
            "vit.layers.0.attention.q_proj.weight",
            "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel",
        ),
        ("vit.layers.0.mlp.fc1.weight", "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"),
    ):
        if name not in tensors or tensors[name].ndim != (4 if "projection" in name else 3 if "q_proj" in name else 2):
            raise InputError(f"{source} has no {theirs}; it is not a Vision Transformer of the paper's code.")
    for name in ("classifier.weight", "pre_logits.weight"):
        if name in tensors and tensors[name].ndim != 2:
            raise InputError(f"{source} has a head of shape {tuple(tensors[name].shape)}, which is no dense layer.")
    heads = tensors["vit.layers.0.attention.q_proj.weight"].shape[1]
    tensors = {name: _from_flax(name, tensor).contiguous() for name, tensor in tensors.items()}

    projection = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    root = tensors.get(_RESNET + "root.conv.weight")
    stages = {
        tuple(map(int, match.groups()))
        for name in tensors
        if (match := re.match(re.escape(_RESNET) + r"stages\.(\d+)\.(\d+)\.", name))
    }
    depths = [sum(stage == each for each, _ in stages) for stage in sorted({stage for stage, _ in stages})]
    use_class_token = "vit.embeddings.cls_token" in tensors
    fields: dict[str, Any] = {
        "hidden_size": len(projection),
        "num_hidden_layers": len({name.split(".")[2] for name in tensors if name.startswith("vit.layers.")}),
        "num_attention_heads": heads,
        "intermediate_size": len(tensors["vit.layers.0.mlp.fc1.weight"]),
        "hidden_act": "gelu_pytorch_tanh",  # flax's nn.gelu
        "layer_norm_eps": 1e-6,
        "patch_size": list(projection.shape[2:]),
        "num_channels": (projection if root is None else root).shape[1],
        "position_resize": "bilinear",
        "use_class_token": use_class_token,
        "pooling": "token" if use_class_token else "mean",
    }
    stride = 1
    if root is not None:
        fields |= {"resnet_depths": depths, "resnet_width": len(root)}
        stride = resnet_stride(depths)
    positions = tensors.get("vit.embeddings.position_embeddings")
    patches = 14 * 14 if positions is None else positions.shape[1] - use_class_token
    patch_shape = [side * stride for side in fields["patch_size"]]
    if math.isqrt(patches) ** 2 == patches:
        fields["image_size"] = [math.isqrt(patches) * side for side in patch_shape]
    elif image_size is not None and math.prod(i // p for i, p in zip(pair(image_size), patch_shape)) == patches:
        fields["image_size"] = list(pair(image_size))
    else:
        raise InputError(
            f"{source} has position embeddings for {patches} patches, which form no square; give the image_size it was "
            "trained with as (height, width)."
        )
    if positions is None:
        fields["position_embedding"] = "none"
    if "pre_logits.weight" in tensors:
        fields["representation_size"] = len(tensors["pre_logits.weight"])
    if "classifier.weight" in tensors:
        labels = {index: f"LABEL_{index}" for index in range(tensors["classifier.weight"].shape[0])}
        fields |= {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    return fields, tensors


def to_npz(config: dict[str, Any], state_dict: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The arrays of the nearest model of the paper's code; whether it is the same is left to the caller.

    Args:
        config: the fields of `ViTConfig`.
        state_dict: tensors by vitrail's names.
    """
    if config["use_distillation_token"] or config["num_register_tokens"]:
        raise InputError("the paper's code has no distillation and no register tokens.")
    arrays = {}
    laid_out = {name: _to_flax(name, tensor, config["num_attention_heads"]) for name, tensor in state_dict.items()}
    for name, tensor in rename(laid_out, _NAMES).items():
        module, _, kind = name.rpartition(".")
        if kind == "weight":
            is_norm = module.rpartition(".")[2].startswith(("LayerNorm", "encoder_norm", "gn"))
            name = f"{module}.{'scale' if is_norm else 'kernel'}"
        exact = tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # which numpy does not have
        arrays[name.replace(".", "/")] = exact.contiguous().numpy()
    return arrays


def _with_our_names(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    tensors = {name.replace("/", "."): torch.from_numpy(array) for name, array in arrays.items()}
    for wrapper in _WRAPPERS:
        if wrapper + "embedding.kernel" in tensors:
            tensors = {name.removeprefix(wrapper): t for name, t in tensors.items() if name.startswith(wrapper)}
    if any(".LayerNorm_1." in name for name in tensors):
        tensors = rename(tensors, _BY_CLASS)
    tensors = {re.sub(r"\.(kernel|scale)$", ".weight", name): tensor for name, tensor in tensors.items()}
    return rename(tensors, inverted(_NAMES))


def _from_flax(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if name.endswith("_proj.weight") and tensor.ndim == 3:
        if ".o_proj." in name:
            return tensor.flatten(0, 1).T  # (heads, width, out) -> (out, in)
        return tensor.flatten(1, 2).T  # (in, heads, width) -> (out, in)
    if name.endswith("_proj.bias") or ".norm" in name:
        return tensor.flatten()  # (heads, width); and GroupNorm's (1, 1, 1, channels) in old files
    if name.endswith(".weight") and tensor.ndim == 4:
        return tensor.permute(3, 2, 0, 1)  # (height, width, in, out) -> (out, in, height, width)
    return tensor.T if name.endswith(".weight") and tensor.ndim == 2 else tensor


def _to_flax(name: str, tensor: torch.Tensor, heads: int) -> torch.Tensor:
    if name.endswith("_proj.weight") and ".attention." in name:
        return tensor.T.unflatten(0, (heads, -1)) if ".o_proj." in name else tensor.T.unflatten(1, (heads, -1))
    if re.search(r"\.[qkv]_proj\.bias$", name):
        return tensor.unflatten(0, (heads, -1))
    if name.endswith(".weight") and tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    return tensor.T if name.endswith(".weight") and tensor.ndim == 2 else tensor
