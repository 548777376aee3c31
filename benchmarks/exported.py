"""Exported models in ONNX Runtime beside PyTorch: the same weights and images, in turn, in one process.

pip install -e '.[onnx]' && python benchmarks/exported.py [--variant S/16] [--batch 16] [--rounds 9]
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory

import onnxruntime
import torch
from side_by_side import Report, pin, take_turns
from torch import nn

from vitrail.modeling import ViTConfig, ViTForImageClassification, ViTImageProcessor
from vitrail.publishing.onnx_export import ONNX_FILE, export_onnx


Way = Callable[[torch.Tensor], torch.Tensor]


def in_torch(folder: Path, dtype: torch.dtype) -> Way:
    """The model itself, under autocast unless in float32."""
    model = ViTForImageClassification.from_pretrained(folder).eval()

    def predict(pixels: torch.Tensor) -> torch.Tensor:
        with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype):
            return model(pixels).logits

    return predict


def in_onnx_runtime(folder: Path) -> Way:
    """The exported file; its threads would by default wait in a busy loop, through the turns of the others."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(folder / ONNX_FILE, options, providers=["CPUExecutionProvider"])
    return lambda pixels: torch.from_numpy(session.run(["logits"], {"pixel_values": pixels.numpy()})[0])


@torch.inference_mode()
def compare(variant: str, batch: int, rounds: int) -> None:
    """Prints the table of one model and batch size."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig.from_variant(variant, image_size=224, num_labels=1000)).eval()
    nn.init.normal_(model.classifier.weight, std=0.02)
    with TemporaryDirectory() as scratch:
        saved, float32, int8 = (Path(scratch, name) for name in ("saved", "float32", "int8"))
        model.save_pretrained(saved)
        ViTImageProcessor().save_pretrained(saved)
        export_onnx(saved, float32)
        export_onnx(saved, int8, int8=True)
        sizes = {folder.name: (folder / ONNX_FILE).stat().st_size / 1e6 for folder in (float32, int8)}
        ways = {
            "PyTorch, float32": in_torch(saved, torch.float32),
            "PyTorch, bfloat16": in_torch(saved, torch.bfloat16),
            f"ONNX Runtime, float32, {sizes['float32']:.0f} MB": in_onnx_runtime(float32),
            f"ONNX Runtime, int8, {sizes['int8']:.0f} MB": in_onnx_runtime(int8),
        }
    pixels = torch.randn(batch, 3, 224, 224)
    expected = model(pixels).logits
    apart = {name: ((way(pixels) - expected).abs().max() / expected.abs().max()).item() for name, way in ways.items()}
    timings = take_turns({name: lambda way=way: way(pixels) for name, way in ways.items()}, rounds)
    reference = timings["PyTorch, bfloat16"]
    rows = []
    for name, timing in timings.items():
        rows.append([name, f"{batch / timing.median:.1f}", f"{timing.spread:.1%}"])
        rows[-1] += [f"{timing.ratio_to(reference):.2f}", f"{apart[name]:.0e}"]
    columns = ["runtime", "images/s", "spread", "of bfloat16's speed", "apart"]
    Report("exported").table(f"{variant}, {batch} at a time", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    pin()
    compare(arguments.variant, arguments.batch, arguments.rounds)


if __name__ == "__main__":
    main()
