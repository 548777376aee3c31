"""Where images come in."""

from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData
from gradio.utils import get_upload_folder

from vitrail.demo.engine import File


def image_input(elem_id: str, height: int, label: str = "Image") -> gr.Image:
    """An image by upload, drag, paste or webcam.

    Gradio would open the file itself, and fail on a damaged one without a word. So events that take it must not be
    preprocessed; they get what `uploaded` reads.
    """
    return gr.Image(
        type="filepath",
        label=label,
        sources=["upload", "clipboard", "webcam"],
        height=height,
        elem_id=elem_id,
        elem_classes="picture",
        alt_text="The image that the model is asked about",
    )


def uploaded(upload: dict[str, Any] | None) -> File | None:
    """The file that gradio describes so, if there is one."""
    return None if upload is None else file_of(upload)


def file_of(upload: Any) -> File:
    """The file that gradio describes so, having made sure that it is one of those that it was given.

    Gradio does so itself only where the description says that it is one.

    Raises:
        InputError: there is none.
    """
    from vitrail.modeling import InputError

    if isinstance(upload, FileData):
        upload = upload.model_dump()
    if not isinstance(upload, dict) or not isinstance(upload.get("path"), str) or "\0" in upload["path"]:
        raise InputError("There is no file; upload one, or give its address.")
    given, path = Path(get_upload_folder()).resolve(), Path(upload["path"]).resolve()
    if not path.is_relative_to(given) or not path.is_file():
        raise InputError("The file is not here, or not any more; upload it again.")
    return File(path, str(upload.get("orig_name") or path.name))
