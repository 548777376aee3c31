"""The one error that a user can cause."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message is one sentence that names it and says what to do instead.

    The `vitrail` command prints that sentence and exits with code 2; any other exception is a bug and keeps its
    traceback.
    """
