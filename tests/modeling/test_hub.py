"""Models by their ids, by genuine clients over HTTP."""

import pytest
import timm
import torch
from timm.models._hub import save_for_hf

from vitrail.modeling import ViTConfig, ViTForImageClassification, ViTImageProcessor


@pytest.mark.slow
def test_a_model_that_stock_does_not_know_is_pushed_with_its_sources(hub, run_with, randomised, tmp_path):
    """And serves a process without vitrail; one channel, so that its image processor is its own, too."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_channels=1,
        pooling="attention",
        position_embedding="relative",
        id2label={0: "ant", 1: "bee"},
    )
    randomised(ViTForImageClassification(config)).save_pretrained(tmp_path / "model")
    ViTImageProcessor(size={"height": 16, "width": 16}, num_channels=1).save_pretrained(tmp_path / "model")
    push = """
import sys
from vitrail.modeling import ViTForImageClassification, ViTImageProcessor
ViTForImageClassification.from_pretrained(sys.argv[1]).push_to_hub("alice/odd")
ViTImageProcessor.from_pretrained(sys.argv[1]).push_to_hub("alice/odd")
"""
    run_with(hub, "-c", push, tmp_path / "model")
    classify = """
import sys
if sys.argv[2] == "without":
    sys.modules["vitrail"] = None
else:
    import vitrail.modeling
from PIL import Image
from transformers import pipeline
classify = pipeline("image-classification", sys.argv[1], trust_remote_code=True)
print(type(classify.model).__module__.startswith("transformers_modules"), type(classify.image_processor).__name__)
print(sorted((found["label"], round(found["score"], 6)) for found in classify(Image.new("LA", (30, 20), (90, 200)))))
"""
    remote, scores = run_with(hub, "-c", classify, "alice/odd", "without").splitlines()
    assert remote == "True VitrailImageProcessor"
    local, same_scores = run_with(hub, "-c", classify, tmp_path / "model", "with").splitlines()
    assert local == "False VitrailImageProcessor"
    assert scores == same_scores


@pytest.mark.slow
def test_timms_repositories_load_by_id(hub, run_with, tmp_path):
    arguments = {"embed_dim": 64, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 3}
    model = timm.create_model("vit_base_patch16_224", **arguments).eval()
    torch.nn.init.normal_(model.head.weight)
    save_for_hf(model, tmp_path, safe_serialization=True, model_args=arguments)
    program = """
import sys, torch
from huggingface_hub import HfApi
HfApi().create_repo("alice/timm-vit")
HfApi().upload_folder(repo_id="alice/timm-vit", folder_path=sys.argv[1])
from vitrail.modeling import ViTForImageClassification, ViTImageProcessor
model = ViTForImageClassification.from_pretrained("alice/timm-vit", revision="main")
print(dict(ViTImageProcessor.from_pretrained("alice/timm-vit").crop_size))
torch.save(model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)).logits, sys.argv[1] + "/logits.pt")
"""
    assert "32" in run_with(hub, "-c", program, tmp_path)
    expected = model(torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32))
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), expected)
