"""Maps of models that merge tokens against textbook ones, in float64, from full matrices of attention and of merging.

With A_l the attention among the tokens that layer l finds, and M_l the means that it leaves of them, what a token after
layer l is made of is M_l Â_l M_(l-1) ... M_0 Â_0.
"""

import copy

import pytest
import torch
from torch.nn import functional as F

from vitrail.inspection import (
    attention_by_depth,
    attention_distance,
    attention_maps,
    attention_rollout,
    layer_attention,
    relevance,
    relevance_by_depth,
    rollout_by_depth,
)


MODELS = {
    "plain": {},
    "registers, distilled": {
        "use_distillation_token": True,
        "use_distillation_head": True,
        "num_register_tokens": 2,
    },
    "mean": {"pooling": "mean", "use_class_token": False},
    "token and mean": {"pooling": "token_and_mean", "position_embedding": "learned_2d"},
    "attention": {"pooling": "attention", "position_placement": "every_layer"},
}


@pytest.fixture(params=MODELS)
def model(build, request):
    fields = {"image_size": (40, 24), "num_hidden_layers": 4, "merged_tokens_per_layer": 3}
    model = build("plain", **(fields | MODELS[request.param]))
    with torch.no_grad():
        model.classifier.weight.mul_(5)
    return model


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 40, 24, generator=torch.Generator().manual_seed(2))


def matrices(model, pixels):
    """Of every layer and image, by running the model in double precision, spelled out.

    Returns:
        the outputs; each layer's attention (B, k, t, t); who of all tokens is in whom before it, (B, t, T) of 0 and 1;
        and the row of attention pooling (B, k, 1, T), of which the tokens before the patches have nothing, or None.
    """
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    members, pooling = [], []

    def observe(attention):
        if attention.query.shape[2] == 1:
            weights = (attention.query @ attention.key.transpose(2, 3) * attention.scaling).softmax(-1)
            pooling.append((F.pad(weights, (model.config.num_prefix_tokens, 0)), attention.output, attention.value))
        elif attention.merged is None:
            members.append(torch.eye(attention.key.shape[2]).expand(len(pixels), -1, -1).double())
        else:
            left = attention.key.shape[2]
            members.append(F.one_hot(attention.merged.place, left).transpose(1, 2).double())
            assert torch.equal(members[-1].sum(2), attention.merged.size.double())

    outputs = exact(pixels.double(), output_attentions=True, attention_observer=observe)
    return outputs, list(outputs.attentions), members, pooling[0] if pooling else None


def means(members):
    """(B, t, T), rows with sum 1."""
    return members / members.sum(2, keepdim=True)


def merging(before, after):
    """M between two layers, from who is in whom: the part of each new token that each old one is, by size."""
    return means(after) @ before.transpose(1, 2)


def read_of(model, pooling, tokens, head_fusion="mean"):
    """What the head reads of all tokens, (B or 1, 1, T) with sum 1."""
    config, row = model.config, torch.zeros(1, 1, tokens, dtype=torch.float64)
    if pooling is not None:
        fused = fuse(pooling[0], head_fusion)
        return fused / fused.sum(-1, keepdim=True)
    if config.pooling in ("mean", "token_and_mean"):
        row[..., config.num_prefix_tokens :] = 1 / (tokens - config.num_prefix_tokens)
    if config.pooling in ("token", "token_and_mean"):
        row[..., 0] += 1
    if config.use_distillation_head:
        row[..., 1] += 1
    return row / row.sum()


def fuse(heads, head_fusion):
    return {"mean": heads.mean(1), "max": heads.amax(1), "min": heads.amin(1)}[head_fusion]


def textbook_rollout(model, pixels, head_fusion="mean", residual_weight=1.0, start_layer=0, end_layer=4, patch=None):
    """(B, rows, columns); `patch` counts in raster order."""
    _, attentions, members, pooling = matrices(model, pixels)
    tokens, prefix = members[0].shape[2], model.config.num_prefix_tokens
    read = read_of(model, pooling, tokens, head_fusion)
    if patch is not None:
        read = F.one_hot(torch.tensor([[prefix + patch]]), tokens).double()
    rollout = torch.eye(members[start_layer].shape[1], dtype=torch.float64)
    for layer in range(start_layer, end_layer):
        operator = fuse(attentions[layer], head_fusion)
        operator = operator + residual_weight * torch.eye(operator.shape[1], dtype=torch.float64)
        operator = operator / operator.sum(2, keepdim=True)
        rollout = operator @ rollout
        if layer + 1 < end_layer:
            rollout = merging(members[layer], members[layer + 1]) @ rollout
    row = read @ members[end_layer - 1].transpose(1, 2) @ rollout @ means(members[start_layer])
    torch.testing.assert_close(row.sum(2), torch.ones(len(pixels), 1, dtype=torch.float64))
    return row[:, 0, prefix:].unflatten(1, (5, 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"head_fusion": "max"},
        {"head_fusion": "min", "residual_weight": 0.3},
        {"start_layer": 2},
        {"start_layer": 1, "end_layer": 3},
    ],
)
@torch.no_grad()
def test_rollout_equals_the_textbook(model, pixels, arguments):
    out = attention_rollout(model, pixels, **arguments)
    expected = textbook_rollout(model, pixels, **arguments)
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-4)
    assert torch.equal(out.logits, model(pixels).logits)


@pytest.mark.parametrize("end_layer", [1, 2, 4])
@torch.no_grad()
def test_rollout_of_a_patch_equals_the_textbook(model, pixels, end_layer):
    for patch in ((0, 0), (1, 2), (4, 1)):
        place = 3 * patch[0] + patch[1]
        expected = textbook_rollout(model, pixels, end_layer=end_layer, patch=place)
        out = attention_rollout(model, pixels, end_layer=end_layer, patch=patch)
        torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("arguments", [{}, {"patch": (3, 1)}, {"discard_ratio": 0.5, "patch": (0, 2)}])
def test_rollout_by_depth_is_the_rollout_to_every_layer(model, pixels, arguments):
    out = rollout_by_depth(model, pixels, **arguments)
    for layer in range(4):
        expected = attention_rollout(model, pixels, end_layer=layer + 1, **arguments)
        torch.testing.assert_close(out.heatmap[:, layer], expected.heatmap)


@torch.no_grad()
def test_attention_is_shared_among_the_patches_of_a_token(model, pixels):
    _, attentions, members, pooling = matrices(model, pixels)
    expected = torch.stack([m.mT[:, None] @ a @ means(m)[:, None] for a, m in zip(attentions, members)], dim=1)
    maps = attention_maps(model, pixels)
    torch.testing.assert_close(maps.double(), expected, atol=1e-6, rtol=1e-4)

    prefix = model.config.num_prefix_tokens
    read = read_of(model, pooling, expected.shape[-1])
    for layer in range(4):
        heads = (read[:, None] @ expected[:, layer])[:, :, 0, prefix:].unflatten(2, (5, 3))
        out = layer_attention(model, pixels, layer)
        torch.testing.assert_close(out.heatmap.double(), heads, atol=1e-6, rtol=1e-4)
    rows = expected.mean(2)[:, :, prefix + 7, prefix:].unflatten(2, (5, 3))
    out = attention_by_depth(model, pixels, patch=(2, 1))
    torch.testing.assert_close(out.heatmap.double(), rows, atol=1e-6, rtol=1e-4)

    among_patches = expected[..., prefix:, prefix:] / expected[..., prefix:, prefix:].sum(-1, keepdim=True)
    centres = torch.cartesian_prod(torch.arange(5), torch.arange(3)).double() * 8
    distances = (among_patches * torch.cdist(centres, centres)).sum(-1).mean((0, 3))
    torch.testing.assert_close(attention_distance(model, pixels).double(), distances, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["chefer", "gradient_rollout"])
def test_relevance_equals_autograd(model, pixels, method):
    outputs, attentions, members, pooling = matrices(model, pixels)
    target = model(pixels).logits.argmax(1)
    score = outputs.logits.gather(1, target[:, None]).sum()
    gradients = list(torch.autograd.grad(score, attentions, retain_graph=True))

    def weigh(attention, gradient):
        weighted = attention * gradient
        return weighted.clamp(min=0).mean(1) if method == "chefer" else weighted.mean(1).clamp(min=0)

    tokens, prefix = members[0].shape[2], model.config.num_prefix_tokens
    if pooling is None:
        read = read_of(model, None, tokens)
    else:
        weights, output, value = pooling
        (gradient,) = torch.autograd.grad(score, output)
        gradient = F.pad(gradient.transpose(1, 2) @ value.transpose(2, 3), (prefix, 0))
        read = weigh(weights, gradient)
        read = read if method == "chefer" else F.normalize(read, p=1, dim=-1)
    total = torch.eye(tokens, dtype=torch.float64)
    depths = []
    for layer, (attention, gradient) in enumerate(zip(attentions, gradients)):
        if layer:
            total = merging(members[layer - 1], members[layer]) @ total
        weighted = weigh(attention, gradient)
        if method == "chefer":
            total = total + weighted @ total
        else:
            weighted = weighted + torch.eye(weighted.shape[1], dtype=torch.float64)
            total = weighted / weighted.sum(2, keepdim=True) @ total
        depths.append((read @ members[layer].transpose(1, 2) @ total)[:, 0, prefix:].unflatten(1, (5, 3)))
    out = relevance_by_depth(model, pixels, None, method)
    for layer, expected in enumerate(depths):
        peak = expected.max().item()
        assert peak > 1e-6
        torch.testing.assert_close(out.heatmap[:, layer].double(), expected.detach(), atol=1e-5 * peak, rtol=1e-3)
    assert torch.equal(relevance(model, pixels, None, method).heatmap, out.heatmap[:, -1])
