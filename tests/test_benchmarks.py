"""The benchmarks run; what they time is theirs to say."""

import re
import subprocess
import sys
from pathlib import Path

from PIL import Image


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_forward_compares_every_peer():
    arguments = ["--variant", "Ti/16", "--batch", "1", "--rounds", "1"]
    said = subprocess.run(
        [sys.executable, BENCHMARKS / "forward.py", *arguments], capture_output=True, text=True, check=True
    ).stdout
    for model in ("transformers, sdpa", "transformers, eager", "timm", "vit-pytorch", "vitrail"):
        assert len(re.findall(rf"^\| {model} \|", said, re.MULTILINE)) == 2  # precisions


def test_token_merging_has_a_row_for_every_number_of_pairs(model_folder, tmp_path):
    for split in ("train", "test"):
        for label in ("cat", "dog"):
            folder = tmp_path / "images" / split / label
            folder.mkdir(parents=True)
            for index in range(3):
                Image.new("RGB", (24, 24), (40 * index, 90, 20)).save(folder / f"{index}.png")
    arguments = ["--model", model_folder, "--dataset", tmp_path / "images", "--images", "5", "--pairs", "1", "2"]
    said = subprocess.run(
        [sys.executable, BENCHMARKS / "token_merging.py", *map(str, arguments), "--batch", "2", "--rounds", "1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rows = re.findall(r"^\| (\d+) \| (\d+) \|", said, re.MULTILINE)
    assert rows == [("0", "7"), ("1", "5"), ("2", "3")]  # of a class token and 6 patches, after two layers
