"""Models in a process that has transformers and not vitrail: the sources beside the weights compute the same."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline

from vitrail.modeling import ViTBackbone, ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel


SIZE = {"height": 24, "width": 16}

# Arguments: a JSON file of {kind: [model, config]}, folders or Hub ids; the folder of the inputs; that for the results.
PROGRAM = """
import json, sys
from pathlib import Path

sys.modules["vitrail"] = None  # its import fails

import torch
from transformers import (
    AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline
)

sources, inputs, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]), Path(sys.argv[3])
pixels, photo = torch.load(inputs / "pixels.pt"), str(inputs / "photo.png")
computed = {}
for kind, (source, config_source) in sources.items():
    print(kind, file=sys.stderr)
    trust = {"trust_remote_code": kind != "plain"}
    classifier = AutoModelForImageClassification.from_pretrained(source, **trust)
    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    classifier.save_pretrained(results / "models" / kind)
    processor.save_pretrained(results / "models" / kind)

    config = AutoConfig.from_pretrained(config_source, **trust)
    config.save_pretrained(results / "configs" / kind)
    config = AutoConfig.from_pretrained(results / "configs" / kind, **trust)
    computed[kind] = {
        "module": classifier.__module__,
        "processor": f"{type(processor).__module__}.{type(processor).__name__}",
        "logits": classifier(pixels).logits,
        "tokens": AutoModel.from_pretrained(source, **trust)(pixels).last_hidden_state,
        "predictions": pipeline("image-classification", source, **trust)(photo),
        "features": pipeline("image-feature-extraction", source, **trust)(photo),
        "parameters": AutoModelForImageClassification.from_config(config, **trust).num_parameters(),
    }
    if kind != "plain":  # stock ViT has no backbone
        # AutoBackbone.from_pretrained asks the Hub first whether there is such a repository, even about a folder
        backbone = type(AutoBackbone.from_config(config, **trust)).from_pretrained(source, out_indices=[1, 2])
        backbone.config.merged_tokens_per_layer = 0  # between the layers are no maps of merged patches
        computed[kind]["maps"] = backbone(pixels).feature_maps
        new_head = AutoModelForImageClassification.from_pretrained(source, num_labels=2, **trust)
        computed[kind]["new head"] = new_head(pixels).logits
        try:
            AutoModel.from_pretrained(source, trust_remote_code=False)
        except ValueError as error:
            computed[kind]["refusal"] = str(error)

torch.save(computed, results / "computed.pt")
assert [name for name in sys.modules if name.split(".")[0] == "vitrail"] == ["vitrail"]
assert sys.modules["vitrail"] is None
"""


class Journey:
    """Every kind of model saved here, loaded and saved elsewhere, and loaded from the Hub in yet another place.

    Attributes:
        saved: the folder of those saved here, `models/KIND` and `configs/KIND`.
        from_folder, from_hub: the folders with what the two other processes computed and saved.
    """

    def __init__(self, root: Path, kinds, make_model):
        self.root, self.kinds = root, kinds
        self.saved, self.from_folder, self.from_hub = root / "saved", root / "from_folder", root / "from_hub"
        self.saved.mkdir()
        torch.save(pixels(), self.saved / "pixels.pt")
        noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(self.saved / "photo.png")
        for kind in kinds:
            model = make_model(kind)
            model.save_pretrained(self.saved / "models" / kind)
            ViTImageProcessor(size=SIZE).save_pretrained(self.saved / "models" / kind)
            model.config.save_pretrained(self.saved / "configs" / kind)
        self._run(self.from_folder, self.saved.joinpath)
        self._run(self.from_hub, self._cached_repository)

    def _cached_repository(self, part: str, kind: str) -> str:
        """What the Hub's client leaves of a repository that has what the first process saved."""
        repository = self.root / "hub" / f"models--someone--{kind}-{part}"
        shutil.copytree(self.from_folder / part / kind, repository / "snapshots" / ("c0de" * 10))
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("c0de" * 10)
        return f"someone/{kind}-{part}"

    def _run(self, results: Path, source) -> None:
        results.mkdir()
        sources = {kind: [str(source(part, kind)) for part in ("models", "configs")] for kind in self.kinds}
        (results / "sources.json").write_text(json.dumps(sources))
        caches = {"HF_HUB_CACHE": str(self.root / "hub"), "HF_MODULES_CACHE": str(results / "modules")}
        command = [sys.executable, "-c", PROGRAM, results / "sources.json", self.saved, results]
        done = subprocess.run(command, env=os.environ | caches, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 24, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def journey(tmp_path_factory, kinds, make_model) -> Journey:
    return Journey(tmp_path_factory.mktemp("journey"), kinds, make_model)


@pytest.fixture(params=["from_folder", "from_hub"])
def elsewhere(journey, request) -> Path:
    return getattr(journey, request.param)


@pytest.fixture
def computed(elsewhere, kind) -> dict:
    return torch.load(elsewhere / "computed.pt")[kind]


def test_plain_models_are_stock_and_the_others_bring_their_sources(computed, kind):
    assert computed["module"].startswith("transformers.models.vit." if kind == "plain" else "transformers_modules.")
    assert computed["processor"] == "transformers.models.vit.image_processing_vit.ViTImageProcessor"


def test_outputs_are_equal(journey, computed, kind):
    folder = journey.saved / "models" / kind
    classifier = ViTForImageClassification.from_pretrained(folder)
    torch.testing.assert_close(computed["logits"], classifier(pixels()).logits, rtol=0, atol=1e-6)
    tokens = ViTModel.from_pretrained(folder)(pixels()).last_hidden_state
    assert torch.equal(computed["tokens"], tokens)
    assert computed["parameters"] == classifier.num_parameters()
    if kind != "plain":
        backbone = ViTBackbone.from_pretrained(folder, out_indices=[1, 2], merged_tokens_per_layer=0)
        maps = backbone(pixels()).feature_maps
        for theirs, ours in zip(computed["maps"], maps, strict=True):
            assert torch.equal(theirs, ours)
        new_head = ViTForImageClassification.from_pretrained(folder, num_labels=2)
        assert torch.equal(computed["new head"], new_head(pixels()).logits)
        assert torch.equal(computed["new head"], torch.zeros(3, 2))


@torch.no_grad()  # as in pipelines; with gradients, sdpa may choose another kernel
def test_pipelines_agree(journey, computed, kind):
    """With vitrail imported, by its own classes: the sources beside the weights stay unread."""
    folder, photo = journey.saved / "models" / kind, str(journey.saved / "photo.png")
    classify = pipeline("image-classification", str(folder))
    assert classify.model.__module__.startswith("transformers.models.vit" if kind == "plain" else "vitrail.modeling.")
    assert classify(photo) == computed["predictions"]
    ours = ViTForImageClassification.from_pretrained(folder)
    processor = ViTImageProcessor.from_pretrained(folder)
    predicted = pipeline("image-classification", ours, image_processor=processor)(photo)
    for own, theirs in zip(predicted, computed["predictions"], strict=True):
        assert own["label"] == theirs["label"]
        assert own["score"] == pytest.approx(theirs["score"], abs=1e-6)
    features = pipeline("image-feature-extraction", str(folder))
    assert features(photo) == computed["features"]
    with Image.open(photo) as image:
        inputs = processor(image, return_tensors="pt")
        theirs = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")
    assert torch.equal(theirs.pixel_values, inputs.pixel_values)
    tokens = ViTModel.from_pretrained(folder)(**inputs).last_hidden_state
    torch.testing.assert_close(torch.tensor(features(photo)), tokens, rtol=0, atol=1e-6)


def test_what_was_saved_elsewhere_is_the_same_model(journey, elsewhere, kind):
    here, there = (folder / "models" / kind for folder in (journey.saved, elsewhere))
    model, again = (ViTForImageClassification.from_pretrained(folder) for folder in (here, there))
    fields = again.config.to_dict()
    assert {name: fields[name] for name in ViTConfig.__annotations__} == {
        name: model.config.to_dict()[name] for name in ViTConfig.__annotations__
    }
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def test_code_runs_only_when_it_is_trusted(computed, kind):
    if kind != "plain":
        assert "pass the argument `trust_remote_code=True`" in computed["refusal"]


def test_plain_models_bring_no_code(journey):
    for folder in (journey.saved, journey.from_folder, journey.from_hub):
        assert not list(folder.glob("*/plain/*.py"))
        assert "auto_map" not in (folder / "models" / "plain" / "config.json").read_text()
