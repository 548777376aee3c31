"""Explanations as the components show them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr
import numpy as np
from PIL import Image

from vitrail.demo.lens import Pane
from vitrail.demo.question import Question


if TYPE_CHECKING:
    from vitrail.demo.explaining import Explanation, Picture
    from vitrail.demo.models import Model


_TOP = 5  # classes
_ALPHA = 0.6  # of a map over its image
_TITLES = {
    "rollout": "Attention rollout",
    "attention": "Attention",
    "relevance": "Relevance",
    "gradient_rollout": "Gradient rollout",
}
_UNITS = {"rollout": "of the rollout", "attention": "of the attention", "relevance": "", "gradient_rollout": ""}


def ranked(model: Model, explanation: Explanation) -> dict[str, float] | None:
    """The most probable classes, as `gr.Label` takes them; None without a head."""
    best = explanation.probabilities.argsort(kind="stable")[::-1][:_TOP]
    return {model.labels[index]: float(explanation.probabilities[index]) for index in best} or None


def pane(model: Model, picture: Picture, explanation: Explanation, question: Question, name: str = "") -> Pane:
    """What a lens shows of an explanation; `name` is of the image or model, where there are several."""
    rows, columns = explanation.maps.shape[1:]
    row, column = divmod(int(explanation.maps[-1].argmax()), columns)
    about = title(model, explanation, question)
    return Pane(
        picture.shown,
        explanation.maps,
        picture.region,
        caption=f"{name}: {about}" if name else about,
        alt=f"{name} {about}. It is brightest in row {row + 1} of {rows}, column {column + 1} of {columns}. "
        "Arrow keys move over the patches, Enter shows what a patch attends to.".strip(),
        unit=_UNITS[question.method],
        patch=question.patch,
    )


def title(model: Model, explanation: Explanation, question: Question) -> str:
    """What a map is of."""
    what = _TITLES[question.method]
    if question.patch is not None:
        row, column = question.patch
        return f"{what} of the patch in row {row + 1}, column {column + 1}"
    if explanation.target is not None:
        return f"{what} of {model.labels[explanation.target]}"
    if len(explanation.probabilities):
        best = int(explanation.probabilities.argmax())
        return f"{what}. Prediction: {model.labels[best]}, {explanation.probabilities[best]:.1%}"
    return what


def covered(picture: Picture, heatmap: np.ndarray, alpha: float = _ALPHA, side: int | None = None) -> Image.Image:
    """The image under a map, with a longer side of at most `side` pixels."""
    import torch

    from vitrail.inspection import overlay

    shown, region = picture.shown, picture.region
    if side is not None:
        factor = min(1, side / max(shown.size))
        size = max(1, round(factor * shown.width)), max(1, round(factor * shown.height))
        across, down = size[0] / shown.width, size[1] / shown.height
        shown, region = shown.resize(size), (region[0] * across, region[1] * down, region[2] * across, region[3] * down)
    return overlay(shown, torch.from_numpy(heatmap), alpha, region)


def gallery(label: str, elem_id: str, visible: bool = True) -> gr.Gallery:
    """A gallery as high as its pictures, in as many columns as the page is wide for."""
    return gr.Gallery(
        label=label,
        elem_classes="unrolled",
        object_fit="contain",
        interactive=False,
        visible=visible,
        buttons=["download", "fullscreen"],
        elem_id=elem_id,
    )
