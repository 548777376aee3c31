"""How long a user waits for the first answer: fresh processes, in turn.

python benchmarks/startup.py [--variant S/16] [--rounds 7]

The stock way is transformers' pipeline on the same folder, which is a stock checkpoint.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from peers import vitrail
from PIL import Image
from side_by_side import Report, Timing, take_turns

from vitrail.modeling import ViTImageProcessor


PEERS = {"vitrail predict": "transformers, pipeline", "vitrail, load": "transformers, load"}


def fresh(*code: str) -> Callable[[], object]:
    """Runs the interpreter anew."""
    return partial(subprocess.run, [sys.executable, *code], check=True, stdout=subprocess.DEVNULL)


def share_of(timings: dict[str, Timing], name: str, peer: str | None) -> str:
    """The time that one takes as a share of its peer's."""
    return f"{1 / timings[name].ratio_to(timings[peer]):.2f}" if peer else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--variant", default="S/16")
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        vitrail(arguments.variant).save_pretrained(folder)
        ViTImageProcessor().save_pretrained(folder)
        image = str(Path(folder, "image.png"))
        pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
        Image.fromarray(pixels).save(image)
        load = f"ViTForImageClassification.from_pretrained({folder!r})"
        pipeline = f"pipeline('image-classification', {folder!r})({image!r})"
        ours = ("-m", "vitrail.cli.main")
        ways = {
            "vitrail predict": fresh(*ours, "predict", "--model", folder, image),
            "transformers, pipeline": fresh("-c", f"from transformers import pipeline; print({pipeline})"),
            "vitrail, load": fresh("-c", f"from vitrail.modeling import ViTForImageClassification; {load}"),
            "transformers, load": fresh("-c", f"from transformers import ViTForImageClassification; {load}"),
            "import vitrail.modeling": fresh("-c", "import vitrail.modeling"),
            "vitrail --help": fresh(*ours, "--help"),
        }
        timings = take_turns(ways, arguments.rounds, warm_up=False)  # nothing outlives a process but files in memory
    rows = [
        [name, f"{timing.median:.2f}", f"{timing.spread:.0%}", share_of(timings, name, PEERS.get(name))]
        for name, timing in timings.items()
    ]
    Report("startup").table(
        f"{arguments.variant}, a fresh process each", ["what", "seconds", "spread", "of stock's"], rows
    )


if __name__ == "__main__":
    main()
