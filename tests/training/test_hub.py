"""The Hub, by genuine clients over HTTP, against a loopback double of it that lies beside some checkouts."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from huggingface_hub import ModelCard


SERVER = Path(__file__).resolve().parents[3] / "shared" / "hub" / "hub_server.py"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """The environment of a client of a running Hub, with a token that may write as `alice`."""
    if not SERVER.exists():
        pytest.skip("the loopback Hub is not beside this checkout")
    root = tmp_path_factory.mktemp("hub")
    command = [sys.executable, str(SERVER), "--root", str(root), "--port", "0", "--port-file", str(root / "port")]
    server = subprocess.Popen(
        [*command, "--token", "hf_alice:alice:write"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(300):
        if (root / "port").exists() and (port := (root / "port").read_text().strip()):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the loopback Hub did not start")
    offline = {"HF_HUB_OFFLINE"}
    yield {name: value for name, value in os.environ.items() if name not in offline} | {
        "HF_ENDPOINT": f"http://127.0.0.1:{port}",
        "HF_TOKEN": "hf_alice",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(root / "home"),
    }
    server.terminate()
    server.wait()


def run(environment, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_data_from_the_hub_and_the_model_back_to_it(hub, image_folder, tiny_flags, tmp_path):
    """A data set is pushed, trained on by its id, and the model pushed, fine-tuned and served by its id."""
    publish = "import datasets, sys; datasets.load_dataset(sys.argv[1]).push_to_hub('alice/shades')"
    run(hub, "-c", publish, image_folder)
    vitrail = ("-m", "vitrail.cli.main")
    flags = [*tiny_flags, "--learning_rate", "1e-2", "--validation_fraction", "0.25"]
    push = ["--push_to_hub", "--hub_model_id", "alice/shades-vit", "--output_dir", tmp_path / "run"]
    run(hub, *vitrail, "train", "--dataset", "alice/shades", *flags, *push)
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.to_dict()["datasets"] == "alice/shades"
    assert 'pipeline("image-classification", "alice/shades-vit")' in card.text

    stock = """
import sys
sys.modules["vitrail"] = None
from PIL import Image
from huggingface_hub import ModelCard
from transformers import pipeline
print(pipeline("image-classification", "alice/shades-vit")(Image.new("RGB", (30, 20), "white"))[0]["label"])
print(ModelCard.load("alice/shades-vit").data.model_name)
"""
    assert run(hub, "-c", stock).split() == ["bright", "shades-vit"]

    tuned = ["--model", "alice/shades-vit", "--max_steps", "1", "--output_dir", tmp_path / "tuned"]
    run(hub, *vitrail, "train", "--dataset", "alice/shades", *tuned, "--disable_tqdm", "true")
    assert ModelCard.load(tmp_path / "tuned" / "README.md").data.to_dict()["base_model"] == "alice/shades-vit"
