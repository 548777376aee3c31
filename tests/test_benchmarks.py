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
