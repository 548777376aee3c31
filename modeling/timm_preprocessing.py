"""timm's `pretrained_cfg`, which says how a checkpoint's images are prepared, and the fields of an image processor."""

from __future__ import annotations

import math
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling

from .errors import InputError
from .geometry import pair


# What timm takes a `pretrained_cfg` to mean that does not say.
_DEFAULTS = {
    "input_size": (3, 224, 224),
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "crop_mode": "center",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
}
_FITS = {"center": "crop", "squash": "squash", "border": "pad"}
_RESAMPLE = {kind.name.lower(): int(kind) for kind in PILImageResampling}
_INTERPOLATIONS = {number: name for name, number in _RESAMPLE.items()}


def processor_from_timm(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `ViTImageProcessor` that does what timm's evaluation transform of a checkpoint does.

    Like `timm.data.resolve_data_config` and `transforms_imagenet_eval`. With the PIL backend the pixels are timm's own,
    with torchvision's they differ as the backends do.

    Args:
        config: timm's config.json. Read are `input_size` (C, H, W), `crop_pct`, `crop_mode` (center, squash or border),
            `interpolation` ("random", which draws bilinear or bicubic in training, is the latter), `mean` and `std`;
            what is absent or None is timm's default.

    Raises:
        InputError: timm has no such `crop_mode` or `interpolation`.
    """
    pretrained_cfg = config.get("pretrained_cfg", config)  # old files are one flat table
    model_args = config.get("model_args") or {}
    given = {name: pretrained_cfg.get(name) or default for name, default in _DEFAULTS.items()}
    channels, *target = given["input_size"]
    channels = model_args.get("in_chans") or channels
    if not model_args.get("dynamic_img_size"):  # else the model takes the size that the images are prepared for
        target = list(pair(model_args.get("img_size") or target))
    resample = _RESAMPLE | {"random": _RESAMPLE["bicubic"]}
    for name, known in (("crop_mode", _FITS), ("interpolation", resample)):
        if given[name] not in known:
            raise InputError(f"The checkpoint's {name} is {given[name]!r}, but timm knows {', '.join(known)}.")
    resized = [math.floor(side / given["crop_pct"]) for side in target]
    size, crop_size = (dict(zip(("height", "width"), sides)) for sides in (resized, target))
    fields: dict[str, Any] = {
        "num_channels": channels,
        "size": size,
        "resample": resample[given["interpolation"]],
        "image_mean": tuple(given["mean"][:channels]),
        "image_std": tuple(given["std"][:channels]),
    }
    if given["crop_mode"] == "center":
        square = resized[0] == resized[1]
        size = {"shortest_edge": resized[0]} if square else size
        return fields | {"size": size, "do_center_crop": True, "crop_size": crop_size, "fit": "crop"}
    if resized != target:
        fields |= {"do_center_crop": True, "crop_size": crop_size}
    # Stock transformers squashes to the same size, and cuts at the same place unless half the difference rounds up.
    if given["crop_mode"] == "squash" and all((before - after) % 4 != 3 for before, after in zip(resized, target)):
        return fields
    return fields | {"fit": _FITS[given["crop_mode"]]}


def timm_from_processor(processor: dict[str, Any]) -> dict[str, Any]:
    """The same in the other direction, for the fields of `pretrained_cfg` that say how images are prepared."""
    size = {name: side for name, side in processor["size"].items() if side}
    fit = processor.get("fit") or ("crop" if "shortest_edge" in size else "squash")
    resized = [size["shortest_edge"]] * 2 if "shortest_edge" in size else [size["height"], size["width"]]
    crop_size = processor.get("crop_size") if processor["do_center_crop"] else None
    target = [crop_size[name] for name in ("height", "width")] if crop_size else resized
    crop_pct = target[0] / resized[0]
    if math.floor(target[0] / crop_pct) != resized[0]:
        crop_pct = target[0] / (resized[0] + 0.5)
    modes = {ours: theirs for theirs, ours in _FITS.items()}
    return {
        "input_size": [len(processor["image_mean"]), *target],
        "interpolation": _INTERPOLATIONS[int(processor["resample"])],
        "crop_pct": crop_pct,
        "crop_mode": modes[fit],
        "mean": list(processor["image_mean"]),
        "std": list(processor["image_std"]),
    }
