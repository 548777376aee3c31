"""The files of a Space -> a Space on the Hub, on the hardware and with the secrets that it needs."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from vitrail.publishing.errors import PublishingError
from vitrail.publishing.hub_client import Trouble, check_arguments, full_name, insist, own_client
from vitrail.publishing.merging import merged_card, read_card
from vitrail.publishing.model_folder import CARD
from vitrail.publishing.publication import Published


ZERO_GPU = "zero-a10g"  # the Hub's name for it, after a machine that it is no more

_DEFAULT_MESSAGE = "Upload a Space with Vitrail"
# What an app needs to start, whoever wrote it; the Hub itself writes some of it into every new Space.
_FACTS = {"app_file", "models", "preload_from_hub", "python_version", "sdk", "sdk_version", "suggested_hardware"}
_OURS = re.compile(r"vitrail-[^/]+\.whl|models/.+")


@dataclass(frozen=True)
class SpacePublication:
    """A Space that is to be on the Hub.

    Attributes:
        repository: `user/name`, or a name alone for one of the token's owner.
        command: what publishes it from a terminal.
        model: the id of a model on the Hub that the app loads.
        private: whether the Space is created for nobody else to see.
        hardware: the Hub's name of the machine that it runs on; by default what it has, or the Hub's default.
        secrets: environment variables of the app that nobody else sees, by their names.
        message: the commit's.
        token: by default the one of HF_TOKEN or of `hf auth login`.
    """

    repository: str
    command: str
    model: str | None = None
    private: bool = False
    hardware: str | None = None
    secrets: dict[str, str] = field(default_factory=dict, repr=False)
    message: str | None = None
    token: str | None = None

    def push(self, files: dict[str, Path | bytes]) -> Published:
        """Publishes the files in one commit, after which the Hub builds the Space.

        Hardware and secrets come before, so that it is built once, and with them. People's own text, metadata and
        files stay.

        Raises:
            PublishingError: none of the files is on the Hub; the sentence says why, and how to finish.
        """
        try:
            check_arguments(self.repository, "Space", self.token)
            with own_client():
                insist(self._check_model)
                name, created = insist(self._open)
                return insist(lambda: self._commit(name, files, created))
        except (Trouble, OSError) as error:
            way_out = self._way_out(error.status) if isinstance(error, Trouble) else ""
            raise PublishingError(
                f"{error}{way_out}; this makes the Space once that is done: {self.command}, "
                "and with --dry-run DIR it is only written to a folder"
            ) from error

    @property
    def _api(self) -> HfApi:
        return HfApi(token=self.token)

    def _way_out(self, status: int | None) -> str:
        """What a refusal may be about other than the token: who may have which hardware."""
        if self.hardware == ZERO_GPU:
            reason = (
                "a free account may have two Spaces on ZeroGPU, once it is 30 days old and its address is verified, "
                "and PRO more (https://huggingface.co/pro)"
            )
        elif self.hardware not in (None, "cpu-basic"):
            reason = (
                f"{self.hardware} is paid by the hour, so add a payment method "
                "(https://huggingface.co/settings/billing), or borrow a GPU by --zero-gpu"
            )
        else:
            reason = (
                "on cpu-basic, which is the default, Gradio Spaces are for PRO accounts (https://huggingface.co/pro) "
                "and paying organizations, but a free account may have two on ZeroGPU, by --zero-gpu"
            )
        match status:
            case 402:
                return f": {reason}"
            case 403:
                return f", or, if it is about the hardware: {reason}"
            case _:
                return ""

    def _check_model(self) -> None:
        if self.model is None:
            return
        try:
            info = self._api.model_info(self.model)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            raise Trouble(f"There is no folder {self.model}, and no such model on the Hub", passes=False) from error
        if (info.private or info.gated) and "HF_TOKEN" not in self.secrets:
            raise Trouble(
                f"{self.model} is not for everybody, so the Space needs a token that may read it: set HF_TOKEN to one "
                "and add --secret HF_TOKEN",
                passes=False,
            )

    def _open(self) -> tuple[str, bool]:
        """Makes sure that the Space is there with its hardware and secrets; its full name, and whether it is new."""
        name = full_name(self.repository, self._api)
        created = False
        try:
            info = self._api.space_info(name)
        except RepositoryNotFoundError as error:
            if error.response.status_code != 404:
                raise
            name = self._api.create_repo(
                name,
                repo_type="space",
                space_sdk="gradio",
                private=self.private or None,
                space_hardware=self.hardware,  # pyright: ignore[reportArgumentType] - the Hub has more than the client
            ).repo_id
            created = True
        else:
            name = info.id
            if self.private and not info.private:
                raise Trouble(f"{name} is there and public: make it private in its settings", passes=False)
            present = info.runtime.requested_hardware if info.runtime else None
            if self.hardware is None and present == ZERO_GPU:
                raise Trouble(
                    f"{name} is on ZeroGPU, for which its app must be made: add --zero-gpu, or --hardware cpu-basic",
                    passes=False,
                )
            if self.hardware not in (None, present):
                self._api.request_space_hardware(name, self.hardware)  # pyright: ignore[reportArgumentType]
        for key, value in self.secrets.items():
            self._api.add_space_secret(name, key, value)
        return name, created

    def _commit(self, name: str, files: dict[str, Path | bytes], created: bool) -> Published:
        """One commit on top of the very state whose card it has merged; if that is no more the last one, none."""
        info = self._api.space_info(name, revision="main")
        present = {file.rfilename for file in info.siblings or []}
        card = files[CARD]
        assert isinstance(card, bytes)
        if CARD in present and not created:  # else it is the Hub's own
            there = self._api.hf_hub_download(name, CARD, repo_type="space", revision=info.sha)
            merged = merged_card(card.decode(), read_card(Path(there)), _FACTS)
        else:
            merged = merged_card(card.decode(), None)
        contents = files | {CARD: merged.encode()}
        changes: list[CommitOperationAdd | CommitOperationDelete] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in contents.items()
        ]
        changes += [CommitOperationDelete(path) for path in sorted(present - files.keys()) if _OURS.fullmatch(path)]
        commit = self._api.create_commit(
            name,
            changes,
            commit_message=self.message or _DEFAULT_MESSAGE,
            repo_type="space",
            parent_commit=info.sha,
        )
        return Published(f"{self._api.endpoint}/spaces/{name}", changed=commit.oid != info.sha)
