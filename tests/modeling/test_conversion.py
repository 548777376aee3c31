"""There and back: every format that can express a model holds it bit for bit; one that cannot says what."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel
from vitrail.modeling.checkpoints import read_checkpoint
from vitrail.modeling.conversion import convert


PAPER = Path(__file__).parent / "paper_checkpoints"
SMALL = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 5,
}
DINOV2 = {"use_layer_scale": True, "pooling": "token_and_mean", "position_resize": "bicubic"}
MODELS = {
    "plain": {},
    "not square": {"image_size": (32, 48), "patch_size": (8, 16)},
    "one channel": {"num_channels": 1},
    "distilled": {"use_distillation_token": True, "use_distillation_head": True},
    "DINOv2": DINOV2 | {"intermediate_size": 256},
    "DINOv2 with registers and SwiGLU": DINOV2
    | {"use_swiglu": True, "intermediate_size": 176, "num_register_tokens": 2},
    "DeiT III": {"use_layer_scale": True, "num_prefix_positions": 0},
    "registers and mean": {
        "num_register_tokens": 2,
        "use_class_token": False,
        "pooling": "mean",
        "pool_before_norm": True,
    },
    "attention pooling": {"pooling": "attention", "use_class_token": False, "hidden_act": "gelu_pytorch_tanh"},
    "pre-logits": {"representation_size": 24, "hidden_act": "gelu_pytorch_tanh"},
    "mean, tanh GELU": {"pooling": "mean", "use_class_token": False, "hidden_act": "gelu_pytorch_tanh"},
    "hybrid of timm": {"resnet_depths": (2, 2, 2, 2), "patch_size": 1, "image_size": 64, "resnet_numerics": "timm"},
    "hybrid root of timm": {
        "resnet_depths": (),
        "patch_size": 4,
        "image_size": 32,
        "resnet_numerics": "timm",
    },
    "SwiGLU without LayerScale": {"use_swiglu": True},
    "one head for two tokens": {"use_distillation_token": True},
    "distilled SwiGLU": {"use_distillation_token": True, "use_distillation_head": True, "use_swiglu": True},
    "hybrid of the paper": {
        "resnet_depths": (1, 2),
        "resnet_width": 32,
        "patch_size": 1,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "two-dimensional positions": {"position_embedding": "learned_2d"},
    "relative positions": {"position_embedding": "relative", "position_placement": "every_layer"},
    "no positions": {"position_embedding": "none"},
}
EXPRESSIBLE = {
    "vitrail": set(MODELS),
    "transformers": {
        *("plain", "not square", "one channel", "distilled", "DINOv2", "DINOv2 with registers and SwiGLU"),
        "one head for two tokens",
    },
    "timm": {
        *("plain", "not square", "one channel", "distilled", "DeiT III", "registers and mean", "attention pooling"),
        *("hybrid of timm", "hybrid root of timm", "no positions", "mean, tanh GELU", "SwiGLU without LayerScale"),
    },
    "npz": {"pre-logits", "mean, tanh GELU", "hybrid of the paper"},
}


@pytest.fixture(params=MODELS.values(), ids=MODELS.keys())
def saved(request, randomised, tmp_path):
    """A model with random weights and its folder."""
    model = randomised(ViTForImageClassification(ViTConfig(**(SMALL | request.param))))
    for name, parameter in model.named_parameters():
        if "resnet" in name and parameter.ndim == 4:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(tmp_path / "model")
    if model.config.num_channels == 3:
        ViTImageProcessor().save_pretrained(tmp_path / "model")
    return model, tmp_path / "model", request.node.callspec.id.split("-", 1)[-1]


@pytest.mark.parametrize("to", EXPRESSIBLE)
def test_there_and_back_is_exact_or_refused(saved, tmp_path, to, request):
    model, folder, _ = saved
    name = next(name for name, fields in MODELS.items() if fields is request.node.callspec.params["saved"])
    there = tmp_path / ("there.npz" if to == "npz" else "there")
    if name not in EXPRESSIBLE[to]:
        with pytest.raises(InputError, match=f"{to} cannot express "):
            convert(folder, there, to)
        assert not there.exists()
        return
    convert(folder, there, to)
    convert(there, tmp_path / "back")
    back = read_checkpoint(tmp_path / "back").state_dict
    assert back.keys() == model.state_dict().keys()
    for tensor_name, tensor in model.state_dict().items():
        assert torch.equal(back[tensor_name], tensor), tensor_name
    pixels = torch.randn(2, model.config.num_channels, *model.config.image_shape)
    again = ViTForImageClassification.from_pretrained(tmp_path / "back")
    assert torch.equal(again(pixels).logits, model(pixels).logits)


@torch.no_grad()
def test_the_other_library_reads_what_was_written(saved, tmp_path, request):
    """timm builds the model from config.json alone; transformers picks the class that the file names."""
    model, folder, _ = saved
    name = next(name for name, fields in MODELS.items() if fields is request.node.callspec.params["saved"])
    pixels = torch.randn(2, model.config.num_channels, *model.config.image_shape)
    if name in EXPRESSIBLE["timm"]:
        convert(folder, tmp_path / "timm", "timm")
        theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval()
        torch.testing.assert_close(theirs(pixels), model(pixels).logits, atol=1e-5, rtol=1e-5)
    if name in EXPRESSIBLE["transformers"]:
        convert(folder, tmp_path / "stock", "transformers")
        config = transformers.AutoConfig.from_pretrained(tmp_path / "stock")
        theirs = getattr(transformers, config.architectures[0]).from_pretrained(tmp_path / "stock").eval()
        torch.testing.assert_close(theirs(pixels).logits, model(pixels).logits, atol=1e-5, rtol=1e-5)
        names = load_file(tmp_path / "stock" / "model.safetensors")
        assert any("encoder.layer.1.attention.attention.query" in name for name in names)  # for transformers 4, too


@pytest.mark.parametrize("name", ["token", "token_linen", "representation", "gap", "hybrid_r", "hybrid_blocks"])
def test_the_papers_files_come_back_with_every_bit(tmp_path, name):
    convert(PAPER / f"{name}.npz", tmp_path / "ours")
    remarks = convert(tmp_path / "ours", tmp_path / "back.npz", "npz")
    assert remarks == []
    published = {"LayerNorm_1": "LayerNorm_2", "MlpBlock_0": "MlpBlock_3"}
    published["MultiHeadDotProductAttention_0"] = "MultiHeadDotProductAttention_1"
    original, back = np.load(PAPER / f"{name}.npz"), np.load(tmp_path / "back.npz")
    by_class = any("LayerNorm_1" in key for key in original.files)
    renamed = {
        "/".join(published.get(part, part) for part in key.split("/")) if by_class else key: key
        for key in original.files
    }
    assert renamed.keys() == set(back.files)
    for new, old in renamed.items():
        assert np.array_equal(back[new].squeeze(), original[old].squeeze()), new  # GroupNorm's (1, 1, 1, C) is (C,) now


def test_the_papers_files_become_stock_models(tmp_path):
    remarks = convert(PAPER / "token.npz", tmp_path, "transformers")
    assert len(remarks) == 1
    assert "resizes position embeddings by bicubic, this model by bilinear" in remarks[0]
    expected = np.load(PAPER / "token.expected.npz")
    stock = transformers.ViTForImageClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = stock(torch.from_numpy(expected["pixels"]).permute(0, 3, 1, 2)).logits
    torch.testing.assert_close(logits, torch.from_numpy(expected["logits"]), atol=2e-5, rtol=0)
    assert type(transformers.AutoImageProcessor.from_pretrained(tmp_path)) is transformers.ViTImageProcessor


def test_base_models_and_half_precision(randomised, tmp_path):
    model = randomised(ViTModel(ViTConfig(**SMALL, hidden_act="gelu_pytorch_tanh"))).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    for to in ("timm", "transformers", "npz"):
        there = tmp_path / ("there.npz" if to == "npz" else to)
        convert(tmp_path / "model", there, to)
        back = ViTModel.from_pretrained(there)
        for name, tensor in model.state_dict().items():
            assert torch.equal(back.state_dict()[name].to(tensor.dtype), tensor), (to, name)


def test_the_real_dinov2_there_and_back(assets, tmp_path):
    remarks = convert(assets / "dinov2-small", tmp_path / "timm", "timm")
    assert any("resizes position embeddings by bicubic_antialias" in remark for remark in remarks)
    convert(tmp_path / "timm", tmp_path / "back", "transformers")
    original = load_file(assets / "dinov2-small" / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert original.keys() - back.keys() == {"embeddings.mask_token"}
    assert all(torch.equal(tensor, original[name]) for name, tensor in back.items())


@pytest.mark.parametrize(
    ("destination", "to", "message"),
    [
        ("out.npz", "timm", r"out\.npz should not end in \.npz for the format timm"),
        ("out", "npz", r"out should end in \.npz for the format npz"),
        ("taken", "timm", "taken exists already; give a new place"),
        ("", "vitrail", "exists already"),
        ("taken/below", "timm", "Cannot write to .*below: Not a directory"),
    ],
)
def test_a_wrong_destination_is_one_sentence(tmp_path, destination, to, message):
    (tmp_path / "taken").write_text("")
    with pytest.raises(InputError, match=message):
        convert(PAPER / "token.npz", tmp_path / destination, to)


def test_nothing_is_written_over(tmp_path):
    convert(PAPER / "token.npz", tmp_path / "model")
    before = (tmp_path / "model" / "model.safetensors").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        convert(tmp_path / "model", tmp_path / "model", "timm")
    with pytest.raises(InputError, match="exists already"):
        convert(PAPER / "gap.npz", tmp_path / "model")
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == before


def test_preprocessing_follows_to_timm(assets, tmp_path):
    """DINOv2 is trained at 518 pixels and used at 224, and so it stays."""
    convert(assets / "dinov2-small", tmp_path / "timm", "timm")
    before, after = (ViTImageProcessor.from_pretrained(path) for path in (assets / "dinov2-small", tmp_path / "timm"))
    assert before.output_size == after.output_size == (224, 224)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True)
    data = timm.data.resolve_model_data_config(theirs)
    assert (data["input_size"], data["crop_pct"]) == ((3, 224, 224), 0.875)
    assert ViTConfig.from_pretrained(tmp_path / "timm").interpolate_pos_encoding


def test_what_is_left_out_is_said(tmp_path):
    config = transformers.ViTConfig(**{name: value for name, value in SMALL.items() if name != "num_labels"})
    transformers.ViTModel(config).save_pretrained(tmp_path / "stock")
    (remark,) = convert(tmp_path / "stock", tmp_path / "ours")
    assert remark == "Left out, as nothing here uses it: pooler.dense.bias, pooler.dense.weight."
