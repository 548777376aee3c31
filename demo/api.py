"""Every action as a named endpoint, for programs and, with `--mcp`, for language models.

Each gives one value, because gradio 6.31 makes a single text of several for language models, pictures included.
"""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

import gradio as gr
from gradio import FileData
from gradio.utils import get_upload_folder
from pydantic import ValidationError, validate_call

from vitrail.demo.engine import Engine, File
from vitrail.demo.events import ONE_AT_A_TIME, in_one_sentence
from vitrail.demo.question import Fusion, Method, Question
from vitrail.demo.showing import covered
from vitrail.demo.table import predictions
from vitrail.demo.uploads import file_of


if TYPE_CHECKING:
    import numpy as np

    from vitrail.demo.explaining import Explanation


def add_api(engine: Engine) -> None:
    """Adds the endpoints to the app that is being built. Their docstrings are what users read."""

    def predict(image: FileData, model: str = "", top: int = 5) -> list[dict[str, Any]]:
        """Say what an image shows.

        Args:
            image: an image file.
            model: which of the app's models; by default the first.
            top: how many classes, the most probable first.

        Returns:
            the classes, each as {"label", "probability"} with a probability from 0 to 1.
        """
        name = model or engine.names[0]
        labels, probabilities = engine.model(name).labels, engine.classify(name, file_of(image))
        best = probabilities.argsort(kind="stable")[::-1][: max(1, top)]
        return [{"label": labels[index], "probability": float(probabilities[index])} for index in best]

    def explain(
        image: FileData,
        model: str = "",
        method: Method = "rollout",
        label: str = "",
        head_fusion: Fusion = "mean",
        discard_ratio: float = 0.0,
        layer: int = 0,
        patch_row: int = 0,
        patch_column: int = 0,
        opacity: float = 0.6,
    ) -> FileData:
        """Draw where a model looked in an image, or what spoke for a class.

        Args:
            image: an image file.
            model: which of the app's models; by default the first.
            method: "rollout" follows attention through all layers, "attention" is that of one layer; "relevance" and
                "gradient_rollout" show what spoke for a class.
            label: the class that relevance or gradient rollout is about; by default the predicted one.
            head_fusion: how rollout and attention make one map of all heads: "mean", "max" or "min".
            discard_ratio: the share of the weakest attention that rollout leaves out, from 0 to less than 1.
            layer: up to which layer, or of which layer's attention, from 1; 0 is the last.
            patch_row: with patch_column, the patch from 1 whose own attention is shown; 0 is what the head reads.
            patch_column: see patch_row.
            opacity: how strongly the map covers the picture, from 0 to 1.

        Returns:
            a PNG of the image under the map.
        """
        name, file = model or engine.names[0], file_of(image)
        _, heatmap = _explained(
            engine, name, file, method, label, head_fusion, discard_ratio, layer, patch_row, patch_column
        )
        picture = covered(engine.picture(name, file), heatmap, opacity)
        path = Path(mkdtemp(dir=get_upload_folder()), "explanation.png")  # its own, or it changes while others fetch it
        picture.save(path)
        return FileData(path=str(path))

    def heatmap(
        image: FileData,
        model: str = "",
        method: Method = "rollout",
        label: str = "",
        head_fusion: Fusion = "mean",
        discard_ratio: float = 0.0,
        layer: int = 0,
        patch_row: int = 0,
        patch_column: int = 0,
    ) -> dict[str, Any]:
        """The map that explain draws, in numbers.

        Args:
            image: an image file.
            model: which of the app's models; by default the first.
            method: as of explain.
            label: as of explain.
            head_fusion: as of explain.
            discard_ratio: as of explain.
            layer: as of explain.
            patch_row: as of explain.
            patch_column: as of explain.

        Returns:
            {"label", "probability", "grid"}: the class that the map is about or else the predicted one, and the value
            of every patch in rows. A model without classes has no label.
        """
        name, file = model or engine.names[0], file_of(image)
        found, grid = _explained(
            engine, name, file, method, label, head_fusion, discard_ratio, layer, patch_row, patch_column
        )
        said: dict[str, Any] = {"grid": grid.tolist()}
        if labels := engine.model(name).labels:
            index = int(found.probabilities.argmax()) if found.target is None else found.target
            said |= {"label": labels[index], "probability": float(found.probabilities[index])}
        return said

    def heads(image: FileData, model: str = "", layer: int = 0) -> list[list[list[float]]]:
        """What each attention head of a layer looks at.

        Args:
            image: an image file.
            model: which of the app's models; by default the first.
            layer: from 1; 0 is the last.

        Returns:
            for each head the share of its attention that every patch has, in rows.
        """
        name = model or engine.names[0]
        index = layer_of(layer, engine.model(name).config.num_hidden_layers)
        return engine.heads(name, file_of(image), index).tolist()

    def test_map(
        image: FileData,
        model: str = "",
        method: Method = "rollout",
        label: str = "",
        head_fusion: Fusion = "mean",
        discard_ratio: float = 0.0,
    ) -> dict[str, Any]:
        """Test whether a map is true: hide its brightest patches, and as many at random, and ask the model again.

        Args:
            image: an image file.
            model: which of the app's models; by default the first.
            method: as of explain.
            label: the class to follow, for relevance and gradient rollout; otherwise it is the predicted one.
            head_fusion: as of explain.
            discard_ratio: as of explain.

        Returns:
            {"label", "probability", "hidden", "by_map", "at_random"}: the class and its probability with the whole
            image; the shares of the patches that were hidden; the probability with the brightest of the map hidden; and
            with each of several random draws.
        """
        from vitrail.demo.explaining import SHARES

        name = model or engine.names[0]
        labels = engine.model(name).labels
        question = Question(method, class_of(label, labels), head_fusion, discard_ratio)
        found = engine.occlude(name, file_of(image), question)
        return {
            "label": labels[found.target],
            "probability": found.probability,
            "hidden": list(SHARES),
            "by_map": found.by_map.tolist(),
            "at_random": found.at_random.tolist(),
        }

    def predict_all(files: list[FileData], model: str = "") -> list[dict[str, Any]]:
        """Say what many images show.

        Args:
            files: image files, zip archives of them, or both; of at most 1,000 images.
            model: which of the app's models; by default the first.

        Returns:
            the predictions, each as {"image", "label", "probability", "error"}; an image that cannot be read has an
            error in place of the rest.
        """
        given = [file_of(file) for file in files]
        return [row for rows in predictions(engine, model or engine.names[0], given) for row in rows]

    def describe(model: str = "") -> dict[str, Any]:
        """What there is to know of a model.

        Args:
            model: which of the app's models; by default the first.

        Returns:
            {"models", "facts", "classes", "card"}: the models on offer; the size of this one; its classes; and its card
            in Markdown.
        """
        name = model or engine.names[0]
        found = engine.facts(name)
        return {"models": engine.names, "facts": found.table, "classes": engine.model(name).labels, "card": found.card}

    for endpoint in (predict, explain, heatmap, heads, test_map, describe):
        gr.api(in_one_sentence(_typed(endpoint)), **ONE_AT_A_TIME)
    gr.api(in_one_sentence(_typed(predict_all)), concurrency_id="batch", concurrency_limit=1)


def _typed(endpoint: Callable) -> Callable:
    """The endpoint for arguments from anywhere.

    Raises:
        InputError: one is not of the type that the endpoint documents.
    """
    names = list(signature(endpoint).parameters)
    validated = validate_call(endpoint)

    @wraps(endpoint)
    def call(*arguments: Any) -> Any:
        from vitrail.modeling import InputError

        try:
            return validated(*arguments)
        except ValidationError as error:
            first = error.errors()[0]
            place = first["loc"][0]
            name = names[place] if isinstance(place, int) else place
            raise InputError(f"{name} cannot be used: {first['msg']}.") from error

    return call


def _explained(
    engine: Engine,
    name: str,
    file: File,
    method: Method,
    label: str,
    head_fusion: Fusion,
    discard_ratio: float,
    layer: int,
    patch_row: int,
    patch_column: int,
) -> tuple["Explanation", "np.ndarray"]:
    """The answer, and its map of that layer."""
    from vitrail.modeling import InputError

    model, patch = engine.model(name), None
    if patch_row or patch_column:
        size = engine.picture(name, file).pixel_values.shape[2:]
        rows, columns = (pixels // side for pixels, side in zip(size, model.config.patch_shape))
        if not (1 <= patch_row <= rows and 1 <= patch_column <= columns):
            raise InputError(
                f"There is no patch in row {patch_row}, column {patch_column}; the image has {rows} rows of {columns}."
            )
        patch = patch_row - 1, patch_column - 1
    question = Question(method, class_of(label, model.labels), head_fusion, discard_ratio, patch)
    found = engine.explain(name, file, question)
    return found, found.maps[layer_of(layer, len(found.maps))]


def class_of(label: str, labels: list[str]) -> int | None:
    """The number of a class; None for the predicted one, which an empty label stands for.

    Raises:
        InputError: there is no such class.
    """
    from vitrail.modeling import InputError

    if not label:
        return None
    if label not in labels:
        some = ", ".join(labels[:10]) + ", ..." * (len(labels) > 10)
        raise InputError(f"{label[:40]!r} is none of the model's labels, {some or 'of which it has none'}.")
    return labels.index(label)


def layer_of(layer: int, count: int) -> int:
    """The index from 0 of a layer that is counted from 1, or of the last one for 0.

    Raises:
        InputError: there is no such layer.
    """
    from vitrail.modeling import InputError

    if not 0 <= layer <= count:
        raise InputError(f"layer is {layer}; the model has layers 1 to {count}.")
    return layer - 1 if layer else count - 1
