"""Attention of single heads against what eager attention returns."""

import pytest
import torch

from vitrail.inspection import attention_maps, layer_attention
from vitrail.modeling import InputError


@pytest.mark.parametrize(("layers", "heads"), [(None, None), ([2, 0], None), ([-1], [3, 0]), ([1, 1], [-2])])
def test_maps_are_those_of_eager_attention(build, pixels, case, layers, heads):
    model = build(case)
    maps = attention_maps(model, pixels, layers, heads)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = torch.stack(model(pixels, output_attentions=True).attentions, dim=1)
    expected = attentions[:, layers or slice(None)][:, :, heads or slice(None)]
    torch.testing.assert_close(maps, expected)


@pytest.mark.parametrize("layer", [0, -1])
def test_a_layers_attention_is_that_of_what_the_head_reads(build, reads, pixels, case, layer):
    model = build(case)
    with torch.no_grad():
        plain = model(pixels).logits
    out = layer_attention(model, pixels, layer)
    attention = attention_maps(model, pixels, [layer])[:, 0]  # (B, k, T, T)
    before = attention.shape[-1] - 6
    if reads(case) is None:  # attention pooling reads the patches by its own attention
        pooling = model.vit.attention_pooling
        patches = model.vit(pixels).last_hidden_state[:, before:]
        query = pooling.q_proj(pooling.latent).unflatten(-1, (4, 8)).transpose(1, 2)
        key = pooling.k_proj(patches).unflatten(-1, (4, 8)).transpose(1, 2)
        read = (query @ key.mT / 8**0.5).softmax(-1).mean(1)  # (B, 1, N)
        read = torch.nn.functional.pad(read, (before, 0))
    else:
        read = torch.tensor(reads(case)(6), dtype=torch.float32)[None, None]
    expected = (read[:, None] @ attention)[:, :, 0, before:].unflatten(-1, (3, 2))
    torch.testing.assert_close(out.heatmap, expected.detach())
    assert torch.equal(out.logits, plain)


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
    with pytest.raises(InputError, match="pixel_values hold NaN"):
        attention_maps(tiny_model, pixels * torch.nan)
