"""A model as an app on the Hub: a Space.

vitrail space runs/digits alice/digits
"""

import argparse
import os
import re
import shlex
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("space", help="publish a model's app on the Hub")
    parser.add_argument("model", metavar="MODEL", help="a folder, which goes with the app, or a Hub id")
    parser.add_argument("repository", metavar="USER/NAME", help="the Space; created if it is not there")
    parser.add_argument("--dry-run", metavar="DIR", type=Path, help="only write the Space's files into a new folder")
    parser.add_argument("--private", action="store_true", help="create the Space for nobody else to see")
    machine = parser.add_mutually_exclusive_group()
    machine.add_argument("--hardware", metavar="NAME", help="of the Hub's: cpu-basic, t4-small, ... (default: its own)")
    machine.add_argument("--zero-gpu", action="store_true", help="borrow a GPU of the Hub's for every prediction")
    parser.add_argument(
        "--secret",
        metavar="NAME[=VALUE]",
        type=_secret,
        action="append",
        default=[],
        help="an environment variable of the app; without a value it has the one that is set here",
    )
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.set_defaults(run=run, takes_more=False)


def _secret(text: str) -> tuple[str, str]:
    name, given, value = text.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
        raise argparse.ArgumentTypeError("NAME must be one of an environment variable")  # without the text: its value
    if not given and name not in os.environ:
        raise argparse.ArgumentTypeError(f"{name} is not set here; set it, or give {name}=VALUE")
    return name, value if given else os.environ[name]


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Says where the app is."""
    from vitrail.demo.space import Space, write
    from vitrail.publishing.space_publication import ZERO_GPU, SpacePublication

    hardware = ZERO_GPU if arguments.zero_gpu else arguments.hardware
    secrets = dict(arguments.secret)
    title = arguments.repository.rpartition("/")[2]
    space = Space(arguments.model, title, hardware, signs_in="HF_TOKEN" in secrets)
    files = space.files()
    if arguments.dry_run is not None:
        write(files, arguments.dry_run)
        app = shlex.quote(str(arguments.dry_run / "app.py"))
        print(f"{arguments.dry_run} holds the Space; `python {app}` starts it.")
        return 0
    publication = SpacePublication(
        arguments.repository,
        _command(arguments),
        space.model_on_hub,
        arguments.private,
        hardware,
        secrets,
        arguments.message,
    )
    published = publication.push(files)
    if published.changed:
        print(f"The Space is at {published.url}, where the Hub builds it now.")
    else:
        print(f"{published.url} is this Space already; there was nothing to upload.")
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """The same command, without the values of secrets: it takes those from the environment."""
    options = ["--private"] if arguments.private else []
    options += ["--hardware", arguments.hardware] if arguments.hardware else []
    options += ["--zero-gpu"] if arguments.zero_gpu else []
    options += [part for name, _ in arguments.secret for part in ("--secret", name)]
    options += ["--message", arguments.message] if arguments.message else []
    return shlex.join(["vitrail", "space", arguments.model, arguments.repository, *options])
