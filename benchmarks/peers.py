"""The models that people use today, each with the weights of one of ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import timm
import torch
import transformers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from vit_pytorch import ViT

from vitrail.modeling import ViTConfig, ViTForImageClassification
from vitrail.modeling.timm_checkpoints import to_timm


TIMM = {
    "Ti/16": "vit_tiny_patch16_224",
    "S/16": "vit_small_patch16_224",
    "B/16": "vit_base_patch16_224",
    "L/16": "vit_large_patch16_224",
}


def vitrail(variant: str) -> ViTForImageClassification:
    """Ours, at 224 pixels with 1000 classes, whose head is random instead of zero."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig.from_variant(variant, image_size=224, num_labels=1000))
    nn.init.normal_(model.classifier.weight, std=0.02)
    return model


def peers_of(model: ViTForImageClassification, variant: str) -> dict[str, nn.Module]:
    """transformers' with either attention, timm's and vit-pytorch's, each with parameters of its own."""
    in_timm = timm.create_model(TIMM[variant])
    in_timm.load_state_dict(to_timm(model.config.to_dict(), model.state_dict(), None)[1])
    return {
        "transformers, sdpa": stock(model, "sdpa"),
        "transformers, eager": stock(model, "eager"),
        "timm": in_timm,
        "vit-pytorch": in_vit_pytorch(model, copy.deepcopy(in_timm)),
    }


def stock(model: ViTForImageClassification, attention: str) -> nn.Module:
    """transformers' own ViT."""
    peer = transformers.ViTForImageClassification(
        transformers.ViTConfig(**model.config.to_dict(), attn_implementation=attention)
    )
    peer.load_state_dict(model.state_dict())
    return peer


def in_vit_pytorch(model: ViTForImageClassification, reference: nn.Module) -> nn.Module:
    """vit-pytorch's, made of the modules of timm's, which joins the projections as it does.

    It gets biases and loses the LayerNorms around its patch projection, without which it is another model.
    """
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
    for (attention, mlp), block in zip(peer.transformer.layers, reference.blocks, strict=True):
        attention.norm, attention.to_qkv, attention.to_out[0] = block.norm1, block.attn.qkv, block.attn.proj
        mlp.net[0], mlp.net[1], mlp.net[4] = block.norm2, block.mlp.fc1, block.mlp.fc2
    peer.transformer.norm, peer.mlp_head = reference.norm, reference.head
    return peer


def logits_of(module: Callable, pixels: torch.Tensor) -> torch.Tensor:
    """What a model says, whatever it is wrapped in."""
    out = module(pixels)
    return out if isinstance(out, torch.Tensor) else out.logits


def autocast(dtype: torch.dtype, device: str) -> AbstractContextManager:
    """The precision of a call."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device, dtype)


def flops_of(model: nn.Module, pixels: torch.Tensor) -> float:
    """Floating-point operations of the products in a prediction, for a model whose attention is spelled out."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(pixels)
    return counter.get_total_flops()


def check_same(logits: dict[str, torch.Tensor], reference: str, tolerance: float) -> dict[str, str]:
    """How far each is from the reference, relative to the largest logit; ends the run where that is too far."""
    expected = logits[reference].double()
    apart = {
        name: ((own.double() - expected).abs().max() / expected.abs().max()).item() for name, own in logits.items()
    }
    if not max(apart.values()) <= tolerance:
        raise SystemExit(f"The models do not compute the same: {apart}.")
    return {name: f"{value:.0e}" for name, value in apart.items()}
