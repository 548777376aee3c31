"""The paper's own checkpoints, against numbers that its own code computed: see `paper_checkpoints/make.py`."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor


FOLDER = Path(__file__).parent / "paper_checkpoints"
FILES = ["token", "token_linen", "representation", "gap", "hybrid_r", "hybrid_blocks", "prefixed"]
RESIZED = ["token", "representation", "gap", "hybrid_r", "hybrid_blocks"]


def load(name, **fields):
    return ViTForImageClassification.from_pretrained(FOLDER / f"{name}.npz", **fields).eval()


def expected(name, kind):
    return torch.from_numpy(np.load(FOLDER / f"{name}.expected.npz")[kind])


def pixels(name, kind="pixels"):
    return expected(name, kind).permute(0, 3, 1, 2)  # theirs are (B, H, W, C)


def relative_error(found, wanted):
    return (found - wanted).abs().max() / wanted.abs().max()


@pytest.mark.parametrize("name", FILES)
@torch.no_grad()
def test_the_papers_code_computes_the_same(name):
    model = load(name)
    assert relative_error(model(pixels(name)).logits, expected(name, "logits")) < 5e-6
    assert relative_error(model.vit(pixels(name)).last_hidden_state, expected(name, "hidden")) < 5e-6


@pytest.mark.parametrize("name", RESIZED)
@torch.no_grad()
def test_the_papers_code_resizes_position_embeddings_the_same(name):
    images = pixels(name, "pixels_resized")
    wanted = expected(name, "logits_resized")
    assert relative_error(load(name)(images, interpolate_pos_encoding=True).logits, wanted) < 5e-6
    assert relative_error(load(name, image_size=images.shape[-1])(images).logits, wanted) < 5e-6


def test_everything_is_read_from_the_file():
    config = ViTConfig.from_pretrained(FOLDER / "hybrid_blocks.npz")
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 2, 2)
    assert (config.intermediate_size, len(config.labels)) == (32, 5)
    assert (config.image_shape, config.patch_shape, config.grid_shape) == ((32, 32), (8, 8), (4, 4))
    assert (config.resnet_depths, config.resnet_width, config.resnet_numerics) == ([1, 2], 32, "paper")
    assert (config.hidden_act, config.layer_norm_eps) == ("gelu_pytorch_tanh", 1e-6)
    assert config.position_resize == "bilinear"
    assert ViTConfig.from_pretrained(FOLDER / "gap.npz").pooling == "mean"
    assert ViTConfig.from_pretrained(FOLDER / "representation.npz").representation_size == 12


def test_key_biases_arrive_though_no_logit_can_tell():
    """A constant added to all keys changes no softmax."""
    stored = np.load(FOLDER / "token.npz")["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/key/bias"]
    loaded = load("token").vit.layers[1].attention.k_proj.bias
    assert torch.equal(loaded, torch.from_numpy(stored).flatten())


def test_fine_tuning_removes_the_whole_pre_training_head():
    model = load("representation", num_labels=3)
    assert model.pre_logits is None
    assert not model(pixels("representation")).logits.any()
    kept = load("representation", num_labels=3, representation_size=12)  # the other variant in the paper's code
    assert torch.equal(kept.pre_logits.weight, load("representation").pre_logits.weight)
    assert not kept.classifier.weight.any()
    widened = load("token", num_labels=3, representation_size=7)
    assert widened.pre_logits.weight.abs().max() > 0  # a hidden layer of zeros would never learn


def test_its_images_are_prepared_as_the_papers_code_does():
    processor = ViTImageProcessor.from_pretrained(FOLDER / "hybrid_blocks.npz")
    assert (processor.size["height"], processor.size["width"]) == (32, 32)
    assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)


def rewritten(tmp_path, change):
    arrays = dict(np.load(FOLDER / "token.npz"))
    change(arrays)
    path = tmp_path / "changed.npz"
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("embedding/kernel"), r"has no embedding/kernel; it is not a Vision Transformer"),
        (lambda arrays: arrays.pop("Transformer/encoderblock_1/LayerNorm_2/bias"), r"lacks vit\.layers\.1\.layernorm_"),
        (lambda arrays: arrays.update({"optimizer/step": np.ones(1)}), r"has unexpected optimizer\.step"),
        (
            lambda arrays: arrays.update({"cls": np.ones((1, 1, 15), np.float32)}),
            r"cls_token with shape \(1, 1, 15\), but the model needs \(1, 1, 16\)",
        ),
        (
            lambda arrays: arrays.update({"Transformer/posembed_input/pos_embedding": np.ones((1, 9, 16), np.float32)}),
            "position embeddings for 8 patches, which form no square",
        ),
    ],
    ids=["not a ViT", "missing", "unexpected", "misshapen", "not square"],
)
def test_a_wrong_array_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        ViTForImageClassification.from_pretrained(rewritten(tmp_path, change))


def test_a_pickle_inside_is_not_run(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return Path.touch, (ran,)

    path = rewritten(tmp_path, lambda arrays: arrays.update({"cls": np.array(Evil(), dtype=object)}))
    with pytest.raises(InputError, match=r"changed\.npz is not a complete \.npz file of arrays"):
        ViTForImageClassification.from_pretrained(path)
    assert not ran.exists()


def test_a_truncated_or_missing_file_is_named(tmp_path):
    path = tmp_path / "cut.npz"
    path.write_bytes((FOLDER / "token.npz").read_bytes()[:-500])
    with pytest.raises(InputError, match=r"cut\.npz is not a complete \.npz file"):
        ViTForImageClassification.from_pretrained(path)
    with pytest.raises(InputError, match=r"There is no file .*nowhere\.npz"):
        ViTConfig.from_pretrained(tmp_path / "nowhere.npz")


def test_a_grid_that_is_not_square_needs_to_be_said(tmp_path):
    def wide(arrays):
        old = arrays["Transformer/posembed_input/pos_embedding"]
        arrays["Transformer/posembed_input/pos_embedding"] = np.concatenate([old, old[:, 1:6]], axis=1)[:, :13]

    path = rewritten(tmp_path, wide)  # 3x4 patches
    with pytest.raises(InputError, match="12 patches, which form no square; give the image_size"):
        ViTForImageClassification.from_pretrained(path)
    model = ViTForImageClassification.from_pretrained(path, image_size=(12, 16))
    stored = np.load(path)["Transformer/posembed_input/pos_embedding"]
    assert torch.equal(model.vit.embeddings.position_embeddings, torch.from_numpy(stored))


def test_byte_order_and_channels_are_the_files(tmp_path):
    def big_endian_and_gray(arrays):
        arrays["embedding/kernel"] = arrays["embedding/kernel"][:, :, :1]
        for name, array in arrays.items():
            arrays[name] = array.astype(array.dtype.newbyteorder(">"))

    path = rewritten(tmp_path, big_endian_and_gray)
    model = ViTForImageClassification.from_pretrained(path)
    assert torch.equal(model.vit.embeddings.cls_token, load("token").vit.embeddings.cls_token)
    processor = ViTImageProcessor.from_pretrained(path)
    assert (processor.num_channels, model.config.num_channels) == (1, 1)
    assert model(processor(np.zeros((5, 5), np.uint8), return_tensors="pt").pixel_values).logits.shape == (1, 5)


def test_a_text_file_is_no_checkpoint(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InputError, match=r"text\.npz is not a complete \.npz file of arrays alone; fetch it again\.$"):
        ViTConfig.from_pretrained(tmp_path / "text.npz")
