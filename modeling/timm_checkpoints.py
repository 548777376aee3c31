"""timm's `VisionTransformer`, as its repositories on the Hub hold it, and back.

timm writes the name of an architecture and what differs from it. Nearly everything else can be seen from the tensors'
shapes; the tables below state what cannot.
"""

from __future__ import annotations

import math
import re
from typing import Any

import torch

from .errors import InputError
from .geometry import pair, resnet_stride
from .tensor_names import inverted, rename
from .timm_preprocessing import timm_from_processor


_NAMES = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.distillation_token": "dist_token",
    "vit.embeddings.register_tokens": "reg_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection": "patch_embed.proj",
    "vit.embeddings.patch_embeddings.resnet.root": "patch_embed.backbone.stem",
    "vit.embeddings.patch_embeddings.resnet.stages.{}.{}": "patch_embed.backbone.stages.{}.blocks.{}",
    "vit.embeddings.patch_embeddings.resnet.stages.{}.{}.shortcut": (
        "patch_embed.backbone.stages.{}.blocks.{}.downsample"
    ),
    "vit.layers.{}.layernorm_before": "blocks.{}.norm1",
    "vit.layers.{}.layernorm_after": "blocks.{}.norm2",
    "vit.layers.{}.attention.qkv_proj": "blocks.{}.attn.qkv",
    "vit.layers.{}.attention.o_proj": "blocks.{}.attn.proj",
    "vit.layers.{}.layer_scale1.lambda1": "blocks.{}.ls1.gamma",
    "vit.layers.{}.layer_scale2.lambda1": "blocks.{}.ls2.gamma",
    "vit.layers.{}.mlp": "blocks.{}.mlp",
    "vit.layernorm": "norm",
    "vit.attention_pooling.latent": "attn_pool.latent",
    "vit.attention_pooling.q_proj": "attn_pool.q",
    "vit.attention_pooling.kv_proj": "attn_pool.kv",
    "vit.attention_pooling.o_proj": "attn_pool.proj",
    "vit.attention_pooling.layernorm": "attn_pool.norm",
    "vit.attention_pooling.mlp": "attn_pool.mlp",
    "classifier": "head",
    "distillation_classifier": "head_dist",
}
_WRAPPER = "timm_model."  # what transformers' `TimmWrapper` puts before the names
_JOINED = re.compile(r"\.(qkv|kv)_proj\.")
_ROOT_ALONE = {"vit.embeddings.patch_embeddings.resnet.root": "patch_embed.backbone"}
_POOL_BEFORE_NORM = {"vit.layernorm": "fc_norm"}

_ARCHITECTURE = re.compile(r"(vit|deit3?|test_vit2?)_.*|test_vit2?")
# Architectures whose tensors have the names of a plain ViT's, but which compute something else with them.
_OTHER = re.compile(r".*_rpn_")
# Where the heads are not 64 channels wide.
_HEADS = {
    r"vit_(so400m|huge|giantopt|gigantic)_": 16,
    r"vit_giant_patch14_(224|clip)": 16,
    r"vit_giant_patch16_gap": 16,
    r"vit_base_patch16_gap": 16,
    r"deit3_huge_": 16,
    r"test_vit": 2,
}
_TANH_GELU = re.compile(r"vit_((so400m|giantopt)_patch16_siglip|base_patch32_siglip|large_patch16_siglip(_gap)?_512)")
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
}
# Arguments of timm's model that are read below, can be seen from the tensors, or matter in training alone.
_MODEL_ARGS = {
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "proj_bias", "init_values", "class_token", "no_embed_class", "reg_tokens", "fc_norm"),
    *("act_layer", "drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "weight_init", "fix_init", "dynamic_img_size", "strict_img_size", "pos_embed"),
}
_HYBRIDS = {
    (): "vit_tiny_r_s16_p8_224",
    (2, 2, 2, 2): "vit_small_r26_s32_224",
    (3, 4, 9): "vit_base_r50_s16_224",
    (3, 4, 6, 3): "vit_large_r50_s32_224",
}


def from_timm(
    config: dict[str, Any], state_dict: dict[str, torch.Tensor], source: str
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The fields of `ViTConfig` and the tensors under vitrail's names.

    Args:
        config: timm's config.json.
        state_dict: timm's tensors by name.
        source: what to call the checkpoint in messages.

    Raises:
        InputError: the architecture is none of timm's Vision Transformers, or has parts that vitrail's has not.
    """
    architecture = config["architecture"]
    pretrained = config.get("pretrained_cfg", config)  # old files are one flat table
    model_args = config.get("model_args") or {}
    if not _ARCHITECTURE.fullmatch(architecture) or _OTHER.match(architecture):
        raise InputError(f"{source} holds timm's {architecture}, which is none of the ViTs that vitrail knows.")
    if unknown := model_args.keys() - _MODEL_ARGS:
        raise InputError(f"{source} holds a {architecture} with {sorted(unknown)[0]}, which vitrail does not know.")
    state_dict = {name.removeprefix(_WRAPPER): tensor for name, tensor in state_dict.items()}
    if "norm_pre.weight" in state_dict:
        raise InputError(f"{source} normalises before its first layer, as CLIP's ViTs do; vitrail's ViT does not.")
    pool_before_norm = "fc_norm.weight" in state_dict
    names = _NAMES | (_POOL_BEFORE_NORM if pool_before_norm else {})
    if "patch_embed.backbone.conv.weight" in state_dict:
        names |= _ROOT_ALONE
    tensors = _split_projections(rename(state_dict, inverted(names)))
    for name in (
        "patch_embed.proj.weight",
        "blocks.0.attn.qkv.weight",
        "blocks.0.mlp.fc1.weight",
        "blocks.0.mlp.fc2.weight",
    ):
        if name not in state_dict:
            raise InputError(f"{source} has no {name}; its {architecture} is not built as vitrail's ViT is.")

    projection = tensors["vit.embeddings.patch_embeddings.projection.weight"]
    mlp_in, mlp_out = tensors["vit.layers.0.mlp.fc1.weight"], tensors["vit.layers.0.mlp.fc2.weight"]
    hidden_size, intermediate_size = mlp_out.shape
    activation = model_args.get("act_layer") or ("gelu_tanh" if _TANH_GELU.match(architecture) else "gelu")
    if activation not in _ACTIVATIONS:
        raise InputError(f"{source} has the activation {activation!r}, which vitrail does not know.")
    fields = {
        "hidden_size": hidden_size,
        "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("vit.layers.")),
        "num_attention_heads": model_args.get("num_heads") or _heads(architecture, hidden_size),
        "intermediate_size": intermediate_size,
        "hidden_act": _ACTIVATIONS[activation],
        "layer_norm_eps": 1e-6,
        "patch_size": list(projection.shape[2:]),
        "num_channels": projection.shape[1],
        "qkv_bias": "vit.layers.0.attention.q_proj.bias" in tensors,
        "position_resize": "bicubic_antialias",
        "interpolate_pos_encoding": bool(model_args.get("dynamic_img_size")),
        "use_class_token": "vit.embeddings.cls_token" in tensors,
        "use_distillation_token": "vit.embeddings.distillation_token" in tensors,
        "num_register_tokens": state_dict["reg_token"].shape[1] if "reg_token" in state_dict else 0,
        "use_distillation_head": "distillation_classifier.weight" in tensors,
        "use_layer_scale": "vit.layers.0.layer_scale1.lambda1" in tensors,
        "use_swiglu": len(mlp_in) == 2 * intermediate_size,
        "pool_before_norm": pool_before_norm,
        "drop_path_rate": model_args.get("drop_path_rate") or 0.0,
    }
    fields |= _resnet(tensors)
    fields |= _positions(fields, tensors, model_args, pretrained, source)
    global_pool = model_args.get("global_pool", config.get("global_pool"))
    fields["pooling"] = _pooling(fields, tensors, global_pool, source)
    if fields["pooling"] == "token":
        fields["pool_before_norm"] = False  # the class token's LayerNorm does not mind the order
    if "classifier.weight" in tensors:
        labels = _labels(config, pretrained, len(tensors["classifier.weight"]))
        fields |= {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    return fields, tensors


def to_timm(
    config: dict[str, Any], state_dict: dict[str, torch.Tensor], processor: dict[str, Any] | None
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """timm's config.json and tensors of the nearest model; whether it is the same is left to the caller.

    Args:
        config: the fields of `ViTConfig`.
        state_dict: tensors by vitrail's names.
        processor: the fields of its image processor, or None.

    Raises:
        InputError: timm has no such model.
    """
    _require_one_of_timms(config, has_head="classifier.weight" in state_dict)
    depths = None if config["resnet_depths"] is None else tuple(config["resnet_depths"])
    names = _NAMES | (_POOL_BEFORE_NORM if config["pool_before_norm"] else {})
    if depths == ():
        names |= _ROOT_ALONE
    tensors = rename(_join_projections(state_dict), names)
    height, width = pair(config["image_size"])
    num_classes = len(state_dict["classifier.weight"]) if "classifier.weight" in state_dict else 0
    architecture = "vit_base_patch16_224"
    if config["use_distillation_token"]:
        architecture = "deit_base_distilled_patch16_224"
    elif config["use_swiglu"]:
        architecture = "vit_giant_patch14_dinov2"
    elif depths is not None:
        architecture = _HYBRIDS[depths]
    hidden_width = config["intermediate_size"] * (2 if config["use_swiglu"] else 1)
    activations = {ours: theirs for theirs, ours in _ACTIVATIONS.items()}
    model_args = {
        "img_size": [height, width],
        "patch_size": list(pair(config["patch_size"])),
        "in_chans": config["num_channels"],
        "embed_dim": config["hidden_size"],
        "depth": config["num_hidden_layers"],
        "num_heads": config["num_attention_heads"],
        "mlp_ratio": (hidden_width + 0.5) / config["hidden_size"],  # timm rounds the product down
        "qkv_bias": config["qkv_bias"],
        "init_values": float(config["layer_scale_init_value"]) if config["use_layer_scale"] else None,
        "class_token": config["use_class_token"],
        "reg_tokens": config["num_register_tokens"],
        "no_embed_class": config["num_prefix_positions"] == 0,
        "pos_embed": "none" if config["position_embedding"] == "none" else "learn",
        "global_pool": {"mean": "avg", "attention": "map"}.get(config["pooling"], "token"),
        "fc_norm": config["pool_before_norm"],
        "dynamic_img_size": config["interpolate_pos_encoding"],
    }
    if not config["use_swiglu"]:
        model_args["act_layer"] = activations.get(config["hidden_act"], "gelu")
    pretrained_cfg = {
        "architecture": architecture,
        "num_classes": num_classes,
        "input_size": [config["num_channels"], height, width],
        "fixed_input_size": True,
        "first_conv": "patch_embed.proj",
        "classifier": ["head", "head_dist"] if config["use_distillation_head"] else "head",
    }
    return {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": config["hidden_size"],
        "global_pool": model_args["global_pool"],
        "model_args": model_args,
        "pretrained_cfg": pretrained_cfg | (timm_from_processor(processor) if processor else {}),
        **({"label_names": list(config["id2label"].values())} if num_classes else {}),
    }, tensors


def _require_one_of_timms(config: dict[str, Any], has_head: bool) -> None:
    """Checks what timm's own classes cannot be told by their arguments."""
    distilled, swiglu = config["use_distillation_token"], config["use_swiglu"]
    depths = config["resnet_depths"]
    prefix = config["use_class_token"] + distilled + config["num_register_tokens"]
    if depths is not None and (tuple(depths) not in _HYBRIDS or config["resnet_width"] != 64):
        raise InputError(f"its hybrids have the depths {', '.join(map(str, _HYBRIDS))} and the width 64.")
    if distilled and (config["num_register_tokens"] or config["pooling"] != "token"):
        raise InputError("its distilled ViTs have no registers, and read their tokens.")
    if distilled and has_head and not config["use_distillation_head"]:
        raise InputError("its distilled ViTs have a second head.")
    if distilled + swiglu + (depths is not None) > 1 or (swiglu and config["pooling"] == "attention"):
        raise InputError("a distillation token, SwiGLU, a ResNet and attention pooling do not go together there.")
    if config["position_embedding"] == "learned_1d" and config["num_prefix_positions"] not in (0, prefix):
        raise InputError(
            f"of the {prefix} tokens before the patches all or none have positions there, not "
            f"{config['num_prefix_positions']}."
        )


def _heads(architecture: str, hidden_size: int) -> int:
    return next((heads for pattern, heads in _HEADS.items() if re.match(pattern, architecture)), hidden_size // 64)


def _split_projections(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm keeps query, key and value in one tensor and, in attention pooling, key and value."""
    split = {}
    for name, tensor in tensors.items():
        if match := _JOINED.search(name):
            letters = match[1]
            parts = zip(letters, tensor.chunk(len(letters)))
            split |= {name.replace(f"{letters}_proj", f"{letter}_proj"): part for letter, part in parts}
        else:
            split[name] = tensor
    return split


def _join_projections(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    joined = {}
    for name, tensor in tensors.items():
        letters = "kv" if "attention_pooling." in name else "qkv"
        if f".{letters[0]}_proj." in name:
            parts = [tensors[name.replace(f"{letters[0]}_proj", f"{letter}_proj")] for letter in letters]
            joined[name.replace(f"{letters[0]}_proj", f"{letters}_proj")] = torch.cat(parts)
        elif not any(f".{letter}_proj." in name for letter in letters):
            joined[name] = tensor
    return joined


def _resnet(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    stem = "vit.embeddings.patch_embeddings.resnet."
    if stem + "root.conv.weight" not in tensors:
        return {}
    depths: dict[int, int] = {}
    for name in tensors:
        if match := re.match(re.escape(stem) + r"stages\.(\d+)\.(\d+)\.", name):
            stage, unit = int(match[1]), int(match[2])
            depths[stage] = max(depths.get(stage, 0), unit + 1)
    return {
        "num_channels": tensors[stem + "root.conv.weight"].shape[1],
        "resnet_depths": [depths[stage] for stage in sorted(depths)],
        "resnet_width": len(tensors[stem + "root.conv.weight"]),
        "resnet_numerics": "timm",
    }


def _positions(
    fields: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    model_args: dict[str, Any],
    pretrained: dict[str, Any],
    source: str,
) -> dict[str, Any]:
    """The image size, and which tokens before the patches have positions: all or none of them."""
    stride = resnet_stride(fields.get("resnet_depths"))
    patch_height, patch_width = (side * stride for side in fields["patch_size"])
    height, width = pair(model_args.get("img_size") or pretrained.get("input_size", [3, 224, 224])[1:])
    positions = tensors.get("vit.embeddings.position_embeddings")
    if positions is None:
        return {"position_embedding": "none", "image_size": [height, width]}
    prefix = fields["use_class_token"] + fields["use_distillation_token"] + fields["num_register_tokens"]
    patches = (height // patch_height) * (width // patch_width)
    for count in (prefix, 0):
        if positions.shape[1] == count + patches:
            return {"num_prefix_positions": count, "image_size": [height, width]}
    for count in (prefix, 0):
        side = math.isqrt(max(positions.shape[1] - count, 0))
        if side and side**2 == positions.shape[1] - count:
            return {"num_prefix_positions": count, "image_size": [side * patch_height, side * patch_width]}
    raise InputError(f"{source} has {positions.shape[1]} position embeddings, which fit no {height}x{width} image.")


def _pooling(fields: dict[str, Any], tensors: dict[str, torch.Tensor], global_pool: str | None, source: str) -> str:
    if "vit.attention_pooling.latent" in tensors:
        if fields["pool_before_norm"]:
            raise InputError(f"{source} normalises after attention pooling, which vitrail's ViT does not.")
        return "attention"
    if global_pool is None or (global_pool == "" and "classifier.weight" not in tensors):
        global_pool = "token" if fields["use_class_token"] and not fields["pool_before_norm"] else "avg"
    if global_pool not in ("token", "avg"):
        raise InputError(f"{source} pools by {global_pool!r}, which vitrail does not know.")
    return "mean" if global_pool == "avg" else "token"


def _labels(config: dict[str, Any], pretrained: dict[str, Any], count: int) -> dict[int, str]:
    names = config.get("label_names") or pretrained.get("label_names")
    if not names or len(names) != count:
        return {index: f"LABEL_{index}" for index in range(count)}
    descriptions = config.get("label_descriptions") or pretrained.get("label_descriptions") or {}
    if isinstance(descriptions, list):
        descriptions = dict(zip(names, descriptions))
    return {index: descriptions.get(name, name) for index, name in enumerate(names)}
