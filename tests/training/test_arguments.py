"""Flags over recipe over defaults."""

import pytest

from vitrail.modeling import InputError
from vitrail.training.arguments import RECIPE_NAMES, parse_arguments


def test_flags_win_over_the_recipe_and_the_recipe_over_defaults():
    model, data, training = parse_arguments(["--dataset", "digits", "--learning_rate", "0.5", "--flip", "0.25"])
    assert training.recipe == "digits"
    assert model.patch_size == 2
    assert (training.learning_rate, data.flip) == (0.5, 0.25)
    assert training.save_strategy == "no"
    assert training.output_dir == "runs/digits"


@pytest.mark.parametrize("how", [[], ["--model", "Ti/16"], ["--model", "a/b"], ["--recipe", "lora", "--model", "a/b"]])
def test_digits_are_never_mirrored_unless_somebody_says_so(how):
    assert parse_arguments(["--dataset", "digits", *how])[1].flip == 0
    assert parse_arguments(["--dataset", "digits", *how, "--flip", "0.5"])[1].flip == 0.5


def test_a_model_from_scratch_takes_its_recipe_and_a_checkpoint_that_of_fine_tuning():
    assert parse_arguments(["--dataset", "x", "--model", "Ti/16"])[2].recipe == "scratch-small"
    argv = ["--dataset", "x/beans", "--model", "some/checkpoint"]
    training = parse_arguments(argv)[2]
    assert (training.recipe, training.output_dir) == ("finetune", "runs/beans")
    assert parse_arguments([*argv, "--objective", "masked-patch", "--metric_for_best_model", "loss"])[2].recipe is None


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_every_recipe_parses(recipe, tmp_path):
    _, _, training = parse_arguments(["--dataset", "x", "--recipe", recipe, "--output_dir", str(tmp_path)])
    assert training.recipe == recipe


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "x", "--learning_rat", "1"], "learning_rat"),
        ([], "following arguments are required: --dataset"),
        (["--dataset", "x", "--num_train_epochs", "many"], "invalid float value: 'many'"),
        (["--dataset", "x", "--recipe", "cake"], "no recipe 'cake'; the recipes are digits, "),
        (["--dataset", "x", "--bf16", "--fp16", "--use_cpu"], "At most one of fp16 and bf16"),
        (["--dataset", "x", "--crop_scale", "0"], "crop_scale must be"),
        (["--dataset", "x", "--flip", "3"], "flip must lie"),
        (["--dataset", "x", "--max_train_samples", "0"], "max_train_samples must be"),
        (["--dataset", "x", "--validation_fraction", "1"], "validation_fraction must lie"),
        (["--dataset", "x", "--learning_rate", "nan"], "learning_rate must be"),
        (["--dataset", "x", "--weight_decay", "nan"], "weight_decay must be"),
        (["--dataset", "x", "--max_grad_norm", "-1"], "max_grad_norm must be"),
        (["--dataset", "x", "--num_train_epochs", "0"], "num_train_epochs must be"),
        (["--dataset", "x", "--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be"),
        (["--dataset", "x", "--seed", "99999999999"], "seed must be"),
        (["--dataset", "x", "--method", "few-shot", "--balanced_sampling"], "leave out balanced_sampling"),
        (["--dataset", "x", "--layer_lr_decay", "0"], "layer_lr_decay must be"),
        (["--dataset", "x", "--muon_learning_rate", "inf"], "muon_learning_rate must be"),
        (["--dataset", "x", "--ema_decay", "1"], "ema_decay must be"),
        (["--dataset", "x", "--ema_decay", "0.9", "--optim", "schedule_free_adamw"], "a schedule-free --optim"),
        (["--dataset", "x", "--class_weights", "heavy"], "class_weights must be 'balanced'"),
        (["--dataset", "x", "--early_stopping_patience", "0"], "early_stopping_patience must be"),
        (["--dataset", "x", "--early_stopping_patience", "1", "--eval_strategy", "no"], "needs evaluations"),
        (["--dataset", "x", "--label_smoothing_factor", "1"], "label_smoothing_factor must be"),
        (["--dataset", "x", "--objective", "masked-patch", "--class_weights", "balanced"], "are for classification"),
        (["--dataset", "x", "--objective", "masked-patch", "--balanced_sampling"], "balanced_sampling is for"),
        (["--dataset", "x", "--per_device_train_batch_size", "0"], "per_device_train_batch_size must be"),
        (["--dataset", "x", "--metric_for_best_model", "f2"], "metric_for_best_model must be one of accuracy"),
        (["--dataset", "x", "--prediction_loss_only", "true"], "prediction_loss_only would leave no accuracy"),
    ],
)
def test_bad_flags_are_one_sentence(flags, message):
    with pytest.raises(InputError, match=message) as caught:
        parse_arguments(flags)
    assert "\n" not in str(caught.value)


def test_without_evaluations_or_checkpoints_there_is_no_best():
    for flag in ("--eval_strategy", "--save_strategy"):
        assert not parse_arguments(["--dataset", "x", flag, "no"])[2].load_best_model_at_end
