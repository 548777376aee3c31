"""Where a model looked in images, or what spoke for a class.

vitrail explain --model runs/digits runs/digits/samples/0.png --output heat.png
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from vitrail.cli.imports import garbage_kept


if TYPE_CHECKING:
    from vitrail.modeling import ViTForImageClassification, ViTImageProcessor, ViTModel


_ARTEFACT = 15  # times the mean: DINOv2-small has 20 to 90, or 2 to 6 with min fusion
_OF_A_CLASS = ["relevance", "gradient_rollout"]


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("explain", help="show where a model looked in images")
    parser.add_argument("images", nargs="+", type=Path, help="image files, or folders of them")
    parser.add_argument("--model", required=True, help="a Hub id or folder")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("explained"),
        help="for one image a .png file, else a folder (default: explained)",
    )
    parser.add_argument(
        "--method",
        choices=["rollout", "attention", *_OF_A_CLASS],
        help="where it looked: rollout (default), or attention of the last layer; what spoke for a class: relevance "
        "(default with --target), or gradient_rollout",
    )
    parser.add_argument("--target", metavar="LABEL", help="the class to explain, or its number (default: predicted)")
    parser.add_argument("--head_fusion", choices=["mean", "max", "min"], help="of rollout (default: mean)")
    parser.add_argument("--discard_ratio", type=float, help="of rollout: the share of attention to drop (default: 0)")
    parser.add_argument("--all-layers", action="store_true", help="also draw how attention spreads with depth")
    parser.add_argument("--heads", type=int, metavar="LAYER", help="also draw what the heads of a layer, from 0, see")
    parser.add_argument("--json", action="store_true", help="also write the map as a grid of numbers")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Explains every image that can be; any other is named on stderr, the rest go on, and the exit code is 2."""
    with garbage_kept():
        from tqdm import tqdm

        from vitrail.cli.outputs import output_paths
        from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor

    method = arguments.method or ("rollout" if arguments.target is None else "relevance")
    if arguments.target is not None and method not in _OF_A_CLASS:
        raise InputError(f"--method {method} is the same for every class; --target is for relevance.")
    if method != "rollout" and not arguments.all_layers and _rollout_options(arguments):
        raise InputError(f"--head_fusion and --discard_ratio are of rollout, not of {method}.")
    endings = ["_layers.png"] * arguments.all_layers + ["_heads.png"] * (arguments.heads is not None)
    pictures = output_paths(arguments.images, arguments.output, endings + [".json"] * arguments.json)
    classifier = ViTForImageClassification.from_pretrained(arguments.model)
    # A checkpoint without a head gets one of zeros, which says nothing.
    model = classifier if classifier.classifier.weight.any() else classifier.vit
    if method in _OF_A_CLASS and model is not classifier:
        raise InputError(f"{arguments.model} has no head, hence no classes to explain; train it, or take rollout.")
    layers = model.config.num_hidden_layers
    if arguments.heads is not None and not 0 <= arguments.heads < layers:
        raise InputError(f"--heads is {arguments.heads}; the model has layers 0 to {layers - 1}.")
    if arguments.discard_ratio is not None and not 0 <= arguments.discard_ratio < 1:
        raise InputError(f"--discard_ratio is {arguments.discard_ratio}; it must be at least 0 and less than 1.")
    target = None if arguments.target is None else _class_of(arguments.target, classifier.config.labels)
    processor = ViTImageProcessor.from_pretrained(arguments.model)

    failed = 0
    artefacts = False
    for path, picture in tqdm(pictures.items(), unit="image", disable=len(pictures) == 1):
        try:
            facts = _explain(model, processor, path, picture, method, target, arguments)
        except InputError as error:
            failed += 1
            named = "" if str(path) in str(error) else f"{path}: "
            tqdm.write(f"vitrail: {named}{error}", file=sys.stderr)
            continue
        artefacts |= facts["peak_over_mean"] > _ARTEFACT
        said = f"{facts['label']}\t{facts['probability']:.1%}\t" if "label" in facts else ""
        tqdm.write(f"{path}\t{said}{picture}", file=sys.stdout)
    if artefacts and method == "rollout":
        tqdm.write(
            "vitrail: single patches outshine all others, as in DINOv2 without registers; --head_fusion min "
            "or --method relevance show more.",
            file=sys.stderr,
        )
    return 2 if failed else 0


def _explain(
    model: ViTForImageClassification | ViTModel,
    processor: ViTImageProcessor,
    path: Path,
    picture: Path,
    method: str,
    target: int | None,
    arguments: argparse.Namespace,
) -> dict:
    """Writes what was asked for of one image, and says what the map is about and how far its peak stands out."""
    from vitrail.cli.outputs import companion
    from vitrail.inspection import (
        attention_rollout,
        depth_figure,
        heads_figure,
        layer_attention,
        overlay,
        relevance,
        rollout_by_depth,
    )
    from vitrail.modeling import InputError, read_image

    image = read_image(path)
    pixels = processor(image, return_tensors="pt").pixel_values
    region = processor.seen_region(*image.size)
    options = _rollout_options(arguments)
    if method == "rollout":
        out = attention_rollout(model, pixels, **options)
        heatmap = out.heatmap[0]
    elif method == "attention":
        out = layer_attention(model, pixels)
        heatmap = out.heatmap[0].mean(0)
    else:
        out = relevance(model, pixels, target, "chefer" if method == "relevance" else "gradient_rollout")
        heatmap = out.heatmap[0]
    facts: dict[str, Any] = {"image": str(path), "method": method}
    if out.logits is not None:
        probabilities = cast("ViTForImageClassification", model).probabilities(out.logits)[0]
        explained = int(probabilities.argmax()) if target is None else target
        facts |= {"label": model.config.labels[explained], "probability": probabilities[explained].item()}
    peak = (heatmap.max() / heatmap.mean().clamp(min=1e-30)).item()  # a class may have nothing for it
    facts |= {"region": region, "peak_over_mean": peak, "grid": heatmap.tolist()}
    try:
        overlay(image, heatmap, region=region).save(picture)
        if arguments.all_layers:
            depths = rollout_by_depth(model, pixels, **options).heatmap[0]
            depth_figure(image, depths, region).savefig(companion(picture, "_layers.png"))
        if arguments.heads is not None:
            heads = layer_attention(model, pixels, arguments.heads).heatmap[0]
            heads_figure(image, heads, arguments.heads, region).savefig(companion(picture, "_heads.png"))
        if arguments.json:
            companion(picture, ".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write {error.filename or picture}: {error.strerror or error}.") from error
    return facts


def _rollout_options(arguments: argparse.Namespace) -> dict:
    options = {"head_fusion": arguments.head_fusion, "discard_ratio": arguments.discard_ratio}
    return {name: value for name, value in options.items() if value is not None}


def _class_of(target: str, labels: list[str]) -> int:
    """The class of a label or, where no label is written so, of a number."""
    from vitrail.modeling import InputError

    named = [index for index, label in enumerate(labels) if label == target]
    if len(named) > 1:
        raise InputError(f"--target {target} names {len(named)} classes; give the number of one: {named}.")
    if not named and target.isdecimal() and int(target) < len(labels):
        return int(target)
    if not named:
        some = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise InputError(f"--target {target} is none of the model's labels, {some}.")
    return named[0]
