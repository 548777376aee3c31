"""A checkpoint in another format.

vitrail convert vit_b16.npz vit-b16
"""

import argparse


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("convert", help="write a checkpoint for another library")
    parser.add_argument(
        "source", metavar="SRC", help="a Hub id, folder or file of vitrail, transformers, timm or the paper's code"
    )
    parser.add_argument("destination", metavar="DST", help="a folder, or a .npz file")
    parser.add_argument(
        "--to",
        choices=("vitrail", "transformers", "timm", "npz"),
        default="vitrail",
        help="whose format to write (default: vitrail)",
    )
    parser.add_argument("--revision", help="the branch, tag or commit of a Hub model")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Prints what the other library does differently."""
    from vitrail.modeling.conversion import convert

    remarks = convert(arguments.source, arguments.destination, arguments.to, revision=arguments.revision)
    for remark in remarks:
        print(remark)
    print(f"{arguments.destination} holds the same model in the format of {arguments.to}: read back and compared.")
    return 0
