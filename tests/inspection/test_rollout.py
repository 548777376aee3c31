"""Attention rollout against a textbook one, in float64, from the full attention matrices."""

import pytest
import torch
import transformers

from vitrail.inspection import attention_rollout
from vitrail.modeling import InputError


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(2))


def textbook_rollout(model, pixels, head_fusion, discard_ratio, start_layer):
    """Abnar & Zuidema (2020) as written: fuse the heads, add I, normalise, multiply all layers."""
    backend = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = model(pixels, output_attentions=True).attentions
    model.set_attn_implementation(backend)
    maps = []
    for image in range(len(pixels)):
        rollout = torch.eye(attentions[0].shape[-1], dtype=torch.float64)
        for attention in attentions[start_layer:]:
            heads = attention[image].double()
            fused = {"mean": heads.mean(0), "max": heads.max(0).values, "min": heads.min(0).values}[head_fusion]
            order = fused.flatten().argsort()[: int(discard_ratio * fused.numel())]
            rows, columns = order // fused.shape[1], order % fused.shape[1]
            fused[rows[columns != 0], columns[columns != 0]] = 0
            fused = fused + torch.eye(len(fused), dtype=torch.float64)
            rollout = (fused / fused.sum(1, keepdim=True)) @ rollout
        maps.append(rollout[0, 1:].reshape(3, 2))
    return torch.stack(maps)


@pytest.mark.parametrize("start_layer", [0, 1, 2])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_equals_the_textbook(tiny_model, pixels, head_fusion, discard_ratio, start_layer):
    out = attention_rollout(tiny_model, pixels, head_fusion, discard_ratio, start_layer)
    expected = textbook_rollout(tiny_model, pixels, head_fusion, discard_ratio, start_layer)
    assert out.heatmap.dtype == torch.float32
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
def test_blocks_of_rows_do_not_show(tiny_model, pixels, head_fusion, monkeypatch):
    whole = attention_rollout(tiny_model, pixels, head_fusion).heatmap
    monkeypatch.setattr("vitrail.inspection.rollout._BLOCK_ELEMENTS", 60)  # 2 of 7 rows at a time
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
