"""Parameters and multiply-adds of the paper's models, counted on the meta device: docs/paper.md quotes them.

python benchmarks/sizes.py
"""

import torch
from torch.utils.flop_counter import FlopCounterMode

from vitrail.modeling import ViTConfig, ViTForImageClassification
from vitrail.modeling.configuration_vit import VARIANTS


def main() -> None:
    """Prints a line for every variant, at 224 pixels with 1000 classes."""
    for variant in VARIANTS:
        with torch.device("meta"):
            model = ViTForImageClassification(ViTConfig.from_variant(variant, num_labels=1000))
            model.requires_grad_(False)
            model.set_attn_implementation("eager")  # whose matrix products the counter sees
            with FlopCounterMode(display=False) as counter:
                model(torch.empty(1, 3, 224, 224), output_hidden_states=True)  # so that every layer is of every token
        rows, columns = model.config.grid_shape
        giga_multiply_adds = counter.get_total_flops() / 2e9
        print(f"{variant:9} {model.num_parameters():>12,} parameters {giga_multiply_adds:7.2f} GMACs {rows}x{columns}")


if __name__ == "__main__":
    main()
