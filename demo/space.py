"""What a Space on the Hub consists of that shows a model: this app, the model, and the vitrail that runs them.

vitrail space runs/digits alice/digits --dry-run space
"""

import re
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from vitrail.demo.wheel import installed, packed_wheel
from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor
from vitrail.publishing.merging import card_metadata, new_card, read_card
from vitrail.publishing.model_folder import CARD, model_files
from vitrail.publishing.space_publication import ZERO_GPU


# A Space installs what requirements.txt names before any other file is there, so the wheel cannot be named in it.
_APP = Template('''\
"""A Vision Transformer: what it says of an image, and where it looked. `vitrail space` wrote this file."""

import sys
import tempfile
import zipfile
from pathlib import Path
$spaces
here = Path(__file__).parent
library = tempfile.mkdtemp()  # not pip: the requirements of a Space are installed before its files are there
zipfile.ZipFile(here / "$wheel").extractall(library)
sys.path.insert(0, library)

from vitrail.demo import launch  # noqa: E402 - only now it can be found


launch($arguments)
''')
_TEXT = Template("""\
# $title

An image in, what **$model** says of it and where it looked out.

`vitrail space` made it. Run again, it replaces `app.py`, `requirements.txt`, the wheel of vitrail and `models/`, and
keeps what else is here.
""")


@dataclass(frozen=True)
class Space:
    """What a Space is made of.

    Attributes:
        model: a folder, whose files go with the Space, or a Hub id.
        title: the Space's.
        hardware: the Hub's name of the machine that it is made for.
        signs_in: whether the app has a token of its own, with which it reads a model that is not public.
    """

    model: str
    title: str
    hardware: str | None = None
    signs_in: bool = False

    @property
    def model_on_hub(self) -> str | None:
        """The model's id, unless it is a folder."""
        return None if Path(self.model).is_dir() else self.model

    def files(self) -> dict[str, Path | bytes]:
        """The Space's files, by their paths in it.

        Raises:
            InputError: there is no such model, or the folder's cannot be loaded.
            PublishingError: something is missing from the folder without which nobody could use the model.
        """
        model = self._model_files()
        wheel, content = packed_wheel()
        name = _folder_name(self.model)
        arguments = f'"{self.model}"' if self.model_on_hub else f'str(here / "models" / "{name}")'
        spaces = ""
        if self.hardware == ZERO_GPU:
            spaces = "\nimport spaces  # before anything that imports torch\n\n"
            arguments += ", on_gpu=spaces.GPU"
        return {
            CARD: self._card(model).encode(),
            "app.py": _APP.substitute(spaces=spaces, wheel=wheel, arguments=arguments).encode(),
            "requirements.txt": self._requirements().encode(),
            wheel: content,
            **{f"models/{name}/{file}": path for file, path in model.items()},
        }

    def _model_files(self) -> dict[str, Path]:
        folder = Path(self.model)
        if folder.is_file():
            raise InputError(f"{folder} is a file; `vitrail convert {folder} DIR` makes a folder of it for a Space.")
        if self.model_on_hub:
            try:
                validate_repo_id(self.model)
            except HFValidationError as error:
                raise InputError(f"{self.model} is neither a folder nor the name of a model on the Hub.") from error
            return {}
        files = model_files(folder)
        ViTForImageClassification.from_pretrained(self.model)
        ViTImageProcessor.from_pretrained(self.model)
        samples = [path for path in folder.glob("samples/*.png") if path.resolve().is_relative_to(folder.resolve())]
        return files | {f"samples/{path.name}": path for path in sorted(samples)}

    def _requirements(self) -> str:
        """What the app imports, in the versions that are installed here.

        Some are the platform's: it brings a client of the Hub of its own, and ZeroGPU only knows certain versions of
        torch and takes the latest of them.
        """
        theirs = {"huggingface-hub"} | ({"torch", "torchvision"} if self.hardware == ZERO_GPU else set())
        lines = ["spaces"] if self.hardware == ZERO_GPU else []
        for line in installed().requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": "demo"}):
                requirement.marker = None
                if requirement.name not in theirs:
                    requirement.specifier = SpecifierSet(f"=={Version(version(requirement.name)).public}")
                lines.append(str(requirement))
        return "".join(f"{line}\n" for line in sorted(lines))

    def _card(self, model: dict[str, Path]) -> str:
        named = Path(self.model).resolve().name if model else self.model
        metadata = {
            "title": self.title,
            "emoji": "🪟",
            "colorFrom": "indigo",
            "colorTo": "yellow",
            "sdk": "gradio",
            "sdk_version": version("gradio"),
            # ZeroGPU knows only one that is new enough for transformers
            "python_version": "3.12" if self.hardware == ZERO_GPU else f"{sys.version_info[0]}.{sys.version_info[1]}",
            "app_file": "app.py",
            "short_description": _at_most_60(f"What {named} sees in an image, and where it looked"),
            "tags": ["vision-transformer", "image-classification", "vitrail"],
        }
        if CARD in model and (license := card_metadata(read_card(model[CARD])).get("license")):
            metadata["license"] = license
        if self.model_on_hub:
            metadata["models"] = [self.model]
            if not self.signs_in:  # what is not public cannot be loaded while the Space is built
                metadata["preload_from_hub"] = [self.model]
        if self.hardware:
            metadata["suggested_hardware"] = self.hardware
        return new_card(metadata, _TEXT.substitute(title=self.title, model=named))


def write(files: dict[str, Path | bytes], folder: Path) -> None:
    """Writes a Space's files into a folder.

    Raises:
        InputError: there is something in the folder already, or it cannot be written.
    """
    try:
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"--dry-run {folder} is not empty; give a new folder.")
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    except OSError as error:
        raise InputError(f"Cannot write to --dry-run {folder}: {error.strerror}.") from error


def _folder_name(model: str) -> str:
    """The model's name as the app shows it, without what paths on the Hub cannot hold."""
    return re.sub(r"[^\w.-]+", "-", Path(model).resolve().name).strip("-.") or "model"


def _at_most_60(text: str) -> str:
    """What the Hub takes as a short description."""
    return text if len(text) <= 60 else f"{text[:59].rstrip()}…"
