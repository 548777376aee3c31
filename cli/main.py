"""The `vitrail` command.

vitrail --help
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import NoReturn

from vitrail.cli import convert, demo, evaluate, explain, export, predict, push, space, train
from vitrail.cli.imports import garbage_kept


# What is imported only where it is needed, and the extra that brings it.
_EXTRAS = {"accelerate": "train", "datasets": "train", "evaluate": "train", "sklearn": "train"}
_EXTRAS |= {"gradio": "demo", "pyarrow": "train", "onnx": "onnx", "onnxruntime": "onnx", "onnxscript": "onnx"}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command.

    Args:
        argv: the arguments after the program's name; by default those of the process.

    Returns:
        the exit code: 0; 2 when the user's input cannot be used, 1 when a model could not be published. One sentence on
        stderr explains either.
    """
    parser = _Parser(prog="vitrail", description="Vision Transformers: train, trust, look inside, share.")
    parser.add_argument("--version", action="version", version=f"vitrail {version('vitrail')}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for verb in (train, evaluate, predict, explain, convert, export, push, demo, space):
        verb.add_parser(verbs)
    arguments, rest = parser.parse_known_args(argv)
    if rest and not arguments.takes_more:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return _run(arguments, rest)


def _run(arguments: argparse.Namespace, rest: list[str]) -> int:
    from tqdm import tqdm

    if arguments.verb != "demo":  # whose page is there before transformers is imported
        with garbage_kept():
            from transformers.utils import logging

        logging.disable_progress_bar()  # of loading and saving; downloads and training keep theirs
    try:
        return arguments.run(arguments, rest)
    except BrokenPipeError:  # the reader of our output, `head` for one, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sentence, code = "interrupted.", 130
    except Exception as error:  # those that users cause are classes of libraries that may not be imported yet
        told = _told(error)
        if told is None:
            raise
        sentence, code = told
    tqdm.write(f"vitrail: {sentence}", file=sys.stderr)  # clear of a progress bar that is still drawn
    return code


def _told(error: Exception) -> tuple[str, int] | None:
    """What to say of an error, and the exit code; None of a bug."""
    from huggingface_hub.errors import StrictDataclassError

    from vitrail.modeling import InputError
    from vitrail.publishing import PublishingError

    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRAS:
        return f"{error.name} is not installed: pip install 'vitrail[{_EXTRAS[error.name]}]'.", 2
    if isinstance(error, (InputError, StrictDataclassError)):
        return _sentence(error), 2
    return (str(error), 1) if isinstance(error, PublishingError) else None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"vitrail: {message}; `{self.prog} --help` says more.\n")


def _sentence(error: Exception) -> str:
    """The sentence itself, which data loaders' workers and strict configurations put last, after the error's name."""
    return re.sub(r"^[\w.]+Error: ", "", str(error).strip().splitlines()[-1].strip())


if __name__ == "__main__":
    sys.exit(main())
