"""What the paper and today's checkpoints vary beside position embeddings: pooling, heads, regularisation, hybrids."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn import functional as F

from vitrail.modeling import (
    InputError,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedPatchPrediction,
    ViTModel,
    mean_color_classes,
)


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 5,
}


@pytest.fixture
def build(randomised):
    return lambda **fields: randomised(ViTForImageClassification(ViTConfig(**(SMALL | fields))))


@pytest.fixture
def pixels():
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_each_pooling_reads_what_it_says(build, pixels):
    def tokens(model):
        return model.vit(pixels).last_hidden_state

    token = build(num_register_tokens=2)
    torch.testing.assert_close(token(pixels).logits, token.classifier(tokens(token)[:, 0]))
    mean = build(pooling="mean", num_register_tokens=2)
    assert torch.equal(mean(pixels).logits, mean.classifier(tokens(mean)[:, 3:].mean(1)))
    without = build(pooling="mean", use_class_token=False)
    assert tokens(without).shape == (3, 16, 32)
    assert torch.equal(without(pixels).logits, without.classifier(tokens(without).mean(1)))
    before = build(pooling="mean", pool_before_norm=True)
    torch.testing.assert_close(
        before(pixels).logits, before.classifier(before.vit.layernorm(tokens(before)[:, 1:].mean(1)))
    )
    both = build(pooling="token_and_mean")
    joined = torch.cat((tokens(both)[:, 0], tokens(both)[:, 1:].mean(1)), dim=1)
    assert torch.equal(both(pixels).logits, both.classifier(joined))
    distilled = build(use_distillation_token=True, use_distillation_head=True)
    one = distilled.classifier(tokens(distilled)[:, 0])
    other = distilled.distillation_classifier(tokens(distilled)[:, 1])
    torch.testing.assert_close(distilled(pixels).logits, (one + other) / 2)


@torch.no_grad()
def test_attention_pooling_is_a_query_over_patches(build, pixels):
    model = build(pooling="attention")
    pooling, patches = model.vit.attention_pooling, model.vit(pixels).last_hidden_state[:, 1:]
    query, key, value = (
        projection(inputs).unflatten(-1, (4, 8)).transpose(1, 2)
        for projection, inputs in (
            (pooling.q_proj, pooling.latent),
            (pooling.k_proj, patches),
            (pooling.v_proj, patches),
        )
    )
    attention = (query @ key.transpose(-1, -2) / 8**0.5).softmax(-1)
    pooled = pooling.o_proj((attention @ value).transpose(1, 2).flatten(2))
    pooled = pooled + pooling.mlp(pooling.layernorm(pooled))
    torch.testing.assert_close(model(pixels).logits, model.classifier(pooled[:, 0]))


@torch.no_grad()
def test_the_pre_training_head_has_a_hidden_layer_with_tanh(build, pixels):
    model = build(representation_size=24)
    hidden = torch.tanh(model.pre_logits(model.vit(pixels).pooler_output))
    assert hidden.shape == (3, 24)
    torch.testing.assert_close(model(pixels).logits, model.classifier(hidden))


@torch.no_grad()
def test_layer_scale_scales_the_branches(build, pixels):
    model = build(use_layer_scale=True)
    plain = build()
    plain.load_state_dict(model.state_dict(), strict=False)
    for layer, scaled in zip(plain.vit.layers, model.vit.layers):
        for linear, scale in ((layer.attention.o_proj, scaled.layer_scale1), (layer.mlp.fc2, scaled.layer_scale2)):
            linear.weight.mul_(scale.lambda1[:, None])
            linear.bias.mul_(scale.lambda1)
    torch.testing.assert_close(plain(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-4)
    fresh = ViTModel(ViTConfig(**SMALL, use_layer_scale=True, layer_scale_init_value=1e-5))
    assert (fresh.layers[1].layer_scale2.lambda1 == 1e-5).all()


def test_drop_path_leaves_branches_out_by_depth(build, pixels):
    model = build(drop_path_rate=0.4, num_hidden_layers=3)
    assert [layer.drop_path.rate for layer in model.vit.layers] == [0.0, 0.2, 0.4]
    drop_path = model.vit.layers[2].drop_path
    branch = torch.ones(10_000, 2, 3)
    assert torch.equal(drop_path.eval()(branch), branch)
    dropped = drop_path.train()(branch)
    kept = dropped[:, 0, 0] != 0
    assert torch.equal(dropped[kept], branch[kept] / 0.6)
    assert not dropped[~kept].any()
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.02)


def test_patch_dropout_leaves_patches_out_in_training_alone(build, pixels):
    model = build(patch_dropout_prob=0.75, use_distillation_token=True)
    assert model.vit(pixels).last_hidden_state.shape[1] == 2 + 16
    tokens, _ = model.vit.embeddings(pixels, (4, 4), None)
    kept, _ = model.train().vit.embeddings(pixels, (4, 4), None)
    assert kept.shape == (3, 2 + 4, 32)
    assert torch.equal(kept[:, :2], tokens[:, :2])
    for image in range(3):
        distances = torch.cdist(kept[image, 2:], tokens[image, 2:])
        assert (distances.min(1).values < 1e-6).all()  # each is one of the image's patches with its position
        assert len(set(distances.argmin(1).tolist())) == 4
    with pytest.raises(StrictDataclassError, match="patch_dropout_prob needs position embeddings that are added at"):
        build(patch_dropout_prob=0.5, position_embedding="relative")


@pytest.mark.parametrize(
    ("variant", "parameters", "grid"),
    [
        ("R+Ti/16", 6_337_704, (7, 7)),
        ("R26+S/32", 36_431_912, (7, 7)),
        ("R50+B/16", 98_659_112, (14, 14)),
        ("R50+L/32", 328_994_856, (7, 7)),
    ],
)
def test_hybrids_have_the_papers_parameter_counts(variant, parameters, grid):
    """As counted by the paper's own code; R+Ti/16's patches are 32 pixels wide, whatever its name says."""
    config = ViTConfig.from_variant(variant, num_labels=1000)
    with torch.device("meta"):
        assert ViTForImageClassification(config).num_parameters() == parameters
    assert config.grid_shape == grid


@torch.no_grad()
def test_a_hybrids_filters_are_standardised_and_its_units_start_as_shortcuts(build, pixels):
    fields = {"resnet_depths": (1, 2), "resnet_width": 32, "patch_size": 1, "image_size": 32}
    model = build(**fields)
    larger = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = model(larger).logits
    resnet = model.vit.embeddings.patch_embeddings.resnet
    assert resnet(larger).shape == (2, 256, 4, 4)
    resnet.stages[1][0].conv2.weight.mul_(3).add_(1)
    torch.testing.assert_close(model(larger).logits, expected, atol=1e-4, rtol=1e-4)
    fresh = ViTModel(ViTConfig(**(SMALL | fields))).embeddings.patch_embeddings.resnet
    features = torch.randn(1, 256, 4, 4)
    assert torch.equal(fresh.stages[1][1](features), F.relu(features))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"use_class_token": False}, "pooling 'token' reads the class token"),
        ({"use_class_token": False, "pooling": "mean", "use_distillation_token": True}, "needs use_class_token"),
        ({"use_distillation_head": True}, "use_distillation_head needs use_distillation_token"),
        ({"pooling": "max"}, "pooling"),
        ({"pool_before_norm": True}, "pool_before_norm is for pooling 'mean'"),
        ({"num_register_tokens": -1}, "num_register_tokens is -1"),
        ({"num_prefix_positions": 3}, "num_prefix_positions is 3"),
        ({"position_embedding": "sincos_2d", "hidden_size": 30, "num_attention_heads": 2}, "multiple of 4"),
        ({"position_embedding": "learned_3d"}, "position_embedding"),
        ({"representation_size": 0}, "representation_size is 0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
        ({"resnet_depths": (1,), "resnet_width": 40}, "resnet_width a multiple of 32"),
        ({"resnet_depths": (0,)}, "resnet_depths must be positive"),
        ({"resnet_depths": (1, 1), "patch_size": 1, "image_size": 20}, "times the ResNet stride 8"),
        ({"image_size": [16]}, "image_size"),
    ],
)
def test_what_contradicts_itself_is_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ViTConfig(**(SMALL | fields))


# Masked patch prediction, Appendix B.1.2.


@pytest.fixture
def predictor(randomised):
    return randomised(ViTForMaskedPatchPrediction(ViTConfig(**(SMALL | {"num_register_tokens": 1}))))


def test_colour_classes_are_three_bits_a_channel():
    images = torch.zeros(1, 3, 4, 8)
    images[0, 0, :, 4:], images[0, 1, :, 4:], images[0, 2, :2, 4:] = 1.0, 0.5, 0.6  # blue: 0.3 on average
    assert mean_color_classes(images, (4, 4)).tolist() == [[0, 64 * 7 + 8 * 4 + 2]]
    assert mean_color_classes(torch.ones(2, 3, 4, 4), (2, 2)).tolist() == [[511] * 4] * 2


def test_half_of_the_patches_are_corrupted_in_the_papers_proportions(predictor):
    torch.manual_seed(0)
    count = 16
    patches = torch.randn(4000, count, 32)
    kinds = {"mask": 0, "other": 0, "kept": 0}
    seen = []
    hook = predictor.vit.embeddings.patch_embeddings.register_forward_hook(lambda *_: patches)
    original = predictor._corrupted
    predictor._corrupted = lambda patches, mask: seen.append((original(patches, mask), mask)) or seen[0][0]
    mask = predictor(torch.zeros(4000, 3, 16, 16)).bool_masked_pos
    hook.remove()
    corrupted = seen[0][0]
    assert (mask.sum(1) == count // 2).all()
    assert torch.equal(corrupted[~mask], patches[~mask])
    is_mask = (corrupted == predictor.mask_token).all(-1)
    is_kept = (corrupted == patches).all(-1)
    other = mask & ~is_mask & ~is_kept
    kinds = {"mask": is_mask, "kept": mask & is_kept, "other": other}
    shares = {kind: which.sum().item() / mask.sum().item() for kind, which in kinds.items()}
    assert shares == pytest.approx({"mask": 0.8, "other": 0.1, "kept": 0.1}, abs=0.01)
    image, place = other.nonzero()[0].tolist()
    same_image = (patches[image] == corrupted[image, place]).all(-1)
    assert same_image.sum() == 1  # another patch of the same image
    assert not same_image[place]


def test_loss_counts_corrupted_patches_alone(predictor, pixels):
    labels = torch.randint(512, (3, 16), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(3, 16, dtype=torch.bool)
    mask[:, [2, 5, 11]] = True
    torch.manual_seed(0)
    outputs = predictor(pixels, labels=labels, bool_masked_pos=mask)
    assert outputs.logits.shape == (3, 16, 512)
    expected = F.cross_entropy(outputs.logits[mask], labels[mask])
    torch.testing.assert_close(outputs.loss, expected)
    outputs.loss.backward()
    dead = [name for name, p in predictor.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.endswith("k_proj.bias") for name in dead), dead


def test_its_weights_serve_classification_and_come_back(predictor, pixels, tmp_path, caplog):
    predictor.save_pretrained(tmp_path / "pretrained")
    again = ViTForMaskedPatchPrediction.from_pretrained(tmp_path / "pretrained")
    assert torch.equal(again.mask_token, predictor.mask_token)
    classifier = ViTForImageClassification.from_pretrained(tmp_path / "pretrained", num_labels=3)
    assert "the checkpoint has none, the model has 3 classes" in caplog.text
    assert torch.equal(classifier.vit(pixels).pooler_output, predictor.vit(pixels).pooler_output)
    classifier.save_pretrained(tmp_path / "classifier")
    back = ViTForMaskedPatchPrediction.from_pretrained(tmp_path / "classifier")
    assert torch.equal(back.vit(pixels).pooler_output, predictor.vit(pixels).pooler_output)
    assert not back.color_classifier.weight.any()


def test_masked_patch_prediction_needs_colours():
    with pytest.raises(InputError, match="about colours, but num_channels is 1"):
        ViTForMaskedPatchPrediction(ViTConfig(**(SMALL | {"num_channels": 1})))


def test_one_patch_alone_cannot_be_swapped(randomised):
    model = randomised(ViTForMaskedPatchPrediction(ViTConfig(**(SMALL | {"patch_size": 16}))))
    assert model(torch.zeros(2, 3, 16, 16)).logits.shape == (2, 1, 512)
    assert isinstance(model.color_classifier, nn.Linear)
