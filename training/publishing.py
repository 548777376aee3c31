"""`--push_to_hub`: the model of a run, once it is complete, to the Hub.

transformers' Trainer uploads whatever the folder holds whenever something is saved, and a Hub that fails then takes the
training with it. Here it is asked twice: before training whether it would take the model, and in the end to do so.
"""

from pathlib import Path

from transformers.trainer_utils import HubStrategy

from vitrail.publishing import Publication, Published, PublishingError
from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.interruption import Interrupted


def prepare_publication(arguments: ViTTrainingArguments) -> Publication | None:
    """What `--push_to_hub` asks for, if it does; makes sure that it can be done, and the Trainer does none of it.

    `hub_model_id` becomes the repository's full name, which the card needs.

    Raises:
        PublishingError: the token or the repository's name will not do.
    """
    if not arguments.push_to_hub:
        return None
    arguments.push_to_hub = False
    folder = Path(str(arguments.output_dir))
    publication = Publication(
        folder,
        arguments.hub_model_id or folder.resolve().name,
        private=bool(arguments.hub_private_repo),
        branch=arguments.hub_revision or "main",
        token=arguments.hub_token,
    )
    if arguments.process_index:  # the first process speaks with the Hub
        return None
    strategy = HubStrategy(arguments.hub_strategy)
    if strategy != HubStrategy.END:
        print(f"hub_strategy {strategy.value}: the model is published once, when it is complete.")
    publication = publication.prepare()
    arguments.hub_model_id = publication.repository
    return publication


def publish(publication: Publication | None) -> Published | PublishingError | None:
    """Where the model is, or why it is not there: by now a run has its results, which no failure may cost.

    Raises:
        Interrupted: by a signal.
    """
    if publication is None:
        return None
    try:
        return publication.push()
    except PublishingError as error:
        return error
    except KeyboardInterrupt as stop:
        safe = f"the finished model is safe in {publication.folder}, and this publishes it: {publication.command}"
        raise Interrupted.by(stop, safe) from stop
