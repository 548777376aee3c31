"""`vitrail demo`: the Gradio app on any model."""

import argparse


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("demo", help="open an app that predicts and shows where the model looked")
    parser.add_argument("--model", required=True, help="a Hub id or folder")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    from vitrail.demo import launch

    launch(arguments.model, port=arguments.port, share=arguments.share)
    return 0
