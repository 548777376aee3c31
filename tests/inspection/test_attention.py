"""Attention of single layers and heads against what eager attention returns."""

import copy

import pytest
import torch

from vitrail.inspection import attention_by_depth, attention_maps, layer_attention
from vitrail.modeling import InputError, ViTBackbone


def fuse(heads, head_fusion):
    return {"mean": heads.mean(1), "max": heads.max(1).values, "min": heads.min(1).values}[head_fusion]


def textbook(model, pixels, read, place, head_fusion):
    """What is read of the tokens, (B, 1, T), and every layer's attention, (B, L, k, T, T), in float64."""
    model = copy.deepcopy(model).double()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        outputs = model.vit(pixels.double(), output_attentions=True)
        attentions = torch.stack(outputs.attentions, dim=1)
        before = attentions.shape[-1] - 6
        if place is not None:
            weights = torch.eye(6)[place][None, None]
        elif read is not None:
            return torch.tensor(read(6)).double()[None, None].expand(2, -1, -1), attentions
        else:  # attention pooling reads the patches by its own attention
            pooling = model.vit.attention_pooling
            query = pooling.q_proj(pooling.latent).unflatten(-1, (4, 8)).transpose(1, 2)
            key = pooling.k_proj(outputs.last_hidden_state[:, before:]).unflatten(-1, (4, 8)).transpose(1, 2)
            weights = fuse((query @ key.mT / 8**0.5).softmax(-1), head_fusion)  # (B, 1, N)
            weights = weights / weights.sum(-1, keepdim=True)
    return torch.nn.functional.pad(weights.double().expand(2, -1, -1), (before, 0)), attentions


@pytest.mark.parametrize(("layers", "heads"), [(None, None), ([2, 0], None), ([-1], [3, 0]), ([1, 1], [-2])])
def test_maps_are_those_of_eager_attention(build, pixels, case, layers, heads):
    model = build(case)
    maps = attention_maps(model, pixels, layers, heads)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = torch.stack(model(pixels, output_attentions=True).attentions, dim=1)
    expected = attentions[:, layers or slice(None)][:, :, heads or slice(None)]
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize(
    ("layer", "patch", "place"), [(0, None, None), (-1, None, None), (0, (1, 0), 2), (-1, (2, 1), 5)]
)
def test_a_layers_attention_is_that_of_what_is_read(build, reads, pixels, case, layer, patch, place):
    model = build(case)
    with torch.no_grad():
        plain = model(pixels).logits
    out = layer_attention(model, pixels, layer, patch)
    read, attentions = textbook(model, pixels, reads(case), place, "mean")
    expected = (read[:, None] @ attentions[:, layer])[:, :, 0, -6:].unflatten(-1, (3, 2))
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(out.logits, plain)


@pytest.mark.parametrize(
    ("head_fusion", "patch", "place"),
    [
        ("mean", None, None),
        ("max", None, None),
        ("min", None, None),
        ("mean", (1, 0), 2),
        ("max", (0, 0), 0),
        ("min", (2, 1), 5),
    ],
)
def test_every_layers_attention_is_that_of_what_is_read(build, reads, pixels, case, head_fusion, patch, place):
    model = build(case)
    with torch.no_grad():
        plain = model(pixels).logits
    out = attention_by_depth(model, pixels, head_fusion, patch)
    read, attentions = textbook(model, pixels, reads(case), place, head_fusion)
    fused = torch.stack([fuse(heads, head_fusion) for heads in attentions.unbind(1)], dim=1)  # (B, L, T, T)
    expected = (read[:, None] @ fused)[:, :, 0, -6:].unflatten(-1, (3, 2))
    assert out.heatmap.dtype == torch.float32
    torch.testing.assert_close(out.heatmap.double(), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(out.logits, plain)


@pytest.mark.parametrize("patch", [None, (1, 1)])
@pytest.mark.parametrize("case", ["plain", "mean", "attention"])
def test_backends_and_blocks_do_not_show(build, pixels, monkeypatch, case, patch):
    model = build(case)
    expected = attention_by_depth(model, pixels, "max", patch).heatmap
    model.set_attn_implementation("eager")
    torch.testing.assert_close(attention_by_depth(model, pixels, "max", patch).heatmap, expected)
    monkeypatch.setattr("vitrail.inspection.observation._BLOCK_ELEMENTS_CPU", 60)
    torch.testing.assert_close(attention_by_depth(model, pixels, "max", patch).heatmap, expected)


@pytest.mark.parametrize(
    ("case", "patch", "rows"),
    [("plain", None, 1), ("plain", (2, 1), 1), ("mean", None, 6), ("mean", (1, 0), 1), ("attention", (2, 1), 1)],
)
@pytest.mark.parametrize("function", [layer_attention, attention_by_depth])
def test_only_rows_that_are_wanted_are_made(build, pixels, monkeypatch, function, case, patch, rows):
    model = build(case)
    made = []
    whole = torch.baddbmm

    def baddbmm(*arguments, **kwargs):
        out = kwargs["out"]
        assert out.untyped_storage().nbytes() == 4 * out.numel()  # the buffer holds nothing else
        made.append(out.shape[1])
        return whole(*arguments, **kwargs)

    monkeypatch.setattr(torch, "baddbmm", baddbmm)
    function(model, pixels, patch=patch)
    assert set(made) == {rows}


def test_a_backbone_shows_every_layer(build, pixels):
    backbone = build("mean", ViTBackbone)
    out = attention_by_depth(backbone, pixels)
    assert out.logits is None
    assert torch.equal(out.heatmap, attention_by_depth(backbone.vit, pixels).heatmap)


def test_an_unknown_fusion_is_named(tiny_model, pixels):
    with pytest.raises(InputError, match="head_fusion is 'median'; it must be 'mean', 'max' or 'min'"):
        attention_by_depth(tiny_model, pixels, "median")


def test_memory_is_that_of_what_was_asked_for(tiny_model, pixels, monkeypatch):
    made = []
    whole = torch.Tensor.new_empty

    def new_empty(self, *shape, **kwargs):
        made.append(whole(self, *shape, **kwargs))
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "new_empty", new_empty)
    maps = attention_maps(tiny_model, pixels, layers=[1], heads=[2])
    assert maps.shape == (2, 1, 1, 7, 7)
    assert sum(tensor.numel() for tensor in made) <= 2 * maps.numel()


def test_a_compiled_model_shows_its_maps(tiny_model, pixels):
    compiled = torch.compile(tiny_model, backend="aot_eager", fullgraph=True)
    assert torch.equal(attention_maps(compiled, pixels), attention_maps(tiny_model, pixels))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3]}, "There is no layer 3; the model has layers 0 to 2"),
        ({"layers": [-4]}, "There is no layer -4"),
        ({"layers": [1.5]}, "There is no layer 1.5"),
        ({"layers": "1"}, "There is no layer '1'"),
        ({"heads": [0, 4]}, "There is no head 4; the model has heads 0 to 3"),
    ],
)
def test_what_is_not_there_is_named(tiny_model, pixels, arguments, message):
    with pytest.raises(InputError, match=message):
        attention_maps(tiny_model, pixels, **arguments)


def test_nan_is_traced(tiny_model, pixels):
    for function in (attention_maps, attention_by_depth, layer_attention):
        with pytest.raises(InputError, match="pixel_values hold NaN"):
            function(tiny_model, pixels * torch.nan)
