"""Any images, any ViT.

vitrail train --dataset digits
"""

import argparse
import shutil
import sys


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb; its flags are those of `vitrail.training`, which parses them itself."""
    parser = verbs.add_parser("train", help="train or fine-tune on a data set, a folder or digits", add_help=False)
    parser.set_defaults(run=run, takes_more=True)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Trains, and says how well it went, where everything is and what to run next."""
    from vitrail.training import train

    result = train(rest)
    folder = result.output_dir
    split, prefix = ("test", "test") if "test_loss" in result.metrics else ("validation", "eval")
    name = "Mean average precision" if f"{prefix}_mAP" in result.metrics else "Accuracy"
    figure = result.metrics.get(f"{prefix}_mAP", result.metrics.get(f"{prefix}_accuracy"))
    program = "vitrail" if shutil.which("vitrail") else sys.argv[0]
    if result.samples:
        what, steps = "", [f"predict --model {folder} {result.samples[0]}", f"demo --model {folder}"]
    else:
        what, steps = "corrupted patches of the ", [f"train --model {folder} --dataset LABELLED_IMAGES"]
    print(
        f"\n{name} {figure:.2%} on the {what}{result.images[split]:,} images of the {split} split.\n"
        f"The model, its card and its figures are in {folder}. Next:"
    )
    for step in steps:
        print(f"  {program} {step}")
    return 0
