"""The app: an image in, what the model says and where it looked out.

vitrail demo --model runs/digits
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import gradio as gr

from vitrail.demo.about import build_about
from vitrail.demo.api import add_api
from vitrail.demo.batch import build_batch
from vitrail.demo.compare import build_compare
from vitrail.demo.controls import model_choice
from vitrail.demo.engine import Engine, import_libraries
from vitrail.demo.look import build_look


_MAX_FILE_SIZE = "20mb"
_WAITING = 64  # events, above which the app says that it is busy
_KEPT = 86400  # seconds for which uploads, pictures and links stay
# Fonts that are there without a request to anybody, and hints that can be read.
_THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]).set(
    body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_300"
)


def build_app(engine: Engine) -> gr.Blocks:
    """The app on the models of an engine."""
    with gr.Blocks(title="Vitrail", analytics_enabled=False, delete_cache=(_KEPT // 24, _KEPT)) as app:
        with gr.Row():
            with gr.Column(min_width=300):
                gr.Markdown("# Vitrail\nWhat a ViT sees in an image, where it looked, and whether that is true.")
            with gr.Column(min_width=300):
                model = model_choice(engine, "Model", "model")
                gr.DeepLinkButton("Copy a link to this view", size="sm")
        with gr.Tab("Look") as look:
            build_look(engine, model)
        with gr.Tab("Compare") as compare:
            build_compare(engine)
        with gr.Tab("Batch") as batch:
            build_batch(engine, model)
        with gr.Tab("The model") as about:
            build_about(engine, model, about, [look, compare, batch])
        add_api(engine)
    return app


def launch(
    models: str | Sequence[str],
    *,
    host: str | None = None,
    port: int | None = None,
    share: bool = False,
    mcp: bool = False,
    on_gpu: Callable | None = None,
) -> None:
    """Serves the app until it is interrupted. The page is there at once, and answers when the first model is loaded.

    Args:
        models: Hub ids or folders, the first to begin with. Where others can reach the app, they are all that it
            loads; on this machine alone any other can be asked for.
        host: the address to listen on; by default GRADIO_SERVER_NAME, or else this machine alone.
        port: by default GRADIO_SERVER_PORT, or else the first free one from 7860.
        share: whether to make a public link through Gradio's tunnel.
        mcp: whether to serve the API as a Model Context Protocol server, too; needs `gradio[mcp]`.
        on_gpu: what a function that computes must be decorated with, for instance `spaces.GPU`.

    Raises:
        InputError: the first model cannot be loaded.
        OSError: the app cannot listen there.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1")
    engine = Engine([models] if isinstance(models, str) else models, not share and _is_local(host), on_gpu)
    app = build_app(engine).queue(max_size=_WAITING, default_concurrency_limit=4)
    app.launch(
        server_name=host,
        server_port=port,
        share=share,
        mcp_server=mcp,
        max_file_size=_MAX_FILE_SIZE,
        theme=_THEME,
        css_paths=Path(__file__).with_name("app.css"),
        ssr_mode=False,
        footer_links=["api", "settings"],
        prevent_thread_lock=True,
    )
    import_libraries()
    from transformers.utils import logging

    logging.disable_progress_bar()  # of loading; downloads keep theirs
    try:
        engine.model(engine.names[0])
        app.block_thread()
    finally:
        app.close(verbose=False)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
