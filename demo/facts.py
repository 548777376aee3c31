"""What there is to know of a model."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import ModelCard, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from matplotlib.figure import Figure
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vitrail.demo.examples import example_files
from vitrail.demo.models import Model
from vitrail.inspection import attention_distance, attention_distance_figure, filters_figure, position_similarity_figure
from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, read_image
from vitrail.modeling.configuration_vit import VARIANTS
from vitrail.publishing.merging import named_after


_DPI = 130
_EXAMPLES = 8  # images over which the attention distance is averaged
_PICTURE = re.compile(r"!\[(?P<caption>[^\]]*)\]\((?P<file>[\w-]+\.(?:png|jpg|jpeg))\)")
# Comments, and whatever a page would show of another host; the card's own pictures are shown below it.
_FOREIGN = re.compile(
    r"<!--.*?-->"
    r"|!\[[^\]]*\](?:\([^)]*\)|\[[^\]]*\])"
    r"|</?(?:img|picture|source|video|audio|iframe)\b[^>]*>",
    re.S,
)


@dataclass(frozen=True)
class Facts:
    """A model's description.

    Attributes:
        table: names and values of what it is.
        card: the text of its model card, in Markdown without metadata and pictures.
        card_pictures: the card's pictures, each with its caption.
        figures: the panels of the paper's Figure 7, each with its caption.
        remarks: why a panel is missing.
    """

    table: dict[str, str]
    card: str
    card_pictures: list[tuple[Image.Image, str]]
    figures: list[tuple[Image.Image, str]]
    remarks: list[str]


def facts_of(model: Model) -> Facts:
    """Everything, computed from the weights and read from the model's folder or repository."""
    card = _card(model.source)
    pictures = [(_beside_card(model.source, found["file"]), found["caption"]) for found in _PICTURE.finditer(card)]
    figures, remarks = _figure_7(model)
    text = _FOREIGN.sub("", card).strip()
    if Path(model.source).is_dir():
        text = named_after(text, Path(model.source), model.name)
    shown = [(read_image(path), caption) for path, caption in pictures if path is not None]
    return Facts(_table(model), text, shown, figures, remarks)


def variant_of(config: ViTConfig) -> str | None:
    """The paper's name for an architecture of these sizes, with its own patch size: "S/14"; None for any other."""
    dimensions = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "resnet_depths")
    for name in VARIANTS:
        known = ViTConfig.from_variant(name)
        if all(getattr(known, field) == getattr(config, field) for field in dimensions):
            height, width = config.patch_shape
            patch = str(height) if height == width else f"{height}x{width}"
            return name if config.resnet_depths else f"{name.split('/')[0]}/{patch}"
    return None


def giga_multiply_adds(config: ViTConfig) -> float:
    """Multiply-adds of a forward pass of one image, in 10^9, counted by torch."""
    with torch.device("meta"):
        network = ViTForImageClassification(config).eval().requires_grad_(False)
        network.set_attn_implementation("eager")  # whose matrix products the counter sees
        with FlopCounterMode(display=False) as counter:
            images = torch.empty(1, config.num_channels, *config.image_shape)
            network(images, output_hidden_states=True)  # with which the last layer, too, is that of every token
    return counter.get_total_flops() / 2e9


def _table(model: Model) -> dict[str, str]:
    config = model.config
    height, width = config.image_shape
    rows, columns = config.grid_shape
    patch_height, patch_width = config.patch_shape
    parameters = model.seeing.num_parameters()
    table = {
        "Variant": variant_of(config) or "none of the paper's",
        "Parameters": _amount(parameters),
        "Multiply-adds of one image": _amount(1e9 * giga_multiply_adds(config)),
        "Image": f"{height}x{width} pixels, {config.num_channels} channels",
        "Patches": f"{rows}x{columns} of {patch_height}x{patch_width} pixels",
        "Layers": f"{config.num_hidden_layers}, of width {config.hidden_size} and {config.num_attention_heads} heads",
        "Position embedding": config.position_embedding.replace("_", " "),
        "The head reads": config.pooling.replace("token", "class token").replace("_", " "),
    }
    if model.has_classes:
        table["Classes"] = f"{len(model.labels):,}: {', '.join(model.labels[:12])}{', …' * (len(model.labels) > 12)}"
    else:
        table["Classes"] = "none; the checkpoint has no head"
    return table


def _amount(number: float) -> str:
    return f"{number / 1e9:,.2f} billion" if number >= 1e9 else f"{number / 1e6:,.2f} million"


def _card(model: str) -> str:
    source = Path(model, "README.md") if Path(model).is_dir() else model
    try:
        return ModelCard.load(source, ignore_metadata_errors=True).text
    except (OSError, HTTPError, HfHubHTTPError, OfflineModeIsEnabled, ValueError):  # whatever keeps it from being read
        return ""


def _beside_card(model: str, file: str) -> Path | None:
    """A picture of the card's, which the pattern lets lie nowhere but beside it."""
    if Path(model).is_dir():
        path = Path(model, file)
        return path if path.is_file() and path.resolve().parent == Path(model).resolve() else None
    try:
        return Path(hf_hub_download(model, file))
    except (OSError, HTTPError, HfHubHTTPError, OfflineModeIsEnabled, ValueError):
        return None


def _figure_7(model: Model) -> tuple[list[tuple[Image.Image, str]], list[str]]:
    """The panels that this architecture has, and why the others are missing."""
    panels: dict[str, Callable[[], Figure]] = {
        "The principal components of the patch embedding's filters": lambda: filters_figure(model.seeing),
        "How similar the position embeddings are to one another": lambda: position_similarity_figure(model.seeing),
        "How far each head attends, by layer": lambda: attention_distance_figure(_distances(model)),
    }
    figures, remarks = [], []
    for caption, draw in panels.items():
        try:
            figures.append((_drawn(draw()), caption))
        except InputError as error:
            remarks.append(str(error))
    return figures, remarks


def _distances(model: Model) -> torch.Tensor:
    images = [read_image(path) for path in example_files(model.source)[:_EXAMPLES]]
    pixels = model.processor(images, return_tensors="pt").pixel_values.to(model.classifier.device)
    return attention_distance(model.seeing, pixels)


def _drawn(figure: Figure) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return Image.open(file).convert("RGB")
