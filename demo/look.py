"""One image: what the model says, where it looked, and whether that is true."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vitrail.demo.controls import (
    DEPTH_NAMES,
    PREDICTED,
    MapControls,
    chosen_class,
    class_choices,
    question_of,
)
from vitrail.demo.engine import Engine
from vitrail.demo.events import AT_ONCE, OF_THE_PAGE, in_one_sentence, or_cleared
from vitrail.demo.lens import lens, lens_value
from vitrail.demo.question import OF_A_CLASS, Fusion, Method
from vitrail.demo.showing import covered, gallery, pane, ranked
from vitrail.demo.truth import build_truth
from vitrail.demo.uploads import image_input, uploaded


_HEIGHT = 400  # pixels, of pictures
_HEAD_SIDE = 360  # pixels of a head's picture


def build_look(engine: Engine, model: gr.Dropdown) -> None:
    """The view of one image.

    Args:
        engine: what answers.
        model: which model is asked.
    """
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            image = image_input("image", _HEIGHT)
            gr.Examples([[str(path)] for path in engine.examples()], [image], label="Examples")
        with gr.Column(scale=3, min_width=300):
            prediction = gr.Label(label="Prediction", elem_id="prediction")
            slider = gr.ImageSlider(
                label="The image, and where it looked",
                type="pil",
                format="jpeg",
                max_height=_HEIGHT,
                elem_id="slider",
                buttons=["download", "fullscreen"],
            )
    gr.Markdown("## Look closer")
    controls = MapControls.in_a_row("look")
    target = gr.Dropdown([PREDICTED], value=-1, label="Class that it is about", visible=False, elem_id="target")
    asked = [image, model, *controls.inputs, target]
    with gr.Tabs():
        with gr.Tab("Depth") as depth_tab:
            glass = lens("lens")
        with gr.Tab("Heads") as heads_tab:
            heads_open = gr.State(False)
            layer = gr.Slider(1, 12, value=12, step=1, label="Layer", elem_id="layer")
            heads = gallery("What each head attends to", "heads")
        with gr.Tab("Is it true?") as truth_tab:
            build_truth(engine, asked)

    def look(
        upload: dict | None, name: str, method: Method, fusion: Fusion, discard: float, choice: int, number: int
    ) -> tuple:
        file, about_class = uploaded(upload), method in OF_A_CLASS
        if file is None:
            return None, None, None, gr.skip(), gr.update(visible=about_class)
        chosen, picture = engine.model(name), engine.picture(name, file)
        target = chosen_class(choice, chosen.labels)
        question = question_of(method, fusion, discard, target)
        explanation = engine.explain(name, file, question)
        offered = gr.update(visible=False)
        if about_class:
            value = PREDICTED[1] if target is None else target
            offered = gr.update(visible=True, choices=class_choices(chosen.labels), value=value)
        layers = len(explanation.maps)
        return (
            ranked(chosen, explanation),
            (picture.shown, covered(picture, explanation.maps[-1])),
            lens_value([pane(chosen, picture, explanation, question)], DEPTH_NAMES[question.method]),
            gr.update(maximum=layers, value=min(number, layers)),
            offered,
        )

    looked = gr.on(
        [image.change, model.change, *controls.changes, target.input],
        or_cleared(look, None, None, None, gr.skip(), gr.skip()),
        [*asked, layer],
        [prediction, slider, glass, layer, target],
        preprocess=False,
        trigger_mode="always_last",
        show_progress_on=[prediction],
        **OF_THE_PAGE,
    )

    def look_from(
        upload: dict, name: str, method: Method, fusion: Fusion, discard: float, choice: int, picked: gr.EventData
    ):
        """What the picked patch attends to or, where none is, what the head reads."""
        file, (patch,) = uploaded(upload), picked.patches
        if file is None:
            return gr.skip()
        chosen = engine.model(name)
        question = question_of(method, fusion, discard, chosen_class(choice, chosen.labels), patch)
        explanation = engine.explain(name, file, question)
        one = pane(chosen, engine.picture(name, file), explanation, question)
        return lens_value([one], DEPTH_NAMES[question.method])

    glass.pick(in_one_sentence(look_from), asked, glass, preprocess=False, trigger_mode="always_last", **OF_THE_PAGE)

    def look_with_heads(is_open: bool, upload: dict | None, name: str, number: int) -> Any:
        file = uploaded(upload)
        if not is_open or file is None:
            return gr.skip() if file else None
        picture = engine.picture(name, file)
        index = min(number, engine.model(name).config.num_hidden_layers) - 1
        maps = engine.heads(name, file, index)
        return [(covered(picture, one, side=_HEAD_SIDE), f"head {head + 1}") for head, one in enumerate(maps)]

    heads_tab.select(lambda: True, None, heads_open, **AT_ONCE)
    gr.on([depth_tab.select, truth_tab.select], lambda: False, None, heads_open, **AT_ONCE)
    with_heads: dict[str, Any] = {
        "fn": in_one_sentence(look_with_heads),
        "inputs": [heads_open, image, model, layer],
        "outputs": heads,
        "preprocess": False,
        **OF_THE_PAGE,
    }
    gr.on([heads_open.change, layer.input], trigger_mode="always_last", **with_heads)
    looked.then(**with_heads)
