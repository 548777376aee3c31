"""Token merging on a fine-tuned model: how much faster it is, and what that costs on held-out images.

python benchmarks/token_merging.py --model runs/fine-tuned --dataset zalando-datasets/fashion_mnist \
    [--images 1000] [--pairs 13 16 20 24] [--batch 16] [--rounds 5]

Any model that knows the data set's classes will do. The one of docs/token_merging.md learned them in ten minutes:

vitrail train --recipe linear-probe --model facebook/dinov2-small --dataset zalando-datasets/fashion_mnist \
    --image_size 224 --max_train_samples 2000 --output_dir runs/probe
vitrail train --recipe finetune --model runs/probe --dataset zalando-datasets/fashion_mnist --max_train_samples 2000 \
    --num_train_epochs 2 --per_device_train_batch_size 16 --learning_rate 2e-4 --layer_lr_decay 0.75 \
    --drop_path_rate 0 --patch_dropout_prob 0.5 --patch_dropout_until 0.8 --seed 1 --output_dir runs/fine-tuned

The same weights with every r in turn, r = 0 among them, in float32 and under bfloat16 autocast. The accuracy is that
in bfloat16, on the same images of the test split for every r; the interval of what is lost is 95 % of a bootstrap over
them.
"""

import argparse
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from side_by_side import Report, pin, take_turns

from vitrail.modeling import ViTForImageClassification, ViTImageProcessor
from vitrail.training.augmentation import EvaluationTransform
from vitrail.training.data import load_splits


PRECISIONS = (torch.float32, torch.bfloat16)
_RESAMPLES = 2000


class Predictor:
    """A model with any number of pairs merged in each layer, in either precision."""

    def __init__(self, model: ViTForImageClassification):
        self.model = model

    def __call__(self, pixels: torch.Tensor, pairs: int, dtype: torch.dtype) -> torch.Tensor:
        self.model.config.merged_tokens_per_layer = pairs
        with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype):
            return self.model(pixels).logits

    def tokens_left(self, pixels: torch.Tensor, pairs: int) -> int:
        """How many the last layer has."""
        self.model.config.merged_tokens_per_layer = pairs
        return self.model.vit(pixels, output_hidden_states=True).hidden_states[-1].shape[1]


def lost(right: torch.Tensor, right_before: torch.Tensor) -> str:
    """The points of accuracy that are lost, with their interval."""
    differences = (right_before.float() - right.float()) * 100
    drawn = torch.randint(len(differences), (_RESAMPLES, len(differences)), generator=torch.Generator().manual_seed(0))
    low, high = differences[drawn].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return f"{differences.mean():.1f} ({low:.1f} to {high:.1f})"


@torch.inference_mode()
def compare(predict: Predictor, batches: Sequence[dict[str, torch.Tensor]], pairs: list[int], rounds: int) -> None:
    """Prints a row for every number of pairs, from batches of `pixel_values` and `labels`."""
    labels = torch.cat([batch["labels"] for batch in batches])
    said = {
        r: torch.cat([predict(batch["pixel_values"], r, torch.bfloat16).argmax(1) for batch in batches]) for r in pairs
    }
    pixels = batches[0]["pixel_values"]

    def way(r: int, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        return lambda: predict(pixels, r, dtype)

    timings = {dtype: take_turns({str(r): way(r, dtype) for r in pairs}, rounds) for dtype in PRECISIONS}
    rows = []
    for r in pairs:
        right = said[r] == labels
        rows.append([str(r), str(predict.tokens_left(pixels, r)), f"{right.float().mean():.1%}"])
        rows[-1] += [lost(right, said[0] == labels), f"{(said[r] != said[0]).float().mean():.1%}"]
        for timing in timings.values():
            speed = len(pixels) / timing[str(r)].median
            rows[-1].append(f"{speed:.1f}: {timing[str(r)].ratio_to(timing['0']):.2f}x, ±{timing[str(r)].spread:.0%}")
    columns = ["r", "tokens at last", "accuracy", "points lost (95 %)", "other answers"]
    columns += ["images/s, float32", "images/s, bfloat16"]
    Report("token_merging").table(f"{len(labels)} images, {len(pixels)} at a time", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--pairs", type=int, nargs="+", default=[13, 16, 20, 24])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model = ViTForImageClassification.from_pretrained(arguments.model, dtype=torch.float32).eval()
    transform = EvaluationTransform(ViTImageProcessor.from_pretrained(arguments.model))
    images = load_splits(arguments.dataset)["test"].shuffle(seed=0).select(range(arguments.images))
    batches = images.with_transform(transform).iter(arguments.batch)
    pin()
    compare(Predictor(model), list(batches), [0, *arguments.pairs], arguments.rounds)


if __name__ == "__main__":
    main()
