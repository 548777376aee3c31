"""The sources that travel with a model which stock transformers does not know, for `trust_remote_code=True`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    # transformers copies the files that it finds imported, and reads this line without running it: with it, a config
    # that is loaded by itself brings along the models that `AUTO_MAP` names, and can be saved again.
    from .modeling_vit import ViTModel  # noqa: F401 - it is read, not run


AUTO_MAP = {
    "AutoConfig": "configuration_vit.ViTConfig",
    "AutoModel": "modeling_vit.ViTModel",
    "AutoModelForImageClassification": "modeling_vit.ViTForImageClassification",
    "AutoBackbone": "modeling_vit.ViTBackbone",
}
PROCESSOR_AUTO_MAP = {
    "AutoImageProcessor": {
        "torchvision": "image_processing_vit.VitrailImageProcessor",
        "pil": "image_processing_vit.VitrailImageProcessorPil",
    }
}


def sources() -> list[Path]:
    """The files of this package that travel."""
    return [path for path in sorted(Path(__file__).parent.glob("*.py")) if path.name != "__init__.py"]


def copy_sources(folder: str | Path) -> None:
    """Puts the files of this package beside a model; transformers imports them from there."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for source in sources():
        target = Path(folder) / source.name
        if not (target.exists() and target.samefile(source)):
            shutil.copyfile(source, target)
