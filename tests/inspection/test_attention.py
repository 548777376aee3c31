"""Attention of single heads against what eager attention returns."""

import pytest
import torch

from vitrail.inspection import attention_maps
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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": [3]}, "layers holds 3; the model has layers 0 to 2"),
        ({"layers": [-4]}, "layers holds -4"),
        ({"heads": [0, 4]}, "heads holds 4; the model has heads 0 to 3"),
    ],
)
def test_what_is_not_there_is_named(tiny_model, pixels, arguments, message):
    with pytest.raises(InputError, match=message):
        attention_maps(tiny_model, pixels, **arguments)


def test_nan_is_traced(tiny_model, pixels):
    with pytest.raises(InputError, match="pixel_values hold NaN"):
        attention_maps(tiny_model, pixels * torch.nan)
