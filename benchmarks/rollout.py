"""What attention rollout costs beside the prediction alone, and beside the usual way of doing it, in time and memory.

python benchmarks/rollout.py [--variant S/16] [--patch_size 14] [--rounds 9] [--image_sizes 224 518] [--device cpu]
    [--dtype float32]

The usual way loads the model with eager attention, keeps every layer's (B, heads, T, T) matrix, stacks and multiplies
them. All three take the same weights and images in turn, round by round; times are medians, and so are the ratios of
each round's times. Memory is the peak above that of the plain forward call, each in a process of its own.
"""

import argparse
from collections.abc import Callable

import torch
from side_by_side import Report, peak_memory, pin, take_turns

from vitrail.inspection import attention_rollout
from vitrail.modeling import ViTConfig, ViTForImageClassification


BATCHES = {False: (1, 8), True: (1,)}  # of small images and of large ones
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


def one_way(name: str, arguments: argparse.Namespace, image_size: int, batch: int) -> Callable[[], torch.Tensor]:
    """For `peak_memory`."""
    return torch.inference_mode()(build(arguments, image_size, batch)[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--patch_size", type=int, default=14)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 518])
    arguments = parser.parse_args()
    pin()
    report = Report("rollout")
    columns = ["pixels", "batch", "predict, s", "+ rollout, s", "usual way, s", "ratio", "usual ratio"]
    columns += ["+ rollout, MB", "usual way, MB", "apart"]
    rows = []
    for image_size in arguments.image_sizes:
        for batch in BATCHES[image_size > 400]:
            with torch.inference_mode():
                ways = build(arguments, image_size, batch)
                maps = {name: way() for name, way in ways.items()}  # which warms them up, too
                apart = (maps["rollout"] - maps["usual"]).abs().max().item()
                timings = take_turns(ways, arguments.rounds, warm_up=False)
            memory = {name: peak_memory(one_way, name, arguments, image_size, batch) for name in ways}
            rows.append([str(image_size), str(batch), *(f"{timing.median:.3f}" for timing in timings.values())])
            rows[-1] += [f"{timings['predict'].ratio_to(timings[name]):.2f}" for name in WAYS[1:]]
            rows[-1] += [f"{memory[name] - memory['predict']:.0f}" for name in WAYS[1:]] + [f"{apart:.0e}"]
    report.table(f"{arguments.variant} with patches of {arguments.patch_size}, {arguments.dtype}", columns, rows)


if __name__ == "__main__":
    main()
