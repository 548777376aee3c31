"""What a model says of an image, and the map of every depth that goes with it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitrail.demo.models import Model
from vitrail.demo.question import OF_A_CLASS, Question
from vitrail.inspection import (
    attention_by_depth,
    layer_attention,
    occlusion,
    relevance_by_depth,
    rollout_by_depth,
)
from vitrail.modeling import InputError, read_image


SHARES = (0.1, 0.25, 0.5)  # of the patches, hidden to test a map
DRAWS = 5  # of as many hidden at random

_LARGEST_SIDE = 1024  # pixels of what is shown
_SMALLEST_SIDE = 448  # or an 8x8 digit would be shown as a speck
_MOST_PIXELS = 64_000_000  # of a file; read completely, they take 192 MB


@dataclass(frozen=True)
class Picture:
    """An image as it is shown, and as a model takes it.

    Attributes:
        shown: of a size for screens.
        region: left, upper, right and lower edge of what the model sees, in pixels of `shown`.
        pixel_values: (1, C, H, W).
    """

    shown: Image.Image
    region: tuple[float, float, float, float]
    pixel_values: torch.Tensor


@dataclass(frozen=True)
class Explanation:
    """An answer, without anything of torch, so that it may come from another process.

    Attributes:
        probabilities: (K,) of the classes, or none.
        target: the class that `maps` are about, if they are about one.
        maps: (L, rows, columns) float32, up to or of every layer; of relevance only what distinguishes patches.
    """

    probabilities: np.ndarray
    target: int | None
    maps: np.ndarray


@dataclass(frozen=True)
class Occlusion:
    """What hiding patches does to a class's probability, with S `SHARES` of them; see `inspection.occlusion`.

    Attributes:
        target: the class.
        probability: of the whole image.
        by_map: (S,) with the patches hidden that the map ranks highest.
        at_random: (S, DRAWS) with as many hidden at random.
        hidden: (S, rows, columns) bool, what the map hides.
        hidden_at_random: (S, rows, columns) bool, what the first draw hides.
    """

    target: int
    probability: float
    by_map: np.ndarray
    at_random: np.ndarray
    hidden: np.ndarray
    hidden_at_random: np.ndarray


def read_picture(model: Model, path: Path, name: str) -> Picture:
    """An image file for the screen and for the model.

    Args:
        model: whose processor prepares it.
        path: where the file is.
        name: what its user calls it.

    Raises:
        InputError: it cannot be read, or is too large for a server.
    """
    image = read_image(path, name, _MOST_PIXELS)
    pixel_values = model.processor(image, return_tensors="pt").pixel_values
    factor = min(_LARGEST_SIDE / max(image.size), max(1, -(-_SMALLEST_SIDE // min(image.size))))
    size = max(1, round(factor * image.width)), max(1, round(factor * image.height))
    shown = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    across, down = size[0] / image.width, size[1] / image.height
    left, upper, right, lower = model.processor.seen_region(*image.size)
    return Picture(shown, (left * across, upper * down, right * across, lower * down), pixel_values)


def explain(model: Model, picture: Picture, question: Question) -> Explanation:
    """The prediction, and the maps by depth.

    Raises:
        InputError: the question does not fit the model, or its weights hold NaN.
    """
    pixels = picture.pixel_values.to(model.classifier.device)
    of_a_class = question.method in OF_A_CLASS
    if of_a_class and question.patch is not None:
        raise InputError(f"{question.method} is of what the head reads; for a patch choose rollout or attention.")
    if of_a_class and not model.has_classes:
        raise InputError(f"{model.name} has no head, hence no classes to explain; choose rollout or attention.")
    target = None
    if of_a_class:
        method = "chefer" if question.method == "relevance" else "gradient_rollout"
        out = relevance_by_depth(model.classifier, pixels, question.target, method)
        target = int(out.target[0])
    elif question.method == "rollout":
        out = rollout_by_depth(model.seeing, pixels, question.head_fusion, question.discard_ratio, patch=question.patch)
    else:
        out = attention_by_depth(model.seeing, pixels, question.head_fusion, patch=question.patch)
    maps = out.heatmap[0].cpu().numpy()
    if target is not None:  # where the head reads a mean, every patch speaks for itself, and equally much
        maps = maps - maps.min(axis=(1, 2), keepdims=True)
    return Explanation(probabilities_of(model, out.logits), target, maps)


def heads(model: Model, picture: Picture, layer: int) -> np.ndarray:
    """What each head of a layer, from 0, attends to where the model's head reads: (heads, rows, columns) float32.

    Raises:
        InputError: there is no such layer.
    """
    pixels = picture.pixel_values.to(model.classifier.device)
    return layer_attention(model.seeing, pixels, layer).heatmap[0].cpu().numpy()


def occlude(model: Model, picture: Picture, question: Question) -> Occlusion:
    """What becomes of the prediction when patches are hidden by the last of the maps, and at random.

    Raises:
        InputError: the model has no head, or as `explain`.
    """
    if not model.has_classes:
        raise InputError(f"{model.name} has no head, hence no prediction to test a map with.")
    explanation = explain(model, picture, question)
    pixels = picture.pixel_values.to(model.classifier.device)
    out = occlusion(
        model.classifier, pixels, torch.from_numpy(explanation.maps[-1])[None], explanation.target, SHARES, DRAWS
    )
    return Occlusion(
        int(out.target[0]),
        float(out.probability[0]),
        *(values[0].cpu().numpy() for values in (out.map, out.random, out.hidden, out.hidden_at_random)),
    )


@torch.inference_mode()
def classify(model: Model, picture: Picture) -> np.ndarray:
    """The classes' probabilities, (K,) float32, and nothing else.

    Raises:
        InputError: the model has no head.
    """
    if not model.has_classes:
        raise InputError(f"{model.name} has no head, hence no classes; train it first.")
    pixels = picture.pixel_values.to(model.classifier.device)
    return probabilities_of(model, model.classifier(pixels).logits)


def probabilities_of(model: Model, logits: torch.Tensor | None) -> np.ndarray:
    """(K,) float32 of one image's logits, (1, K); empty without a head."""
    if logits is None or not model.has_classes:
        return np.empty(0, np.float32)
    return model.classifier.probabilities(logits)[0].float().cpu().numpy()
