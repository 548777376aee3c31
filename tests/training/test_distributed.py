"""Two processes train what one trains, in copies of the model or in shards of it."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from vitrail.modeling import ViTForImageClassification
from vitrail.training import train


# Accelerate shards on accelerators only. Here it takes the processes' CPUs for such; everything after that is its own.
SHARDED = """
import sys
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from vitrail.training import train
from vitrail.training.trainer import ViTTrainer

begin, prepare = PartialState.__init__, ViTTrainer._prepare_for_training

def begin_on_accelerators(self, *args, **kwargs):
    begin(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_XPU

def prepare_shards(self, *args):
    prepared = prepare(self, *args)
    whole = self.model.num_parameters()
    parameters = list(self.model.parameters())
    assert all(isinstance(parameter, DTensor) for parameter in parameters)
    assert sum(parameter.to_local().numel() for parameter in parameters) < 0.6 * whole
    return prepared

PartialState.__init__, ViTTrainer._prepare_for_training = begin_on_accelerators, prepare_shards
train(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def flags(image_folder, tiny_flags):
    """A run of 47 images, so that no number of processes divides the held-out ones, in batches of 8 by 5 steps."""
    return [
        *tiny_flags,
        *("--dataset", str(image_folder), "--max_train_samples", "40", "--max_steps", "5", "--bf16", "false"),
        *("--validation_fraction", "0.15", "--learning_rate", "1e-3", "--eval_strategy", "no", "--save_strategy", "no"),
        *("--ema_decay", "0", "--muon_learning_rate", "0", "--patch_dropout_prob", "0"),
    ]


@pytest.fixture(scope="module")
def alone(flags, tmp_path_factory):
    """What one process makes of it."""
    folder = tmp_path_factory.mktemp("alone")
    train([*flags, "--output_dir", str(folder), "--per_device_train_batch_size", "8"])
    return folder


def run_two(*command):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    launcher += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*launcher, *map(str, command), "--per_device_train_batch_size", "4", "--use_cpu", "true"],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_same(folder, other):
    weights, others = (load_file(path / "model.safetensors") for path in (folder, other))
    assert weights.keys() == others.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(weight, others[name], atol=1e-4, rtol=0)
    results, other_results = (json.loads((path / "all_results.json").read_text()) for path in (folder, other))
    assert results["eval_loss"] == pytest.approx(other_results["eval_loss"], abs=1e-4)
    assert results["eval_accuracy"] == other_results["eval_accuracy"]
    assert results["eval_confusion_matrix"] == other_results["eval_confusion_matrix"]  # every image once
    ViTForImageClassification.from_pretrained(folder)


@pytest.mark.slow
def test_two_copies_learn_what_one_model_does(flags, alone, tmp_path):
    said = run_two("-m", "vitrail.training", *flags, "--output_dir", tmp_path)
    assert_same(tmp_path, alone)
    assert said.count("Accuracy") == 1  # one process speaks for all


@pytest.mark.slow
def test_shards_learn_what_a_whole_model_does(flags, alone, tmp_path):
    (tmp_path / "sharded.py").write_text(SHARDED)
    run_two(tmp_path / "sharded.py", *flags, "--output_dir", tmp_path / "run", "--fsdp")
    assert_same(tmp_path / "run", alone)
