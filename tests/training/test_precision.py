"""bfloat16 is chosen where the hardware has it, and can be chosen by hand."""

import pytest

from vitrail.training import train
from vitrail.training.arguments import parse_arguments


@pytest.mark.parametrize(
    ("fast", "flags", "bf16"),
    [
        (True, [], True),
        (False, [], False),
        (False, ["--bf16"], True),
        (True, ["--bf16", "false"], False),
    ],
)
def test_bfloat16_where_it_is_fast_or_asked_for(monkeypatch, tmp_path, fast, flags, bf16):
    monkeypatch.setattr("vitrail.training.arguments.has_fast_bf16", lambda use_cpu: fast)
    argv = ["--dataset", "digits", "--output_dir", str(tmp_path), "--use_cpu", *flags]
    assert parse_arguments(argv)[2].bf16 is bf16


def test_it_learns_in_bfloat16_and_keeps_float32(image_folder, tiny_flags, tmp_path, capsys):
    result = train([*tiny_flags, "--dataset", str(image_folder), "--output_dir", str(tmp_path), "--bf16", "true"])
    assert "Training in bfloat16 autocast over float32 weights" in capsys.readouterr().out
    assert result.metrics["eval_accuracy"] == 1
