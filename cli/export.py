"""A model for other runtimes.

vitrail export runs/digits exported --to onnx
"""

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("export", help="write a model for a runtime other than PyTorch")
    parser.add_argument("model", metavar="MODEL", help="a Hub id, folder or file, as of convert")
    parser.add_argument("destination", metavar="DST", type=Path, help="a new folder")
    parser.add_argument("--to", choices=("onnx",), default="onnx", help="the format (default: onnx)")
    parser.add_argument("--int8", action="store_true", help="store and multiply the linear layers in 8-bit integers")
    parser.add_argument("--revision", help="the branch, tag or commit of a Hub model")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Says how near the file is to the model."""
    from vitrail.publishing.onnx_export import export_onnx

    comparison = export_onnx(arguments.model, arguments.destination, int8=arguments.int8, revision=arguments.revision)
    print(f"{arguments.destination} holds the model for ONNX Runtime. {comparison}")
    return 0
