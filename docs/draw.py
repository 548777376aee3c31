"""Draws the pictures of docs/seeing.md, from DINOv2 and some photographs, and prints its table of artefacts.

python docs/draw.py --model facebook/dinov2-small photos/*.jpg
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure
from PIL import Image

from vitrail.inspection import (
    attention_rollout,
    depth_figure,
    figure_7,
    layer_attention,
    overlay,
    relevance,
    rollout_by_depth,
)
from vitrail.modeling import ViTForImageClassification, ViTImageProcessor, ViTModel, read_image


IMAGES = Path(__file__).parent / "images"
PATCHES = 1200  # of a photograph, about; it keeps its shape


def prepared(model: str, image: Image.Image) -> torch.Tensor:
    """The whole photograph, (1, 3, H, W), in whole patches of 14 pixels."""
    scale = (PATCHES / (image.width * image.height)) ** 0.5
    size = {"height": 14 * round(scale * image.height), "width": 14 * round(scale * image.width)}
    processor = ViTImageProcessor.from_pretrained(model, size=size, do_center_crop=False)
    return processor(image, return_tensors="pt").pixel_values


@torch.no_grad()
def telling_apart(model: str, photographs: list[torch.Tensor]) -> ViTForImageClassification:
    """DINOv2 under a linear head with one class a photograph, whose weights are its features less the mean of all."""
    classifier = ViTForImageClassification.from_pretrained(model, num_labels=len(photographs)).eval()
    outputs = [classifier.vit(pixels) for pixels in photographs]
    features = torch.cat([torch.cat((y.pooler_output, y.last_hidden_state[:, 1:].mean(1)), 1) for y in outputs])
    classifier.classifier.weight.copy_(torch.nn.functional.normalize(features - features.mean(0)))
    return classifier


def methods_figure(model: str, images: list[Image.Image]) -> Figure:
    """Photographs in columns, what some methods say of them below; of all is printed how far their peaks stand out."""
    photographs = [prepared(model, image) for image in images]
    classifier = telling_apart(model, photographs)
    rows = {"input": images}
    print(f"| peak over mean | {' | '.join(f'photograph {i + 1}' for i in range(len(images)))} |")
    print("|---" * (len(images) + 1) + "|")
    for name, heatmap_of in {
        "rollout": lambda pixels, _: attention_rollout(classifier, pixels).heatmap,
        "rollout, discard_ratio 0.9": lambda pixels, _: attention_rollout(classifier, pixels, "mean", 0.9).heatmap,
        "rollout, max fusion": lambda pixels, _: attention_rollout(classifier, pixels, "max").heatmap,
        "rollout, min fusion": lambda pixels, _: attention_rollout(classifier, pixels, "min").heatmap,
        "last layer's attention": lambda pixels, _: layer_attention(classifier, pixels).heatmap.mean(1),
        "relevance": lambda pixels, index: relevance(classifier, pixels, index).heatmap,
    }.items():
        maps = [heatmap_of(pixels, index)[0] for index, pixels in enumerate(photographs)]
        print(f"| {name} | {' | '.join(f'{(heatmap.max() / heatmap.mean()):.0f}' for heatmap in maps)} |")
        if name in ("rollout", "rollout, min fusion", "relevance"):
            rows[name] = [overlay(image, heatmap) for image, heatmap in zip(images, maps)]
    widths = [image.width / image.height for image in images]
    figure = Figure(figsize=(10, 10 * len(rows) / sum(widths)), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    for axes, (name, pictures) in zip(figure.subplots(len(rows), len(images), width_ratios=widths), rows.items()):
        for axis, picture in zip(axes, pictures):
            axis.imshow(picture)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        axes[0].set_ylabel(name.replace(", ", ",\n"), fontsize=12)
    return figure


def main() -> None:
    """Draws all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("photographs", nargs="+", type=Path)
    arguments = parser.parse_args()
    images = [read_image(path) for path in arguments.photographs]

    methods_figure(arguments.model, images).savefig(IMAGES / "methods.png", dpi=100)
    model = ViTModel.from_pretrained(arguments.model).eval()
    first = prepared(arguments.model, images[0])
    depth_figure(images[0], rollout_by_depth(model, first, "min").heatmap[0]).savefig(IMAGES / "depth.png", dpi=100)
    processor = ViTImageProcessor.from_pretrained(arguments.model)
    figure_7(model, processor(images, return_tensors="pt").pixel_values).savefig(IMAGES / "figure_7.png", dpi=100)


if __name__ == "__main__":
    main()
