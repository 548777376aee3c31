"""A model's folder to the Hub.

vitrail push runs/digits alice/digits
"""

import argparse
from pathlib import Path


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("push", help="publish a model on the Hub")
    parser.add_argument("folder", metavar="DIR", type=Path, help="what train, convert or save_pretrained has left")
    parser.add_argument("repository", metavar="USER/NAME", help="the repository; created if it is not there")
    parser.add_argument("--private", action="store_true", help="create the repository for nobody else to see")
    parser.add_argument("--message", metavar="TEXT", help="of the commit")
    parser.add_argument("--revision", metavar="BRANCH", default="main", help="created if not there (default: main)")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Says where the model is."""
    from vitrail.publishing import Publication

    publication = Publication(
        arguments.folder, arguments.repository, arguments.private, arguments.revision, arguments.message
    )
    published = publication.push()
    if published.changed:
        print(f"{arguments.folder} is at {published.url}")
    else:
        print(f"{published.url} has this model already; there was nothing to upload.")
    return 0
