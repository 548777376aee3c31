"""Predictions beside stock transformers, timm, vit-pytorch and ONNX Runtime: the same weights and images, in turn.

pip install -e '.[bench]' && python benchmarks/forward.py [--variants S/16 B/16] [--batches 1 16] [--rounds 9]
    [--ways fp32 bf16 bf16-weights compiled onnx] [--device cpu]

Every model's logits are compared with stock transformers' before anything is timed. fp32-switched gives the peers, too,
what makes PyTorch hand float32 to oneDNN, `set_float32_matmul_precision("medium")`; it is left out where there is AMX,
with which that computes in bfloat16. bf16 is autocast over float32 weights, bf16-weights are weights in bfloat16.
"""

import argparse
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import onnxruntime
import torch
from peers import TIMM, autocast, check_same, flops_of, logits_of, peers_of, vitrail
from side_by_side import TIMING_COLUMNS, Report, peak_of_products, pin, products_of, take_turns, timing_rows
from torch import nn


WAYS = ("fp32", "fp32-switched", "bf16", "bf16-weights", "compiled", "onnx")
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 5e-2}
REFERENCE = "transformers, sdpa"


@contextmanager
def switched(precision: str) -> Iterator[None]:
    """The process-wide precision of products in float32, undone afterwards."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def in_onnx_runtime(model: nn.Module, pixels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The exported graph."""
    program = torch.onnx.export(model, (pixels,), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise wait for the next image in a busy loop, through the turns of the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(np.asarray(session.run(None, {name: pixels.numpy()})[0]))


def predict(module: Callable, pixels: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Logits, under autocast unless that is float32."""
    with autocast(dtype, pixels.device.type):
        return logits_of(module, pixels)


@torch.inference_mode()
def compare(report: Report, variant: str, batch: int, ways: list[str], rounds: int, device: str) -> None:
    """Prints the tables of one model and batch size."""
    model = vitrail(variant).eval().to(device)
    models: dict[str, Callable] = {name: peer.eval().to(device) for name, peer in peers_of(model, variant).items()}
    models["vitrail"] = model
    pixels = torch.randn(batch, 3, 224, 224, device=device)
    flops = flops_of(models["transformers, eager"], pixels)
    config = model.config
    shapes = products_of(config.hidden_size, config.intermediate_size, batch * config.sequence_length)

    for way in ways:
        dtype = torch.bfloat16 if way.startswith("bf16") or (way == "compiled" and device != "cpu") else torch.float32
        inputs, chosen, precision = pixels, dict(models), "highest"
        if way == "fp32-switched":
            if torch.cpu.get_capabilities().get("amx_tile", False):
                print("\nfp32-switched: left out, because with AMX that switch computes in bfloat16")
                continue
            precision = "medium"
        if way == "bf16-weights":
            inputs = pixels.to(dtype)
            for module in models.values():
                module.to(dtype)
        if way == "compiled":
            chosen = {name: torch.compile(models[name]) for name in (REFERENCE, "timm", "vitrail")}
        if way == "onnx":
            chosen = {REFERENCE: models[REFERENCE], "ONNX Runtime": in_onnx_runtime(model, pixels), "vitrail": model}

        computed_in = torch.float32 if way == "bf16-weights" else dtype  # by autocast, which weights do not need
        calls = {name: partial(predict, module, inputs, computed_in) for name, module in chosen.items()}
        with switched(precision):
            # This is what warms them up, too.
            apart = check_same({name: call() for name, call in calls.items()}, REFERENCE, TOLERANCE[dtype])
            peak = peak_of_products(dtype, shapes, device)
            timings = take_turns(calls, rounds, warm_up=False)
        title = f"{variant}, batch {batch}, {way}; the roof is {peak / 1e9:,.0f} GFLOP/s"
        report.table(title, TIMING_COLUMNS, timing_rows(timings, "vitrail", batch, flops, peak, apart))
        for module in models.values():
            module.float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variants", choices=list(TIMM), nargs="+", default=["S/16", "B/16"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--name", default="forward", help="of the file of results")
    arguments = parser.parse_args()
    pin()
    report = Report(arguments.name)
    for variant in arguments.variants:
        for batch in arguments.batches:
            compare(report, variant, batch, arguments.ways, arguments.rounds, arguments.device)


if __name__ == "__main__":
    main()
