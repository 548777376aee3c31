"""The paper's Figure 7, its numbers against plain definitions in float64."""

import numpy as np
import pytest
import torch

from vitrail.inspection import (
    attention_distance,
    attention_distance_figure,
    attention_maps,
    figure_7,
    filters_figure,
    position_similarity,
    position_similarity_figure,
    principal_filters,
)
from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification


HYBRID = {"resnet_depths": (1, 1), "resnet_width": 32, "patch_size": 1}
CASES = {
    "plain": {},
    "registers": {"num_register_tokens": 3},
    "only patches": {"pooling": "mean", "use_class_token": False},
    "attention pooling": {"pooling": "attention"},
    "relative": {"position_embedding": "relative", "position_placement": "every_layer"},
    "learned_2d": {"position_embedding": "learned_2d", "position_placement": "every_layer"},
    "sincos_2d": {"position_embedding": "sincos_2d"},
    "none": {"position_embedding": "none"},
    "hybrid": HYBRID,
    "oblong patches": {"patch_size": (4, 8)},
}


@pytest.fixture
def build(tiny_config, randomised):
    def build(**fields):
        fields = {"num_prefix_positions": None} | fields
        return randomised(ViTForImageClassification(ViTConfig.from_dict(tiny_config.to_dict(), **fields)))

    return build


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("case", CASES)
def test_attention_distance_is_its_definition(build, pixels, case):
    model = build(**CASES[case])
    prefix, (height, width) = model.config.num_prefix_tokens, model.config.patch_shape
    maps = attention_maps(model, pixels).double()[..., prefix:, prefix:]  # (B, L, k, N, N)
    maps /= maps.sum(-1, keepdim=True)
    columns = 16 // width
    expected = torch.zeros(maps.shape[1:3], dtype=torch.float64)
    for i in range(maps.shape[-1]):
        for j in range(maps.shape[-1]):
            down, across = (i // columns - j // columns) * height, (i % columns - j % columns) * width
            expected += maps[..., i, j].mean(0) * np.hypot(down, across) / maps.shape[-1]
    distances = attention_distance(model, pixels)
    assert distances.dtype == torch.float32
    torch.testing.assert_close(distances.double(), expected, rtol=1e-5, atol=1e-6)


def test_attention_distance_of_a_head_that_looks_at_everything_alike(build, pixels):
    model = build()
    with torch.no_grad():
        model.vit.layers[1].attention.q_proj.weight.zero_()
        model.vit.layers[1].attention.q_proj.bias.zero_()
    places = torch.cartesian_prod(torch.arange(3.0), torch.arange(2.0)) * 8
    torch.testing.assert_close(
        attention_distance(model, pixels)[1], torch.cdist(places, places).mean().expand(4), rtol=1e-5, atol=0
    )


def test_attention_distance_in_small_blocks(build, pixels, monkeypatch):
    model = build()
    whole = attention_distance(model, pixels)
    monkeypatch.setattr("vitrail.inspection.observation._BLOCK_ELEMENTS_CPU", 1)
    torch.testing.assert_close(attention_distance(model, pixels), whole)


@pytest.mark.parametrize("channels", [1, 3])
def test_principal_filters_are_those_of_numpy(channels):
    filters = torch.randn(40, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    components = principal_filters(filters, 6)
    assert components.shape == (6, 4, 5, channels)
    rows = filters.double().numpy().reshape(40, -1)
    values, vectors = np.linalg.eigh(np.cov(rows, rowvar=False))
    expected = vectors[:, values.argsort()[::-1][:6]].T.reshape(6, channels, 4, 5).transpose(0, 2, 3, 1)
    along = (components.numpy() * expected).sum((1, 2, 3))
    np.testing.assert_allclose(np.abs(along), 1, atol=1e-5)
    flat = components.flatten(1)
    assert (flat.gather(1, flat.abs().argmax(1, keepdim=True)) > 0).all()


def test_position_similarity_is_the_cosine():
    positions = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    similarity = position_similarity(positions, [0, 2], [1, 2, 3])
    assert similarity.shape == (2, 3, 3, 4)
    expected = torch.cosine_similarity(positions[2, 3].expand(3, 4, 8), positions, dim=-1)
    torch.testing.assert_close(similarity[1, 2], expected)


@pytest.mark.parametrize("case", [case for case in CASES if case not in ("relative", "none")])
def test_positions_of_every_model_are_drawn(build, case):
    model = build(**CASES[case])
    figure = position_similarity_figure(model)
    rows, columns = model.config.grid_shape
    tiles = [axis for axis in figure.axes if axis.images]
    assert len(tiles) == rows * columns
    for index, tile in enumerate(tiles):  # each is most like itself
        assert tile.images[0].get_array().argmax() == index
    figure.canvas.draw()


def test_each_layer_has_its_own_positions(build):
    model = build(**CASES["learned_2d"])
    first, last = (position_similarity_figure(model, layer).axes[0].images[0].get_array() for layer in (0, 2))
    assert np.abs(first - last).max() > 0.1


def test_a_large_grid_has_tiles_at_even_steps(build):
    model = build(image_size=(37 * 8, 5 * 8))
    figure = position_similarity_figure(model)
    assert "37x5 patches, a tile every 5 rows and 1 columns" in figure.get_suptitle()
    tiles = [axis for axis in figure.axes if axis.images]
    assert len(tiles) == 8 * 5
    assert [tile.images[0].get_array().argmax() // 5 for tile in tiles[::5]] == [0, 5, 10, 15, 20, 25, 30, 35]
    assert [tile.get_ylabel() for tile in tiles[::5]] == ["1", "6", "11", "16", "21", "26", "31", "36"]


@pytest.mark.parametrize("channels", [1, 3])
def test_filters_are_drawn_with_gray_as_zero(build, channels):
    model = build(num_channels=channels)
    figure = filters_figure(model)
    assert len(figure.axes) == 28
    components = principal_filters(model.vit.embeddings.patch_embeddings.projection.weight)
    for axis, component in zip(figure.axes, components, strict=True):
        expected = 0.5 + component.numpy() / component.abs().max().item() / 2
        np.testing.assert_allclose(axis.images[0].get_array().reshape(expected.shape), expected, atol=1e-6)
    figure.canvas.draw()


def test_every_head_is_a_dot():
    distances = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    (axis,) = attention_distance_figure(distances).axes
    dots = np.concatenate([np.asarray(dots.get_offsets()) for dots in axis.collections])
    assert sorted(map(tuple, dots)) == [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6)]


def test_figure_7_has_all_three(build, pixels):
    figure = figure_7(build(), pixels)
    assert [len(panel.axes) for panel in figure.subfigs] == [28, 7, 1]
    figure.canvas.draw()


@pytest.mark.parametrize(
    ("fields", "draw", "sentence"),
    [
        (HYBRID, filters_figure, "hybrid"),
        ({"num_channels": 2}, filters_figure, "The filters have 2 channels"),
        (CASES["none"], position_similarity_figure, "no position embeddings"),
        (CASES["relative"], position_similarity_figure, "of offsets between patches"),
        ({}, lambda model: position_similarity_figure(model, 1), "layer is 1"),
        ({}, lambda _: filters_figure(torch.nn.Linear(2, 2)), "Linear does not show its attention"),
        ({}, lambda _: attention_distance_figure(torch.ones(3)), r"got \(3,\)"),
        ({}, lambda _: attention_distance_figure(torch.tensor([[torch.nan]])), "finite"),
        ({}, lambda model: attention_distance(model, torch.full((1, 3, 24, 16), torch.nan)), "pixel_values hold NaN"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(build, fields, draw, sentence):
    with pytest.raises(InputError, match=sentence):
        draw(build(**fields))


@pytest.mark.parametrize("draw", [filters_figure, position_similarity_figure])
def test_broken_weights_are_said(build, draw):
    model = build()
    with torch.no_grad():
        model.vit.embeddings.patch_embeddings.projection.weight[0] = torch.nan
        model.vit.embeddings.position_embeddings[0] = torch.nan
    with pytest.raises(InputError, match="embedding holds NaN"):
        draw(model)
