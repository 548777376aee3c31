"""What the benchmarks share: ways of doing the same work take turns, so that a slow moment meets all of them."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from vitrail.modeling.dense import onednn_is_faster, onednn_product


FOLDER = Path("build/benchmarks")


@dataclass(frozen=True)
class Timing:
    """What one way took.

    Attributes:
        seconds: of every round.
    """

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles, as a share of the median."""
        first, _, third = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (0.0, 0.0, 0.0)
        return (third - first) / 2 / self.median

    def ratio_to(self, other: Timing) -> float:
        """How many times faster this is than the other: the median over rounds, each of them its own comparison."""
        return statistics.median(theirs / own for own, theirs in zip(self.seconds, other.seconds))


def pin() -> None:
    """As many threads as there are processors to use, and each process stays on those."""
    if hasattr(os, "sched_setaffinity"):  # Linux
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def take_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Times every way once a round, A B C A B C; before them, a round that nobody counts warms them up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + warm_up):
        for name, way in ways.items():
            start = clock()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(clock() - start)
    return {name: Timing(tuple(seconds[-rounds:])) for name, seconds in taken.items()}


def peak_memory(build: Callable[..., Callable[[], object]], *arguments: object) -> float:
    """MB that what `build(*arguments)` returns takes beyond what was there before its second call.

    It runs in a process of its own: the high-water mark of Linux, or on a GPU that of PyTorch's allocator.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vitrail.modeling", "timm", "vit_pytorch"])
    with context.Pool(1) as pool:
        return pool.apply(_peak, (build, arguments))


def _peak(build: Callable[..., Callable[[], object]], arguments: tuple[object, ...]) -> float:
    pin()
    way = build(*arguments)
    way()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    way()
    return max(0, _status("VmHWM") - before) / 1e3


def _status(field: str) -> int:
    """kB, of this process."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1])


@torch.inference_mode()
def peak_of_products(
    dtype: torch.dtype, shapes: Iterable[tuple[int, int, int]] = (), device: str = "cpu", rounds: int = 9
) -> float:
    """FLOP/s of the fastest product of matrices measured here and now: the roof under which a model runs.

    Tried are a square one and those of the given shapes, rows, inner and columns, because what fits into a cache is
    faster; where our own products go straight to oneDNN, that, too. Weights are as they are, not packed beforehand.
    """
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), *shapes):
        left, right = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (columns, inner)))
        ways = {"matmul": partial(torch.matmul, left, right.T)}
        if onednn_is_faster(left, dtype):
            ways["oneDNN"] = partial(onednn_product, left, right, None)
        fastest = min(min(timing.seconds) for timing in take_turns(ways, rounds).values())
        best = max(best, 2 * rows * inner * columns / fastest)
    return best


def products_of(width: int, hidden: int, tokens: int) -> list[tuple[int, int, int]]:
    """The shapes of an encoder layer's products, for `peak_of_products`."""
    return [(tokens, width, 3 * width), (tokens, width, hidden), (tokens, hidden, width)]


def machine() -> str:
    """A line that says what was measured on."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}"
    capabilities = torch.cpu.get_capabilities()
    name = capabilities.get("cpu_name") or platform.machine()
    matrices = [name for name in ("avx512_f", "avx512_bf16", "amx_bf16") if capabilities.get(name)]
    return f"{name} ({', '.join(matrices)}), {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


class Report:
    """Tables that are printed as Markdown and kept as JSON.

    Args:
        name: of the benchmark; the file is build/benchmarks/NAME.json.
    """

    def __init__(self, name: str):
        packages = ("torch", "transformers", "timm", "vit-pytorch", "onnxruntime")
        self.content: dict = {
            "machine": machine(),
            "versions": {package: version(package) for package in packages},
            "tables": [],
        }
        self.path = FOLDER / f"{name}.json"
        print(f"# {name}: {machine()}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Prints a table, and writes all so far."""
        print(f"\n{title}\n")
        print_table(columns, rows)
        self.content["tables"].append({"title": title, "rows": [dict(zip(columns, row, strict=True)) for row in rows]})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.content, indent=1))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints Markdown."""
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |", flush=True)


def timing_rows(
    timings: Mapping[str, Timing], ours: str, images: int, flops: float, peak: float, beside: Mapping[str, str]
) -> list[list[str]]:
    """A row a way: images/s, spread, how many times faster ours is, the share of the roof, and what stands beside."""
    return [
        [
            name,
            f"{images / timing.median:.1f}",
            f"{timing.spread:.0%}",
            f"{timings[ours].ratio_to(timing):.2f}",
            f"{flops / timing.median / peak:.0%}",
            beside[name],
        ]
        for name, timing in timings.items()
    ]


TIMING_COLUMNS = ("model", "images/s", "spread", "vitrail is faster by", "of the roof", "apart")
