"""Training steps beside stock transformers, timm and vit-pytorch: forward, backward and AdamW, in turn.

pip install -e '.[bench]' && python benchmarks/train_step.py [--variant S/16] [--batch 16] [--rounds 5]
    [--precisions fp32 bf16] [--device cpu] [--compile]

The same weights, images and labels; losses and the norms of the patch projection's gradient, which peers lay out
differently, are compared before anything is timed. bf16 is autocast over float32 weights.
"""

import argparse
from collections.abc import Callable

import torch
from peers import TIMM, autocast, check_same, flops_of, logits_of, peers_of, vitrail
from side_by_side import (
    TIMING_COLUMNS,
    Report,
    peak_memory,
    peak_of_products,
    pin,
    products_of,
    take_turns,
    timing_rows,
)
from torch.nn import functional as F


PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}


def steps(variant: str, batch: int, dtype: torch.dtype, device: str, compiled: bool) -> dict[str, Callable]:
    """A step of every model, which returns its loss and the norm of the gradient of the patch projection."""
    model = vitrail(variant)
    models = {**peers_of(model, variant), "vitrail": model}
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(batch, device=device)

    def step_of(module: torch.nn.Module) -> Callable[[], torch.Tensor]:
        module.train().to(device)
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-6)
        patches = (weight for name, weight in module.named_parameters() if "patch" in name and weight.dim() > 1)
        first = next(patches)
        called = torch.compile(module) if compiled else module

        def step() -> torch.Tensor:
            with autocast(dtype, device):
                loss = F.cross_entropy(logits_of(called, pixels).float(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return torch.cat([loss.detach()[None], first.grad.norm()[None]])

        return step

    return {name: step_of(module) for name, module in models.items()}


def one_step(name: str, *arguments) -> Callable[[], torch.Tensor]:
    """For `peak_memory`."""
    return steps(*arguments)[name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=list(TIMM), default="S/16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precisions", choices=list(PRECISIONS), nargs="+", default=list(PRECISIONS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="a process for each")
    arguments = parser.parse_args()
    pin()
    report = Report("train_step")
    model = vitrail(arguments.variant)
    eager = peers_of(model, arguments.variant)["transformers, eager"].eval()
    # The backward pass has two products for each of the forward pass.
    flops = 3 * flops_of(eager, torch.randn(arguments.batch, 3, 224, 224))
    config = model.config
    shapes = products_of(config.hidden_size, config.intermediate_size, arguments.batch * config.sequence_length)
    for precision in arguments.precisions:
        dtype = PRECISIONS[precision]
        setting = (arguments.variant, arguments.batch, dtype, arguments.device, arguments.compile)
        ways = steps(*setting)
        # This is what warms them up, too.
        apart = check_same({name: step() for name, step in ways.items()}, "transformers, sdpa", TOLERANCE[dtype])
        memory = {name: f"{peak_memory(one_step, name, *setting):.0f}" for name in ways if arguments.memory}
        peak = peak_of_products(dtype, shapes, arguments.device)
        timings = take_turns(ways, arguments.rounds, warm_up=False)
        rows = timing_rows(timings, "vitrail", arguments.batch, flops, peak, apart)
        what = f"A step of {arguments.variant}, batch {arguments.batch}, {precision}"
        report.table(
            f"{what}; the roof is {peak / 1e9:,.0f} GFLOP/s",
            [*TIMING_COLUMNS, *(["memory of a step, MB"] if memory else [])],
            [[*row, *([memory[row[0]]] if memory else [])] for row in rows],
        )


if __name__ == "__main__":
    main()
