"""Attention rollout against a textbook one, in float64, from the full attention matrices."""

import pytest
import torch
import transformers

from vitrail.inspection import attention_rollout
from vitrail.modeling import (
    InputError,
    ViTBackbone,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedPatchPrediction,
)


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(2))


# Fields of `ViTConfig` beside those of `tiny_config`, and what the head reads of n patches and those before them.
CASES = {
    "plain": ({}, lambda n: [1] + n * [0]),
    "registers": ({"num_register_tokens": 3}, lambda n: [1, 0, 0, 0] + n * [0]),
    "distilled": (
        {"use_distillation_token": True, "use_distillation_head": True, "num_register_tokens": 1},
        lambda n: [1 / 2, 1 / 2, 0] + n * [0],
    ),
    "distilled, one head": ({"use_distillation_token": True}, lambda n: [1, 0] + n * [0]),
    "mean": ({"pooling": "mean"}, lambda n: [0] + n * [1 / n]),
    "mean, only patches": (
        {"pooling": "mean", "use_class_token": False, "pool_before_norm": True},
        lambda n: n * [1 / n],
    ),
    "mean, registers first": (
        {"pooling": "mean", "use_class_token": False, "num_register_tokens": 2},
        lambda n: [0, 0] + n * [1 / n],
    ),
    "token and mean": ({"pooling": "token_and_mean"}, lambda n: [1 / 2] + n * [1 / (2 * n)]),
    "attention": ({"pooling": "attention", "num_register_tokens": 1}, None),
    "attention, only patches": ({"pooling": "attention", "use_class_token": False}, None),
    "relative": (
        {"position_embedding": "relative", "position_placement": "every_layer"},
        lambda n: [1] + n * [0],
    ),
    "learned_2d": (
        {"position_embedding": "learned_2d", "position_placement": "every_layer"},
        lambda n: [1] + n * [0],
    ),
    "hybrid": ({"resnet_depths": (1, 1), "resnet_width": 32, "patch_size": 1}, lambda n: [1] + n * [0]),
}


def build(tiny_config, randomised, fields, model_class=ViTForImageClassification):
    fields = {"num_prefix_positions": None} | fields
    return randomised(model_class(ViTConfig.from_dict(tiny_config.to_dict(), **fields)))


def fuse(heads, head_fusion):
    return {"mean": heads.mean(0), "max": heads.max(0).values, "min": heads.min(0).values}[head_fusion]


def attention_of_pooling(pooling, patches):
    """(B, k, N) as torch's own multi-head attention has it."""
    layer = torch.nn.MultiheadAttention(patches.shape[-1], pooling.num_heads, batch_first=True, dtype=torch.float64)
    projections = [pooling.q_proj, pooling.k_proj, pooling.v_proj]
    with torch.no_grad():
        layer.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
        layer.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
        query, patches = pooling.latent.double().expand(len(patches), -1, -1), patches.double()
        return layer(query, patches, patches, average_attn_weights=False)[1][:, :, 0]


def textbook_rollout(model, pixels, read=CASES["plain"][1], head_fusion="mean", discard_ratio=0.0, start_layer=0):
    """Abnar & Zuidema (2020) as written: fuse the heads, add I, normalise, multiply all layers; then what is read."""
    backend = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model.vit(pixels, output_attentions=True)
    model.set_attn_implementation(backend)
    attentions = outputs.attentions
    rows, columns = (side // patch for side, patch in zip(pixels.shape[2:], model.config.patch_shape))
    before = attentions[0].shape[-1] - rows * columns
    maps = []
    for image in range(len(pixels)):
        rollout = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
        for attention in attentions[start_layer:]:
            fused = fuse(attention[image].double(), head_fusion)
            for place in fused.flatten().argsort()[: int(discard_ratio * fused.numel())].tolist():
                query, key = divmod(place, len(fused))
                if key != 0 or not model.config.use_class_token:
                    fused[query, key] = 0
            fused = fused + torch.eye(len(fused), dtype=torch.float64)
            rollout = (fused / fused.sum(1, keepdim=True)) @ rollout
        if read is None:
            pooling = attention_of_pooling(model.vit.attention_pooling, outputs.last_hidden_state[:, before:])[image]
            fused = fuse(pooling, head_fusion)
            row = torch.cat((torch.zeros(before, dtype=torch.float64), fused / fused.sum()))
        else:
            row = torch.tensor(read(rows * columns), dtype=torch.float64)
        maps.append((row @ rollout)[before:].reshape(rows, columns))
    return torch.stack(maps)


@pytest.mark.parametrize("discard_ratio", [0.0, 0.5])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("case", CASES)
def test_every_model_equals_the_textbook(tiny_config, randomised, pixels, case, head_fusion, discard_ratio):
    fields, read = CASES[case]
    model = build(tiny_config, randomised, fields)
    out = attention_rollout(model, pixels, head_fusion, discard_ratio)
    expected = textbook_rollout(model, pixels, read, head_fusion, discard_ratio)
    assert out.heatmap.dtype == torch.float32
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(out.logits, model(pixels).logits)


@pytest.mark.parametrize("start_layer", [0, 1, 2])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("case", ["plain", "attention"])
def test_later_layers_alone_equal_the_textbook(tiny_config, randomised, pixels, case, discard_ratio, start_layer):
    fields, read = CASES[case]
    model = build(tiny_config, randomised, fields)
    out = attention_rollout(model, pixels, discard_ratio=discard_ratio, start_layer=start_layer)
    expected = textbook_rollout(model, pixels, read, discard_ratio=discard_ratio, start_layer=start_layer)
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["plain", "mean", "attention", "learned_2d"])
def test_another_size_has_another_grid(tiny_config, randomised, case):
    fields, read = CASES[case]
    model = build(tiny_config, randomised, fields | {"interpolate_pos_encoding": True})
    pixels = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(3))
    out = attention_rollout(model, pixels)
    assert out.heatmap.shape == (2, 2, 5)
    torch.testing.assert_close(out.heatmap.double(), textbook_rollout(model, pixels, read), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["token", "attention"])
def test_masked_patch_prediction_reads_every_patch(tiny_config, randomised, pixels, monkeypatch, pooling):
    model = build(tiny_config, randomised, {"pooling": pooling}, ViTForMaskedPatchPrediction)
    monkeypatch.setattr(model, "_corrupted", lambda patches, mask: patches)
    out = attention_rollout(model, pixels)
    assert out.logits.shape == (2, 6, 512)
    expected = textbook_rollout(model, pixels, CASES["mean"][1])
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["token", "attention"])
def test_a_backbone_reads_what_it_pools(tiny_config, randomised, pixels, pooling):
    backbone = build(tiny_config, randomised, {"pooling": pooling}, ViTBackbone)
    out = attention_rollout(backbone, pixels)
    assert out.logits is None
    assert torch.equal(out.heatmap, attention_rollout(backbone.vit, pixels).heatmap)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_blocks_of_rows_do_not_show(tiny_model, pixels, head_fusion, monkeypatch):
    whole = attention_rollout(tiny_model, pixels, head_fusion).heatmap
    monkeypatch.setattr("vitrail.inspection.attention._BLOCK_ELEMENTS_CPU", 60)  # 2 of 7 rows at a time
    torch.testing.assert_close(attention_rollout(tiny_model, pixels, head_fusion).heatmap, whole)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_logits_are_the_models_own(tiny_model, pixels, backend):
    tiny_model.set_attn_implementation(backend)
    plain = tiny_model(pixels).logits
    assert torch.equal(attention_rollout(tiny_model, pixels).logits, plain)
    assert torch.equal(tiny_model(pixels).logits, plain)
    assert tiny_model.config._attn_implementation == backend


def test_model_without_head_has_no_logits(tiny_model, pixels):
    out = attention_rollout(tiny_model.vit, pixels)
    assert out.logits is None
    assert torch.equal(out.heatmap, attention_rollout(tiny_model, pixels).heatmap)


def test_with_the_class_token_a_row_sums_to_one(tiny_model, pixels):
    """At one layer the class token keeps half of itself and half of its own attention to itself."""
    out = attention_rollout(tiny_model, pixels, start_layer=2)
    tiny_model.set_attn_implementation("eager")
    last = tiny_model(pixels, output_attentions=True).attentions[-1].mean(1)
    torch.testing.assert_close(out.heatmap.sum((1, 2)), 1 - (1 + last[:, 0, 0]) / 2)


def test_bfloat16_model_is_rolled_out_in_float32(tiny_model, pixels):
    exact = attention_rollout(tiny_model, pixels).heatmap
    rough = attention_rollout(tiny_model.to(torch.bfloat16), pixels).heatmap
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"head_fusion": "median"}, "head_fusion is 'median'"),
        ({"discard_ratio": 1.0}, r"discard_ratio is 1\.0"),
        ({"discard_ratio": -0.1}, r"discard_ratio is -0\.1"),
        ({"start_layer": 3}, "start_layer is 3; the model has layers 0 to 2"),
    ],
)
def test_bad_arguments_are_named(tiny_model, pixels, arguments, message):
    with pytest.raises(InputError, match=message):
        attention_rollout(tiny_model, pixels, **arguments)


def test_a_model_that_does_not_show_its_attention_is_named(tiny_model, pixels, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    stock = transformers.ViTForImageClassification.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="ViTForImageClassification does not show its attention; load it with"):
        attention_rollout(stock, pixels)
