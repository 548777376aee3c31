"""Maps of every depth over their image, drawn by the browser: depth and opacity follow the hand, patches are picked."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import matplotlib
import numpy as np
from PIL import Image


_COLORS = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].tobytes()
HINT = "Point at a patch to read the map; click on it to see what that patch itself attends to."


@dataclass(frozen=True)
class Pane:
    """One image and its maps.

    Attributes:
        image: what is shown, of any size.
        maps: (L, rows, columns), not negative; each is drawn scaled to its own peak.
        region: left, upper, right and lower edge of what the maps cover, in pixels of the image.
        caption: what stands below it.
        alt: what it shows, for those who do not see it.
        unit: what the maps' values are shares of, for instance "of the attention"; empty for values without a scale.
        patch: row and column of the patch whose maps they are, if they are of one.
    """

    image: Image.Image
    maps: np.ndarray
    region: tuple[float, float, float, float]
    caption: str
    alt: str
    unit: str = ""
    patch: tuple[int, int] | None = None

    def as_json(self) -> dict[str, Any]:
        """What lens.js draws."""
        width, height = self.image.size
        peaks = self.maps.max(axis=(1, 2))
        levels = np.rint(255 * self.maps / peaks.clip(np.finfo(np.float32).tiny)[:, None, None]).astype(np.uint8)
        left, upper, right, lower = self.region
        return {
            "picture": _data_uri(self.image),
            "width": width,
            "height": height,
            "rows": self.maps.shape[1],
            "columns": self.maps.shape[2],
            "levels": base64.b64encode(levels.tobytes()).decode(),
            "peaks": peaks.tolist(),
            "region": [left / width, upper / height, right / width, lower / height],
            "caption": self.caption,
            "alt": self.alt,
            "unit": self.unit,
            "patch": self.patch,
        }


def lens(elem_id: str) -> gr.HTML:
    """One or two panes under the same sliders. Its event `pick` has `patches`: for each pane [row, column] or None."""
    html, css, js = (
        Path(__file__).with_name(f"lens.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    return gr.HTML(html_template=html, css_template=css, js_on_load=js, elem_id=elem_id)


def lens_value(panes: list[Pane], depth_name: str) -> dict[str, Any]:
    """What a `lens` shows.

    Args:
        panes: one or two of them.
        depth_name: what the slider of depths chooses, for instance "Up to layer".
    """
    colors = base64.b64encode(_COLORS).decode()
    return {"panes": [pane.as_json() for pane in panes], "colors": colors, "depth_name": depth_name, "hint": HINT}


def _data_uri(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=92)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
