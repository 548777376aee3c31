"""What keeps a model from being published."""


class PublishingError(Exception):
    """A model is not on the Hub that should be; the message is one sentence with what to do.

    The model on disk is untouched. The `vitrail` command prints the sentence and exits with code 1, also when the
    training before it has succeeded.
    """
