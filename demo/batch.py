"""Many images at once: a table that grows, and the same as a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import gradio as gr

from vitrail.demo.engine import Engine
from vitrail.demo.events import in_one_sentence
from vitrail.demo.table import COLUMNS, MOST_IMAGES, Row, count_images, predictions, write_table
from vitrail.demo.uploads import uploaded


_AT_A_TIME = 8  # images, after which the table grows


def build_batch(engine: Engine, model: gr.Dropdown) -> None:
    """The view.

    Args:
        engine: what answers.
        model: which model is asked.
    """
    gr.Markdown(f"Image files, zip archives of them, or both: up to {MOST_IMAGES:,} images.", elem_classes="hint")
    files = gr.File(label="Images", file_count="multiple", file_types=["image", ".zip"], height=180, elem_id="files")
    with gr.Row():
        start = gr.Button("Predict all", variant="primary", elem_id="predict-all")
        stop = gr.Button("Stop", elem_id="stop")
    said = gr.Markdown(elem_id="batch-said", container=False)
    table = gr.Dataframe(
        headers=list(COLUMNS),
        datatype="str",
        column_widths=["220px", "140px", "120px", "320px"],
        interactive=False,
        wrap=True,
        elem_id="table",
    )
    download = gr.DownloadButton("Download as CSV", visible=False, elem_id="csv")

    def fill_table(uploads: list[dict] | None, name: str, progress: gr.Progress = gr.Progress()) -> Iterator[tuple]:  # noqa: B008 - gradio's way to ask for one
        given = [file for file in map(uploaded, uploads or []) if file is not None]
        if not given:
            gr.Warning("There are no images yet.")
            return
        rows: list[Row] = []
        found = count_images(given)
        total, left_out = min(found, MOST_IMAGES), max(0, found - MOST_IMAGES)
        for done, some in enumerate(predictions(engine, name, given), start=1):
            rows += some
            progress((done, total), unit="images")
            if done % _AT_A_TIME == 0:
                yield f"{done:,} of {total:,} images", cells(rows), gr.skip()
        failed = sum(bool(row["error"]) for row in rows)
        with TemporaryDirectory(prefix="vitrail-") as folder:
            path = Path(folder, "predictions.csv")
            write_table(rows, path)  # gradio takes a copy
            amount = f"{total:,} image{'s' * (total != 1)}" + f", {failed:,} of them with an error" * bool(failed)
            amount += f"; {left_out:,} more were left out" * bool(left_out)
            yield amount, cells(rows), gr.update(value=str(path), visible=True)

    running = start.click(
        in_one_sentence(fill_table),
        [files, model],
        [said, table, download],
        preprocess=False,
        api_visibility="private",
        concurrency_id="batch",  # beside the events for one image, which need not wait for all of these
        concurrency_limit=1,
        show_progress_on=[said],
    )
    stop.click(None, cancels=[running], api_visibility="private")


def cells(rows: list[Row]) -> list[list[str]]:
    """Rows as people read them."""
    return [
        [str(row["image"]), row["label"], f"{row['probability']:.1%}" if row["label"] else "", row["error"]]
        for row in rows
    ]
