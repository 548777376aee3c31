"""`ViTConfig`: the paper's variants, and what it refuses."""

import json

import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification


@pytest.mark.parametrize(
    ("variant", "parameters"),
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("S/32", 22_878_952),
        ("B/32", 88_224_232),
        ("B/16", 86_567_656),
        ("L/32", 306_535_400),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
    ],
)
def test_variants_have_the_papers_parameter_counts(variant, parameters):
    with torch.device("meta"):
        model = ViTForImageClassification(ViTConfig.from_variant(variant, num_labels=1000))
    assert model.num_parameters() == parameters


def test_unknown_variant_lists_those_there_are():
    with pytest.raises(InputError, match=r"no variant 'B/17'; the variants are Ti/16, .*, R50\+L/32\."):
        ViTConfig.from_variant("B/17")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"num_attention_heads": 7}, r"num_attention_heads \(7\) must divide hidden_size \(768\)"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0"),
        ({"image_size": 28}, r"image_size \(28\) must be a multiple of patch_size \(16\)"),
        ({"image_size": (224, 100)}, "must be a multiple of patch_size"),
        ({"image_size": -16}, "image_size is -16"),
        ({"hidden_dropout_prob": 1.5}, "hidden_dropout_prob is 1.5"),
        ({"hidden_act": "sine"}, "hidden_act is 'sine'"),
    ],
)
def test_impossible_values_are_refused(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ViTConfig(**fields)


def test_saved_config_is_complete_and_reads_back(tmp_path):
    config = ViTConfig.from_variant("S/32", image_size=(64, 96), layer_norm_eps=1e-6, id2label={0: "cat", 1: "dog"})
    config.save_pretrained(tmp_path)
    again = ViTConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert (again.image_shape, again.grid_shape) == ((64, 96), (2, 3))


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "swin"}')
    with pytest.raises(InputError, match="holds a model of type 'swin'"):
        ViTConfig.from_pretrained(tmp_path)


def test_neither_folder_nor_model_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"neither a folder with a config\.json, .* nor a model on the Hub"):
        ViTConfig.from_pretrained(tmp_path / "nothing")


def test_labels_are_ordered_by_index_whatever_the_order_of_the_file(tmp_path):
    """Sorted as text, as many a file on the Hub has them, 10 and 11 come before 2."""
    names = {str(index): f"class {index}" for index in range(12)}
    shuffled = json.dumps({"model_type": "vit", "id2label": dict(sorted(names.items()))})
    (tmp_path / "config.json").write_text(shuffled)
    assert ViTConfig.from_pretrained(tmp_path).labels == [f"class {index}" for index in range(12)]


def test_a_stock_config_that_does_not_say_means_stocks_epsilon(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    assert ViTConfig.from_pretrained(tmp_path).layer_norm_eps == transformers.ViTConfig().layer_norm_eps == 1e-12
    assert ViTConfig().layer_norm_eps == 1e-6


def test_a_damaged_config_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(InputError, match=r"config\.json is not valid JSON"):
        ViTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": 100}, r"^num_attention_heads \(12\) must divide hidden_size \(100\)\.$"),
        ({"image_size": 225}, r"^image_size \(225\) must be a multiple of patch_size \(16\), so that patches tile"),
        ({"hidden_act": "sine"}, "^hidden_act is 'sine'"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
    ],
)
def test_an_impossible_file_or_change_is_one_sentence(tmp_path, fields, message):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"} | fields))
    with pytest.raises(InputError, match=message) as in_the_file:
        ViTConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(InputError, match=message) as as_a_change:
        ViTConfig.from_pretrained(tmp_path, **fields)
    assert str(in_the_file.value) == str(as_a_change.value)
    assert "\n" not in str(in_the_file.value)


def test_a_change_of_depth_changes_what_a_backbone_returns(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    config = ViTConfig.from_pretrained(tmp_path, num_hidden_layers=3)
    assert (config.out_features, config.out_indices) == (["stage3"], [3])
    assert "out_features" not in json.loads(config.to_json_string())
    chosen = ViTConfig(num_hidden_layers=3, out_indices=[1, 3])
    chosen.save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path).out_features == ["stage1", "stage3"]


def test_a_label_called_like_the_model_stays(tmp_path):
    ViTConfig(id2label={0: "vit", 1: "vitrail"}).save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path).labels == ["vit", "vitrail"]


def test_another_number_of_labels_drops_the_old_names_without_a_word(tmp_path, caplog):
    ViTConfig(id2label={0: "cat", 1: "dog"}).save_pretrained(tmp_path)
    assert ViTConfig.from_pretrained(tmp_path, num_labels=3).labels == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert ViTConfig.from_pretrained(tmp_path, num_labels=2).labels == ["cat", "dog"]
    assert not caplog.records
