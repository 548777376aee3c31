"""How a map is to be made: the controls that the views share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from vitrail.demo.engine import Engine
from vitrail.demo.events import AT_ONCE
from vitrail.demo.question import OF_A_CLASS, Fusion, Method, Question


METHODS: dict[str, Method] = {
    "Rollout": "rollout",
    "Single layers": "attention",
    "Relevance": "relevance",
    "Gradient rollout": "gradient_rollout",
}
DEPTH_NAMES = {method: "Layer" if method == "attention" else "Up to layer" for method in METHODS.values()}
PREDICTED = ("the predicted one", -1)  # among the classes on offer
_ABOUT = (
    "**Rollout** follows attention through all layers, **single layers** shows each as it is. **Relevance** and "
    "**gradient rollout** show what spoke for a class."
)


@dataclass(frozen=True)
class MapControls:
    """The controls, in the order in which `question` takes their values."""

    method: gr.Radio
    head_fusion: gr.Radio
    discard_ratio: gr.Slider

    @classmethod
    def in_a_row(cls, prefix: str) -> MapControls:
        """Makes them; their element ids begin with `prefix`."""
        gr.Markdown(_ABOUT, elem_classes="hint")
        method = gr.Radio(list(METHODS.items()), value="rollout", label="Method", elem_id=f"{prefix}-method")
        with gr.Row():
            fusion = gr.Radio(
                ["mean", "max", "min"],
                value="mean",
                label="Heads are fused by",
                min_width=250,
                elem_id=f"{prefix}-fusion",
            )
            discard = gr.Slider(
                0,
                0.95,
                value=0,
                step=0.05,
                label="Weakest attention left out",
                min_width=220,
                elem_id=f"{prefix}-discard",
            )
        controls = cls(method, fusion, discard)
        gr.on(
            [method.change],
            lambda method: (
                gr.update(interactive=method not in OF_A_CLASS),
                gr.update(interactive=method == "rollout"),
            ),
            method,
            [fusion, discard],
            **AT_ONCE,
        )
        return controls

    @property
    def inputs(self) -> list[Any]:
        """What an event takes."""
        return [self.method, self.head_fusion, self.discard_ratio]

    @property
    def changes(self) -> list[Any]:
        """What a map must be made anew after."""
        return [self.method.input, self.head_fusion.input, self.discard_ratio.input]


def model_choice(engine: Engine, label: str, elem_id: str, value: str | None = None) -> gr.Dropdown:
    """Which model is asked: one of those on offer, or where that is allowed any other."""
    return gr.Dropdown(
        engine.names,
        value=value or engine.names[0],
        label=label,
        info="one of these, or any Hub id or folder" if engine.open_to_all else None,
        allow_custom_value=engine.open_to_all,
        elem_id=elem_id,
    )


def class_choices(labels: list[str]) -> list[tuple[str, int]]:
    """The classes that a map may be about."""
    return [PREDICTED, *((label, index) for index, label in enumerate(labels))]


def chosen_class(choice: int, labels: list[str]) -> int | None:
    """The class that was chosen; None, the predicted one, also where another model had a class of that number."""
    return choice if 0 <= choice < len(labels) else None


def question_of(
    method: Method,
    head_fusion: Fusion,
    discard_ratio: float,
    target: int | None = None,
    patch: list[int] | None = None,
) -> Question:
    """The question that the values of the controls put. A patch has attention, but nothing that spoke for a class."""
    if patch is None:
        return Question(method, target, head_fusion, discard_ratio)
    asked = "attention" if method in OF_A_CLASS else method
    return Question(asked, None, head_fusion, discard_ratio, (patch[0], patch[1]))
