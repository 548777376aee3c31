"""Any images, any ViT.

vitrail train --dataset digits
"""

import argparse
import shutil
import sys
from typing import Any

from vitrail.cli.imports import garbage_kept
from vitrail.cli.memory import keep_freed_memory


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb; its flags are those of `vitrail.training`, which parses them itself."""
    parser = verbs.add_parser("train", help="train or fine-tune on a data set, a folder or digits", add_help=False)
    parser.set_defaults(run=run, takes_more=True)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Trains, and says how well it went, where everything is and what to run next.

    The exit code is 1 when all that has failed is `--push_to_hub`.
    """
    keep_freed_memory()
    with garbage_kept():
        from tqdm import tqdm

        from vitrail.publishing import Published, PublishingError
        from vitrail.training import train
        from vitrail.training.interruption import Interrupted

    try:
        result = train(rest)
    except Interrupted as stop:
        tqdm.write(f"vitrail: {stop}", file=sys.stderr)
        return stop.exit_code
    folder, metrics = result.output_dir, result.metrics
    prefix, split = ("test", "test") if "test_loss" in metrics else ("eval", "validation")
    program = "vitrail" if shutil.which("vitrail") else sys.argv[0]
    if result.samples:
        what, steps = "", [f"predict --model {folder} {result.samples[0]}", f"demo --model {folder}"]
    else:
        what, steps = "corrupted patches of the ", [f"train --model {folder} --dataset LABELLED_IMAGES"]
    measure = "mAP" if f"{prefix}_mAP" in metrics else "accuracy"
    figure, images = metrics[f"{prefix}_{measure}"], result.images[split]
    name = {"mAP": "Mean average precision", "accuracy": "Accuracy"}[measure]
    print(f"\n{name} {figure:.2%} on the {what}{images:,} images of the {split} split.")
    if said := _said(metrics, prefix):
        print(said)
    print(f"The model, its card and its figures are in {folder}. Next:")
    for step in steps:
        print(f"  {program} {step}")
    if isinstance(result.published, PublishingError):
        raise result.published
    if isinstance(result.published, Published):
        print(f"It is published at {result.published.url}")
    return 0


def _said(metrics: dict[str, Any], prefix: str) -> str:
    """What there is to know beside the accuracy, where classes were learned."""
    classes = metrics.get(f"{prefix}_per_class", {})
    recalls = {name: figures["recall"] for name, figures in classes.items() if figures["recall"] is not None}
    if not recalls:
        return ""
    said = [f"Macro-F1 {metrics[f'{prefix}_f1_macro']:.2%}"]
    if f"{prefix}_top5_accuracy" in metrics:
        said.append(f"top-5 {metrics[f'{prefix}_top5_accuracy']:.2%}")
    if f"{prefix}_calibration_error" in metrics:
        said.append(f"calibration error {metrics[f'{prefix}_calibration_error']:.2%}")
    hardest = min(recalls, key=lambda name: recalls[name])
    if recalls[hardest] < 1:
        said.append(f"hardest class {hardest!r}, {recalls[hardest]:.0%} of it right")
    return f"{', '.join(said)}."
