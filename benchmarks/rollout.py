"""What attention rollout costs beside the prediction alone, and beside the usual way of doing it, in time and memory.

python benchmarks/rollout.py [--variant S/16] [--patch_size 14] [--rounds 9] [--device cpu] [--dtype float32]

The usual way loads the model with eager attention, keeps every layer's (B, heads, T, T) matrix, stacks and multiplies
them. All three take the same weights and images in turn, round by round; times are medians, and so are the ratios of
each round's times. Memory is the peak above that of the plain forward call, each in a process of its own.
"""

import argparse
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from vitrail.inspection import attention_rollout
from vitrail.modeling import ViTConfig, ViTForImageClassification


CASES = [(224, 1), (224, 8), (518, 1), (518, 4)]  # pixels, images at a time
WAYS = ["predict", "rollout", "usual"]


def usual_rollout(model: ViTForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """Rollout as it is commonly written: (B, N), from `output_attentions=True`."""
    attention = torch.stack(model(pixel_values, output_attentions=True).attentions, dim=1).mean(2)
    attention = (attention + torch.eye(attention.shape[-1], device=attention.device)) / 2
    rollout = attention[:, 0]
    for layer in attention.unbind(1)[1:]:
        rollout = layer @ rollout
    return rollout[:, 0, 1:]


def build(arguments: argparse.Namespace, image_size: int, batch: int) -> dict[str, Callable[[], torch.Tensor]]:
    """The ways, each a call on the same weights and images."""
    torch.manual_seed(0)
    config = ViTConfig.from_variant(arguments.variant, image_size=image_size, patch_size=arguments.patch_size)
    place = {"device": arguments.device, "dtype": getattr(torch, arguments.dtype)}
    model = ViTForImageClassification(config).eval().to(**place)
    eager = ViTForImageClassification(config).eval().to(**place)
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    pixels = torch.randn(batch, 3, image_size, image_size).to(**place)
    return {
        "predict": lambda: model(pixels).logits,
        "rollout": lambda: attention_rollout(model, pixels).heatmap.flatten(1),
        "usual": lambda: usual_rollout(eager, pixels),
    }


@torch.inference_mode()
def seconds(arguments: argparse.Namespace, image_size: int, batch: int) -> tuple[dict[str, list[float]], float]:
    """Of every way, round by round, and how far the two rollouts are apart."""
    ways = build(arguments, image_size, batch)
    difference = (ways["rollout"]() - ways["usual"]()).abs().max().item()
    ways["predict"]()
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            start = time.perf_counter()
            ways[way]()
            if arguments.device == "cuda":
                torch.cuda.synchronize()
            taken[way].append(time.perf_counter() - start)
    return taken, difference


@torch.inference_mode()
def peak(arguments: argparse.Namespace, image_size: int, batch: int, way: str) -> float:
    """MB above the plain forward call's peak. Runs in a process of its own."""
    ways = build(arguments, image_size, batch)
    peaks = []
    for call in (ways["predict"], ways[way]):
        call()
        if arguments.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            call()
            peaks.append(torch.cuda.max_memory_allocated() / 1e6)
        else:  # of Linux
            Path("/proc/self/clear_refs").write_text("5")
            call()
            peaks.append(int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3)
    return peaks[1] - peaks[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--patch_size", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()

    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{arguments.variant} with patches of {arguments.patch_size}, {arguments.dtype}, {where}\n")
    columns = ["pixels", "batch", "predict, s", "+ rollout, s", "usual way, s", "ratio", "usual ratio"]
    columns += ["+ rollout, MB", "usual way, MB", "apart"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for image_size, batch in CASES:
        taken, difference = seconds(arguments, image_size, batch)
        plain, ours, usual = (f"{statistics.median(taken[way]):.3f}" for way in WAYS)
        ratios = [
            statistics.median(other / plain for other, plain in zip(taken[way], taken["predict"])) for way in WAYS[1:]
        ]
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            memory = [pool.apply(peak, (arguments, image_size, batch, way)) for way in WAYS[1:]]
        print(
            f"| {image_size} | {batch} | {plain} | {ours} | {usual} | {ratios[0]:.2f} | {ratios[1]:.2f} "
            f"| {memory[0]:.0f} | {memory[1]:.0f} | {difference:.0e} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
