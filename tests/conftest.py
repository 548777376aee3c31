"""Tests run offline, on tiny models, in a home of their own."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import pytest


# Before anything of Hugging Face's is imported: no network, and caches that die with the test run.
_HOME = tempfile.TemporaryDirectory(prefix="vitrail-tests-")
os.environ |= {
    "HF_HOME": _HOME.name,
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "TOKENIZERS_PARALLELISM": "false",
}
if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the tests share the processors, too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

CARD = """---
library_name: transformers
tags:
- vit
---

# tiny

It was trained. ![what it sees](shown.png) ![](<maps/worst%201.png> "the worst") ![](https://example.test/a.png)
![](../private.png) ![](missing.png) [a link, not a picture](private.png)

```python
classify = pipeline("image-classification", "{location}")
```
"""

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT.parent / "shared" / "assets"
HUB_SERVER = ROOT / "tests" / "hub_server.py"


@pytest.fixture(scope="session")
def assets() -> Path:
    """Real photographs, weights and data sets that lie beside some checkouts."""
    if not ASSETS.is_dir():
        pytest.skip("the shared assets are not beside this checkout")
    return ASSETS


@pytest.fixture
def tiny_config():
    """A ViT of 3x2 patches that runs in a millisecond; not square, so that no grid can be taken for its transpose."""
    from vitrail.modeling import ViTConfig

    return ViTConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=(24, 16),
        patch_size=8,
        num_labels=5,
    )


@pytest.fixture(scope="session")
def randomised():
    """A function that sets every weight of a model far from zero, so that none can be forgotten unnoticed."""
    import torch

    def randomise(model):
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2, generator=generator)
        return model.eval()

    return randomise


@pytest.fixture
def tiny_model(tiny_config, randomised):
    """A classifier of `tiny_config` with random weights, in eval mode."""
    from vitrail.modeling import ViTForImageClassification

    return randomised(ViTForImageClassification(tiny_config))


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """The environment of a client of a running Hub, with a token that may write as `alice`: see `hub_server.py`."""
    with subprocess.Popen([sys.executable, HUB_SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        assert address, "the Hub did not start"
        yield {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"} | {
            "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_alice",
            "HF_HOME": str(tmp_path_factory.mktemp("home")),
        }
        server.terminate()


@pytest.fixture
def ask_hub(hub):
    """A function that uses the tests' own door to the Hub: `ask_hub("POST", "faults", path=".*", status=503)`."""

    def ask(method, what, /, **content):
        address, body = f"{hub['HF_ENDPOINT']}/test/{what}", json.dumps(content).encode()
        with urllib.request.urlopen(urllib.request.Request(address, body, method=method)) as answer:
            return json.load(answer)

    yield ask
    ask("DELETE", "faults")


@pytest.fixture
def online(hub, monkeypatch):
    """This process as a client of the Hub, which does not wait before it tries again; the value is its `HfApi`."""
    from huggingface_hub import HfApi

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub["HF_ENDPOINT"])
    files = f"{hub['HF_ENDPOINT']}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setenv("HF_TOKEN", hub["HF_TOKEN"])
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return HfApi()


@pytest.fixture
def model_folder(tiny_model, tmp_path):
    """A model as a training leaves it, with what else lies about there."""
    from vitrail.modeling import ViTImageProcessor

    folder = tmp_path / "runs" / "tiny"
    tiny_model.save_pretrained(folder)
    ViTImageProcessor(size={"height": 24, "width": 16}).save_pretrained(folder)
    (folder / "README.md").write_text(CARD.format(location=folder))
    for name in ("all_results.json", "shown.png", "my notes.txt", "private.png", "training_args.bin", "handler.py"):
        (folder / name).write_text("{}")
    for name in ("checkpoint-9/optimizer.pt", "checkpoint-9/model.safetensors", "runs/events", "maps/worst 1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.fixture(scope="session")
def run_with():
    """A function that runs Python with an environment and returns what it printed."""

    def run(environment, *arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run
