"""The app: an image in, what the model says and where it looked out.

vitrail demo --model runs/digits
"""

from pathlib import Path

import gradio as gr
from PIL import Image

from vitrail.inspection import attention_rollout, overlay
from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor, read_image


_TOP = 5
_HEIGHT = 400  # pixels, of both pictures
_SMALLEST_SIDE = 448  # pixels; an 8x8 digit would be shown as a speck
_MAX_FILE_SIZE = "20mb"
_CSS = "#image img { width: 100%; height: 100%; object-fit: contain; image-rendering: auto; }"  # small images too


def build_app(model: str) -> gr.Blocks:
    """The app on one model.

    Args:
        model: a Hub id or folder; PNG files in its sub-folder `samples` become clickable examples.

    Raises:
        InputError: the model cannot be loaded.
    """
    network = ViTForImageClassification.from_pretrained(model)
    processor = ViTImageProcessor.from_pretrained(model)
    labels = network.config.labels

    def predict(upload: dict | None, opacity: float) -> tuple[dict[str, float] | None, Image.Image | None]:
        """Classify an image and show where the model looked.

        Args:
            upload: an image file as gradio describes it, with its `path` on the server and its `orig_name`.
            opacity: how strongly the heat map covers the image, 0 to 1.

        Returns:
            the probability of each class, and the image under its attention rollout; nothing without an image.
        """
        if upload is None:
            return None, None
        try:
            image = read_image(upload["path"], name=upload["orig_name"] or "of the upload")
            out = attention_rollout(network, processor(image, return_tensors="pt").pixel_values)
        except InputError as error:
            raise gr.Error(str(error), print_exception=False) from error
        assert out.logits is not None  # a classifier has them
        scores = dict(zip(labels, network.probabilities(out.logits)[0].tolist()))
        factor = max(1, -(-_SMALLEST_SIDE // min(image.size)))
        shown = image.resize((factor * image.width, factor * image.height), Image.Resampling.BICUBIC)
        left, upper, right, lower = (factor * edge for edge in processor.seen_region(*image.size))
        return scores, overlay(shown, out.heatmap[0], opacity, (left, upper, right, lower))

    with gr.Blocks(title="Vitrail", analytics_enabled=False) as app:
        gr.Markdown(f"# Vitrail\nWhat **{Path(model).name}** sees in an image, and where it looked.")
        with gr.Row():
            image = gr.Image(
                type="filepath",
                label="Image",
                sources=["upload", "clipboard", "webcam"],
                height=_HEIGHT,
                elem_id="image",
            )
            rollout = gr.Image(
                label="Where it looked (attention rollout)",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                height=_HEIGHT,
                elem_id="rollout",
            )
        with gr.Row():
            with gr.Column():
                if samples := sorted(Path(model).glob("samples/*.png")):
                    gr.Examples([[str(path)] for path in samples], [image], label="Held-out images")
                opacity = gr.Slider(0, 1, value=0.6, step=0.05, label="Opacity of the map", elem_id="opacity")
            label = gr.Label(num_top_classes=min(_TOP, len(labels)), label="Prediction", elem_id="prediction")
        gr.on(
            [image.change, opacity.release],
            predict,
            [image, opacity],
            [label, rollout],
            preprocess=False,  # gradio would open the file itself and fail without a word on one that is damaged
            api_name="predict",
            trigger_mode="always_last",
            show_progress="minimal",
        )
    return app


def launch(model: str, port: int | None = None, share: bool = False) -> None:
    """Serves the app until it is interrupted.

    Args:
        model: a Hub id or folder.
        port: by default the first free one from 7860.
        share: whether to make a public link through Gradio's tunnel.
    """
    build_app(model).launch(server_port=port, share=share, max_file_size=_MAX_FILE_SIZE, css=_CSS)
