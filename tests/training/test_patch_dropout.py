"""Patches are left out of the first part of the steps, and of no other."""

import pytest
from transformers import TrainerControl, TrainerState

from vitrail.training.patch_dropout import PatchDropoutSchedule


@pytest.mark.parametrize(("until", "left_out"), [(0.6, 6), (1.0, 10), (0.0, 0)])
def test_the_first_part_is_on_some_of_the_patches(tiny_model, until, left_out):
    tiny_model.config.patch_dropout_prob = 0.5
    schedule = PatchDropoutSchedule(tiny_model, until)
    shares = []
    for step in range(10):
        schedule.on_step_begin(None, TrainerState(global_step=step, max_steps=10), TrainerControl())
        shares.append(tiny_model.config.patch_dropout_prob)
    assert shares == [0.5] * left_out + [0.0] * (10 - left_out)
