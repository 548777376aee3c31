"""How many images a second one core makes into batches for training, from JPEG files and from memory.

python benchmarks/input_pipeline.py [--photos FOLDER] [--rounds 15] [--quality 90] [--crop_scale 0.08]

From bytes to a normalised float batch at 224 pixels, cropped at random and mirrored: ours
against the usual way, Pillow and torchvision's transforms on one image after the other, and against the image processor
of transformers, which varies nothing: it resizes whole images, decoded by Pillow, and normalises. They take turns,
round by round, on one thread; times are the processor's, and the ratios are the medians of the rounds'. The photographs
of the folder, or smooth noise without one, are saved as JPEGs of each size first. Then small gray images from memory.
"""

import argparse
import io
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from side_by_side import Report, take_turns
from torchvision.transforms import v2
from transformers import ViTImageProcessor as StockViTImageProcessor

from vitrail.modeling import ViTImageProcessor
from vitrail.training.arguments import DataArguments
from vitrail.training.augmentation import TrainingTransform


SIZES = [(500, 375), (1600, 1200)]
BATCH = 16


def photographs(folder: Path | None, size: tuple[int, int], quality: int) -> list[bytes]:
    """A batch of JPEGs."""
    files = sorted(folder.glob("*.jpg")) if folder else []
    pictures = [Image.open(file).convert("RGB") for file in files]
    generator = np.random.default_rng(0)
    pictures += [Image.fromarray(generator.integers(0, 256, (15, 20, 3), np.uint8)) for _ in range(0 if files else 4)]
    jpegs = []
    for picture in pictures:
        file = io.BytesIO()
        picture.resize(size, Image.Resampling.BICUBIC).save(file, "JPEG", quality=quality)
        jpegs.append(file.getvalue())
    return [jpegs[index % len(jpegs)] for index in range(BATCH)]


def usual_way(least_area: float, mean: list[float], std: list[float]) -> Callable[[list[bytes]], torch.Tensor]:
    """What is commonly written."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(224, scale=(least_area, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    return lambda files: torch.stack([transform(opened(file)) for file in files])


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quality", type=int, default=90)
    parser.add_argument("--crop_scale", type=float, default=0.08)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    processor = ViTImageProcessor()
    transform = TrainingTransform(processor, DataArguments(dataset="", crop_scale=arguments.crop_scale))
    usual = usual_way(arguments.crop_scale, list(processor.image_mean), list(processor.image_std))
    stock = StockViTImageProcessor()
    report, table = Report("input_pipeline"), []
    for size in SIZES:
        files = photographs(arguments.photos, size, arguments.quality)
        keys = list(range(BATCH))
        images = [{"bytes": file, "path": None} for file in files]
        rows = {"image": images, "row": keys, "key": keys, "label": keys}

        def ours(rows=rows):
            transform.epoch += 1
            return transform(rows)

        def whole(files=files):
            return stock([opened(file) for file in files], return_tensors="pt")

        ways = {"usual": partial(usual, files), "stock": whole, "ours": ours}
        timings = take_turns(ways, arguments.rounds, time.process_time)
        rates = [f"{BATCH / timing.median:.0f}" for timing in timings.values()]
        kilobytes = sum(map(len, files)) / BATCH / 1000
        ratios = [f"{timings['ours'].ratio_to(timings[name]):.2f}" for name in ("usual", "stock")]
        table.append([f"{size[0]}x{size[1]}", f"{kilobytes:.0f}", *rates, *ratios])
    title = (
        "From the bytes of a JPEG to a batch at 224 pixels, images/s on one core (the stock processor varies nothing)"
    )
    columns = ["pixels", "KB", "usual", "stock processor, whole images", "vitrail"]
    report.table(title, [*columns, "faster than usual by", "than stock by"], table)

    variation = DataArguments(dataset="", crop_scale=1.0, padding=2, erasing=0.25)
    small = TrainingTransform(ViTImageProcessor(size={"height": 28, "width": 28}, num_channels=1), variation)
    pixels = torch.randint(0, 256, (128, 1, 28, 28), dtype=torch.uint8)
    rows = {"image": pixels, "label": [0] * 128, "key": list(range(128))}
    timing = take_turns({"ours": lambda: [small(rows) for _ in range(10)]}, arguments.rounds, time.process_time)["ours"]
    rate = 10 * len(pixels) / timing.median
    report.table("From memory", ["images", "images/s"], [["28x28, shifted, mirrored and erased", f"{rate:,.0f}"]])


if __name__ == "__main__":
    main()
