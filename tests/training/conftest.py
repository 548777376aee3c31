"""Small data sets and a model that trains in a second."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session", autouse=True)
def hardware_without_bfloat16():
    """What is compared to the last digits is computed in float32 on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        for module in ("arguments", "evaluation"):
            patch.setattr(f"vitrail.training.{module}.has_fast_bf16", lambda use_cpu: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def streams_that_end_at_once():
    """`datasets` sleeps for five seconds after every pass over a shuffled stream of parquet files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)
        yield


@pytest.fixture(scope="session", autouse=True)
def memory_given_back():
    """The process of the tests is not one training's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitrail.cli.train.keep_freed_memory", lambda: None)
        yield


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """48 JPEGs of two kinds that anybody can tell apart: `bright/` and `dark/`."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for name, base in (("bright", 180), ("dark", 20)):
        (folder / name).mkdir()
        for index in range(24):
            pixels = base + generator.integers(0, 50, (20, 30, 3))
            Image.fromarray(np.uint8(pixels)).save(folder / name / f"{index:02}.jpg")
    return folder


@pytest.fixture(scope="session")
def tiny_flags() -> list[str]:
    """Flags of `vitrail train` for a ViT that learns the folder above in a second."""
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return [
        *("--model", "Ti/16", "--image_size", "16", "--patch_size", "8", "--config_overrides", json.dumps(shape)),
        *("--num_train_epochs", "4", "--per_device_train_batch_size", "8", "--disable_tqdm", "true"),
        *("--bf16", "false"),  # on every machine, and to compare more figures
    ]
