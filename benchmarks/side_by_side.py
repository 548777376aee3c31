"""The timing that benchmarks share: ways of doing the same work take turns, so that a slow moment meets all of them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


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


def take_turns(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Timing]:
    """Times every way once a round, A B C A B C; a round that nobody counts warms them up."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: Timing(tuple(seconds[1:])) for name, seconds in taken.items()}


@torch.inference_mode()
def peak_of_products(dtype: torch.dtype, rounds: int = 15) -> float:
    """FLOP/s of the fastest product of matrices measured here and now: the roof under which a model runs.

    On a CPU a convolution of 1x1 is tried too, because PyTorch gives it to oneDNN, and float32 matrices to MKL, which
    is slower on processors of others than Intel.
    """
    side = 2048
    left, right = torch.randn(2, side, side, dtype=dtype)
    pixels, kernel = left.T[None, :, :, None].contiguous(memory_format=torch.channels_last), right[:, :, None, None]
    ways = {"matmul": lambda: left @ right, "convolution": lambda: torch.nn.functional.conv2d(pixels, kernel)}
    return 2 * side**3 / min(min(timing.seconds) for timing in take_turns(ways, rounds).values())


def machine() -> str:
    """A line that says what was measured on."""
    name = torch.cpu.get_capabilities().get("cpu_name") or platform.machine()
    return f"{name}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}"


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Prints Markdown."""
    for cells in (columns, ["---"] * len(columns), *rows):
        print(f"| {' | '.join(cells)} |", flush=True)
