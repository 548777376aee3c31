"""Two models, or two images, side by side under the same controls."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vitrail.demo.controls import DEPTH_NAMES, MapControls, model_choice, question_of
from vitrail.demo.engine import Engine
from vitrail.demo.events import OF_THE_PAGE, in_one_sentence, or_cleared
from vitrail.demo.lens import lens, lens_value
from vitrail.demo.question import Fusion, Method
from vitrail.demo.showing import pane, ranked
from vitrail.demo.uploads import image_input, uploaded


_HEIGHT = 260  # pixels, of the images


def build_compare(engine: Engine) -> None:
    """The view."""
    gr.Markdown("Two models, two images, or both. Where there is one image, both models get it.", elem_classes="hint")
    models, images, predictions = [], [], []
    with gr.Row():
        for side, name in zip("AB", (engine.names[0], engine.names[-1])):
            with gr.Column(min_width=300):
                models.append(model_choice(engine, f"Model {side}", f"model-{side}", name))
                images.append(image_input(f"image-{side}", _HEIGHT, f"Image {side}"))
                gr.Examples(list(map(str, engine.examples())), images[-1], label=f"Examples for {side}")
                predictions.append(gr.Label(label=f"Prediction {side}", elem_id=f"prediction-{side}"))
    controls = MapControls.in_a_row("compare")
    glass = lens("compare-lens")
    asked = [*images, *models, *controls.inputs]

    def answers(
        uploads: list[dict | None], names: list[str], how: tuple[Method, Fusion, float], patches: list[list[int] | None]
    ) -> tuple:
        """What both models say, and what the lens shows."""
        given = [uploaded(upload) for upload in uploads]
        shares, panes, depth_names = [], [], set()
        for name, file, other, patch in zip(names, given, reversed(given), patches):
            file = file or other
            if file is None:
                return None, None, None
            model, question = engine.model(name), question_of(*how, patch=patch)
            explanation = engine.explain(name, file, question)
            shares.append(ranked(model, explanation))
            depth_names.add(DEPTH_NAMES[question.method])
            panes.append(pane(model, engine.picture(name, file), explanation, question, name))
        return *shares, lens_value(panes, depth_names.pop() if len(depth_names) == 1 else "Layer")

    def compare(
        first: dict | None, second: dict | None, one: str, other: str, method: Method, fusion: Fusion, discard: float
    ) -> tuple:
        return answers([first, second], [one, other], (method, fusion, discard), [None, None])

    def compare_from(
        first: dict | None,
        second: dict | None,
        one: str,
        other: str,
        method: Method,
        fusion: Fusion,
        discard: float,
        picked: gr.EventData,
    ) -> dict[str, Any]:
        return answers([first, second], [one, other], (method, fusion, discard), picked.patches)[-1]

    gr.on(
        [component.change for component in (*images, *models)] + controls.changes,
        or_cleared(compare, None, None, None),
        asked,
        [*predictions, glass],
        preprocess=False,
        trigger_mode="always_last",
        show_progress_on=predictions,
        **OF_THE_PAGE,
    )
    glass.pick(in_one_sentence(compare_from), asked, glass, preprocess=False, trigger_mode="always_last", **OF_THE_PAGE)
