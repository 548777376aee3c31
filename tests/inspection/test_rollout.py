"""Attention rollout against a textbook one, in float64, from the full attention matrices."""

import re

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from vitrail.inspection import (
    attention_by_depth,
    attention_maps,
    attention_rollout,
    layer_attention,
    rollout_by_depth,
)
from vitrail.inspection.rollout import _Operator
from vitrail.modeling import InputError, ViTBackbone, ViTConfig, ViTForMaskedPatchPrediction


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


def only_first(patches):
    return [1] + patches * [0]


def textbook_rollout(
    model,
    pixels,
    read=only_first,
    head_fusion="mean",
    discard_ratio=0.0,
    start_layer=0,
    end_layer=None,
    residual_weight=1.0,
):
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
        for attention in attentions[start_layer:end_layer]:
            fused = fuse(attention[image].double(), head_fusion)
            for place in fused.flatten().argsort()[: int(discard_ratio * fused.numel())].tolist():
                query, key = divmod(place, len(fused))
                if key != 0 or not model.config.use_class_token:
                    fused[query, key] = 0
            fused = fused + residual_weight * torch.eye(len(fused), dtype=torch.float64)
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
def test_every_model_equals_the_textbook(build, reads, pixels, case, head_fusion, discard_ratio):
    model = build(case)
    out = attention_rollout(model, pixels, head_fusion, discard_ratio)
    expected = textbook_rollout(model, pixels, reads(case), head_fusion, discard_ratio)
    assert out.heatmap.dtype == torch.float32
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(out.logits, model(pixels).logits)


@pytest.mark.parametrize("residual_weight", [0.2, 1.0, 3.0])
@pytest.mark.parametrize(("start_layer", "end_layer"), [(0, None), (1, None), (2, 3), (0, 1), (1, 2)])
@pytest.mark.parametrize("discard_ratio", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("case", ["plain", "attention"])
def test_some_layers_equal_the_textbook(
    build, reads, pixels, case, discard_ratio, start_layer, end_layer, residual_weight
):
    model = build(case)
    arguments = {
        "discard_ratio": discard_ratio,
        "start_layer": start_layer,
        "end_layer": end_layer,
        "residual_weight": residual_weight,
    }
    out = attention_rollout(model, pixels, **arguments)
    expected = textbook_rollout(model, pixels, reads(case), **arguments)
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)


def of_patch(model, place):
    """What is read of the tokens, as `reads` has it, where it is the patch at that place alone."""
    before = [0] * model.config.num_prefix_tokens
    return lambda patches: before + [int(patch == place) for patch in range(patches)]


@pytest.mark.parametrize(
    ("patch", "place", "head_fusion"), [((0, 0), 0, "mean"), ((1, 0), 2, "max"), ((2, 1), 5, "mean")]
)
def test_of_a_patch_equals_the_textbook(build, pixels, case, patch, place, head_fusion):
    model = build(case)
    arguments = {"head_fusion": head_fusion, "discard_ratio": 0.3, "residual_weight": 0.5}
    out = attention_rollout(model, pixels, patch=patch, **arguments)
    expected = textbook_rollout(model, pixels, of_patch(model, place), **arguments)
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        assert torch.equal(out.logits, model(pixels).logits)


@pytest.mark.parametrize("case", ["plain", "attention"])
@pytest.mark.parametrize(("start_layer", "end_layer"), [(0, 1), (1, 2), (2, None)])
def test_some_layers_of_a_patch_equal_the_textbook(build, pixels, case, start_layer, end_layer):
    model = build(case)
    arguments = {"start_layer": start_layer, "end_layer": end_layer}
    out = attention_rollout(model, pixels, patch=(1, 1), **arguments)
    expected = textbook_rollout(model, pixels, of_patch(model, 3), **arguments)
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"head_fusion": "max", "discard_ratio": 0.5, "residual_weight": 0.5}, {"patch": (1, 1)}, {"patch": (0, 0)}],
)
def test_by_depth_is_the_rollout_to_every_layer(build, pixels, case, arguments):
    model = build(case)
    out = rollout_by_depth(model, pixels, **arguments)
    assert torch.equal(out.logits, attention_rollout(model, pixels).logits)
    for layer in range(3):
        expected = attention_rollout(model, pixels, end_layer=layer + 1, **arguments).heatmap
        torch.testing.assert_close(out.heatmap[:, layer], expected)


@pytest.mark.parametrize("case", ["plain", "mean", "attention", "learned_2d"])
def test_another_size_has_another_grid(build, reads, case):
    model = build(case, interpolate_pos_encoding=True)
    pixels = torch.randn(2, 3, 16, 40, generator=torch.Generator().manual_seed(3))
    out = attention_rollout(model, pixels)
    assert out.heatmap.shape == (2, 2, 5)
    torch.testing.assert_close(out.heatmap.double(), textbook_rollout(model, pixels, reads(case)), atol=1e-6, rtol=1e-5)
    out = attention_rollout(model, pixels, patch=(1, 3))
    expected = textbook_rollout(model, pixels, of_patch(model, 8))
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)
    with pytest.raises(InputError, match=r"patch is \(2, 0\); it must be a row from 0 to 1 and a column from 0 to 4"):
        attention_rollout(model, pixels, patch=(2, 0))


@pytest.mark.parametrize("patch", [None, (2, 0)])
@pytest.mark.parametrize("case", ["plain", "attention"])
def test_masked_patch_prediction_reads_every_patch(build, reads, pixels, monkeypatch, case, patch):
    model = build(case, ViTForMaskedPatchPrediction)
    monkeypatch.setattr(model, "_corrupted", lambda patches, mask: patches)
    out = attention_rollout(model, pixels, patch=patch)
    assert out.logits.shape == (2, 6, 512)
    prefix = [0] * model.config.num_prefix_tokens
    read = of_patch(model, 4) if patch else lambda patches: prefix + patches * [1 / patches]
    expected = textbook_rollout(model, pixels, read)
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["plain", "attention"])
def test_a_backbone_reads_what_it_pools(build, pixels, case):
    backbone = build(case, ViTBackbone)
    out = attention_rollout(backbone, pixels)
    assert out.logits is None
    assert torch.equal(out.heatmap, attention_rollout(backbone.vit, pixels).heatmap)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    sharpness=st.floats(0.01, 30),
    head_fusion=st.sampled_from(["mean", "max", "min"]),
    discard_ratio=st.floats(0, 0.99),
    residual_weight=st.floats(1e-3, 1e3),
    has_class_token=st.booleans(),
)
def test_rows_of_every_operator_sum_to_one(
    seed, sharpness, head_fusion, discard_ratio, residual_weight, has_class_token
):
    """Whatever was discarded, and for any weight of the residual: each row of I goes through as a distribution."""
    config = ViTConfig(use_class_token=has_class_token, pooling="mean", num_prefix_positions=None)
    query, key = torch.randn(2, 2, 3, 5, 4, generator=torch.Generator().manual_seed(seed))
    operator = _Operator(config, head_fusion, discard_ratio, residual_weight)
    rows = operator.applied_to(torch.eye(5).expand(2, -1, -1), (query, key, sharpness, None, None))
    assert (rows >= 0).all()
    torch.testing.assert_close(rows.sum(-1), torch.ones(2, 5))


def test_autocast_is_for_the_model_alone(tiny_model, pixels):
    with torch.autocast("cpu", torch.bfloat16):
        out = attention_rollout(tiny_model, pixels)
        with torch.no_grad():
            assert torch.equal(out.logits, tiny_model(pixels).logits)
        maps = attention_maps(tiny_model, pixels)
    rows = torch.eye(7, dtype=torch.float64)
    for attention in maps.double().mean(2).unbind(1):
        rows = (attention + torch.eye(7)) / 2 @ rows
    torch.testing.assert_close(out.heatmap.flatten(1).double(), rows[:, 0, 1:], atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("head_fusion", ["mean", "max", "min"])
@pytest.mark.parametrize("elements", [60, 200, 400])  # 2 of 7 rows at a time, one image of 3, two
def test_blocks_do_not_show(tiny_model, head_fusion, elements, monkeypatch):
    pixels = torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(4))
    whole = attention_rollout(tiny_model, pixels, head_fusion).heatmap
    monkeypatch.setattr("vitrail.inspection.observation._BLOCK_ELEMENTS_CPU", elements)
    torch.testing.assert_close(attention_rollout(tiny_model, pixels, head_fusion).heatmap, whole)


@pytest.mark.parametrize("patch", [(3, 0), (0, 2), (-1, 0), (0, 0.5), (1,)])
@pytest.mark.parametrize("function", [attention_rollout, rollout_by_depth, layer_attention, attention_by_depth])
def test_a_patch_beside_the_grid_is_named(tiny_model, pixels, function, patch):
    message = f"patch is {re.escape(str(patch))}; it must be a row from 0 to 2 and a column from 0 to 1"
    with pytest.raises(InputError, match=message):
        function(tiny_model, pixels, patch=patch)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@torch.no_grad()
def test_logits_are_the_models_own(tiny_model, pixels, backend):
    tiny_model.set_attn_implementation(backend)
    plain = tiny_model(pixels).logits
    assert torch.equal(attention_rollout(tiny_model, pixels).logits, plain)
    assert torch.equal(tiny_model(pixels).logits, plain)
    assert tiny_model.config._attn_implementation == backend


def test_a_compiled_model_stays_compiled(tiny_model, pixels):
    compiled = torch.compile(tiny_model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        plain = compiled(pixels).logits
    out = attention_rollout(compiled, pixels)
    assert torch.equal(out.logits, plain)
    torch.testing.assert_close(out.heatmap, attention_rollout(tiny_model, pixels).heatmap)


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
        ({"end_layer": 4}, "end_layer is 4; it must lie between 1 and 3"),
        ({"start_layer": 1, "end_layer": 1}, "end_layer is 1; it must lie between 2 and 3"),
        ({"residual_weight": 0.0}, r"residual_weight is 0\.0"),
        ({"residual_weight": float("nan")}, "residual_weight is nan"),
        ({"discard_ratio": float("nan")}, "discard_ratio is nan"),
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


def test_training_mode_is_refused(tiny_model, pixels):
    with pytest.raises(InputError, match=r"training mode, .*; call model.eval\(\)"):
        attention_rollout(tiny_model.train(), pixels)


def test_nan_is_traced_to_images_or_weights(tiny_model, pixels):
    with torch.no_grad(), pytest.raises(InputError, match="pixel_values hold NaN"):
        attention_rollout(tiny_model, pixels.index_fill(3, torch.tensor(5), torch.nan))
    with torch.no_grad():
        tiny_model.vit.layers[1].attention.q_proj.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="the model's weights hold NaN"):
        attention_rollout(tiny_model, pixels)
