"""Training on some of the patches beside training on all: time, and accuracy on held-out images.

python benchmarks/patch_dropout.py [--dataset path/to/fashion-mnist] [--images 12800] [--epochs 4]

`vitrail train --recipe scratch-small` of the model of `benchmarks/trainer.py`, on the same images in the same order
with the same seed, a process each; nothing differs but which share of every image's patches is left out, and in which
first part of the training. An epoch's time is the mean over the training, imports and evaluations left out.
"""

import argparse
import json
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from side_by_side import Report
from trainer import command, prepare


SETTINGS = ((0.0, 1.0), (0.5, 0.6), (0.5, 1.0), (0.75, 0.6))


def train(dataset: str, epochs: int, share: float, until: float) -> dict[str, float]:
    """What a run writes of itself."""
    with TemporaryDirectory() as folder:
        flags = ["--patch_dropout_prob", str(share), "--patch_dropout_until", str(until), "--eval_strategy", "no"]
        line = [*command("vitrail, its recipe", dataset, folder, epochs), *flags]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
        return json.loads(Path(folder, "all_results.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", help="scikit-learn's digits by default")
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    with TemporaryDirectory() as dataset:
        images = prepare(arguments.dataset, arguments.images, Path(dataset))
        results = {setting: train(dataset, arguments.epochs, *setting) for setting in SETTINGS}
    whole = results[SETTINGS[0]]["train_runtime"]
    rows = [
        [
            f"{share:.0%}",
            f"{until:.0%}" if share else "",
            f"{result['train_runtime'] / arguments.epochs:.1f}",
            f"{whole / result['train_runtime']:.2f}",
            f"{result['eval_accuracy']:.2%}",
        ]
        for (share, until), result in results.items()
    ]
    columns = ["patches left out", "in the first", "seconds an epoch", "faster by", "accuracy"]
    Report("patch_dropout").table(f"{images:,} images, {arguments.epochs} epochs", columns, rows)


if __name__ == "__main__":
    main()
