"""Tiny models, the app on them as `vitrail demo` starts it, and a browser."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


ANIMALS = ["ant", "bee", "cat", "dog", "elk"]
CARD = """---
license: mit
---

# Animals

![What they look like](shown.png) `pipeline("image-classification", "{folder}")` <!-- a note -->
![](https://example.test/elsewhere.png)
"""


@dataclass(frozen=True)
class App:
    """A running app.

    Attributes:
        address: where it listens, without a slash at the end.
        process: its server.
        folder: that it runs in; its temporary files are in `folder / "tmp"`, and what it prints in `folder / "log"`.
    """

    address: str
    process: subprocess.Popen
    folder: Path

    def printed(self) -> str:
        return (self.folder / "log").read_text()


@pytest.fixture(scope="session")
def make_model():
    """A function that saves a model of 3x2 patches and 3 layers, with a processor, into a folder; returns that."""
    import torch

    from vitrail.modeling import ViTConfig, ViTForImageClassification, ViTImageProcessor

    def make(folder: Path, kind=ViTForImageClassification, fit="squash", labels=ANIMALS, seed=0, **configured):
        sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64}
        sizes |= {"image_size": (24, 16), "patch_size": 8} | configured
        network = kind(ViTConfig(**sizes, id2label=dict(enumerate(labels))))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.2, generator=generator)
        network.save_pretrained(folder)
        height, width = network.config.image_shape
        ViTImageProcessor(fit=fit, size={"height": height, "width": width}).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def animals(make_model, tmp_path_factory) -> Path:
    """A model folder as `vitrail train` leaves it, with two samples and a card."""
    folder = make_model(tmp_path_factory.mktemp("models") / "animals")
    (folder / "samples").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (16, 24), name).save(folder / "samples" / f"{name}.png")
    Image.new("RGB", (300, 200), "olive").save(folder / "shown.png")
    (folder / "README.md").write_text(CARD.format(folder=folder))
    return folder


@pytest.fixture(scope="session")
def deeper(make_model, animals) -> Path:
    """Another model: 4x4 patches, 5 layers of 2 heads, 12 classes."""
    labels = [f"class {number}" for number in range(12)]
    sizes = {"image_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2}
    return make_model(animals.with_name("deeper"), labels=labels, seed=1, **sizes)


@pytest.fixture(scope="session")
def photo(tmp_path_factory) -> Path:
    """A picture of slow waves, which JPEG keeps and no two patches of which are alike."""
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    down, across = np.mgrid[0:600, 0:500]
    waves = [np.sin(down / 90 + across / 170), np.cos(down / 210 - across / 110), np.sin(down * across / 60000)]
    Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def broken(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("broken") / "broken.png"
    path.write_bytes(b"not a picture")
    return path


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def vitrail_demo():
    """A function that starts `vitrail demo` with these arguments in a folder; the process."""

    def start(folder: Path, *arguments) -> subprocess.Popen:
        (folder / "tmp").mkdir()
        environment = os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "vitrail.cli.main", "demo", *map(str, arguments)]
        with (folder / "log").open("w") as log:
            return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    return start


@pytest.fixture(scope="session")
def start_app(vitrail_demo):
    """A context manager: the app with these arguments in a folder, on a free port, when it answers."""

    @contextmanager
    def start(folder: Path, *arguments) -> Iterator[App]:
        port = free_port()
        with vitrail_demo(folder, *arguments, "--port", port) as process:
            try:
                app = App(f"http://127.0.0.1:{port}", process, folder)
                _wait_for(app)
                yield app
            finally:
                process.terminate()

    return start


@pytest.fixture(scope="session")
def app(start_app, animals, deeper, tmp_path_factory):
    """The app on both models."""
    with start_app(tmp_path_factory.mktemp("app"), "--model", animals, deeper) as app:
        yield app


def _wait_for(app: App) -> None:
    for _ in range(600):
        assert app.process.poll() is None, app.printed()
        try:
            urllib.request.urlopen(app.address).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the app did not start within a minute")


@pytest.fixture(scope="session")
def client(app, tmp_path_factory):
    """A client as its users have it."""
    from gradio_client import Client

    client = Client(app.address, verbose=False, download_files=str(tmp_path_factory.mktemp("downloads")))
    yield client
    client.close()


@pytest.fixture(scope="session")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium is installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()
