"""The file gives what the model gives, in ONNX Runtime and by the card's own lines; otherwise there is no file."""

import json
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import transformers
from onnx import TensorProto
from PIL import Image
from timm.models._hub import save_for_hf
from transformers import Dinov2Config, Dinov2ForImageClassification

from vitrail.modeling import (
    InputError,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedPatchPrediction,
    ViTImageProcessor,
    ViTModel,
    read_image,
)
from vitrail.publishing.merging import card_metadata
from vitrail.publishing.onnx_export import export_onnx


FILES = ["README.md", "config.json", "model.onnx", "preprocessor_config.json"]
# What ONNX must be told in operators of its own: every head, activation, position embedding and kind of token.
KINDS = {
    "paper": {"hidden_act": "gelu_pytorch_tanh", "representation_size": 16},
    "hybrid": {"resnet_depths": (1, 1), "resnet_width": 32, "patch_size": 1},
    "distilled": {
        "use_distillation_token": True,
        "use_distillation_head": True,
        "num_register_tokens": 2,
        "use_layer_scale": True,
        "use_swiglu": True,
    },
    "attention": {"use_class_token": False, "pooling": "attention"},
    "mean": {"use_class_token": False, "pooling": "mean", "pool_before_norm": True},
    "relative": {"position_embedding": "relative", "position_placement": "every_layer", "pooling": "token_and_mean"},
    "learned_2d": {"position_embedding": "learned_2d", "position_placement": "every_layer"},
    "sincos": {"position_embedding": "sincos_2d"},
}


COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": (24, 16),
    "patch_size": 8,
    "num_labels": 5,
}


@pytest.fixture
def save(randomised, tmp_path):
    """A function that saves a random model of such a configuration, with its processor, and returns the folder."""

    def save(model_class=ViTForImageClassification, **fields):
        folder = tmp_path / "tiny"
        config = ViTConfig(**(COMMON | fields))
        randomised(model_class(config)).save_pretrained(folder)
        size = dict(zip(("height", "width"), config.image_shape))
        ViTImageProcessor(size=size, num_channels=config.num_channels).save_pretrained(folder)
        return folder

    return save


def run(folder, pixel_values):
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, map(torch.from_numpy, session.run(names, {"pixel_values": pixel_values.numpy()}))))


def images(count, *shape):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_is_the_same_model_in_batches_of_any_size(save, kind, tmp_path):
    source, exported = save(**KINDS[kind]), tmp_path / "new" / "exported"
    comparison = export_onnx(source, exported)
    assert sorted(path.name for path in exported.iterdir()) == FILES
    assert comparison.difference < 1e-5
    assert comparison.same_class == comparison.made_up == 4
    model = ViTForImageClassification.from_pretrained(source)
    for count in (1, 2, 5):
        pixel_values = images(count, 3, 24, 16)
        torch.testing.assert_close(run(exported, pixel_values), {"logits": model(pixel_values).logits})


@pytest.mark.parametrize("model_class", [ViTModel, ViTForMaskedPatchPrediction])
@torch.no_grad()
def test_what_has_no_classes_gives_features(save, model_class, tmp_path):
    comparison = export_onnx(save(model_class), tmp_path / "exported")
    assert comparison.same_class is None
    pixel_values = images(2, 3, 24, 16)
    exact = ViTModel.from_pretrained(tmp_path / "tiny")(pixel_values)
    torch.testing.assert_close(run(tmp_path / "exported", pixel_values), dict(exact))
    assert card_metadata((tmp_path / "exported/README.md").read_text())["pipeline_tag"] == "image-feature-extraction"


@torch.no_grad()
def test_the_size_is_the_processors(randomised, tmp_path):
    """DINOv2 was trained at 518 pixels, and is used at 224."""
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=40, patch_size=8, num_labels=5
    )
    stock = randomised(Dinov2ForImageClassification(config))
    stock.save_pretrained(tmp_path / "stock")
    transformers.BitImageProcessor(size={"shortest_edge": 28}, crop_size=24).save_pretrained(tmp_path / "stock")
    export_onnx(tmp_path / "stock", tmp_path / "exported")
    pixel_values = images(2, 3, 24, 24)
    torch.testing.assert_close(run(tmp_path / "exported", pixel_values)["logits"], stock(pixel_values).logits)


@torch.no_grad()
def test_timms_and_the_papers(randomised, tmp_path):
    arguments = {"depth": 1, "img_size": 32, "num_classes": 5}
    stock = randomised(timm.create_model("vit_tiny_patch16_224", **arguments))
    save_for_hf(stock, tmp_path / "timm", safe_serialization=True, model_args=arguments)
    export_onnx(tmp_path / "timm", tmp_path / "from timm")
    pixel_values = images(2, 3, 32, 32)
    torch.testing.assert_close(run(tmp_path / "from timm", pixel_values)["logits"], stock(pixel_values))

    papers = Path(__file__).parent.parent / "modeling" / "paper_checkpoints" / "token.npz"
    export_onnx(papers, tmp_path / "from paper")
    model = ViTForImageClassification.from_pretrained(papers)
    pixel_values = images(2, 3, *model.config.image_shape)
    torch.testing.assert_close(run(tmp_path / "from paper", pixel_values)["logits"], model(pixel_values).logits)


def test_half_precision_is_computed_in_float32(save, tmp_path):
    folder = save()
    model = ViTForImageClassification.from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    export_onnx(folder, tmp_path / "exported")
    pixel_values = images(2, 3, 24, 16)
    assert torch.equal(
        run(tmp_path / "exported", pixel_values)["logits"].argmax(-1), model.float()(pixel_values).logits.argmax(-1)
    )


@torch.no_grad()
def test_integers_are_near_and_small(save, tmp_path):
    source = save(hidden_size=128, intermediate_size=256)
    comparison = export_onnx(source, tmp_path / "int8", int8=True)
    export_onnx(source, tmp_path / "float32")
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("int8", "float32")]
    assert sizes[0] < sizes[1] / 2.5
    tensors = onnx.load(tmp_path / "int8/model.onnx").graph.initializer
    matrices = [tensor for tensor in tensors if tensor.data_type == TensorProto.INT8 and len(tensor.dims) == 2]
    assert len(matrices) == 2 * 6 + 1  # of the layers, and the head
    exact = run(tmp_path / "float32", images(16, 3, 24, 16))["logits"]
    rough = run(tmp_path / "int8", images(16, 3, 24, 16))["logits"]
    assert 1e-4 < comparison.difference < 0.1
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    assert "8-bit integers" in (tmp_path / "int8/README.md").read_text()


def test_integers_that_make_another_model_are_refused(save, tmp_path):
    folder = save()
    model = ViTForImageClassification.from_pretrained(folder)
    with torch.no_grad():
        model.vit.layernorm.weight[0] = 3e4  # an outlier, beside which 8 bits know nothing of the other channels
        model.classifier.weight[:, 0] = 0
    model.save_pretrained(folder)
    assert export_onnx(folder, tmp_path / "exact").difference < 1e-4
    with pytest.raises(InputError, match=r"tiny is not exported, because .* without --int8\. On 4 made-up images"):
        export_onnx(folder, tmp_path / "rough", int8=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["exact", "tiny"]


def test_a_broken_model_is_refused(save, tmp_path):
    folder = save()
    model = ViTForImageClassification.from_pretrained(folder)
    model.classifier.bias.data.fill_(float("nan"))
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"is not exported, because the file is another model\. On 4 made-up images"):
        export_onnx(folder, tmp_path / "new" / "exported")
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_nothing_is_overwritten(save, tmp_path):
    folder = save()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for taken in (folder, tmp_path / "file"):
        with pytest.raises(InputError, match="exists already; give a new place"):
            export_onnx(folder, taken)
    with pytest.raises(InputError, match=r"Cannot write to .*/file/exported: Not a directory"):
        export_onnx(folder, tmp_path / "file" / "exported")
    export_onnx(folder, tmp_path / "empty")
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == FILES


@contextmanager
def no_file_larger_than(size):
    """What a full disk is to a program: writing fails half-way."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("int8", [False, True])
def test_a_full_disk_leaves_nothing(save, int8, tmp_path):
    folder = save()
    with no_file_larger_than(20_000), pytest.raises(InputError, match=r"Cannot write to .*exported: File too large"):
        export_onnx(folder, tmp_path / "new" / "exported", int8=int8)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_weights_of_a_large_model_lie_beside_it_wherever_it_is_moved(save, monkeypatch, tmp_path):
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 10_000)  # for 2 GB
    export_onnx(save(), tmp_path / "exported")
    assert (tmp_path / "exported/model.onnx.data").stat().st_size > 10_000
    before = run(tmp_path / "exported", images(2, 3, 24, 16))
    (tmp_path / "exported").rename(tmp_path / "moved")
    torch.testing.assert_close(run(tmp_path / "moved", images(2, 3, 24, 16)), before)


def test_a_processor_without_a_size_is_named(save, tmp_path):
    folder = save()
    ViTImageProcessor(size={"shortest_edge": 24}).save_pretrained(folder)
    with pytest.raises(InputError, match="tiny prepares images of no fixed size, but an ONNX file is for one"):
        export_onnx(folder, tmp_path / "exported")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(InputError, match=r"has no preprocessor_config\.json"):
        export_onnx(folder, tmp_path / "exported")


def test_the_file_tells_no_paths(save, tmp_path):
    export_onnx(save(), tmp_path / "exported")
    root = str(Path(__file__).parent.parent.parent).encode()
    assert not any(root in path.read_bytes() for path in (tmp_path / "exported").iterdir())


def test_held_out_images_are_compared_too(save, tmp_path):
    folder = save()
    (folder / "samples").mkdir()
    for index in range(3):
        Image.effect_noise((40, 30), 60).save(folder / "samples" / f"{index}.png")
    comparison = export_onnx(folder, tmp_path / "exported")
    assert (comparison.held_out, comparison.made_up, comparison.same_class) == (3, 4, 7)
    assert str(comparison).startswith("On 3 held-out and 4 made-up images its logits differ")


# The card


def test_the_card_keeps_the_licence_and_no_figures(save, tmp_path):
    folder = save()
    (folder / "README.md").write_text(
        "---\nlicense: mit\ntags: ants\nlibrary_name: transformers\nmodel-index: [{name: tiny}]\n---\nIt reaches 0.9.\n"
    )
    comparison = export_onnx(folder, tmp_path / "exported")
    card = (tmp_path / "exported/README.md").read_text()
    assert card_metadata(card) == {
        "license": "mit",
        "tags": ["ants", "onnx", "vit", "vitrail"],
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
    }
    assert f"exported from `tiny` by Vitrail 0.1.0, with PyTorch {torch.__version__.split('+')[0]}" in card
    assert str(comparison) in card
    assert "0.9" not in card.replace("`tiny` by Vitrail", "")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one class", "several classes", "gray", "features"])
def test_the_cards_lines_run_without_vitrail(save, kind, run_with, tmp_path):
    """In a fresh process; they must say what vitrail says."""
    fields = {
        "several classes": {"problem_type": "multi_label_classification"},
        "gray": {"num_channels": 1, "position_embedding": "relative"},
    }.get(kind, {})
    names = {0: "ant", 1: "bee", 2: "κότα", 3: "dog", 4: "elk"}
    source = save(ViTModel if kind == "features" else ViTForImageClassification, id2label=names, **fields)
    exported = tmp_path / "exported"
    export_onnx(source, exported)
    Image.effect_noise((50, 40), 80).save(exported / "photo.jpg")
    lines = (exported / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (tmp_path / "lines.py").write_text(
        f"import os, sys\nsys.modules['vitrail'] = None\nos.chdir({str(exported)!r})\n{lines}", encoding="utf-8"
    )
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    said = run_with(environment, tmp_path / "lines.py").strip()

    pixel_values = ViTImageProcessor.from_pretrained(source)(
        read_image(exported / "photo.jpg"), return_tensors="pt"
    ).pixel_values
    with torch.no_grad():
        if kind == "features":
            exact = ViTModel.from_pretrained(source)(pixel_values).pooler_output[0]
            np.testing.assert_allclose(json.loads(said), exact, atol=1e-5, rtol=1e-4)
            return
        logits = ViTForImageClassification.from_pretrained(source)(pixel_values).logits[0]
    expected = [names[index] for index in logits.gt(0).nonzero()[:, 0].tolist()]
    assert said == (str(expected) if kind == "several classes" else names[int(logits.argmax())])
