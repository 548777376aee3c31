"""What a training says of itself while it runs: a bar on a terminal, lines elsewhere."""

import io
import re
import sys

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from vitrail.training import train
from vitrail.training.progress import Progress


def test_a_file_gets_plain_lines(image_folder, tiny_flags, tmp_path, capsys):
    flags = [*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(tmp_path), "--disable_tqdm", "false"]
    train([*flags, "--logging_steps", "0.5", "--num_train_epochs", "2", "--validation_fraction", "0.25"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("epoch", "kept"))]
    step = r"epoch {} of 2, loss [\d.e-]+, [\d,.]+ images/s, \d\d:\d\d left"
    evaluation = r"{}, validation: loss [\d.]+, accuracy [\d.]+, f1 macro [\d.]+, calibration error [\d.]+"
    expected = [step.format("1.00"), evaluation.format("epoch 1.00 of 2")]
    expected += [step.format("2.00"), evaluation.format("epoch 2.00 of 2"), evaluation.format("kept weights")]
    assert len(lines) == len(expected)
    for line, pattern in zip(lines, expected):
        assert re.fullmatch(pattern, line), line


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def drive(tmp_path, monkeypatch):
    """A function that runs the callback through two steps and an evaluation, and returns what a terminal got."""
    clock = iter(range(0, 1000, 2))  # two seconds from look to look
    monkeypatch.setattr("vitrail.training.progress.time.monotonic", lambda: next(clock))

    def run(**kwargs):
        monkeypatch.setattr(sys, "stdout", Terminal())
        arguments = TrainingArguments(str(tmp_path), per_device_train_batch_size=8, max_steps=4, **kwargs)
        state, control = TrainerState(max_steps=4, num_train_epochs=2), TrainerControl()
        progress = Progress()
        progress.on_train_begin(arguments, state, control)
        for step in (1, 2):
            state.global_step, state.epoch = step, step / 2
            progress.on_log(arguments, state, control, logs={"loss": 1 / step})
            progress.on_step_end(arguments, state, control)
        progress.on_log(arguments, state, control, logs={"eval_loss": 0.25, "eval_runtime": 1.0})
        progress.on_train_end(arguments, state, control)
        return sys.stdout.getvalue()

    return run


def test_a_terminal_gets_a_bar(drive):
    said = drive()
    assert "\repoch 1.00 of 2, validation: loss 0.25\n" in said
    assert "4.0 images/s" in said  # eight in two seconds
    assert re.search(r" 50%\|.{20}\| epoch 1\.00 of 2, loss 0\.5, 4\.0 images/s, \d\d:\d\d left", said)


def test_or_lines_if_it_wants_no_bar(drive):
    said = drive(disable_tqdm=True)
    assert "\r" not in said
    assert "epoch 1.00 of 2, loss 0.5, 4.0 images/s" in said
    assert "epoch 1.00 of 2, validation: loss 0.25\n" in said
