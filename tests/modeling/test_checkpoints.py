"""Weights in and out: every tensor arrives, or an error names it."""

import json
import logging

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": (24, 16),
    "patch_size": 8,
}
PIXELS = torch.linspace(-1, 1, 2 * 3 * 24 * 16).view(2, 3, 24, 16)


def rewrite(folder, change):
    """Applies `change` to the state dict of a saved model."""
    path = folder / "model.safetensors"
    state_dict = load_file(path)
    change(state_dict)
    save_file(state_dict, path, metadata={"format": "pt"})


@pytest.fixture
def saved(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    return tmp_path


def test_names_on_disk_are_names_in_memory(tiny_model, saved):
    assert load_file(saved / "model.safetensors").keys() == tiny_model.state_dict().keys()


def test_round_trip_is_exact(tiny_model, saved):
    again = ViTForImageClassification.from_pretrained(saved)
    assert not again.training
    assert again.name_or_path == str(saved)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_round_trip_through_shards_and_bfloat16(tiny_model, tmp_path):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [None, "auto"])
def test_weights_keep_the_checkpoints_precision(tiny_model, tmp_path, dtype):
    tiny_model.to(torch.bfloat16).save_pretrained(tmp_path)
    options = {} if dtype is None else {"dtype": dtype}
    assert ViTForImageClassification.from_pretrained(tmp_path, **options).dtype == torch.bfloat16
    assert ViTForImageClassification.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


def test_stock_checkpoints_load_whatever_their_names(randomised, tmp_path):
    """transformers 5 still writes a stock ViT under the names of transformers 4."""
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=(24, 16),
        patch_size=8,
        num_labels=4,
        layer_norm_eps=1e-3,
    )
    stock = randomised(transformers.ViTForImageClassification(config))
    stock.save_pretrained(tmp_path)
    assert any(
        "encoder.layer.1.attention.attention.query" in name for name in load_file(tmp_path / "model.safetensors")
    )
    ours = ViTForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(ours(PIXELS).logits, stock(PIXELS).logits, rtol=0, atol=1e-6)


def test_stock_pooler_is_left_out(randomised, tmp_path):
    """The tanh layer of a stock `ViTModel` belongs to the pre-training head, which is removed (Section 3.2)."""
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=16, patch_size=8
    )
    stock = randomised(transformers.ViTModel(config))
    stock.save_pretrained(tmp_path)
    pixels = torch.randn(1, 3, 16, 16)
    ours = ViTModel.from_pretrained(tmp_path)
    assert torch.equal(ours(pixels).last_hidden_state, stock(pixels).last_hidden_state)


def test_base_and_head_load_from_each_other(saved, tiny_model, tmp_path, caplog):
    base = ViTModel.from_pretrained(saved)
    assert torch.equal(base(PIXELS).pooler_output, tiny_model.vit(PIXELS).pooler_output)
    base.save_pretrained(tmp_path / "base")
    with caplog.at_level(logging.WARNING):
        classifier = ViTForImageClassification.from_pretrained(tmp_path / "base", num_labels=3)
    assert "head is new and starts at zero: the checkpoint has none, the model has 3 classes" in caplog.text
    assert not classifier(PIXELS).logits.any()
    assert torch.equal(classifier.vit(PIXELS).pooler_output, base(PIXELS).pooler_output)


def test_another_label_count_gets_a_new_head_and_says_so(saved, tiny_model, caplog):
    labels = {0: "cat", 1: "dog"}
    with caplog.at_level(logging.WARNING):
        model = ViTForImageClassification.from_pretrained(saved, id2label=labels)
    assert "the checkpoint's has 5 classes, the model's 2" in caplog.text
    assert not model(PIXELS).logits.any()
    assert torch.equal(model.vit(PIXELS).pooler_output, tiny_model.vit(PIXELS).pooler_output)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("vit.layers.1.mlp.fc1.bias"), r"lacks vit\.layers\.1\.mlp\.fc1\.bias;"),
        (lambda tensors: tensors.update({"vit.extra": torch.ones(1)}), r"has unexpected vit\.extra;"),
        (
            lambda tensors: tensors.update({"vit.layernorm.bias": torch.ones(31)}),
            r"vit\.layernorm\.bias with shape \(31,\), but the model needs \(32,\)",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_a_wrong_tensor_is_named(saved, change, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        ViTForImageClassification.from_pretrained(saved)


def test_truncated_file_is_named(saved):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is not a complete safetensors file"):
        ViTForImageClassification.from_pretrained(saved)


def test_missing_shard_is_named(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    shard = index["weight_map"]["vit.layernorm.bias"]
    (tmp_path / shard).unlink()
    with pytest.raises(InputError, match=f"has no {shard}"):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_folder_without_weights_is_named(tiny_config, tmp_path):
    tiny_config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        ViTForImageClassification.from_pretrained(tmp_path)


def test_a_weights_file_loads_with_the_config_beside_it(saved, tiny_model):
    model = ViTForImageClassification.from_pretrained(saved / "model.safetensors")
    assert torch.equal(model(PIXELS).logits, tiny_model(PIXELS).logits)
    assert ViTConfig.from_pretrained(saved / "model.safetensors").image_shape == (24, 16)
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(saved)
    assert ViTImageProcessor.from_pretrained(saved / "model.safetensors").size["height"] == 24


def test_a_configuration_of_ones_own_is_fitted_too(saved, tiny_model):
    """As the Auto classes do: they make the configuration themselves and hand it over."""
    config = ViTConfig.from_pretrained(saved, image_size=(32, 48), num_labels=2)
    model = ViTForImageClassification.from_pretrained(saved, config=config)
    larger = torch.randn(1, 3, 32, 48)
    expected = tiny_model.vit(larger, interpolate_pos_encoding=True).pooler_output
    torch.testing.assert_close(model.vit(larger).pooler_output, expected, atol=1e-6, rtol=1e-5)
    assert model(larger).logits.shape == (1, 2)


def test_one_file_counts_more_than_old_shards_beside_it(tiny_model, tmp_path):
    """As in transformers: a folder that was saved to twice holds what was saved last."""
    tiny_model.save_pretrained(tmp_path, max_shard_size="20KB")
    with torch.no_grad():
        tiny_model.classifier.bias.add_(1)
    tiny_model.save_pretrained(tmp_path / "new")
    (tmp_path / "new" / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert torch.equal(ViTForImageClassification.from_pretrained(tmp_path).classifier.bias, tiny_model.classifier.bias)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("null", "not a JSON object"),
        ('"x"', "not a JSON object"),
        ('{"architecture": 5}', "holds a model of type None"),
        ('{"architecture": "vit_base_patch16_224", "pretrained_cfg": []}', "holds a model of type"),
        ('{"model_type": "vit", "id2label": ["cat"]}', "labels, dtype or stages cannot be used"),
        ('{"model_type": "vit", "id2label": {"a": "cat"}}', "labels, dtype or stages cannot be used"),
        ('{"model_type": "vit", "dtype": "float7"}', "labels, dtype or stages cannot be used"),
        ('{"model_type": "vit", "out_indices": [99]}', "labels, dtype or stages cannot be used"),
    ],
)
def test_an_odd_config_is_one_sentence(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    save_file({"vit.layernorm.bias": torch.ones(4)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=message) as error:
        ViTForImageClassification.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "fields", "message"),
    [
        (
            lambda tensors: tensors.update({"vit.embeddings.position_embeddings": torch.ones(1, 18, 32)}),
            {"image_size": 64},
            r"position embeddings of shape \(1, 18, 32\), but its 3x2 patches need 7",
        ),
        (lambda tensors: tensors.pop("classifier.weight"), {}, r"lacks classifier\.weight"),
        (
            lambda tensors: tensors.update({"vit.layernorm.bias": torch.ones(32, dtype=torch.int32)}),
            {},
            r"vit\.layernorm\.bias in whole numbers",
        ),
        (lambda tensors: None, {"num_labels": 0}, "no classes to tell apart"),
    ],
    ids=["positions", "half a head", "whole numbers", "no classes"],
)
def test_odd_weights_are_one_sentence(saved, change, fields, message):
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        ViTForImageClassification.from_pretrained(saved, **fields)


def test_a_folder_may_be_called_like_a_file(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "model.npz")
    again = ViTForImageClassification.from_pretrained(tmp_path / "model.npz")
    assert torch.equal(again(PIXELS).logits, tiny_model(PIXELS).logits)


def test_a_new_head_is_the_whole_head(randomised):
    distilled = {"use_distillation_token": True, "use_distillation_head": True}
    for fields in (distilled, {"representation_size": 7}, {"pooling": "token_and_mean"}):
        model = randomised(ViTForImageClassification(ViTConfig(**SMALL, **fields)))
        model.reset_head()
        assert model.pre_logits is None
        assert model.config.representation_size is None
        assert not model(PIXELS).logits.any()
