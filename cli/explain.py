"""Where a model looked in images, or what spoke for a class.

vitrail explain --model runs/digits runs/digits/samples/0.png --output heat.png
"""

import argparse
import json
import sys
from pathlib import Path


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
    parser.add_argument("--target", metavar="LABEL", help="the class to explain (default: the one predicted)")
    parser.add_argument("--head_fusion", choices=["mean", "max", "min"], default="mean", help="of rollout")
    parser.add_argument("--discard_ratio", type=float, default=0.0, help="of rollout: the share of attention to drop")
    parser.add_argument("--all-layers", action="store_true", help="also draw how attention spreads with depth")
    parser.add_argument("--heads", type=int, metavar="LAYER", help="also draw what the heads of a layer, from 0, see")
    parser.add_argument("--json", action="store_true", help="also write the map as a grid of numbers")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Explains every readable image; an unreadable one is named on stderr, the others go on, and the exit code is 2."""
    from tqdm import tqdm

    from vitrail.cli.outputs import output_paths
    from vitrail.inspection import (
        attention_rollout,
        depth_figure,
        heads_figure,
        layer_attention,
        overlay,
        relevance,
        rollout_by_depth,
    )
    from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor, read_image

    method = arguments.method or ("rollout" if arguments.target is None else "relevance")
    if arguments.target is not None and method not in _OF_A_CLASS:
        raise InputError(f"--method {method} is the same for every class; --target is for relevance.")
    pictures = output_paths(arguments.images, arguments.output)
    classifier = ViTForImageClassification.from_pretrained(arguments.model)
    labels = classifier.config.labels
    if arguments.target is not None and arguments.target not in labels:
        some = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise InputError(f"--target {arguments.target} is none of the model's labels, {some}.")
    target = None if arguments.target is None else labels.index(arguments.target)
    # A checkpoint without a head gets one of zeros, which says nothing.
    model = classifier if classifier.classifier.weight.any() else classifier.vit
    processor = ViTImageProcessor.from_pretrained(arguments.model)

    unreadable = 0
    for path, picture in tqdm(pictures.items(), unit="image", disable=len(pictures) == 1):
        try:
            image = read_image(path)
        except InputError as error:
            unreadable += 1
            tqdm.write(f"vitrail: {error}", file=sys.stderr)
            continue
        pixels = processor(image, return_tensors="pt").pixel_values
        region = processor.seen_region(*image.size)
        if method == "rollout":
            out = attention_rollout(model, pixels, arguments.head_fusion, arguments.discard_ratio)
            heatmap = out.heatmap[0]
        elif method == "attention":
            out = layer_attention(model, pixels)
            heatmap = out.heatmap[0].mean(0)
        else:
            out = relevance(model, pixels, target, "chefer" if method == "relevance" else "gradient_rollout")
            heatmap = out.heatmap[0]
        overlay(image, heatmap, region=region).save(picture)
        if arguments.all_layers:
            depths = rollout_by_depth(model, pixels, arguments.head_fusion, arguments.discard_ratio).heatmap[0]
            depth_figure(image, depths, region).savefig(picture.with_stem(f"{picture.stem}_layers"))
        if arguments.heads is not None:
            heads = layer_attention(model, pixels, arguments.heads).heatmap[0]
            heads_figure(image, heads, arguments.heads, region).savefig(picture.with_stem(f"{picture.stem}_heads"))
        facts = {"image": str(path), "method": method}
        if out.logits is not None:
            probabilities = out.logits[0].float().softmax(-1)
            explained = int(probabilities.argmax()) if target is None else target
            facts |= {"label": labels[explained], "probability": probabilities[explained].item()}
        if arguments.json:
            facts |= {"region": region, "grid": heatmap.tolist()}
            picture.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        said = f"{facts['label']}\t{facts['probability']:.1%}\t" if "label" in facts else ""
        tqdm.write(f"{path}\t{said}{picture}", file=sys.stdout)
    return 2 if unreadable else 0
