"""The Hub's own client, with a sentence for whatever it meets, and attempts after what may pass by itself."""

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import get_session, validate_repo_id
from huggingface_hub.utils import logging as hub_logging

from vitrail.publishing.errors import PublishingError


logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_WAITS = (1, 2, 4, 8)  # seconds between attempts at what may pass by itself
_PATIENCE = 60  # seconds after which no further attempt begins; the client has its own for single requests, of 23
_SILENCE = 60  # seconds for which the Hub may say nothing
_PASSING = {408, 409, 412, 425, 429}  # and all from 500


class Trouble(Exception):
    """What the Hub does not do, as the beginning of a sentence.

    Attributes:
        passes: whether it may by itself do it later.
        status: the number of its answer, if it gave one.
    """

    def __init__(self, reason: str, *, passes: bool, status: int | None = None):
        super().__init__(reason)
        self.passes, self.status = passes, status


def insist(act: Callable[[], Result]) -> Result:
    """Tries again, a few times and ever later, what may pass by itself."""
    started = time.monotonic()
    for wait in (*_WAITS, None):
        try:
            return act()
        except (HTTPError, OSError, RuntimeError, ValueError) as error:  # all that the client raises
            trouble = _diagnosed(error)
            if not trouble.passes or wait is None or time.monotonic() - started > _PATIENCE:
                raise trouble from error
        logger.warning(f"{trouble}; trying again in {wait} s.")
        time.sleep(wait)
    raise AssertionError  # the last attempt has returned or raised


def _diagnosed(error: BaseException) -> Trouble:
    while not isinstance(error, HTTPError) and error.__cause__ is not None:  # "Error while uploading" has the reason so
        error = error.__cause__
    if not isinstance(error, HTTPError):
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        passes = isinstance(error, json.JSONDecodeError)  # of a proxy's page, for instance
        return Trouble(f"The Hub could not take the files ({reason})", passes=passes)
    if not isinstance(error, HfHubHTTPError):
        reason = str(error).rstrip(".") or type(error).__name__
        return Trouble(f"The Hub at {HfApi().endpoint} cannot be reached ({reason})", passes=True)
    status = error.response.status_code
    said = " ".join((error.server_message or error.response.reason_phrase).split()).rstrip(".")
    match status:
        case 401:
            first = " (and unset HF_TOKEN, which wins over it)" if "HF_TOKEN" in os.environ else ""
            reason = f"The Hub does not accept your token: run `hf auth login`{first}"
        case 402:
            reason = f"The Hub asks for a payment first ({said})"
        case 403:
            reason = f"Your token may not write there ({said}): run `hf auth login` with one that may"
        case _:
            reason = f"The Hub answers {status} ({said})"
    return Trouble(reason, passes=status in _PASSING or status >= 500, status=status)


def check_arguments(repository: str, kind: str, token: str | None) -> None:
    """Finds out what can be known without the Hub.

    Args:
        repository: its name.
        kind: "model" or "Space".
        token: by default the one of HF_TOKEN or of `hf auth login`.

    Raises:
        PublishingError: no repository can have this name.
        Trouble: the Hub cannot be used from here.
    """
    try:
        validate_repo_id(repository)
    except HFValidationError as error:
        raise PublishingError(
            f"{repository!r} cannot be the name of a {kind} on the Hub; give user/name, of letters, "
            "digits, '-', '_' and '.'."
        ) from error
    if is_offline_mode():
        raise Trouble("HF_HUB_OFFLINE is set, so nothing goes to the Hub: unset it", passes=False)
    if (token or get_token()) is None:
        raise Trouble("The Hub does not know who you are: run `hf auth login`", passes=False)


def full_name(repository: str, api: HfApi) -> str:
    """`user/name`; a name alone is one of the token's owner."""
    return repository if "/" in repository else f"{api.whoami()['name']}/{repository}"


@contextmanager
def own_client():
    """The client without its remarks on attempts that failed, for ours say what has to be known, and with an end to
    its waiting, which it has for few requests.
    """
    verbosity, session = hub_logging.get_verbosity(), get_session()
    timeout, session.timeout = session.timeout, _SILENCE
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        session.timeout = timeout
        hub_logging.set_verbosity(verbosity)
