"""What of a folder is published, and that it works elsewhere before it is."""

import json
import shutil

import pytest

from vitrail.modeling import ViTConfig, ViTForImageClassification, ViTImageProcessor
from vitrail.modeling.remote_code import sources
from vitrail.publishing import PublishingError
from vitrail.publishing.model_folder import is_left_over, model_files
from vitrail.publishing.reloading import check_reload


PLAIN = ["config.json", "model.safetensors", "preprocessor_config.json"]


@pytest.fixture
def odd_folder(randomised, tmp_path):
    """A model and a processor that transformers does not know."""
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_channels=1,
        position_embedding="relative",
    )
    randomised(ViTForImageClassification(config)).save_pretrained(tmp_path / "odd")
    ViTImageProcessor(size={"height": 16, "width": 16}, num_channels=1).save_pretrained(tmp_path / "odd")
    return tmp_path / "odd"


def test_files_are_published_for_a_reason(model_folder):
    files = model_files(model_folder)
    assert sorted(files) == sorted([*PLAIN, "README.md", "all_results.json", "shown.png", "maps/worst 1.png"])
    assert all(path == model_folder / name for name, path in files.items())


def test_a_picture_is_not_a_link_to_something_else(model_folder, tmp_path):
    (tmp_path / "secret").write_text("of somebody")
    (model_folder / "linked.png").symlink_to(tmp_path / "secret")
    (model_folder / "same.png").symlink_to("shown.png")
    (model_folder / "README.md").write_text("![](linked.png) ![](same.png) ![](shown.png)")
    assert sorted(name for name in model_files(model_folder) if name.endswith(".png")) == ["same.png", "shown.png"]


def test_sources_are_published_with_a_model_that_needs_them(odd_folder, model_folder):
    (odd_folder / "handler.py").write_text("stray = True")
    files = model_files(odd_folder)
    code = {name for name in files if name.endswith(".py")}
    assert {"configuration_vit.py", "modeling_vit.py", "image_processing_vit.py"} < code
    assert code < {source.name for source in sources()}
    for name in code:  # left by another model that was saved here before
        shutil.copyfile(odd_folder / name, model_folder / name)
    assert not any(name.endswith(".py") for name in model_files(model_folder))


def test_shards_are_published_as_their_index_names_them(tiny_model, model_folder):
    (model_folder / "model.safetensors").unlink()
    tiny_model.save_pretrained(model_folder, max_shard_size="20KB")
    shards = {path.name for path in model_folder.glob("model-*.safetensors")}
    assert len(shards) > 1
    (model_folder / "model-of-somebody.safetensors").write_text("")
    weights = {name for name in model_files(model_folder) if name.startswith("model")}
    assert weights == shards | {"model.safetensors.index.json"}
    assert all(is_left_over(name) for name in weights)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda folder: shutil.rmtree(folder), "There is no folder"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json, so it is no folder of a model"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "config.json is not a JSON object"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
    ],
)
def test_what_is_missing_is_named(model_folder, break_it, sentence):
    break_it(model_folder)
    with pytest.raises(PublishingError, match=sentence):
        model_files(model_folder)


def test_a_missing_source_is_named(odd_folder):
    (odd_folder / "geometry.py").unlink()
    with pytest.raises(PublishingError, match=r"has no geometry\.py, which its model needs"):
        model_files(odd_folder)


def test_a_broken_model_is_not_published(model_folder, monkeypatch):
    files = model_files(model_folder)
    monkeypatch.setattr("subprocess.run", None)  # it is found out before
    weights = (model_folder / "model.safetensors").read_bytes()
    (model_folder / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(PublishingError, match="not a complete safetensors file"):
        check_reload(model_folder, files)
    (model_folder / "model.safetensors").write_bytes(weights)
    config = json.loads((model_folder / "config.json").read_text()) | {"num_attention_heads": 5}
    (model_folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PublishingError, match=r"num_attention_heads \(5\) must divide hidden_size"):
        check_reload(model_folder, files)


def test_nan_is_not_published(tiny_model, model_folder):
    tiny_model.classifier.weight.data.fill_(float("nan"))
    tiny_model.save_pretrained(model_folder)
    with pytest.raises(PublishingError, match="answers with NaN"):
        check_reload(model_folder, model_files(model_folder))


@pytest.mark.slow
def test_a_new_process_must_get_the_same(odd_folder):
    """Without vitrail, from the sources that are published with the model; then these say something else."""
    check_reload(odd_folder, model_files(odd_folder))
    source = odd_folder / "modeling_vit.py"
    scaled = source.read_text().replace("self.scaling = self.head_dim**-0.5", "self.scaling = self.head_dim**-0.4")
    assert scaled != source.read_text()
    source.write_text(scaled)
    with pytest.raises(PublishingError, match="others would get another model"):
        check_reload(odd_folder, model_files(odd_folder))
