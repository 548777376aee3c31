"""The moving average of weights: its values, and where it is evaluated, kept, resumed and chosen."""

import copy
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import TrainerCallback

from vitrail.training.arguments import parse_arguments
from vitrail.training.card import Provenance
from vitrail.training.trainer import ViTTrainer


DECAY = 0.5  # beyond the warm-up after eight steps
PIXELS = torch.randn(14, 3, 24, 16, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(14) % 5
ROWS: Any = [{"pixel_values": pixels, "labels": label} for pixels, label in zip(PIXELS, LABELS)]


class Weights(TrainerCallback):
    """The weights after every step, as the optimiser left them."""

    def __init__(self):
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_step_end(self, args, state, control, model, **kwargs):
        self.steps.append({name: weight.detach().clone() for name, weight in model.named_parameters()})


def trainer_of(model, folder, *flags, **kwargs):
    argv = ["--dataset", "x", "--output_dir", str(folder), "--learning_rate", "1e-2", "--num_train_epochs", "3"]
    argv += ["--per_device_train_batch_size", "2", "--gradient_accumulation_steps", "2", "--save_total_limit", "9"]
    argv += ["--ema_decay", str(DECAY), "--muon_learning_rate", "0.02", "--layer_lr_decay", "0.8", *flags]
    arguments = parse_arguments([*argv, "--disable_tqdm", "true", "--metric_for_best_model", "loss"])[2]
    provenance = Provenance("x", None, None, None, {})
    data = {"train_dataset": ROWS, "eval_dataset": ROWS}
    return ViTTrainer(model=copy.deepcopy(model), args=arguments, provenance=provenance, **data, **kwargs)


@pytest.fixture(scope="module")
def runs():
    return {}


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def run(request, runs, tiny_model, tmp_path_factory):
    """A finished run of three epochs of four steps, its start, and the weights after every step."""
    if request.param not in runs:
        model = tiny_model.to(request.param)
        weights = Weights()
        trainer = trainer_of(model, tmp_path_factory.mktemp("run"), "--load_best_model_at_end", "false")
        trainer.add_callback(weights)
        trainer.train()
        runs[request.param] = trainer, model, weights.steps
    return runs[request.param]


def averages(start, steps):
    """The textbook's recursion in float64, after every step."""
    average = {name: weight.detach().double() for name, weight in start.named_parameters()}
    for index, weights in enumerate(steps, start=1):
        decay = min(DECAY, (1 + index) / (10 + index))
        average = {name: decay * average[name] + (1 - decay) * weights[name].double() for name in average}
        yield average


def test_the_average_is_the_textbooks_and_is_what_is_evaluated_saved_and_left(run):
    trainer, start, steps = run
    tolerance = {"rtol": 2**-8, "atol": 1e-6} if start.dtype == torch.bfloat16 else {"rtol": 0, "atol": 1e-6}
    expected = list(averages(start, steps))
    assert len(expected) == 12
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in evaluations] == [4, 8, 12]
    for entry in evaluations:
        folder = f"{trainer.args.output_dir}/checkpoint-{entry['step']}"
        saved, raw = load_file(f"{folder}/model.safetensors"), load_file(f"{folder}/raw_weights.safetensors")
        model = copy.deepcopy(start)
        model.load_state_dict(saved)
        with torch.no_grad():
            assert F.cross_entropy(model(PIXELS).logits, LABELS).item() == pytest.approx(entry["eval_loss"], rel=1e-2)
        for name, average in expected[entry["step"] - 1].items():
            assert torch.allclose(saved[name].double(), average, **tolerance), name
            assert torch.equal(raw[name], steps[entry["step"] - 1][name]), name
            assert not torch.equal(raw[name], saved[name]) or "k_proj.bias" in name, name
    assert all(torch.equal(weight, saved[name]) for name, weight in trainer.model.named_parameters())


def test_resuming_is_exact(run, tmp_path):
    trainer, start, _ = run
    again = trainer_of(start, tmp_path, "--load_best_model_at_end", "false")
    again.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-4")
    for file in ("model.safetensors", "raw_weights.safetensors"):
        before, after = (load_file(f"{each.args.output_dir}/checkpoint-12/{file}") for each in (trainer, again))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before), file
    assert all(torch.equal(*pair) for pair in zip(trainer.model.parameters(), again.model.parameters()))


def test_the_best_checkpoint_is_an_average_and_is_what_is_left(tiny_model, tmp_path):
    losses = iter((1.0, 0.5, 2.0))
    trainer = trainer_of(tiny_model, tmp_path, compute_metrics=lambda prediction: {"loss": next(losses)})
    trainer.train()
    # the Trainer puts its own loss over that of compute_metrics
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(weight, best[name]) for name, weight in trainer.model.named_parameters())
    trainer.save_model()
    left = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(left[name], best[name]) for name in best)
    assert not (tmp_path / "raw_weights.safetensors").exists()


def test_a_checkpoint_without_an_average_is_where_it_starts(tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path, "--ema_decay", "0", "--max_steps", "4").train()
    trainer = trainer_of(tiny_model, tmp_path, "--max_steps", "5", "--load_best_model_at_end", "false")
    weights = Weights()
    trainer.add_callback(weights)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    before = load_file(tmp_path / "checkpoint-4" / "model.safetensors")
    decay = min(DECAY, 6 / 15)
    for name, weight in trainer.model.named_parameters():
        assert torch.allclose(weight, decay * before[name] + (1 - decay) * weights.steps[0][name], atol=1e-6), name
