"""Stock transformers' ViT, DeiT and DINOv2, as its versions 4 and 5 write them, and back.

Each comes from a training code of its own, whose epsilon, position-resize rule and head the fields below state.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import CONFIG_MAPPING

from .tensor_names import inverted, rename


# transformers 4's names, which transformers 5 goes on writing and both read. What is not listed has its name here.
_LEGACY = {
    "vit.layers.{}": "vit.encoder.layer.{}",
    "vit.layers.{}.attention.q_proj": "vit.encoder.layer.{}.attention.attention.query",
    "vit.layers.{}.attention.k_proj": "vit.encoder.layer.{}.attention.attention.key",
    "vit.layers.{}.attention.v_proj": "vit.encoder.layer.{}.attention.attention.value",
    "vit.layers.{}.attention.o_proj": "vit.encoder.layer.{}.attention.output.dense",
}
_LEGACY_VIT = _LEGACY | {
    "vit.layers.{}.mlp.fc1": "vit.encoder.layer.{}.intermediate.dense",
    "vit.layers.{}.mlp.fc2": "vit.encoder.layer.{}.output.dense",
}
_LEGACY_WITH_TEACHER = _LEGACY_VIT | {"classifier": "cls_classifier"}
_LEGACY_DINOV2 = _LEGACY | {
    "vit.layers.{}.layernorm_before": "vit.encoder.layer.{}.norm1",
    "vit.layers.{}.layernorm_after": "vit.encoder.layer.{}.norm2",
}
_LEGACY_SWIGLU = _LEGACY_DINOV2 | {
    "vit.layers.{}.mlp.fc1": "vit.encoder.layer.{}.mlp.weights_in",
    "vit.layers.{}.mlp.fc2": "vit.encoder.layer.{}.mlp.weights_out",
}

_HEADS = ("classifier.", "cls_classifier.", "distillation_classifier.", "pre_logits.", "color_classifier.")
# Parts for objectives that vitrail does not have: stock ViT's pooler, mask token and pixel decoder.
_LEFT_OUT = re.compile(r"(vit\.)?pooler\.|vit\.embeddings\.mask_token$|decoder\.")

# What a config.json that does not say it means.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "vitrail": {},
    "vit": {"layer_norm_eps": 1e-12, "position_resize": "bicubic"},
    "deit": {"layer_norm_eps": 1e-12},
    "dinov2": {"patch_size": 14},
    "dinov2_with_registers": {"num_register_tokens": 4},
}
MODEL_TYPES = tuple(_DEFAULTS)


def config_from_transformers(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ViTConfig` for a config.json whose `model_type` is one of `MODEL_TYPES`."""
    model_type = config["model_type"]
    config = _DEFAULTS[model_type] | config
    if model_type == "deit":
        config |= {
            "use_distillation_token": True,
            "use_distillation_head": "DeiTForImageClassificationWithTeacher" in (config.get("architectures") or ()),
            "position_resize": "bicubic",
        }
    elif model_type in ("dinov2", "dinov2_with_registers"):
        use_swiglu = config.pop("use_swiglu_ffn", False)
        intermediate_size = int(config.get("hidden_size", 768) * config.pop("mlp_ratio", 4))
        config |= {
            "use_swiglu": use_swiglu,
            "intermediate_size": _swiglu_width(intermediate_size) if use_swiglu else intermediate_size,
            "use_layer_scale": True,
            "layer_scale_init_value": config.pop("layerscale_value", 1.0),
            "pooling": "token_and_mean",
            "position_resize": "bicubic" if model_type == "dinov2" else "bicubic_antialias",
            "interpolate_pos_encoding": True,  # trained at 518 pixels, used at 224
        }
        unused = ["stage_names", "apply_layernorm", "use_mask_token"]
        if config.get("out_indices") == [config.get("num_hidden_layers", 12)]:  # the default
            unused += ["out_features", "out_indices"]
        for name in unused:
            config.pop(name, None)
    return config


def from_transformers(state_dict: dict[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    """The tensors of a stock ViT, DeiT or DINOv2, or of one saved by vitrail, under vitrail's names."""
    tensors = {_with_base(name, model_type): tensor for name, tensor in state_dict.items()}
    tensors = {name: tensor for name, tensor in tensors.items() if not _LEFT_OUT.match(name)}
    return _join_swiglu(rename(tensors, inverted(_legacy_names(model_type, tensors))))


def left_out(state_dict: dict[str, torch.Tensor], model_type: str) -> list[str]:
    """The names of the tensors that `from_transformers` leaves out, which no model of vitrail has a use for."""
    return sorted(name for name in state_dict if _LEFT_OUT.match(_with_base(name, model_type)))


def to_transformers(
    config: dict[str, Any], state_dict: dict[str, torch.Tensor]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The config.json and the tensors of the nearest stock model; whether it is the same is left to the caller.

    Args:
        config: the fields of `ViTConfig`.
        state_dict: tensors by vitrail's names.
    """
    config = dict(config)
    with_head = "classifier.weight" in state_dict
    if config["use_distillation_token"]:
        model_type, architecture = "deit", "DeiT"
    elif config["use_layer_scale"]:
        model_type, architecture = "dinov2", "Dinov2"
        if config["num_register_tokens"]:
            model_type, architecture = "dinov2_with_registers", "Dinov2WithRegisters"
        config |= {
            "use_swiglu_ffn": config["use_swiglu"],
            "mlp_ratio": _mlp_ratio(config),
            "layerscale_value": float(config["layer_scale_init_value"]),
            "use_mask_token": False,
        }
    else:
        model_type, architecture = "vit", "ViT"
    architecture += "ForImageClassification" if with_head else "Model"
    architecture += "WithTeacher" if with_head and config["use_distillation_head"] else ""
    stock_config = CONFIG_MAPPING[model_type]()
    fields = {name: config[name] for name in stock_config.to_dict() if name in config} | {
        "architectures": [architecture]
    }

    prefix = f"{model_type}." if with_head else ""
    tensors = {
        prefix + name.removeprefix("vit.") if name.startswith("vit.") else name: tensor
        for name, tensor in rename(state_dict, _legacy_names(model_type, state_dict)).items()
    }
    return fields | {"model_type": model_type}, tensors


def _with_base(name: str, model_type: str) -> str:
    prefix = "vit." if model_type == "vitrail" else f"{model_type}."
    if name.startswith(prefix):
        return "vit." + name.removeprefix(prefix)
    return name if name == "mask_token" or name.startswith(_HEADS) or _LEFT_OUT.match(name) else "vit." + name


def _legacy_names(model_type: str, tensors: dict[str, torch.Tensor]) -> dict[str, str]:
    if model_type == "deit" and any(name.startswith("distillation_classifier.") for name in tensors):
        return _LEGACY_WITH_TEACHER
    if not model_type.startswith("dinov2"):
        return _LEGACY_VIT
    gated = any("mlp.weights_in." in name for name in tensors) or _is_gated(tensors)
    return _LEGACY_SWIGLU if gated else _LEGACY_DINOV2


def _is_gated(tensors: dict[str, torch.Tensor]) -> bool:
    first, second = (tensors.get(f"vit.layers.0.mlp.{name}.weight") for name in ("fc1", "fc2"))
    return first is not None and second is not None and len(first) == 2 * second.shape[1]


def _join_swiglu(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Joins the halves of a SwiGLU's first layer where they have the names that transformers 5 uses in memory."""
    joined = {}
    for name, tensor in tensors.items():
        if ".mlp.gate_proj." in name and (other := name.replace("gate_proj", "up_proj")) in tensors:
            joined[name.replace("gate_proj", "fc1")] = torch.cat((tensor, tensors[other]))
        elif ".mlp.up_proj." not in name:
            joined[name.replace(".mlp.down_proj.", ".mlp.fc2.")] = tensor
    return joined


def _swiglu_width(intermediate_size: int) -> int:
    """DINOv2's SwiGLU has two thirds of the MLP's width, rounded up to a multiple of 8."""
    return (int(intermediate_size * 2 / 3) + 7) // 8 * 8


def _mlp_ratio(config: dict[str, Any]) -> int:
    """The whole number from which DINOv2 computes its MLP's width; that it fits is checked by reading it back."""
    ratio = config["intermediate_size"] / config["hidden_size"]
    return round(ratio * 3 / 2) if config["use_swiglu"] else round(ratio)
