"""Predictions beside stock transformers, timm and vit-pytorch: the same weights and images, in turn, in one process.

pip install -e '.[bench]' && python benchmarks/forward.py [--variant S/16] [--batch 16] [--rounds 9]

vit-pytorch's ViT gets biases and loses the LayerNorms around its patch projection, without which it is another model.
Every model's logits are compared with stock transformers' before anything is timed. In bfloat16 all run under autocast.
"""

import argparse
from collections.abc import Callable
from contextlib import nullcontext

import timm
import torch
import transformers
from side_by_side import machine, peak_of_products, print_table, take_turns
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vit_pytorch import ViT

from vitrail.modeling import ViTConfig, ViTForImageClassification
from vitrail.modeling.timm_checkpoints import to_timm


TIMM = {"Ti/16": "vit_tiny_patch16_224", "S/16": "vit_small_patch16_224", "B/16": "vit_base_patch16_224"}


def stock(model: ViTForImageClassification, attention: str) -> nn.Module:
    """transformers' own ViT with the same weights."""
    config = transformers.ViTConfig(**model.config.to_dict(), attn_implementation=attention)
    peer = transformers.ViTForImageClassification(config)
    peer.load_state_dict(model.state_dict())
    return peer


def in_timm(model: ViTForImageClassification, variant: str) -> nn.Module:
    """timm's with the same weights."""
    peer = timm.create_model(TIMM[variant])
    peer.load_state_dict(to_timm(model.config.to_dict(), model.state_dict(), None)[1])
    return peer


def in_vit_pytorch(model: ViTForImageClassification, reference: nn.Module) -> nn.Module:
    """vit-pytorch's with the weights of timm's, which joins the projections as it does."""
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    peer = ViT(
        image_size=config.image_size,
        patch_size=config.patch_size,
        num_classes=len(config.labels),
        dim=width,
        depth=config.num_hidden_layers,
        heads=heads,
        dim_head=width // heads,
        mlp_dim=config.intermediate_size,
    )
    patches = peer.to_patch_embedding
    patches[1], patches[3] = nn.Identity(), nn.Identity()
    # Its patches are flattened as rows, columns, channels.
    patches[2].weight.data = reference.patch_embed.proj.weight.data.permute(0, 2, 3, 1).flatten(1)
    patches[2].bias.data = reference.patch_embed.proj.bias.data
    peer.cls_token.data = reference.cls_token.data.reshape(peer.cls_token.shape)
    peer.pos_embedding.data = reference.pos_embed.data.reshape(peer.pos_embedding.shape)
    for (attention, mlp), block in zip(peer.transformer.layers, reference.blocks):
        attention.norm, attention.to_qkv, attention.to_out[0] = block.norm1, block.attn.qkv, block.attn.proj
        mlp.net[0], mlp.net[1], mlp.net[4] = block.norm2, block.mlp.fc1, block.mlp.fc2
    peer.transformer.norm, peer.mlp_head = reference.norm, reference.head
    return peer


@torch.inference_mode()
def compare(variant: str, batch: int, rounds: int) -> None:
    """Prints the table of one model and batch size."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig.from_variant(variant, image_size=224, num_labels=1000))
    nn.init.normal_(model.classifier.weight, std=0.02)
    peer = in_timm(model, variant)
    models = {
        "transformers, sdpa": stock(model, "sdpa"),
        "transformers, eager": stock(model, "eager"),
        "timm": peer,
        "vit-pytorch": in_vit_pytorch(model, peer),
        "vitrail": model,
    }
    pixels = torch.randn(batch, 3, 224, 224)

    def way(module: nn.Module, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        def predict() -> torch.Tensor:
            with nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype):
                out = module(pixels)
            return out if isinstance(out, torch.Tensor) else out.logits

        return predict

    for module in models.values():
        module.eval()
    with FlopCounterMode(display=False) as counter:
        models["transformers, eager"](pixels)
    expected = models["transformers, sdpa"](pixels).logits
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        ways = {name: way(module, dtype) for name, module in models.items()}
        apart = {name: ((call() - expected).abs().max() / expected.abs().max()).item() for name, call in ways.items()}
        if max(apart.values()) > tolerance:
            raise SystemExit(f"The models do not compute the same: {apart}.")
        peak = peak_of_products(dtype)
        timings = take_turns(ways, rounds)
        print(f"\n{variant}, {batch} at a time, {dtype}; products of matrices reach {peak / 1e9:.0f} GFLOP/s\n")
        rows = []
        for name, timing in timings.items():
            rows.append([name, f"{batch / timing.median:.1f}", f"{timing.spread:.1%}"])
            rows[-1] += [f"{timings['vitrail'].ratio_to(timing):.2f}", f"{apart[name]:.0e}"]
            rows[-1] += [f"{counter.get_total_flops() / timing.median / peak:.0%}"]
        print_table(["model", "images/s", "spread", "vitrail is faster by", "apart", "of the peak"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", choices=list(TIMM), default="S/16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    print(machine())
    compare(arguments.variant, arguments.batch, arguments.rounds)


if __name__ == "__main__":
    main()
