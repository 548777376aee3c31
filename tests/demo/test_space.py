"""The folder of a Space: complete, installable, and it starts where no vitrail is installed."""

import base64
import hashlib
import io
import os
import re
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
import zipfile
from importlib.metadata import Distribution, version

import pytest
import yaml
from gradio_client import Client, handle_file
from PIL import Image

from vitrail.cli.main import main
from vitrail.demo.space import Space, write
from vitrail.demo.wheel import packed_wheel
from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor, read_image


@pytest.fixture
def model(model_folder):
    """A model with samples, and a card that names a licence."""
    (model_folder / "samples").mkdir()
    Image.new("RGB", (16, 24), "red").save(model_folder / "samples" / "0.png")
    (model_folder / "samples" / "elsewhere.png").symlink_to(model_folder.parent)
    card = (model_folder / "README.md").read_text()
    (model_folder / "README.md").write_text(card.replace("tags:", "license: mit\ntags:"))
    return model_folder


def front_matter(files):
    return yaml.safe_load(files["README.md"].decode().split("---\n")[1])


def pinned(files):
    """The requirements, and of those that are pinned the versions."""
    lines = files["requirements.txt"].decode().splitlines()
    return dict(re.fullmatch(r"([\w-]+)(?:==(.+)|>=.+)?", line).groups() for line in lines)


def test_a_model_goes_with_its_space(model):
    files = Space(str(model), "What: it's # seen?").files()
    wheel = f"vitrail-{version('vitrail')}-py3-none-any.whl"
    assert {name for name in files if not name.startswith("models/")} == {
        *("README.md", "app.py", "requirements.txt", wheel)
    }
    assert {"models/tiny/config.json", "models/tiny/model.safetensors", "models/tiny/samples/0.png"} < files.keys()
    assert not {"models/tiny/private.png", "models/tiny/samples/elsewhere.png"} & files.keys()
    metadata = front_matter(files)
    assert metadata == metadata | {
        "title": "What: it's # seen?",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info[0]}.{sys.version_info[1]}",
        "app_file": "app.py",
        "license": "mit",
    }
    assert not {"models", "preload_from_hub", "suggested_hardware"} & metadata.keys()
    assert files["app.py"].decode().endswith('\nlaunch(str(here / "models" / "tiny"))\n')
    versions = pinned(files)
    assert versions["gradio"] == metadata["sdk_version"]
    assert versions["transformers"] == version("transformers")
    assert versions["torch"] == version("torch").partition("+")[0]
    assert not {"vitrail", "spaces", "datasets", "pytest"} & versions.keys()


def test_a_model_of_the_hub_is_named(tmp_path):
    files = Space("alice/vit", "digits", signs_in=False).files()
    assert front_matter(files)["models"] == front_matter(files)["preload_from_hub"] == ["alice/vit"]
    assert files["app.py"].decode().endswith('\nlaunch("alice/vit")\n')
    assert not any(name.startswith("models/") for name in files)
    assert "preload_from_hub" not in front_matter(Space("alice/vit", "digits", signs_in=True).files())


def test_a_space_on_zero_gpu():
    """`spaces` must be imported before torch, and ZeroGPU chooses the version of that."""
    files = Space("alice/vit", "digits", "zero-a10g").files()
    app = files["app.py"].decode()
    assert app.endswith('\nlaunch("alice/vit", on_gpu=spaces.GPU)\n')
    assert app.index("import spaces") < app.index("from vitrail")
    versions = pinned(files)
    assert versions["torch"] is versions["torchvision"] is versions["spaces"] is None
    assert front_matter(files)["python_version"] == "3.12"
    assert front_matter(files)["suggested_hardware"] == "zero-a10g"


@pytest.mark.parametrize("name", ["a" * 90, "été 2026"])
def test_names_of_models(model, name):
    files = Space(str(model.rename(model.parent / name)), "digits").files()
    assert len(front_matter(files)["short_description"]) <= 60
    folders = {path.split("/")[1] for path in files if path.startswith("models/")}
    assert folders == {name.replace(" ", "-")}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("../nowhere", "is neither a folder nor the name of a model on the Hub"),
        (__file__, "is a file; `vitrail convert"),
    ],
)
def test_models_that_are_none(model, sentence):
    with pytest.raises(InputError, match=sentence):
        Space(model, "digits").files()


def test_a_model_that_cannot_be_loaded_makes_no_space(model, tmp_path, capsys):
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:-100])
    assert main(["space", str(model), "alice/tiny", "--dry-run", str(tmp_path / "space")]) == 2
    assert "not a complete safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "space").exists()


def test_a_folder_with_something_in_it_is_not_written(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not empty; give a new folder"):
        write({"app.py": b""}, tmp_path)
    with pytest.raises(InputError, match="Not a directory"):
        write({"app.py": b""}, tmp_path / "notes.txt")


def test_the_wheel_is_one(tmp_path):
    """pip installs it, its record is true, and it is the same each time."""
    name, content = packed_wheel()
    assert packed_wheel() == (name, content)
    (tmp_path / name).write_bytes(content)
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", site, tmp_path / name]
    subprocess.run(pip, check=True, capture_output=True)
    installed = Distribution.at(next(site.glob("*.dist-info")))
    assert installed.version == version("vitrail")
    assert 'gradio>=6.29; extra == "demo"' in installed.requires
    assert [script.value for script in installed.entry_points] == ["vitrail.cli.main:main"]
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        files = {path: archive.read(path) for path in archive.namelist()}
    rows = [row.split(",") for row in files[f"{name.split('-py3')[0]}.dist-info/RECORD"].decode().splitlines()]
    assert {path for path, _, _ in rows} == files.keys()
    for path, digest, size in rows[:-1]:
        hashed = base64.urlsafe_b64encode(hashlib.sha256(files[path]).digest()).decode().rstrip("=")
        assert (digest, int(size)) == (f"sha256={hashed}", len(files[path]))


@pytest.mark.slow
def test_it_starts_without_an_installed_vitrail(model, tmp_path, capsys):
    """By an interpreter that has all libraries, but runs no .pth file, through which an editable vitrail is found."""
    space = tmp_path / "space"
    assert main(["space", str(model), "alice/tiny", "--dry-run", str(space)]) == 0
    assert capsys.readouterr().out == f"{space} holds the Space; `python {space}/app.py` starts it.\n"
    libraries = os.pathsep.join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": libraries, "GRADIO_SERVER_PORT": str(port), "TMPDIR": str(tmp_path)}
    python = [sys.executable, "-P", "-S"]
    without = subprocess.run([*python, "-c", "import vitrail.demo"], env=environment, capture_output=True, check=False)
    if b"No module named 'vitrail" not in without.stderr:
        pytest.skip("vitrail is installed among its libraries")
    Image.new("RGB", (40, 30), "olive").save(tmp_path / "olive.png")
    address = f"http://127.0.0.1:{port}"
    with subprocess.Popen([*python, "app.py"], cwd=space, env=environment, stderr=subprocess.PIPE, text=True) as app:
        try:
            wait_for(address, app)
            client = Client(address, verbose=False, download_files=str(tmp_path / "answers"))
            said = client.predict(image=handle_file(str(tmp_path / "olive.png")), api_name="/predict")
        finally:
            app.terminate()
    network, processor = ViTForImageClassification.from_pretrained(model), ViTImageProcessor.from_pretrained(model)
    logits = network(**processor(read_image(tmp_path / "olive.png"), return_tensors="pt")).logits
    expected = dict(zip(network.config.labels, logits.softmax(-1)[0].tolist(), strict=True))
    assert {row["label"]: row["probability"] for row in said} == pytest.approx(expected, abs=1e-5)


def wait_for(address, app):
    for _ in range(600):
        assert app.poll() is None, app.stderr.read()
        try:
            urllib.request.urlopen(address).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the app did not start within a minute")
