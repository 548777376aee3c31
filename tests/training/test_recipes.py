"""Recipes say what the paper says, and what their own comments say."""

import re
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from transformers import Trainer

from vitrail.modeling import ViTForImageClassification
from vitrail.training import recipes
from vitrail.training.arguments import METHODS, RECIPE_NAMES, parse_arguments
from vitrail.training.building import build_model


FOLDER = Path(str(recipes.__file__)).parent


def parsed(*flags):
    return parse_arguments(["--dataset", "x", "--use_cpu", "true", *flags])


def global_batch(arguments):
    return arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps


@pytest.mark.parametrize("name", RECIPE_NAMES)
def test_every_recipe_is_headed_by_its_command_and_sets_nothing_twice(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    head = text[: text.index("\n" + next(line for line in text.splitlines() if not line.startswith("#")))]
    assert re.search(r"^#     vitrail train ", head, re.MULTILINE)
    assert re.search(r"\d %|\d s\b|[Nn]ot measured", head)
    keys = re.findall(r"^(\w+):", text, re.MULTILINE)
    assert sorted(keys) == sorted(yaml.safe_load(text))


@pytest.mark.parametrize("method", METHODS[1:])
def test_a_method_takes_its_recipe_and_the_recipe_its_method(method):
    by_method, by_recipe = (parsed(flag, method, "--model", "some/model") for flag in ("--method", "--recipe"))
    assert by_method == by_recipe
    assert by_method[0].method == by_method[2].recipe == method
    other = parsed("--method", method, "--recipe", "scratch-small", "--model", "some/model")
    assert (other[0].method, other[2].recipe) == (method, "scratch-small")


def test_paper_finetune_is_table_4():
    model, _, arguments = parsed("--recipe", "paper-finetune", "--model", "some/model")
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert optimizer is torch.optim.SGD
    assert settings == {"lr": 0.01, "momentum": 0.9}
    assert (model.image_size, global_batch(arguments)) == (384, 512)
    assert (arguments.lr_scheduler_type, arguments.warmup_steps) == ("cosine", 0)
    assert (arguments.weight_decay, arguments.max_grad_norm) == (0, 1)
    assert not arguments.load_best_model_at_end


def test_paper_pretrain_is_table_3s_row_of_imagenet():
    model_arguments, _, arguments = parsed("--recipe", "paper-pretrain")
    optimizer, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert optimizer is torch.optim.AdamW
    assert (settings["lr"], settings["betas"], arguments.weight_decay) == (3e-3, (0.9, 0.999), 0.3)
    assert (global_batch(arguments), arguments.warmup_steps, arguments.num_train_epochs) == (4096, 10000, 300)
    assert (arguments.lr_scheduler_type, arguments.max_grad_norm) == ("cosine", 1)
    assert not arguments.load_best_model_at_end
    with torch.device("meta"):
        model, _ = build_model(model_arguments, [str(index) for index in range(1000)])
    assert model.num_parameters() == 86_567_656 + 768 * 768 + 768  # the hidden layer of the head
    assert model.config.hidden_dropout_prob == 0.1


def test_paper_finetune_removes_the_head_that_paper_pretrain_has(tmp_path):
    small = '{"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "representation_size": 8}'
    flags = ("--recipe", "paper-pretrain", "--image_size", "32", "--config_overrides", small)
    model, processor = build_model(parsed(*flags)[0], ["a", "b", "c"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = parsed("--recipe", "paper-finetune", "--model", str(tmp_path), "--image_size", "48")[0]
    for labels in (["a", "b", "d"], ["a", "b"]):
        tuned, processor = build_model(again, labels)
        assert isinstance(tuned, ViTForImageClassification)
        assert tuned.pre_logits is None
        assert not tuned.classifier.weight.any()
        assert (tuned.config.image_size, processor.output_size) == (48, (48, 48))
        tuned.save_pretrained(tmp_path / "tuned")
        stock = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "tuned")
        assert type(stock) is transformers.ViTForImageClassification
