"""A model as an ONNX file, which runs without Vitrail and without PyTorch.

vitrail export runs/digits exported --to onnx
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401 - torch.onnx needs it, and its absence is to be said before the work
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.quant_utils import add_pre_process_metadata
from PIL import Image
from torch.export import Dim

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel, read_image
from vitrail.modeling.checkpoints import read_checkpoint
from vitrail.publishing.model_folder import CARD
from vitrail.publishing.onnx_card import onnx_card


ONNX_FILE = "model.onnx"
OPSET = 20  # the first with GELU; from 23 on, ONNX Runtime's Attention is slower than the products that it stands for

_BATCHES = (1, 3)  # images; what remains after the first batch comes in batches of the second size
# Of the largest output. float32 rounds to 1e-6 of it; 8-bit integers to some hundredths.
_TOLERANCE, _INT8_TOLERANCE = 1e-4, 0.1


@dataclass(frozen=True)
class Comparison:
    """How far an exported file is from its model, as a sentence when printed.

    Attributes:
        held_out: how many images both have seen of those that the training has kept for it.
        made_up: how many of others, from blots to noise.
        difference: the largest of any output, as a share of that output's largest value.
        same_class: for how many images the highest logit is the same one; None without a classification head.
    """

    held_out: int
    made_up: int
    difference: float
    same_class: int | None

    def __str__(self) -> str:
        seen = f"{self.held_out} held-out and {self.made_up}" if self.held_out else f"{self.made_up}"
        apart = f"differ from the model's by at most {self.difference:.1e} of the largest"
        if self.same_class is None:
            return f"On {seen} made-up images its features {apart}."
        return (
            f"On {seen} made-up images its logits {apart}, and {self.same_class} of {self.held_out + self.made_up} "
            "times the likeliest class is the same."
        )


def export_onnx(source: str | Path, destination: Path, *, int8: bool = False, **hub_kwargs: Any) -> Comparison:
    """Writes a model as an ONNX file, and runs both on the same images to make sure that it is the same model.

    The folder has `model.onnx` (with `model.onnx.data` beside it above 2 GB), config.json, preprocessor_config.json and
    a card. The file takes `pixel_values`, float32 (B, C, H, W) for any B and the size that the processor makes, and
    gives `logits` (B, K), or, of a model without a classification head, `last_hidden_state` (B, T, D) and
    `pooler_output` (B, D).

    Args:
        source: what `ViTForImageClassification.from_pretrained` takes; with its image processor.
        destination: a folder that is not there yet, or empty.
        int8: whether the linear layers hold 8-bit integers, a scale for every output channel, and multiply by
            activations that are brought to 8 bits when they are met ("dynamic quantisation").
        hub_kwargs: `revision`, `token`, ... of a Hub repository.

    Raises:
        InputError: the source cannot be read, has no fixed image size, or comes out as another model; or the
            destination is taken or cannot be written. Nothing is left there then.
    """
    if destination.is_file() or (destination.is_dir() and any(destination.iterdir())):
        raise InputError(f"{destination} exists already; give a new place, so that nothing is lost.")
    model = _load(source, **hub_kwargs)
    processor = ViTImageProcessor.from_pretrained(source, **hub_kwargs)
    if processor.output_size is None:
        raise InputError(
            f"{source} prepares images of no fixed size, but an ONNX file is for one: write a size of height and width "
            "into its preprocessor_config.json."
        )
    held_out = [read_image(path) for path in sorted(Path(source).glob("samples/*.png"))]
    made_up = _made_up_images()
    batches = _batches([*held_out, *made_up], processor)
    outputs = ("logits",) if isinstance(model, ViTForImageClassification) else ("last_hidden_state", "pooler_output")
    with torch.inference_mode():
        expected = [{name: said[name] for name in outputs} for said in map(model, batches)]
    with _new_folder(destination) as folder:
        config = cast("ViTConfig", model.config)
        graph = _graph(model, batches[1], outputs)
        if int8:
            _write_int8(graph, folder / ONNX_FILE)
        else:
            graph.save(folder / ONNX_FILE)
        difference, same_class = _compare(folder / ONNX_FILE, batches, expected)
        comparison = Comparison(len(held_out), len(made_up), difference, same_class)
        if not comparison.difference <= (_INT8_TOLERANCE if int8 else _TOLERANCE):  # NaN is no near value either
            instead = "; export it without --int8" if int8 and np.isfinite(comparison.difference) else ""
            raise InputError(f"{source} is not exported, because the file is another model{instead}. {comparison}")
        (folder / "config.json").write_text(_config_json(config), encoding="utf-8")
        processor.save_pretrained(folder)
        card = onnx_card(source, config, processor, outputs, OPSET, int8, str(comparison), **hub_kwargs)
        (folder / CARD).write_text(card, encoding="utf-8")
    return comparison


@contextmanager
def _new_folder(destination: Path) -> Iterator[Path]:
    """A folder that becomes `destination` when all has gone well, and is gone otherwise."""
    destination = destination.resolve()
    try:
        existing = next(folder for folder in destination.parents if folder.exists())  # on the same file system
        with TemporaryDirectory(prefix=".vitrail-", dir=existing) as scratch:
            folder = Path(scratch, destination.name)
            folder.mkdir()
            yield folder
            destination.parent.mkdir(parents=True, exist_ok=True)
            folder.replace(destination)
    except OSError as error:
        raise InputError(f"Cannot write to {destination}: {error.strerror or error}.") from error


def _load(source: str | Path, **hub_kwargs: Any) -> ViTForImageClassification | ViTModel:
    """The classifier or, of a checkpoint without a head for that, the encoder, in float32."""
    has_head = "classifier.weight" in read_checkpoint(source, **hub_kwargs).state_dict
    model_class = ViTForImageClassification if has_head else ViTModel
    return model_class.from_pretrained(source, dtype=torch.float32, **hub_kwargs).eval()


def _made_up_images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    coarse = (generator.integers(0, 256, (cells, cells, 3), dtype=np.uint8) for cells in (4, 12, 36, 108))
    return [Image.fromarray(cells).resize((256, 192)) for cells in coarse]


def _batches(images: list[Image.Image], processor: ViTImageProcessor) -> Sequence[torch.Tensor]:
    alone, together = _BATCHES
    pixel_values = processor(images, return_tensors="pt").pixel_values
    return [pixel_values[:alone], *pixel_values[alone:].split(together)]


def _graph(
    model: ViTForImageClassification | ViTModel, pixel_values: torch.Tensor, outputs: Sequence[str]
) -> torch.onnx.ONNXProgram:
    model.set_attn_implementation("eager")  # whose products ONNX Runtime fuses; sdpa brings reshapes that it keeps
    graph = torch.onnx.export(
        model,
        kwargs={"pixel_values": pixel_values},
        input_names=["pixel_values"],
        output_names=outputs,
        dynamic_shapes={"pixel_values": {0: Dim("batch")}},
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert graph is not None  # as with every call without a file
    for node in graph.model.graph:
        node.metadata_props.clear()  # the lines of source that a node comes from, with the paths of this machine
    return graph


def _config_json(config: ViTConfig) -> str:
    """The configuration, without the sources that a model in PyTorch may need, and with every class's name."""
    fields = json.loads(config.to_json_string())
    fields.pop("auto_map", None)
    return json.dumps(fields | {"id2label": dict(enumerate(config.labels))}, indent=2, ensure_ascii=False) + "\n"


def _write_int8(graph: torch.onnx.ONNXProgram, path: Path) -> None:
    """Dynamic quantisation of the layers that are a product with a matrix of weights: no data set is needed for it."""
    model = onnx.ModelProto()
    model.CopyFrom(graph.model_proto)
    add_pre_process_metadata(model)  # the exporter has folded constants, and shapes are inferred again in any case
    quantize_dynamic(
        model,
        path,
        op_types_to_quantize=["MatMul", "Gemm"],
        per_channel=True,
        reduce_range=True,  # 7 bits: with 8, processors without VNNI overflow 16 bits where they add two products
        weight_type=QuantType.QInt8,
    )


def _compare(
    path: Path, batches: Sequence[torch.Tensor], expected: Sequence[dict[str, torch.Tensor]]
) -> tuple[float, int | None]:
    """The largest difference of any output, as a share of its largest value, and how many classes are the same."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    difference, same_class = 0.0, 0
    for batch, own in zip(batches, expected):
        for name, found in zip(own, map(np.asarray, session.run(list(own), {"pixel_values": batch.numpy()}))):
            exact = own[name].numpy()
            largest = np.abs(exact).max() or 1.0  # a head that has learned nothing says 0 of everything
            difference = np.maximum(difference, np.abs(found - exact).max() / largest)  # which keeps NaN
            if name == "logits":
                same_class += int((found.argmax(-1) == exact.argmax(-1)).sum())
    return float(difference), same_class if "logits" in expected[0] else None
