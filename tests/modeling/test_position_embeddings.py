"""Table 8 of the paper: every kind of position embedding at every place does what its name says."""

import math

import pytest
import scipy
import torch
from torch.nn import functional as F

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTModel
from vitrail.modeling.position_embeddings import resize_grid, sincos_2d


KINDS = ["none", "learned_1d", "learned_2d", "relative", "sincos_2d"]
PLACES = ["input", "every_layer", "every_layer_shared"]
ROWS, COLUMNS, WIDTH, LAYERS, HEADS = 3, 2, 16, 3, 2
PATCHES = ROWS * COLUMNS


@pytest.fixture
def build(randomised):
    def build(kind, place="input", **fields):
        config = ViTConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=32,
            image_size=(24, 16),
            patch_size=8,
            position_embedding=kind,
            position_placement=place,
            **fields,
        )
        return randomised(ViTModel(config))

    return build


@pytest.fixture
def pixels():
    return torch.randn(2, 3, 24, 16, generator=torch.Generator().manual_seed(1))


def swapped(pixels):
    """The images with their first and last patch exchanged."""
    other = pixels.clone()
    other[:, :, :8, :8], other[:, :, 16:, 8:] = pixels[:, :, 16:, 8:], pixels[:, :, :8, :8]
    return other


def by_hand(model, pixels, place, table):
    """The encoder with position embeddings `table(layer)`, (T, D), written out; the reference for added kinds."""
    patches = model.embeddings.patch_embeddings(pixels)
    tokens = torch.cat((model.embeddings.cls_token.expand(len(pixels), -1, -1), patches), dim=1)
    for index, layer in enumerate(model.layers):
        if index == 0 or place != "input":
            tokens = tokens + table(index)
        tokens = layer(tokens)
    return model.layernorm(tokens)


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_learned_1d(build, pixels, place):
    model = build("learned_1d", place)
    tables = model.embeddings.position_embeddings
    assert tables.shape == (LAYERS if place == "every_layer" else 1, 1 + PATCHES, WIDTH)
    expected = by_hand(model, pixels, place, lambda layer: tables[layer if place == "every_layer" else 0])
    torch.testing.assert_close(model(pixels).last_hidden_state, expected)


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_learned_2d_joins_an_x_and_a_y_half(build, pixels, place):
    model = build("learned_2d", place)

    def table(layer):
        which = layer if place == "every_layer" else 0
        places = [
            torch.cat((model.embeddings.column_embeddings[which, x], model.embeddings.row_embeddings[which, y]))
            for y in range(ROWS)
            for x in range(COLUMNS)
        ]
        return torch.stack([torch.zeros(WIDTH), *places])

    torch.testing.assert_close(model(pixels).last_hidden_state, by_hand(model, pixels, place, table))
    halves = model.embeddings.row_embeddings.shape, model.embeddings.column_embeddings.shape
    tables = LAYERS if place == "every_layer" else 1
    assert halves == ((tables, ROWS, WIDTH // 2), (tables, COLUMNS, WIDTH // 2))


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_sincos_2d_is_fixed(build, pixels, place):
    model = build("sincos_2d", place)
    assert not [name for name, _ in model.named_parameters() if "embeddings.row" in name or "position" in name]

    def embedding(x, y):
        quarter = WIDTH // 4
        frequencies = [1 / 10_000 ** (i / (quarter - 1)) for i in range(quarter)]
        waves = [wave(place * f) for place in (x, y) for wave in (math.sin, math.cos) for f in frequencies]
        return torch.tensor(waves)

    places = torch.stack([torch.zeros(WIDTH), *(embedding(x, y) for y in range(ROWS) for x in range(COLUMNS))])
    torch.testing.assert_close(model(pixels).last_hidden_state, by_hand(model, pixels, place, lambda _: places))
    torch.testing.assert_close(sincos_2d(ROWS, COLUMNS, WIDTH)[0], places[1:])


@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_relative_is_scored_by_the_query_inside_attention(build, pixels, place):
    """Appendix D.4: logits of the query against the embedding of p_q - p_k, added before the softmax."""
    model = build("relative", place)
    tables = model.embeddings.relative_embeddings
    assert tables.shape == (LAYERS if place == "every_layer" else 1, 2 * PATCHES - 1, WIDTH // HEADS)
    seen = []
    model(pixels, attention_observer=seen.append)
    for layer, (query, _, scaling, bias, *_) in enumerate(seen):
        if place == "input" and layer > 0:
            assert bias is None
            continue
        table = tables[layer if place == "every_layer" else 0]
        expected = torch.zeros_like(bias)
        for q in range(PATCHES):
            for k in range(PATCHES):
                expected[:, :, 1 + q, 1 + k] = query[:, :, 1 + q] @ table[q - k + PATCHES - 1] * scaling
        torch.testing.assert_close(bias, expected)
    model.set_attn_implementation("eager")
    outputs = model(pixels, output_attentions=True)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(pixels).last_hidden_state, outputs.last_hidden_state, atol=1e-5, rtol=1e-5)
    query, _, scaling, bias, *_ = seen[0]
    tokens, _ = model.embeddings(pixels, (ROWS, COLUMNS), None)
    key = model.layers[0].attention.k_proj(model.layers[0].layernorm_before(tokens)).view(2, 1 + PATCHES, HEADS, -1)
    logits = query @ key.permute(0, 2, 3, 1) * scaling + bias
    torch.testing.assert_close(outputs.attentions[0], logits.softmax(-1))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_only_a_model_without_positions_cannot_see_where_a_patch_is(build, pixels, kind, place):
    model = build(kind, place)
    difference = (model(pixels).pooler_output - model(swapped(pixels)).pooler_output).abs().max()
    assert (difference < 1e-5) == (kind == "none")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cell_saves_and_loads_and_learns(build, pixels, kind, place, tmp_path):
    model = build(kind, place)
    model.save_pretrained(tmp_path)
    again = ViTModel.from_pretrained(tmp_path)
    assert (again.config.position_embedding, again.config.position_placement) == (kind, place)
    assert torch.equal(again(pixels).last_hidden_state, model(pixels).last_hidden_state)
    model(pixels).last_hidden_state.square().sum().backward()
    for name, parameter in model.embeddings.named_parameters():
        assert parameter.grad.any(), name


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["none", "learned_1d", "learned_2d", "sincos_2d"])
@torch.no_grad()
def test_another_grid_at_a_call_or_at_loading_is_the_same(build, kind, place, tmp_path):
    build(kind, place).save_pretrained(tmp_path)
    larger = torch.randn(1, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    at_a_call = ViTModel.from_pretrained(tmp_path)(larger, interpolate_pos_encoding=True)
    at_loading = ViTModel.from_pretrained(tmp_path, image_size=(32, 48))(larger)
    torch.testing.assert_close(at_a_call.last_hidden_state, at_loading.last_hidden_state, atol=1e-6, rtol=1e-5)
    assert at_a_call.last_hidden_state.shape == (1, 1 + 4 * 6, WIDTH)


def test_relative_positions_mean_nothing_on_another_grid(build, tmp_path):
    model = build("relative", "every_layer")
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"relative position embeddings fit only the 24x16 of training"):
        model(torch.zeros(1, 3, 32, 16), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match=r"mean nothing on another grid: keep image_size=\(?\[?24, 16"):
        ViTModel.from_pretrained(tmp_path, image_size=32)


@pytest.mark.parametrize("old", [(3, 3), (14, 14), (7, 5)])
@pytest.mark.parametrize("new", [(5, 5), (24, 24), (4, 9)])
def test_the_papers_rule_is_scipys_zoom(old, new):
    """`checkpoint.py` of its code calls it. Where its rounding errors make it write zeros into the last row or column,
    28 to 48 for one, interpolation is right and the paper's code is not."""
    grid = torch.randn(*old, 4, generator=torch.Generator().manual_seed(0))
    expected = scipy.ndimage.zoom(grid.numpy(), (new[0] / old[0], new[1] / old[1], 1), order=1)
    torch.testing.assert_close(resize_grid(grid[None], new, "bilinear")[0], torch.from_numpy(expected))


def test_the_rules_differ_and_are_torchs():
    grid = torch.randn(1, 4, 4, 8, generator=torch.Generator().manual_seed(0))
    rules = {rule: resize_grid(grid, (3, 3), rule) for rule in ("bilinear", "bicubic", "bicubic_antialias")}
    channels_first = grid.permute(0, 3, 1, 2)
    bicubic = F.interpolate(channels_first, size=(3, 3), mode="bicubic").permute(0, 2, 3, 1)
    assert torch.equal(rules["bicubic"], bicubic)
    assert (rules["bicubic"] - rules["bicubic_antialias"]).abs().max() > 0.1
    assert (rules["bicubic"] - rules["bilinear"]).abs().max() > 0.1


def test_half_precision_is_resized_in_float32(tmp_path, tiny_model):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    half = ViTForImageClassification.from_pretrained(tmp_path, image_size=48)
    exact = ViTForImageClassification.from_pretrained(tmp_path, image_size=48, dtype=torch.float32)
    positions = half.vit.embeddings.position_embeddings
    assert positions.dtype == torch.bfloat16
    assert (positions.float() - exact.vit.embeddings.position_embeddings).abs().max() <= 2**-8
    larger = torch.zeros(1, 3, 48, 48)
    assert half(larger).logits.dtype == torch.bfloat16


def test_registers_and_images_that_patches_do_not_tile(build, pixels):
    model = build("learned_1d", num_register_tokens=2)
    assert model(pixels).last_hidden_state.shape == (2, 3 + PATCHES, WIDTH)
    in_layers = build("learned_1d", "every_layer", num_register_tokens=2).embeddings(pixels, (ROWS, COLUMNS), None)[1]
    assert in_layers[0] is None  # it is added already
    assert not in_layers[1][1:3].any()
    assert in_layers[1][0].all()
    with pytest.raises(InputError, match="30x16 pixels, which 8x8 patches do not tile"):
        model(torch.zeros(1, 3, 30, 16), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="0x16 pixels"):
        model(torch.zeros(1, 3, 0, 16), interpolate_pos_encoding=True)
    with pytest.raises(InputError, match="1 channels, but the model reads 3"):
        model(torch.zeros(1, 1, 24, 16))
    with pytest.raises(InputError, match=r"shape \(3, 24, 16\), which is not \(B, C, H, W\)"):
        model(torch.zeros(3, 24, 16))
