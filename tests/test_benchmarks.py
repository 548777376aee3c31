"""The benchmarks run, and refuse to time what computes something else; what they time is theirs to say."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = {"transformers, sdpa", "transformers, eager", "timm", "vit-pytorch", "vitrail"}


def tables(folder: Path, script: str, *flags: str) -> list[list[dict[str, str]]]:
    """The rows of every table that a benchmark writes, which it also prints."""
    said = subprocess.run(
        [sys.executable, BENCHMARKS / script, *flags], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    (file,) = (folder / "build" / "benchmarks").iterdir()
    content = json.loads(file.read_text())
    assert content["machine"] in said
    for table in content["tables"]:
        assert table["title"] in said
    return [table["rows"] for table in content["tables"]]


def test_predictions_of_every_peer_and_precision(tmp_path):
    flags = ["--variants", "Ti/16", "--batches", "1", "--rounds", "1", "--ways", "fp32", "bf16", "bf16-weights", "onnx"]
    *ways, onnx = tables(tmp_path, "forward.py", *flags)
    assert [{row["model"] for row in rows} for rows in ways] == [PEERS] * 3
    assert {row["model"] for row in onnx} == {"transformers, sdpa", "ONNX Runtime", "vitrail"}
    exact = [float(row["apart"]) for rows in (ways[0], onnx) for row in rows]
    assert max(exact) < 1e-5


def test_training_steps_of_every_peer(tmp_path):
    flags = ["--variant", "Ti/16", "--batch", "1", "--rounds", "1", "--precisions", "fp32", "--no-memory"]
    (rows,) = tables(tmp_path, "train_step.py", *flags)
    assert {row["model"] for row in rows} == PEERS
    assert max(float(row["apart"]) for row in rows) < 1e-5


def test_rollout_beside_the_usual_way(tmp_path):
    flags = ["--variant", "Ti/16", "--patch_size", "16", "--image_sizes", "32", "--rounds", "1"]
    (rows,) = tables(tmp_path, "rollout.py", *flags)
    assert max(float(row["apart"]) for row in rows) < 1e-6


def test_exported_models_beside_pytorch(tmp_path):
    (rows,) = tables(tmp_path, "exported.py", "--variant", "Ti/16", "--batch", "1", "--rounds", "1")
    runtimes = ["PyTorch, float32", "PyTorch, bfloat16", "ONNX Runtime, float32, 23 MB", "ONNX Runtime, int8, 6 MB"]
    assert [row["runtime"] for row in rows] == runtimes


def test_token_merging_has_a_row_for_every_number_of_pairs(model_folder, tmp_path):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (24, 24), (40 * index, 90, 20)).save(folder / f"{index}.png")
    arguments = ["--model", model_folder, "--dataset", tmp_path / "images", "--images", "5", "--pairs", "1", "2"]
    (rows,) = tables(tmp_path, "token_merging.py", *map(str, arguments), "--batch", "2", "--rounds", "1")
    # of a class token and 6 patches, after two layers
    assert [(row["r"], row["tokens at last"]) for row in rows] == [("0", "7"), ("1", "5"), ("2", "3")]


@pytest.mark.parametrize(
    ("script", "flags", "count"),
    [
        ("input_pipeline.py", ["--rounds", "1"], 2),
        ("startup.py", ["--variant", "Ti/16", "--rounds", "1"], 1),
        ("scaling.py", ["--image_sizes", "32", "--batches", "1", "2", "--images", "16", "--rounds", "1"], 2),
    ],
)
def test_the_others_run(tmp_path, script, flags, count):
    assert len(tables(tmp_path, script, *flags)) == count


@pytest.mark.slow
def test_whole_jobs(tmp_path):
    (rows,) = tables(tmp_path, "trainer.py", "--images", "256", "--epochs", "1")
    assert len(rows) == 4


@pytest.mark.slow
def test_training_on_some_of_the_patches(tmp_path):
    (rows,) = tables(tmp_path, "patch_dropout.py", "--images", "128", "--epochs", "1")
    assert [row["patches left out"] for row in rows] == ["0%", "50%", "50%", "75%"]


def test_models_that_disagree_are_not_timed(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import torch
    from peers import check_same

    with pytest.raises(SystemExit, match="do not compute the same"):
        check_same({"one": torch.ones(2), "other": torch.ones(2) * 1.1}, "one", 1e-5)
