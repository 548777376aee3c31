"""The Gradio app on any model.

vitrail demo --model runs/digits
"""

import argparse


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("demo", help="open an app that predicts and shows where the model looked")
    parser.add_argument("--model", nargs="+", required=True, help="Hub ids or folders, the first to begin with")
    parser.add_argument("--host", help="the address to listen on (default: this machine alone)")
    parser.add_argument("--port", type=_port, help="default: the first free one from 7860")
    parser.add_argument("--share", action="store_true", help="make a public link through Gradio's tunnel")
    parser.add_argument("--mcp", action="store_true", help="also serve the API to language models")
    parser.set_defaults(run=run, takes_more=False)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port; ports are 1 to 65535")
    return int(text)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Serves the app until it is interrupted. Others who can reach it may ask none but these models."""
    from vitrail.demo import launch

    try:
        launch(arguments.model, host=arguments.host, port=arguments.port, share=arguments.share, mcp=arguments.mcp)
    except OSError as error:
        from vitrail.modeling import InputError  # which takes seconds, in which the page is there already

        raise InputError(f"The app cannot start: {str(error).splitlines()[0].rstrip('.')}.") from error
    return 0
