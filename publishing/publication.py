"""A folder with a model -> a repository on the Hub.

vitrail push runs/digits alice/digits
"""

import logging
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from vitrail.publishing.errors import PublishingError
from vitrail.publishing.hub_client import Trouble, check_arguments, full_name, insist, own_client
from vitrail.publishing.merging import merged_card, named_after, read_card
from vitrail.publishing.model_folder import CARD, is_left_over, model_files
from vitrail.publishing.reloading import check_reload


logger = logging.getLogger(__name__)

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
        with own_client():
            try:
                self._check_arguments()
                return replace(self, repository=insist(self._open))
            except Trouble as trouble:
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
            with own_client():
                repository = insist(self._open)
                return insist(lambda: self._commit(repository, files))
        except (Trouble, OSError) as error:
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
        check_arguments(self.repository, "model", self.token)

    def _open(self) -> str:
        """Makes sure that the repository and the branch are there, and may be written; returns its full name."""
        name = full_name(self.repository, self._api)
        try:
            info = self._api.model_info(name)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            name = self._api.create_repo(name, private=self.private or None).repo_id
        else:
            name = info.id
            if self.private and not info.private:
                raise Trouble(f"{name} is there and public: make it private in its settings", passes=False)
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
            generated = named_after(read_card(files[CARD]), self.folder, repository)
            card = merged_card(generated, None if there is None else read_card(Path(there)))
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
