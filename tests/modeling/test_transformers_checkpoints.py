"""Stock transformers' ViT, DeiT and DINOv2 against the originals, by every name that its versions gave the tensors."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTModel


SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 24,
    "patch_size": 8,
    "num_labels": 5,
}
WITH_MLP = SMALL | {"intermediate_size": 64}
FAMILIES = {
    "ViT": (transformers.ViTForImageClassification, transformers.ViTConfig(**WITH_MLP, layer_norm_eps=1e-3)),
    "ViT without qkv bias": (
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**WITH_MLP, qkv_bias=False, hidden_act="gelu_new"),
    ),
    "DeiT": (transformers.DeiTForImageClassification, transformers.DeiTConfig(**WITH_MLP)),
    "DeiT with teacher": (transformers.DeiTForImageClassificationWithTeacher, transformers.DeiTConfig(**WITH_MLP)),
    "DINOv2": (transformers.Dinov2ForImageClassification, transformers.Dinov2Config(**SMALL, mlp_ratio=2)),
    "DINOv2 with SwiGLU": (
        transformers.Dinov2ForImageClassification,
        transformers.Dinov2Config(**SMALL, use_swiglu_ffn=True),
    ),
    "DINOv2 with registers": (
        transformers.Dinov2WithRegistersForImageClassification,
        transformers.Dinov2WithRegistersConfig(**SMALL, num_register_tokens=3),
    ),
}


def images(height=24, width=24):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def relative_error(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES.keys())
def stock(request, randomised):
    model_class, config = request.param
    return randomised(model_class(config))


@torch.no_grad()
def test_stock_computes_the_same(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    ours = ViTForImageClassification.from_pretrained(tmp_path)
    assert relative_error(ours(images()).logits, stock(images()).logits) < 1e-6
    base = ViTModel.from_pretrained(tmp_path)
    assert relative_error(base(images()).last_hidden_state, stock.base_model(images()).last_hidden_state) < 1e-6
    assert torch.equal(base(images()).pooler_output, base(images()).last_hidden_state[:, 0])


@torch.no_grad()
@pytest.mark.parametrize("shape", [(48, 48), (40, 16)], ids=["square", "not square"])
def test_stock_resizes_position_embeddings_the_same(stock, tmp_path, shape):
    stock.save_pretrained(tmp_path)
    asking = {} if stock.config.model_type.startswith("dinov2") else {"interpolate_pos_encoding": True}
    wanted = stock(images(*shape), **asking).logits
    ours = ViTForImageClassification.from_pretrained(tmp_path)
    assert relative_error(ours(images(*shape), **asking).logits, wanted) < 1e-6
    resized = ViTForImageClassification.from_pretrained(tmp_path, image_size=shape)
    assert relative_error(resized(images(*shape)).logits, wanted) < 1e-6


@torch.no_grad()
def test_the_names_that_transformers_5_uses_in_memory_load_too(stock, tmp_path):
    stock.config.architectures = [type(stock).__name__]
    stock.config.save_pretrained(tmp_path)
    state_dict = {name: tensor.contiguous() for name, tensor in stock.state_dict().items()}
    save_file(state_dict, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = ViTForImageClassification.from_pretrained(tmp_path)
    assert relative_error(ours(images()).logits, stock(images()).logits) < 1e-6


@torch.no_grad()
def test_base_models_load_without_a_prefix(stock, tmp_path):
    stock.base_model.save_pretrained(tmp_path)
    ours = ViTModel.from_pretrained(tmp_path)
    assert relative_error(ours(images()).last_hidden_state, stock.base_model(images()).last_hidden_state) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("size", [2**40, 20_000], ids=["one file", "shards"])
def test_pickled_weights_load_through_weights_only(stock, tmp_path, size):
    """As most repositories of transformers 4 held them: pytorch_model.bin, one or several with an index."""
    stock.save_pretrained(tmp_path / "new")
    tensors = load_file(tmp_path / "new" / "model.safetensors")
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_bytes((tmp_path / "new" / "config.json").read_bytes())
    if size == 2**40:
        torch.save(tensors, old / "pytorch_model.bin")
    else:
        names = sorted(tensors)
        parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in parts.items():
            torch.save({name: tensors[name] for name in part}, old / file)
        weight_map = {name: file for file, part in parts.items() for name in part}
        (old / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ours = ViTForImageClassification.from_pretrained(old)
    assert relative_error(ours(images()).logits, stock(images()).logits) < 1e-6


def test_a_pickle_that_wants_to_run_code_is_refused(stock, tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (ran,)

    stock.config.save_pretrained(tmp_path)
    torch.save({"vit.layernorm.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is damaged or holds more than tensors"):
        ViTForImageClassification.from_pretrained(tmp_path)
    assert not ran.exists()


def test_a_truncated_pickle_and_a_broken_index_are_named(stock, tmp_path):
    stock.config.save_pretrained(tmp_path)
    torch.save(stock.state_dict(), tmp_path / "pytorch_model.bin")
    content = (tmp_path / "pytorch_model.bin").read_bytes()
    (tmp_path / "pytorch_model.bin").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not a complete file"):
        ViTForImageClassification.from_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is not a complete file"):
        ViTForImageClassification.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(InputError, match=r"index\.json is no index of weights"):
        ViTForImageClassification.from_pretrained(tmp_path)


@torch.no_grad()
def test_masked_image_modeling_leaves_its_decoder_behind(randomised, tmp_path, caplog):
    config = transformers.ViTConfig(**WITH_MLP, encoder_stride=8)
    stock = randomised(transformers.ViTForMaskedImageModeling(config))
    stock.save_pretrained(tmp_path)
    ours = ViTForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert "the checkpoint has none, the model has 3 classes" in caplog.text
    assert relative_error(ours.vit(images()).last_hidden_state, stock.vit(images()).last_hidden_state) < 1e-6


@torch.no_grad()
def test_the_real_dinov2(assets):
    """As published: used at 224 pixels though trained at 518, by position embeddings resized at every call."""
    folder = assets / "dinov2-small"
    stock = transformers.Dinov2Model.from_pretrained(folder).eval()
    ours = ViTModel.from_pretrained(folder)
    pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    assert relative_error(ours(pixels).last_hidden_state, stock(pixels).last_hidden_state) < 1e-5
    assert ViTConfig.from_pretrained(folder).grid_shape == (37, 37)


def test_each_origin_brings_its_own_numbers(tmp_path):
    for name, fields in {
        "vit": {"layer_norm_eps": 1e-12, "position_resize": "bicubic", "interpolate_pos_encoding": False},
        "deit": {"layer_norm_eps": 1e-12, "use_distillation_token": True, "use_distillation_head": False},
        "dinov2": {"layer_norm_eps": 1e-6, "pooling": "token_and_mean", "patch_size": 14, "intermediate_size": 3072},
        "dinov2_with_registers": {"position_resize": "bicubic_antialias", "num_register_tokens": 4, "patch_size": 16},
    }.items():
        (tmp_path / "config.json").write_text(json.dumps({"model_type": name}))
        config = ViTConfig.from_pretrained(tmp_path)
        assert {field: getattr(config, field) for field in fields} == fields
