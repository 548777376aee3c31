"""Token merging against the paper's algorithm spelled out, image by image and token by token, in float64."""

import copy
import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from vitrail.modeling import InputError, ViTBackbone, ViTConfig, ViTForImageClassification, ViTForMaskedPatchPrediction
from vitrail.modeling.conversion import convert
from vitrail.modeling.token_merging import MergedTokens, merge_tokens


KINDS = {
    "class token": {},
    "registers, distilled": {
        "use_distillation_token": True,
        "use_distillation_head": True,
        "num_register_tokens": 2,
        "use_layer_scale": True,
    },
    "mean": {"pooling": "mean", "use_class_token": False, "pool_before_norm": True},
    "token and mean": {"pooling": "token_and_mean"},
    "attention": {"pooling": "attention"},
    "no positions": {"position_embedding": "none"},
    "learned_2d": {"position_embedding": "learned_2d", "position_placement": "every_layer"},
    "shared": {"position_placement": "every_layer_shared", "num_register_tokens": 1},
    "sincos_2d": {"position_embedding": "sincos_2d"},
    "hybrid": {"resnet_depths": (1, 1), "resnet_width": 32, "patch_size": 1},
}


@pytest.fixture
def make(tiny_config, randomised):
    """A function from fields of `ViTConfig` to a model of 5x3 patches and four layers with random weights."""

    def make(model_class=ViTForImageClassification, **fields):
        common = {"image_size": (40, 24), "num_hidden_layers": 4, "num_prefix_positions": None}
        return randomised(model_class(ViTConfig.from_dict(tiny_config.to_dict(), **(common | fields))))

    return make


@pytest.fixture(params=KINDS)
def model(make, request):
    return make(**KINDS[request.param], merged_tokens_per_layer=3)


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 40, 24, generator=torch.Generator().manual_seed(1))


def merged_by_the_paper(tokens, keys, members, pairs, prefix):
    """Section 3 of one image: (t, D), (k, t, D/k) and the members of each token -> the tokens left, and theirs."""
    if not pairs:
        return tokens, members
    directions = [F.normalize(key, dim=0) for key in keys.detach().mean(0)]
    b, a = range(prefix, len(tokens), 2), range(prefix + 1, len(tokens), 2)
    edges = []
    for source in a:
        similarities = [(float(directions[source] @ directions[target]), target) for target in b]
        edges.append((max(similarities)[0], source, max(similarities)[1]))
    kept = sorted(edges, reverse=True)[:pairs]
    groups = {token: [token] for token in range(len(tokens))}
    for _, source, target in kept:
        groups[target].append(source)
        del groups[source]
    order = [token for token in [*range(prefix), *a, *b] if token in groups]
    means, left = [], []
    for token in order:
        sizes = [len(members[each]) for each in groups[token]]
        means.append(sum(size * tokens[each] for size, each in zip(sizes, groups[token])) / sum(sizes))
        left.append(sorted(member for each in groups[token] for member in members[each]))
    return torch.stack(means), left


def encoded_by_the_paper(vit, image, pairs):
    """The tokens after the last layer of one image, each as what it has become, (T, D)."""
    config, embeddings = vit.config, vit.embeddings
    tokens, positions = embeddings(image[None], config.grid_shape, None)
    tokens = tokens[0]
    count, prefix = len(tokens), config.num_prefix_tokens
    members = [[token] for token in range(count)]
    for index, (layer, table) in enumerate(zip(vit.layers, positions)):
        if table is not None:
            tokens = tokens + torch.stack([table[group].mean(0) for group in members])
        attention, normed = layer.attention, layer.layernorm_before(tokens)
        query, keys, value = (
            projection(normed).unflatten(-1, (config.num_attention_heads, -1)).transpose(0, 1)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        copies = [token for token, group in enumerate(members) for _ in group]  # Eq. 1: s copies of the key
        weights = (query @ keys[:, copies].transpose(1, 2) * attention.scaling).softmax(-1)
        attended = (weights @ value[:, copies]).transpose(0, 1).flatten(1)
        tokens = tokens + layer.layer_scale1(attention.o_proj(attended))
        if index < config.num_hidden_layers - 1:
            merges = min(pairs, (len(tokens) - prefix) // 2)
            tokens, members = merged_by_the_paper(tokens, keys, members, merges, prefix)
        tokens = tokens + layer.layer_scale2(layer.mlp(layer.layernorm_after(tokens)))
    become = {token: place for place, group in enumerate(members) for token in group}
    return tokens[[become[token] for token in range(count)]]


def by_the_paper(model, pixels, pairs):
    """(B, T, D) and the logits of a double-precision classifier."""
    tokens = torch.stack([encoded_by_the_paper(model.vit, image, pairs) for image in pixels])
    if not model.config.pool_before_norm:
        tokens = model.vit.layernorm(tokens)
    outputs = transformers.modeling_outputs.BaseModelOutputWithPooling(tokens, model.vit._pool(tokens, None))
    logits = model.classifier(model.features(outputs))
    if model.distillation_classifier is not None:
        logits = (logits + model.distillation_classifier(tokens[:, 1])) / 2
    return tokens, logits


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    images=st.integers(1, 3),
    prefix=st.integers(0, 3),
    patches=st.integers(1, 20),
    pairs=st.lists(st.integers(0, 12), min_size=1, max_size=4),
)
def test_merging_is_the_papers_at_any_shape(seed, images, prefix, patches, pairs):
    generator = torch.Generator().manual_seed(seed)
    count = prefix + patches
    tokens = torch.randn(images, count, 6, dtype=torch.float64, generator=generator)
    expected = [(image, [[token] for token in range(count)]) for image in tokens]
    merged = None
    for wanted in pairs:
        keys = torch.randn(images, 2, tokens.shape[1], 8, dtype=torch.float64, generator=generator)
        fewer = min(wanted, (tokens.shape[1] - prefix) // 2)
        expected = [merged_by_the_paper(t, k, m, fewer, prefix) for (t, m), k in zip(expected, keys)]
        before = tokens.shape[1]
        tokens, merged = merge_tokens(tokens, keys, merged, wanted, prefix)
        assert tokens.shape[1] == before - fewer
    for index, (means, members) in enumerate(expected):
        torch.testing.assert_close(tokens[index], means, rtol=1e-6, atol=1e-6)
        if merged is None:
            assert members == [[token] for token in range(count)]
            continue
        places = merged.place[index].tolist()
        assert [[t for t in range(count) if places[t] == place] for place in range(len(members))] == members
        assert merged.size[index].tolist() == [len(group) for group in members]


@pytest.mark.parametrize("pairs", [1, 3, 1000])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@torch.no_grad()
def test_every_model_equals_the_paper(model, pixels, pairs, backend):
    model.set_attn_implementation(backend)
    model.config.merged_tokens_per_layer = pairs
    exact = copy.deepcopy(model).double()
    tokens, logits = by_the_paper(exact, pixels.double(), pairs)
    torch.testing.assert_close(model.vit(pixels).last_hidden_state.double(), tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(pixels).logits.double(), logits, atol=1e-5, rtol=1e-4)
    model.config.merged_tokens_per_layer = 0
    assert (model.vit(pixels).last_hidden_state - tokens).abs().max() > 0.1


def test_every_gradient_equals_the_papers(model, pixels):
    model = model.double()
    _, logits = by_the_paper(model, pixels.double(), 3)
    parameters = [parameter for name, parameter in model.named_parameters() if not name.endswith("k_proj.bias")]
    expected = torch.autograd.grad(F.cross_entropy(logits, torch.arange(3)), parameters)
    loss = model(pixels, labels=torch.arange(3)).loss
    for gradient, wanted in zip(torch.autograd.grad(loss, parameters), expected):
        assert wanted.any()
        torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_patches_that_are_the_same_merge_without_a_trace(make):
    """Of an image of one colour, without positions, whatever is merged."""
    model = make(position_embedding="none", pooling="token_and_mean")
    pixels = torch.ones(2, 3, 40, 24) * torch.tensor([0.3, -2.0])[:, None, None, None]
    plain = model(pixels).logits
    for pairs in (1, 2, 5, 100):
        model.config.merged_tokens_per_layer = pairs
        torch.testing.assert_close(model(pixels).logits, plain, atol=1e-5, rtol=1e-5)


def test_tokens_become_fewer_inside_and_none_outside(make, pixels):
    model = make(merged_tokens_per_layer=4, num_register_tokens=2, attn_implementation="eager")
    outputs = model.vit(pixels, output_hidden_states=True, output_attentions=True)
    left = [3 + 15, 3 + 11, 3 + 7, 3 + 4, 3 + 4]  # of 7 patches at most 3 pairs; the last layer merges none
    assert [states.shape[1] for states in outputs.hidden_states] == left
    assert [weights.shape[2:] for weights in outputs.attentions] == [(count, count) for count in left[:4]]
    assert outputs.last_hidden_state.shape == (3, 18, 32)


def test_mean_of_all_tokens_is_over_members():
    merged = MergedTokens(torch.tensor([[0, 2, 1, 2]]), torch.tensor([[1.0, 1.0, 2.0]]))
    tokens = torch.tensor([[[1.0], [2.0], [3.0], [5.0]]])
    assert merged.mean(tokens).flatten().tolist() == [1, 3, 3.5]
    assert merged.unmerged(merged.mean(tokens)).flatten().tolist() == [1, 3.5, 3, 3.5]
    torch.testing.assert_close(merged.attention_bias, torch.tensor([[[[1.0, 1.0, 2.0]]]]).log())


@torch.no_grad()
def test_other_sizes_of_images_merge_too(make, pixels):
    model = make(merged_tokens_per_layer=3, position_placement="every_layer")
    large = torch.randn(2, 3, 48, 56, generator=torch.Generator().manual_seed(2))
    assert model.vit(large, interpolate_pos_encoding=True).last_hidden_state.shape == (2, 43, 32)


def test_patches_left_out_in_training_are_not_merged(make, pixels):
    model = make(merged_tokens_per_layer=2, patch_dropout_prob=0.4).train()
    outputs = model.vit(pixels)
    assert outputs.last_hidden_state.shape == (3, 1 + 9, 32)


def test_masked_patches_are_predicted_from_what_they_were_merged_into(make, pixels):
    model = make(ViTForMaskedPatchPrediction, merged_tokens_per_layer=3)
    outputs = model(pixels, labels=torch.zeros(3, 15, dtype=torch.long))
    assert outputs.logits.shape == (3, 15, 512)
    assert {len(image.unique(dim=0)) for image in outputs.logits} == {15 - 3 * 3}
    outputs.loss.backward()
    assert model.mask_token.grad.any()


@torch.no_grad()
def test_it_is_saved_and_set_at_loading_and_afterwards(make, pixels, tmp_path):
    model = make()
    model.save_pretrained(tmp_path / "plain")
    assert json.loads((tmp_path / "plain" / "config.json").read_text())["model_type"] == "vit"
    plain = model(pixels).logits
    model.config.merged_tokens_per_layer = 3
    merging = model(pixels).logits
    assert not torch.equal(merging, plain)
    loaded = ViTForImageClassification.from_pretrained(tmp_path / "plain", merged_tokens_per_layer=3)
    assert torch.equal(loaded(pixels).logits, merging)

    # Stock transformers would compute something else, so that it must not know such a model.
    loaded.save_pretrained(tmp_path / "merging")
    assert json.loads((tmp_path / "merging" / "config.json").read_text())["model_type"] == "vitrail"
    assert (tmp_path / "merging" / "token_merging.py").is_file()
    again = ViTForImageClassification.from_pretrained(tmp_path / "merging")
    assert torch.equal(again(pixels).logits, merging)
    again.config.merged_tokens_per_layer = 0
    assert torch.equal(again(pixels).logits, plain)
    again.save_pretrained(tmp_path / "plain again")
    stock = transformers.ViTForImageClassification.from_pretrained(tmp_path / "plain again")
    torch.testing.assert_close(stock(pixels).logits, plain)


@pytest.mark.parametrize("to", ["transformers", "timm"])
def test_other_formats_cannot_express_it(make, tmp_path, to):
    make(merged_tokens_per_layer=3).save_pretrained(tmp_path / "merging")
    with pytest.raises(InputError, match=f"{to} cannot express merged_tokens_per_layer=3; the nearest model .* has 0"):
        convert(tmp_path / "merging", tmp_path / "other", to)


def test_what_cannot_be_merged_is_one_sentence(make, pixels, tmp_path):
    relative = {"position_embedding": "relative", "position_placement": "every_layer"}
    with pytest.raises(StrictDataclassError, match="must be 0 with relative position embeddings"):
        ViTConfig(**relative, merged_tokens_per_layer=3)
    with pytest.raises(StrictDataclassError, match="merged_tokens_per_layer is -1, but must be at least 0"):
        ViTConfig(merged_tokens_per_layer=-1)
    model = make(**relative)
    model.config.merged_tokens_per_layer = 3
    with pytest.raises(InputError, match="is 3, but must be 0 with relative position embeddings"):
        model(pixels)
    model = make()
    model.config.merged_tokens_per_layer = -1
    with pytest.raises(InputError, match="merged_tokens_per_layer is -1, but must be at least 0"):
        model(pixels)
    model.config.merged_tokens_per_layer = 0
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"^merged_tokens_per_layer is -2, but must be at least 0\.$"):
        ViTForImageClassification.from_pretrained(tmp_path, merged_tokens_per_layer=-2)
    backbone = make(ViTBackbone, merged_tokens_per_layer=3)
    with pytest.raises(InputError, match="feature maps have every patch; set merged_tokens_per_layer to 0"):
        backbone(pixels)
    model = make(merged_tokens_per_layer=3)
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(InputError, match=r"sizes of merged tokens .*; use attn_implementation='sdpa'"):
        model.vit.layers[1](*merged_input(model, pixels))


def merged_input(model, pixels):
    """What a second layer takes: tokens, no position embeddings, and what the first has merged."""
    model.config._attn_implementation_internal, asked = "sdpa", model.config._attn_implementation_internal
    tokens, _ = model.vit.embeddings(pixels, model.config.grid_shape, None)
    tokens, merged = model.vit.layers[0](tokens, pairs_to_merge=3)
    model.config._attn_implementation_internal = asked
    return tokens, None, merged


@pytest.mark.filterwarnings("ignore:There is a performance drop because:UserWarning")  # of fused attention under vmap
def test_transforms_of_functions_and_shapes_alone(make, pixels):
    """vmap cannot write into a part of a tensor, and the meta device has no autocast."""
    model = make(merged_tokens_per_layer=3)
    parameters = {name: torch.stack([value, value]) for name, value in model.named_parameters()}
    with torch.no_grad():
        logits = torch.func.vmap(lambda own: torch.func.functional_call(model, own, (pixels,)).logits)(parameters)
        torch.testing.assert_close(logits[1], model(pixels).logits)
        assert copy.deepcopy(model).to("meta")(pixels.to("meta")).logits.shape == logits.shape[1:]
