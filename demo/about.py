"""What a model is: its size, its card, and the paper's Figure 7 of its weights."""

from __future__ import annotations

import gradio as gr

from vitrail.demo.engine import Engine
from vitrail.demo.events import AT_ONCE, OF_THE_PAGE, in_one_sentence
from vitrail.demo.showing import gallery


def build_about(engine: Engine, model: gr.Dropdown, tab: gr.Tab, others: list[gr.Tab]) -> None:
    """The view.

    Args:
        engine: what answers.
        model: which model it is about.
        tab: the tab that it is built in; nothing is computed before that is opened.
        others: its neighbours.
    """
    is_open = gr.State(False)
    facts = gr.Markdown(elem_id="facts", container=False)
    figure = gallery("Figure 7 of the paper, of these weights", "figure-7")
    remarks = gr.Markdown(container=False)
    card = gr.Markdown(elem_id="card", container=False)
    pictures = gallery("Pictures of the card", "card-pictures", visible=False)

    def tell(is_open: bool, name: str) -> tuple:
        if not is_open:
            return (gr.skip(),) * 5
        found = engine.facts(name)
        rows = "\n".join(f"| {what} | {value} |" for what, value in found.table.items())
        return (
            f"## {name}\n\n| | |\n|---|---|\n{rows}",
            found.figures,
            "\n\n".join(found.remarks),
            f"---\n\n{found.card}" if found.card else "",
            gr.update(value=found.card_pictures, visible=bool(found.card_pictures)),
        )

    tab.select(lambda: True, None, is_open, **AT_ONCE)
    gr.on([other.select for other in others], lambda: False, None, is_open, **AT_ONCE)
    gr.on(
        [is_open.change, model.change],
        in_one_sentence(tell),
        [is_open, model],
        [facts, figure, remarks, card, pictures],
        trigger_mode="always_last",
        show_progress_on=[facts],
        **OF_THE_PAGE,
    )
