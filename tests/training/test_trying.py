"""Runs that end early, or begin again with smaller batches."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from vitrail.modeling import ViTForImageClassification, ViTImageProcessor
from vitrail.training import train
from vitrail.training.arguments import ModelArguments
from vitrail.training.building import build_model
from vitrail.training.trainer import ViTTrainer


def test_a_batch_that_is_too_large_leaves_no_trace(image_folder, tiny_flags, tmp_path, monkeypatch):
    """Memory runs out in the second step, and everything is as if the run had begun with the batch that fits."""
    training_step = ViTTrainer.training_step
    sizes = []

    def small_memory(self, model, inputs, *args, **kwargs):
        sizes.append(len(inputs["pixel_values"]))
        if sizes[-1] > 6 and self.state.global_step == 1:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1.00 GiB")
        return training_step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(ViTTrainer, "training_step", small_memory)
    flags = [*tiny_flags, "--dataset", str(image_folder), "--auto_find_batch_size", "true", "--num_train_epochs", "2"]
    flags += ["--ema_decay", "0.9", "--muon_learning_rate", "0.02", "--layer_lr_decay", "0.8", "--class_weights"]
    flags += ["balanced", "--balanced_sampling", "true", "--early_stopping_patience", "3", "--learning_rate", "1e-2"]
    flags += ["--drop_path_rate", "0.3"]
    for name, size in (("large", "8"), ("small", "6")):
        train([*flags, "--per_device_train_batch_size", size, "--output_dir", str(tmp_path / name)])
    assert sizes[:6] == [8, 8, 7, 7, 6, 6]
    large, small = (load_file(tmp_path / name / "model.safetensors") for name in ("large", "small"))
    assert all(torch.equal(large[name], small[name]) for name in large)


def test_patience_ends_a_run_also_a_resumed_one(image_folder, tiny_flags, tmp_path):
    flags = [*tiny_flags, "--dataset", str(image_folder), "--early_stopping_patience", "2", "--learning_rate", "0"]
    flags += ["--save_total_limit", "9", "--num_train_epochs", "6"]
    assert train([*flags, "--output_dir", str(tmp_path / "through")]).metrics["epoch"] == 3
    checkpoints = sorted((tmp_path / "through").glob("checkpoint-*"), key=lambda path: int(path.name[11:]))
    for checkpoint in checkpoints[:2]:  # the best, and the one to go on from
        shutil.copytree(checkpoint, tmp_path / "again" / checkpoint.name)
    again = train([*flags, "--output_dir", str(tmp_path / "again"), "--resume_from_checkpoint", "last"])
    assert again.metrics["epoch"] == 3


@pytest.mark.parametrize("overrides", [None, json.dumps({"patch_dropout_prob": 0.5})])
def test_a_checkpoint_is_built_with_drop_path_and_patch_dropout(tiny_model, tmp_path, overrides):
    tiny_model.save_pretrained(tmp_path)
    ViTImageProcessor().save_pretrained(tmp_path)
    model, _ = build_model(
        ModelArguments(model=str(tmp_path), drop_path_rate=0.2, patch_dropout_prob=0.25, config_overrides=overrides),
        list("abcde"),
    )
    assert isinstance(model, ViTForImageClassification)
    assert [layer.drop_path.rate for layer in model.vit.layers] == [0.0, 0.1, 0.2]
    assert model.config.patch_dropout_prob == 0.25
