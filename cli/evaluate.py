"""How well a model does on any labelled data set.

vitrail evaluate --model runs/digits --dataset digits --output runs/digits/validation
"""

import argparse
import json
from pathlib import Path

from vitrail.cli.imports import garbage_kept


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("evaluate", help="measure a model on a data set")
    parser.add_argument("--model", required=True, help="a Hub id or folder")
    parser.add_argument(
        "--dataset", required=True, help="'digits', a Hub data-set id, a folder, or .parquet, .arrow or .tar files"
    )
    parser.add_argument("--dataset_config", help="the configuration of a Hub data set")
    parser.add_argument("--dataset_revision", help="the branch, tag or commit of a Hub data set")
    parser.add_argument("--split", help="default: test, else validation")
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time (default: 64)")
    parser.add_argument("--image_column", help="default: the one column of images, of files' bytes, or of their paths")
    parser.add_argument("--label_column", help="default: the one column of classes, or of lists of them")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="also write what is known of each class, and pictures of the confusions and the worst mistakes",
    )
    parser.add_argument("--streaming", action="store_true", help="read Hub data sets and files while they are used")
    parser.add_argument(
        "--on_bad_image",
        choices=("error", "skip"),
        default="error",
        help="what to do about an image that cannot be read (default: error); skip counts them",
    )
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Prints the metrics as JSON."""
    with garbage_kept():
        from vitrail.training.evaluation import evaluate

    metrics = evaluate(
        arguments.model,
        arguments.dataset,
        arguments.split,
        arguments.batch_size,
        arguments.output,
        arguments.streaming,
        arguments.on_bad_image,
        config=arguments.dataset_config,
        revision=arguments.dataset_revision,
        image_column=arguments.image_column,
        label_column=arguments.label_column,
    )
    print(json.dumps(metrics, indent=2))
    return 0
