"""The Hub, by genuine clients over HTTP, against a loopback double of it that lies beside some checkouts."""

import pytest
from huggingface_hub import ModelCard


@pytest.mark.slow
def test_data_from_the_hub_and_the_model_back_to_it(hub, run_with, image_folder, tiny_flags, tmp_path):
    """A data set is pushed, trained on by its id, and the model pushed, fine-tuned and served by its id."""
    publish = "import datasets, sys; datasets.load_dataset(sys.argv[1]).push_to_hub('alice/shades')"
    run_with(hub, "-c", publish, image_folder)
    vitrail = ("-m", "vitrail.cli.main")
    flags = [*tiny_flags, "--learning_rate", "1e-2", "--validation_fraction", "0.25"]
    push = ["--push_to_hub", "--hub_model_id", "alice/shades-vit", "--output_dir", tmp_path / "run"]
    run_with(hub, *vitrail, "train", "--dataset", "alice/shades", *flags, *push)
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.to_dict()["datasets"] == "alice/shades"
    assert 'model = "alice/shades-vit"' in card.text

    stock = """
import sys
sys.modules["vitrail"] = None
from PIL import Image
from huggingface_hub import ModelCard
from transformers import pipeline
print(pipeline("image-classification", "alice/shades-vit")(Image.new("RGB", (30, 20), "white"))[0]["label"])
print(ModelCard.load("alice/shades-vit").data.model_name)
"""
    assert run_with(hub, "-c", stock).split() == ["bright", "shades-vit"]

    tuned = ["--model", "alice/shades-vit", "--max_steps", "1", "--output_dir", tmp_path / "tuned"]
    run_with(hub, *vitrail, "train", "--dataset", "alice/shades", *tuned, "--disable_tqdm", "true")
    assert ModelCard.load(tmp_path / "tuned" / "README.md").data.to_dict()["base_model"] == "alice/shades-vit"
