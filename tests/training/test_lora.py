"""Low-rank additions: trained like anything else, and gone from what is saved."""

import json
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from vitrail.modeling import InputError, ViTConfig, ViTForImageClassification, ViTImageProcessor
from vitrail.training import arguments, train
from vitrail.training.evaluation import evaluate
from vitrail.training.lora import LoraTrainer


SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(scope="module")
def base(randomised, tmp_path_factory):
    """The folder of a small model with random weights, whose pre-trained head has a hidden layer."""
    folder = tmp_path_factory.mktemp("base")
    config = ViTConfig(**SHAPE, image_size=16, patch_size=8, num_labels=7, representation_size=6)
    randomised(ViTForImageClassification(config)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run(base, image_folder, tmp_path_factory):
    """A finished run with a checkpoint of every epoch, its flags, and the logits before and after merging."""
    output_dir = tmp_path_factory.mktemp("run")
    flags = ["--method", "lora", "--model", str(base), "--dataset", str(image_folder), "--output_dir", str(output_dir)]
    flags += ["--lora_rank", "2", "--lora_alpha", "8", "--num_train_epochs", "4", "--per_device_train_batch_size", "8"]
    flags += ["--validation_fraction", "0.25", "--disable_tqdm", "true", "--save_total_limit", "9"]
    logits = []
    merge = LoraTrainer.merge

    def observed(trainer):
        logits.append(trainer.model.eval()(pixels()).logits)
        merge(trainer)
        logits.append(trainer.model(pixels()).logits)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoraTrainer, "merge", observed)
        result = train(flags)
    return result, flags, logits


def pixels():
    return torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_folder_is_a_plain_model_with_the_same_logits(run, base, image_folder):
    result, _, (before, after, *_) = run
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    saved = ViTForImageClassification.from_pretrained(result.output_dir).eval()
    assert torch.equal(saved(pixels()).logits, after)
    assert json.loads((result.output_dir / "config.json").read_text())["model_type"] == "vit"
    own = load_file(base / "model.safetensors")
    names = {name for name in own if not name.startswith("pre_logits.")}
    assert load_file(result.output_dir / "model.safetensors").keys() == names
    assert evaluate(str(result.output_dir), str(image_folder), "train")["eval_accuracy"] > 0.9


def test_only_the_additions_and_the_head_are_trained(run, base):
    result, _, _ = run
    first, last = sorted(result.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))[::3]
    first, last, own = (load_file(folder / "model.safetensors") for folder in (first, last, base))
    changed = {name for name in last if not torch.equal(first[name], last[name])}
    assert changed == {name for name in last if "lora_" in name or name.startswith("classifier.")}
    adapted = {name for name in last if name.endswith("lora_A.default.weight")}
    assert len(adapted) == 2 * 6  # query, key, value, output and both of the MLP's, in each layer
    kept = {name.replace(".base_layer", ""): tensor for name, tensor in last.items()}
    assert all(torch.equal(own[name], kept[name]) for name in own if name.startswith("vit."))
    expected = sum(last[name].numel() for name in changed)
    assert result.metrics["trained_parameters"] == expected
    text = ModelCard.load(result.output_dir / "README.md").text
    assert "| method | LoRA of rank 2, alpha 8, merged into the weights |" in text
    assert f"| trained | {expected:,} parameters" in text


def test_resuming_gives_the_very_same_weights(run, tmp_path):
    result, flags, _ = run
    checkpoints = sorted(result.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    shutil.copytree(checkpoints[1], tmp_path / checkpoints[1].name)
    train([*flags, "--output_dir", str(tmp_path), "--resume_from_checkpoint", "last"])
    last = f"{checkpoints[-1].name}/model.safetensors"
    again, before = (load_file(folder / last) for folder in (tmp_path, result.output_dir))
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], before[name]) for name in before)


def test_the_best_checkpoint_is_what_is_merged(run):
    result, _, _ = run
    state = json.loads((result.output_dir / "trainer_state.json").read_text())
    best = load_file(f"{state['best_model_checkpoint']}/model.safetensors")
    saved = load_file(result.output_dir / "model.safetensors")
    assert torch.equal(saved["classifier.weight"], best["classifier.weight"])
    layer = "vit.layers.1.mlp.fc1"
    product = best[f"{layer}.lora_B.default.weight"] @ best[f"{layer}.lora_A.default.weight"]
    expected = best[f"{layer}.base_layer.weight"] + 8 / 2 * product
    torch.testing.assert_close(saved[f"{layer}.weight"], expected)


def test_without_peft_it_is_one_sentence(monkeypatch):
    monkeypatch.setattr(arguments, "is_peft_available", lambda: False)
    with pytest.raises(InputError, match="method lora needs PEFT"):
        arguments.parse_arguments(["--dataset", "x", "--model", "some/model", "--method", "lora"])
