"""A folder with a model -> a repository on the Hub.

vitrail push runs/digits alice/digits
"""

import json
import logging
import os
import shlex
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, is_offline_mode
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import get_session, validate_repo_id
from huggingface_hub.utils import logging as hub_logging

from vitrail.publishing.errors import PublishingError
from vitrail.publishing.merging import merged_card, named_after
from vitrail.publishing.model_folder import CARD, is_left_over, model_files
from vitrail.publishing.reloading import check_reload


logger = logging.getLogger(__name__)
Result = TypeVar("Result")

_WAITS = (1, 2, 4, 8)  # seconds between attempts at what may pass by itself
_PATIENCE = 60  # seconds after which no further attempt begins; the client has its own for single requests, of 23
_SILENCE = 60  # seconds for which the Hub may say nothing
_PASSING = {408, 409, 412, 425, 429}  # and all from 500
_DEFAULT_MESSAGE = "Upload a model with Vitrail"


@dataclass(frozen=True)
class Published:
    """Where a model is now.

    Attributes:
        url: of the repository.
        changed: whether it was not all there before.
    """

    url: str
    changed: bool


@dataclass(frozen=True)
class Publication:
    """What is to be published where.

    Attributes:
        folder: the model, as `vitrail train`, `vitrail convert` or `save_pretrained` leave it.
        repository: `user/name`, or a name alone for one of the token's owner.
        private: whether the repository is created for nobody else to see.
        branch: of the repository; created if it is not there.
        message: the commit's.
        token: by default the one of HF_TOKEN or of `hf auth login`.
    """

    folder: Path
    repository: str
    private: bool = False
    branch: str = "main"
    message: str | None = None
    token: str | None = None

    @property
    def command(self) -> str:
        """What publishes it from a terminal."""
        options = ["--private"] if self.private else []
        options += ["--revision", self.branch] if self.branch != "main" else []
        options += ["--message", self.message] if self.message else []
        return shlex.join(["vitrail", "push", str(self.folder), self.repository, *options])

    def prepare(self) -> "Publication":
        """Finds out before long work whether it can be published, and creates the repository.

        Only that shows for sure whether the token may. Where the Hub does not answer, which may pass, it warns.

        Returns:
            the same with the repository's full name, where the Hub could be asked.

        Raises:
            PublishingError: it cannot, for a reason that will not go away by itself.
        """
        with _own_client():
            try:
                self._check_arguments()
                return replace(self, repository=_insist(self._open))
            except _Trouble as trouble:
                if not trouble.passes:
                    raise PublishingError(f"{trouble}; nothing has been started.") from trouble
                logger.warning(f"{trouble}; publishing will be tried again in the end.")
                return self

    def push(self) -> Published:
        """Publishes the model in one commit, having made sure that others get the same from it.

        What is already there and the same is not uploaded again.

        Raises:
            PublishingError: nothing has changed on the Hub; the sentence says why, and how to finish.
        """
        try:
            self._check_arguments()
            files = model_files(self.folder)
            check_reload(self.folder, files)
            with _own_client():
                repository = _insist(self._open)
                return _insist(lambda: self._commit(repository, files))
        except (_Trouble, OSError) as error:
            raise PublishingError(
                f"{error}; the model is safe in {self.folder}, and this publishes it: {self.command}"
            ) from error

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def _check_arguments(self) -> None:
        """What can be known without the Hub."""
        if self.repository.split("/")[0] in ("datasets", "spaces"):
            raise PublishingError(f"{self.repository} is not for models; give user/name of a model.")
        try:
            validate_repo_id(self.repository)
        except HFValidationError as error:
            raise PublishingError(
                f"{self.repository!r} cannot be the name of a model on the Hub; give user/name, of letters, "
                "digits, '-', '_' and '.'."
            ) from error
        if is_offline_mode():
            raise _Trouble("HF_HUB_OFFLINE is set, so nothing goes to the Hub: unset it", passes=False)
        if (self.token or get_token()) is None:
            raise _Trouble("The Hub does not know who you are: run `hf auth login`", passes=False)

    def _open(self) -> str:
        """Makes sure that the repository and the branch are there, and may be written; returns its full name."""
        name = self.repository
        if "/" not in name:
            name = f"{self._api.whoami()['name']}/{name}"
        try:
            info = self._api.model_info(name)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            name = self._api.create_repo(name, private=self.private or None).repo_id
        else:
            name = info.id
            if self.private and not info.private:
                raise _Trouble(f"{name} is there and public: make it private in its settings", passes=False)
        if self.branch != "main":
            self._api.create_branch(name, branch=self.branch, exist_ok=True)
        # Asks for the way in which a file would be uploaded, which only who may write is told.
        self._api.preupload_lfs_files(name, [CommitOperationAdd(CARD, b"-")], revision=self.branch)
        return name

    def _commit(self, repository: str, files: dict[str, Path]) -> Published:
        """One commit on top of the very state whose card it has merged; if that is no more the last one, none."""
        info = self._api.model_info(repository, revision=self.branch)
        present = {file.rfilename for file in info.siblings or []}
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(name, str(path)) for name, path in files.items() if name != CARD
        ]
        if CARD in files:
            there = self._api.hf_hub_download(repository, CARD, revision=info.sha) if CARD in present else None
            generated = named_after(_read(files[CARD]), self.folder, repository)
            card = merged_card(generated, None if there is None else _read(Path(there)))
            changes.append(CommitOperationAdd(CARD, card.encode()))
        changes += [CommitOperationDelete(name) for name in sorted(present - files.keys()) if is_left_over(name)]
        commit = self._api.create_commit(
            repository,
            changes,
            commit_message=self.message or _DEFAULT_MESSAGE,
            revision=self.branch,
            parent_commit=info.sha,
        )
        where = "" if self.branch == "main" else f"/tree/{self.branch}"
        return Published(f"{self._api.endpoint}/{repository}{where}", changed=commit.oid != info.sha)


class _Trouble(Exception):
    """What the Hub does not do, as the beginning of a sentence, and whether it may by itself do it later."""

    def __init__(self, reason: str, *, passes: bool):
        super().__init__(reason)
        self.passes = passes


def _insist(act: Callable[[], Result]) -> Result:
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


def _diagnosed(error: BaseException) -> _Trouble:
    while not isinstance(error, HTTPError) and error.__cause__ is not None:  # "Error while uploading" has the reason so
        error = error.__cause__
    if not isinstance(error, HTTPError):
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        passes = isinstance(error, json.JSONDecodeError)  # of a proxy's page, for instance
        return _Trouble(f"The Hub could not take the model ({reason})", passes=passes)
    if not isinstance(error, HfHubHTTPError):
        reason = str(error).rstrip(".") or type(error).__name__
        return _Trouble(f"The Hub at {HfApi().endpoint} cannot be reached ({reason})", passes=True)
    status = error.response.status_code
    said = " ".join((error.server_message or error.response.reason_phrase).split()).rstrip(".")
    if status == 401:
        first = " (and unset HF_TOKEN, which wins over it)" if "HF_TOKEN" in os.environ else ""
        return _Trouble(f"The Hub does not accept your token: run `hf auth login`{first}", passes=False)
    if status == 403:
        return _Trouble(f"Your token may not write there ({said}): run `hf auth login` with one that may", passes=False)
    if status == 402:
        return _Trouble(f"The Hub asks for a payment first ({said})", passes=False)
    return _Trouble(f"The Hub answers {status} ({said})", passes=status in _PASSING or status >= 500)


def _read(card: Path) -> str:
    try:
        return card.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise PublishingError(f"{card} is not text in UTF-8; correct it, then push.") from error


@contextmanager
def _own_client():
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
