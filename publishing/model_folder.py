"""What of a folder is the model: the files that are published, each for a reason; no other one ever is.

A training leaves much else beside them: checkpoints, optimiser state, caches, records, and what people put there.
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from vitrail.modeling.remote_code import sources
from vitrail.publishing.errors import PublishingError


CARD = "README.md"
_CONFIG, _PROCESSOR, _RESULTS = "config.json", "preprocessor_config.json", "all_results.json"
_PICTURES = {".gif", ".jpeg", ".jpg", ".png", ".svg", ".webp"}
_LINK = re.compile(r"!\[[^\]]*\]\(\s*<?(?P<markdown>[^)>\s]+)|<img[^>]*\ssrc=[\"'](?P<html>[^\"']+)")
_LACKS = "{folder} has no {name}, which its model needs; save the model there again."
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model that are published, by their paths in the repository.

    Those are the configuration, the weights, the image processor, the results, the card, the pictures that the card
    shows and, if transformers does not know the model or its processor, the sources that their `auto_map` needs.

    Raises:
        PublishingError: there is no such folder, or something is missing without which nobody could use the model.
    """
    if not folder.is_dir():
        raise PublishingError(f"There is no folder {folder} to publish.")
    config = _read_json(folder, _CONFIG)
    processor = _read_json(folder, _PROCESSOR)
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        weights = [SAFE_WEIGHTS_NAME]
    elif (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        shards = _read_json(folder, SAFE_WEIGHTS_INDEX_NAME).get("weight_map", {}).values()
        weights = [SAFE_WEIGHTS_INDEX_NAME, *sorted({Path(shard).name for shard in shards})]
    else:
        raise PublishingError(
            f"{folder} has no {SAFE_WEIGHTS_NAME}, so it holds no model to publish; `vitrail convert` and "
            "`save_pretrained` write one."
        )
    for name in weights:
        if not (folder / name).is_file():
            raise PublishingError(_LACKS.format(folder=folder, name=name))
    names = [_CONFIG, _PROCESSOR, *weights, *_sources(folder, config), *_sources(folder, processor)]
    names += [name for name in (_RESULTS, CARD) if (folder / name).is_file()]
    return {name: folder / name for name in [*dict.fromkeys(names), *_pictures(folder)]}


def has_code(files: dict[str, Path]) -> bool:
    """Whether the model brings sources, and is loaded with `trust_remote_code=True`."""
    return any(name.endswith(".py") for name in files)


def is_left_over(name: str) -> bool:
    """Whether a file of a repository belongs to the model there, so that it goes when another model comes without it.

    Those are weights and the sources of vitrail's models; what else there is may be somebody's own.
    """
    return bool(_WEIGHTS.fullmatch(name)) or name in {source.name for source in sources()}


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise PublishingError(
            f"{folder} has no {name}, so it is no folder of a model; `vitrail train` and `vitrail convert` write such."
        ) from error
    except (OSError, ValueError) as error:
        raise PublishingError(f"{folder / name} cannot be read as JSON; save the model there again.") from error
    if not isinstance(content, dict):
        raise PublishingError(f"{folder / name} is not a JSON object; save the model there again.")
    return content


def _sources(folder: Path, config: dict[str, Any]) -> list[str]:
    """The files of the classes that `auto_map` names, and those that they import from each other."""
    modules = sorted(set(re.findall(r"'(\w+)\.\w+'", str(config.get("auto_map")))))
    for module in modules:  # which grows
        if not (folder / f"{module}.py").is_file():
            raise PublishingError(_LACKS.format(folder=folder, name=f"{module}.py"))
        modules += sorted(set(get_relative_imports(folder / f"{module}.py")) - set(modules))
    return [f"{module}.py" for module in modules]


def _pictures(folder: Path) -> list[str]:
    """The pictures in the folder, and not behind a link out of it, that its card shows."""
    card = folder / CARD
    if not card.is_file():
        return []
    text = card.read_text(encoding="utf-8", errors="replace")
    links = [unquote(match["markdown"] or match["html"]) for match in _LINK.finditer(text)]
    names = [os.path.normpath(link) for link in dict.fromkeys(links) if "://" not in link]
    return [
        Path(name).as_posix()
        for name in names
        if not (name.startswith("..") or os.path.isabs(name))
        and Path(name).suffix.lower() in _PICTURES
        and (folder / name).is_file()
        and (folder / name).resolve().is_relative_to(folder.resolve())
    ]
