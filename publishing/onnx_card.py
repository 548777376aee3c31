"""The card of an ONNX file: what it was exported from, by what, how near it is to that, and how to run it."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from transformers.utils import cached_file

from vitrail.modeling import ViTConfig, ViTImageProcessor
from vitrail.modeling.checkpoints import is_npz
from vitrail.publishing.merging import card_metadata, new_card, read_card
from vitrail.publishing.model_folder import CARD


# What the original's metadata say of its own files alone: its figures are those of other arithmetic.
_NOT_INHERITED = ("model-index", "library_name", "pipeline_tag")

_TEXT = Template("""\
# $name in ONNX

`model.onnx` was exported from $original$arithmetic by Vitrail $vitrail, with PyTorch $torch and ONNX $onnx (opset \
$opset), and run in ONNX Runtime $onnxruntime beside it. $comparison

It takes `pixel_values`, float32 of shape (batch, $channels, $height, $width), and gives $gives.

```python
$snippet
```
""")
_INT8 = ", its linear layers turned into 8-bit integers, with activations quantised as they are met,"
_USE = Template("""\
import json

import onnxruntime
from PIL import Image
from transformers import AutoImageProcessor

folder = "."  # where this card is
processor = AutoImageProcessor.from_pretrained(folder$trust)
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")

image = Image.open("photo.jpg").convert("$mode")
pixel_values = processor(image, return_tensors="np").pixel_values
$use""")
_USE_CLASSES = Template("""(logits,) = session.run(["logits"], {"pixel_values": pixel_values})
with open(f"{folder}/config.json", encoding="utf-8") as file:
    names = json.load(file)["id2label"]
print($answer)""")
_CLASS = "names[str(logits[0].argmax())]"
_CLASSES = "[names[str(index)] for index in (logits[0] > 0).nonzero()[0]]"  # 0 is the logit of one half
_USE_FEATURES = """\
(features,) = session.run(["pooler_output"], {"pixel_values": pixel_values})
print(json.dumps(features[0].tolist()))"""


def onnx_card(
    source: str | Path,
    config: ViTConfig,
    processor: ViTImageProcessor,
    outputs: Sequence[str],
    opset: int,
    int8: bool,
    comparison: str,
    **hub_kwargs: Any,
) -> str:
    """A card with the licence, languages, data sets and tags that the original's states, and not with its figures.

    Args:
        source: what was exported; a path is named by its last part.
        config, processor: the model's.
        outputs: the names of the file's.
        opset: the version of ONNX's operators.
        int8: whether the linear layers are in 8-bit integers.
        comparison: sentences on how far the file and the model are apart.
        hub_kwargs: `revision`, `token`, ... of a Hub repository.

    Raises:
        PublishingError: the original's card cannot be read.
    """
    is_local = Path(source).exists()
    name = " ".join(Path(source).resolve().name.split()) if is_local else str(source)
    card = _original_card(source, is_local, **hub_kwargs)
    original = {} if card is None else card_metadata(read_card(card))
    metadata = {key: value for key, value in original.items() if key not in _NOT_INHERITED}
    metadata["library_name"] = "onnx"
    metadata["pipeline_tag"] = "image-classification" if "logits" in outputs else "image-feature-extraction"
    tags = metadata.get("tags") or []
    metadata["tags"] = list(dict.fromkeys([*([tags] if isinstance(tags, str) else tags), "onnx", "vit", "vitrail"]))
    if not is_local:
        metadata["base_model"] = name
    height, width = processor.output_size or config.image_shape
    text = _TEXT.substitute(
        name=name,
        original=f"`{name}`" if is_local else f"[{name}](https://huggingface.co/{name})",
        arithmetic=_INT8 if int8 else "",
        vitrail=version("vitrail"),
        torch=version("torch"),
        onnx=version("onnx"),
        opset=opset,
        onnxruntime=version("onnxruntime"),
        comparison=comparison,
        channels=config.num_channels,
        height=height,
        width=width,
        gives=" and ".join(f"`{output}`" for output in outputs),
        snippet=_snippet(config, processor, outputs),
    )
    return new_card(metadata, text)


def _original_card(source: str | Path, is_local: bool, **hub_kwargs: Any) -> Path | None:
    if is_npz(source):  # a file by itself, whose folder may hold anything
        return None
    if not is_local:
        silently = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        found = cached_file(str(source), CARD, **silently, **hub_kwargs)
        return None if found is None else Path(found)
    card = (Path(source) if Path(source).is_dir() else Path(source).parent) / CARD
    return card if card.is_file() else None


def _snippet(config: ViTConfig, processor: ViTImageProcessor, outputs: Sequence[str]) -> str:
    use = _USE_FEATURES
    if "logits" in outputs:
        use = _USE_CLASSES.substitute(answer=_CLASSES if config.is_multi_label else _CLASS)
    return _USE.substitute(
        trust="" if processor.is_stock else ", trust_remote_code=True",
        mode="RGB" if processor.num_channels == 3 else "L",
        use=use,
    )
