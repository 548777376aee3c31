"""What attention rollout costs beside the prediction alone, and beside the usual way of doing it.

python benchmarks/rollout.py [--variant S/16] [--image_size 224] [--batch 1 8] [--rounds 7]

The usual way loads the model with eager attention, keeps every layer's (B, heads, N, N) matrix and multiplies them. All
three take the same weights and images in turn, round by round; times are medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from vitrail.inspection import attention_rollout
from vitrail.modeling import ViTConfig, ViTForImageClassification


def usual_rollout(model: ViTForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """Rollout as it is commonly written: the class token's row (B, N), from `output_attentions=True`."""
    attention = torch.stack(model(pixel_values, output_attentions=True).attentions, dim=1).mean(2)
    attention = (attention + torch.eye(attention.shape[-1])) / 2
    rollout = attention[:, 0]
    for layer in attention.unbind(1)[1:]:
        rollout = layer @ rollout
    return rollout[:, 0, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()

    config = ViTConfig.from_variant(arguments.variant, image_size=arguments.image_size)
    model = ViTForImageClassification(config).eval()
    eager = ViTForImageClassification(config).eval()
    eager.load_state_dict(model.state_dict())
    eager.set_attn_implementation("eager")
    print(f"{arguments.variant} at {arguments.image_size} pixels, {torch.get_num_threads()} threads, seconds a batch")
    print(f"{'batch':>5} {'predict':>9} {'+ rollout':>9} {'usual way':>9} {'ratio':>6} {'usual':>6}  max |difference|")
    for batch in arguments.batch:
        pixels = torch.randn(batch, 3, *config.image_shape)
        ways: dict[str, Callable] = {
            "predict": lambda pixels=pixels: model(pixels),
            "rollout": lambda pixels=pixels: attention_rollout(model, pixels).heatmap.flatten(1),
            "usual": lambda pixels=pixels: usual_rollout(eager, pixels),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        with torch.inference_mode():
            difference = (ways["rollout"]() - ways["usual"]()).abs().max().item()
            for _ in range(arguments.rounds):
                for way, call in ways.items():
                    start = time.perf_counter()
                    call()
                    seconds[way].append(time.perf_counter() - start)
        plain, ours, usual = (statistics.median(seconds[way]) for way in ways)
        row = f"{batch:>5} {plain:>9.3f} {ours:>9.3f} {usual:>9.3f} {ours / plain:>6.2f} {usual / plain:>6.2f}"
        print(f"{row}  {difference:.1e}")


if __name__ == "__main__":
    main()
