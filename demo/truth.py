"""The control that a map deserves: what hiding its brightest patches does, beside hiding as many at random."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gradio as gr
import numpy as np
import pandas as pd
from PIL import Image

from vitrail.demo.controls import chosen_class, question_of
from vitrail.demo.engine import Engine
from vitrail.demo.events import AT_ONCE, OF_THE_PAGE, or_cleared
from vitrail.demo.question import Fusion, Method
from vitrail.demo.showing import gallery
from vitrail.demo.uploads import uploaded


if TYPE_CHECKING:
    from vitrail.demo.explaining import Occlusion, Picture

_BY_MAP, _AT_RANDOM = "by the map", "at random"
_SIDE = 320  # pixels of a picture with hidden patches
_HIDDEN = (127, 127, 127)


def build_truth(engine: Engine, asked: list[Any]) -> None:
    """The view.

    Args:
        engine: what answers.
        asked: the upload, the model, the controls of the map and the class; when one changes, an earlier result goes.
    """
    gr.Markdown(
        "If the map is true, hiding its brightest patches takes the prediction away sooner than hiding as many at "
        "random does. Only what it is better than random by is insight.",
        elem_classes="hint",
    )
    button = gr.Button("Hide patches and ask again", variant="primary", elem_id="test")
    verdict = gr.Markdown(elem_id="verdict", container=False)
    plot = gr.LinePlot(
        x="hidden",
        y="probability",
        color="patches hidden",
        x_title="patches hidden (%)",
        y_title="probability (%)",
        y_lim=[0, 100],
        height=280,
        visible=False,
        elem_id="fall",
    )
    pictures = gallery("What the model was asked", "hidden", visible=False)
    results = [verdict, plot, pictures]
    nothing = "", gr.update(visible=False), gr.update(visible=False)

    def test(upload: dict | None, name: str, method: Method, fusion: Fusion, discard: float, choice: int) -> tuple:
        file = uploaded(upload)
        if file is None:
            return nothing
        model, picture = engine.model(name), engine.picture(name, file)
        question = question_of(method, fusion, discard, chosen_class(choice, model.labels))
        found = engine.occlude(name, file, question)
        said = sentence(found, model.labels[found.target])
        drawn = gr.update(value=curves(found), visible=True)
        return said, drawn, gr.update(value=hidden_pictures(found, picture), visible=True)

    running = button.click(
        or_cleared(test, *nothing), asked, results, preprocess=False, show_progress_on=[verdict], **OF_THE_PAGE
    )
    gr.on(
        [component.change for component in asked],
        lambda: nothing,
        None,
        results,
        cancels=[running],
        **AT_ONCE,
    )


def sentence(found: Occlusion, label: str) -> str:
    """What the middle share did to the prediction, and whether the map knows more than chance."""
    from vitrail.demo.explaining import SHARES

    middle = len(SHARES) // 2
    random = found.at_random[middle]
    by_map = found.by_map[middle]
    if by_map < random.min():
        verdict = "The map knows what matters here: it is below every random draw."
    elif by_map <= random.mean():
        verdict = "That is within what chance does: this map may say little here."
    else:
        verdict = "Chance does more: do not trust this map here."
    return (
        f"**{label}** has a probability of {found.probability:.1%}. With {SHARES[middle]:.0%} of the patches hidden it "
        f"has **{by_map:.1%}** where the map chooses them, and {random.mean():.1%} "
        f"({random.min():.1%} to {random.max():.1%}) where chance does. {verdict}"
    )


def curves(found: Occlusion) -> pd.DataFrame:
    """The probability by what is hidden, in percent."""
    from vitrail.demo.explaining import SHARES

    shares = [0, *(100 * share for share in SHARES)]
    falls = {_BY_MAP: found.by_map, _AT_RANDOM: found.at_random.mean(1)}
    return pd.DataFrame(
        [
            {"hidden": share, "probability": 100 * probability, "patches hidden": how}
            for how, fall in falls.items()
            for share, probability in zip(shares, [found.probability, *fall.tolist()])
        ]
    )


def hidden_pictures(found: Occlusion, picture: Picture) -> list[tuple[Image.Image, str]]:
    """What the model was given, each with what it said."""
    from vitrail.demo.explaining import SHARES

    rows = (_BY_MAP, found.hidden, found.by_map), (_AT_RANDOM, found.hidden_at_random, found.at_random[:, 0])
    return [
        (_without(picture, hidden), f"{how}, {share:.0%}: {probability:.1%}")
        for how, masks, probabilities in rows
        for share, hidden, probability in zip(SHARES, masks, probabilities)
    ]


def _without(picture: Picture, hidden: np.ndarray) -> Image.Image:
    """The image with gray where patches are hidden."""
    factor = min(1, _SIDE / max(picture.shown.size))
    left, upper, right, lower = (factor * edge for edge in picture.region)
    image = picture.shown.resize([max(1, round(factor * side)) for side in picture.shown.size])
    rows, columns = hidden.shape
    for row, column in np.argwhere(hidden):
        box = (
            round(left + column * (right - left) / columns),
            round(upper + row * (lower - upper) / rows),
            round(left + (column + 1) * (right - left) / columns),
            round(upper + (row + 1) * (lower - upper) / rows),
        )
        image.paste(_HIDDEN, box)
    return image
