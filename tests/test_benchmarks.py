"""The benchmarks run; what they time is theirs to say."""

import re
import subprocess
import sys
from pathlib import Path


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_forward_compares_every_peer():
    arguments = ["--variant", "Ti/16", "--batch", "1", "--rounds", "1"]
    said = subprocess.run(
        [sys.executable, BENCHMARKS / "forward.py", *arguments], capture_output=True, text=True, check=True
    ).stdout
    for model in ("transformers, sdpa", "transformers, eager", "timm", "vit-pytorch", "vitrail"):
        assert len(re.findall(rf"^\| {model} \|", said, re.MULTILINE)) == 2  # precisions


def test_exported_models_are_compared_with_pytorch():
    arguments = ["--variant", "Ti/16", "--batch", "1", "--rounds", "1"]
    said = subprocess.run(
        [sys.executable, BENCHMARKS / "exported.py", *arguments], capture_output=True, text=True, check=True
    ).stdout
    for runtime in (
        "PyTorch, float32",
        "PyTorch, bfloat16",
        "ONNX Runtime, float32, 23 MB",
        "ONNX Runtime, int8, 6 MB",
    ):
        assert len(re.findall(rf"^\| {runtime} \|", said, re.MULTILINE)) == 1
