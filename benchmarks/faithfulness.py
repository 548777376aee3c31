"""Which map is true to the model, on held-out images of a labelled data set, beside maps that never saw the model.

python benchmarks/faithfulness.py --model facebook/dinov2-small --dataset zalando-datasets/fashion_mnist \
    [--images 200] [--image_size 112] [--train_images 4000] [--output_dir runs/faithfulness] [any flag of vitrail train]

A model that does not have the data set's classes is fine-tuned first and kept in --output_dir; given as --model in a
second run, it is taken as it is. The maps of the model's own predictions are scored by `faithfulness`, all on the same
images; intervals are 95 % of a bootstrap over the images, and differences are paired by image.

Read the differences to the centred Gaussian first. Where every object is in the middle of its image, as in
Fashion-MNIST, the Gaussian knows where the object is, and to beat noise is no sign of insight.
"""

import argparse
import time
from collections.abc import Callable

import torch
from datasets import Dataset

from vitrail.inspection import attention_rollout, faithfulness, layer_attention, relevance
from vitrail.modeling import ViTConfig, ViTForImageClassification, ViTImageProcessor
from vitrail.training import train
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.data import load_splits, with_validation


# Fields of `Scores`, and which way is better.
SCORES = {
    "insertion_blur": "↑",
    "deletion_blur": "↓",
    "insertion_zero": "↑",
    "deletion_zero": "↓",
    "negative": "↑",
    "positive": "↓",
}
_RESAMPLES = 2000
_BATCH = 16  # images whose maps are made at a time


METHODS: dict[str, Callable[[ViTForImageClassification, torch.Tensor], torch.Tensor]] = {
    "rollout": lambda model, pixels: attention_rollout(model, pixels).heatmap,
    "last layer's attention": lambda model, pixels: layer_attention(model, pixels).heatmap.mean(1),
    "gradient rollout": lambda model, pixels: relevance(model, pixels, method="gradient_rollout").heatmap,
    "relevance": lambda model, pixels: relevance(model, pixels).heatmap,
}


def fine_tuned(arguments: argparse.Namespace, training_flags: list[str], labels: list[str]) -> str:
    """The folder or id of a model of these classes: the given one, or what training makes of it."""
    if ViTConfig.from_pretrained(arguments.model).labels == labels:
        return arguments.model
    flags = {
        "model": arguments.model,
        "dataset": arguments.dataset,
        "output_dir": arguments.output_dir,
        "image_size": arguments.image_size,
        "max_train_samples": arguments.train_images,
        "max_eval_samples": 1000,
        "num_train_epochs": 2,
        "crop_scale": 0.7,
        "seed": arguments.seed,
        "eval_strategy": "no",
        "save_strategy": "no",
        "bf16": arguments.bf16,
        "use_cpu": not torch.accelerator.is_available(),
    }
    start = time.perf_counter()
    result = train([text for name, value in flags.items() for text in (f"--{name}", str(value))] + training_flags)
    accuracies = {name: f"{value:.1%}" for name, value in result.metrics.items() if name.endswith("_accuracy")}
    print(f"trained in {time.perf_counter() - start:.0f} s: {accuracies} of {result.images}")
    return str(result.output_dir)


def held_out(arguments: argparse.Namespace) -> Dataset:
    """Random images of the test split, or else of what training validates on."""
    splits, _ = with_validation(load_splits(arguments.dataset), 0.1, arguments.seed)
    rows = splits["test" if "test" in splits else "validation"].shuffle(arguments.seed)
    return rows.select(range(min(arguments.images, len(rows))))


def interval(values: torch.Tensor) -> tuple[float, float, float]:
    """The mean of (n,) values, and the ends of its 95 % bootstrap interval."""
    drawn = torch.randint(len(values), (_RESAMPLES, len(values)), generator=torch.Generator().manual_seed(0))
    low, high = values[drawn].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return values.mean().item(), low, high


def print_table(title: str, rows: dict[str, dict[str, torch.Tensor]], control: dict[str, torch.Tensor] | None) -> None:
    """A row for each map: means of (n,) scores, or of their differences to a control, bold where surely better."""
    print(f"\n| {title} | {' | '.join(f'{name} {arrow}' for name, arrow in SCORES.items())} |")
    print("|---" * (1 + len(SCORES)) + "|")
    for method, scores in rows.items():
        cells = []
        for name, arrow in SCORES.items():
            mean, low, high = interval(scores[name] if control is None else scores[name] - control[name])
            sign = "" if control is None else "+"
            better = control is not None and (low > 0 if arrow == "↑" else high < 0)
            cell = f"{mean:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
            cells.append(f"**{cell}**" if better else cell)
        print(f"| {method} | {' | '.join(cells)} |")


def main() -> None:
    """Trains if need be, makes the maps, scores them and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image_size", type=int, default=112, help="of the model that is fine-tuned")
    parser.add_argument("--train_images", type=int, default=4000)
    parser.add_argument("--output_dir", default="runs/faithfulness")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=True, help="for training and scores; maps are float32"
    )
    arguments, training_flags = parser.parse_known_args()

    rows = held_out(arguments)
    name = fine_tuned(arguments, training_flags, rows.features["label"].names)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    model = ViTForImageClassification.from_pretrained(name).to(device).eval()
    prepared = EvaluationTransform(ViTImageProcessor.from_pretrained(name))(rows[:])
    pixel_values, labels = prepared["pixel_values"].to(device), prepared["labels"].to(device)
    height, width = pixel_values.shape[2:]
    print(f"{name} at {height}x{width} pixels, {len(rows)} held-out images of {arguments.dataset}, {device}")

    maps = []
    for method, heatmap_of in METHODS.items():
        start = time.perf_counter()
        maps.append(torch.cat([heatmap_of(model, images) for images in pixel_values.split(_BATCH)]))
        print(f"{method}: {time.perf_counter() - start:.1f} s")
    start = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=arguments.bf16):
        out = faithfulness(model, pixel_values, torch.stack(maps, dim=1), random_draws=1, batch_size=64)
    print(f"scores: {time.perf_counter() - start:.0f} s; accuracy {(out.target == labels).float().mean():.1%}")

    of_maps = {name: getattr(out.map, name).cpu() for name in SCORES}
    methods = {method: {name: of_maps[name][:, i] for name in of_maps} for i, method in enumerate(METHODS)}
    random, gaussian = ({name: getattr(scores, name).cpu() for name in SCORES} for scores in (out.random, out.gaussian))
    print_table("map", methods | {"random": random, "centred Gaussian": gaussian}, None)
    print_table("minus random", methods | {"centred Gaussian": gaussian}, random)
    print_table("minus centred Gaussian", methods, gaussian)


if __name__ == "__main__":
    main()
