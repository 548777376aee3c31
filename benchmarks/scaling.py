"""How cost grows as work grows: tokens, images at a time, and processes, beside stock transformers.

python benchmarks/scaling.py [--image_sizes 224 592 1024] [--batches 1 4 16] [--processes 1 2] [--rounds 3]

The model is S/16, in float32. Several processes predict on as many threads as they share.
"""

import argparse
import multiprocessing
import os
import time

import torch
from peers import check_same, logits_of, stock
from side_by_side import Report, peak_memory, pin, take_turns

from vitrail.modeling import ViTConfig, ViTForImageClassification


def predictors(image_size: int, batch: int) -> dict:
    """Ours and stock's on the same images."""
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig.from_variant("S/16", image_size=image_size, num_labels=10)).eval()
    torch.nn.init.normal_(model.classifier.weight, std=0.02)
    models = {"vitrail": model, "transformers": stock(model, "sdpa").eval()}
    pixels = torch.randn(batch, 3, image_size, image_size)

    def predictor(module: torch.nn.Module):
        return torch.inference_mode()(lambda: logits_of(module, pixels))

    return {name: predictor(module) for name, module in models.items()}


def ours(image_size: int, batch: int):
    """For `peak_memory`."""
    return predictors(image_size, batch)["vitrail"]


def predict_alone(threads: int, images: int) -> None:
    """One of several processes: S/16 at 224 pixels."""
    torch.set_num_threads(threads)
    predict = predictors(224, 8)["vitrail"]
    for _ in range(images // 8):
        predict()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--image_sizes", type=int, nargs="+", default=[224, 592, 1024])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=128, help="that the processes share")
    arguments = parser.parse_args()
    pin()
    report, rows = Report("scaling"), []
    cases = [(size, 1) for size in arguments.image_sizes]
    cases += [(arguments.image_sizes[0], batch) for batch in arguments.batches if batch > 1]
    for image_size, batch in cases:
        ways = predictors(image_size, batch)
        check_same({name: way() for name, way in ways.items()}, "transformers", 1e-5)  # which warms them up, too
        timings = take_turns(ways, arguments.rounds, warm_up=False)
        memory = peak_memory(ours, image_size, batch)
        vitrail = timings["vitrail"]
        rows.append([f"{image_size}", f"{1 + (image_size // 16) ** 2}", f"{batch}", f"{vitrail.median * 1e3:.0f}"])
        rows[-1] += [
            f"{batch / vitrail.median:.1f}",
            f"{vitrail.ratio_to(timings['transformers']):.2f}",
            f"{memory:.0f}",
        ]
    columns = ["pixels", "tokens", "batch", "ms", "images/s", "faster than stock by", "memory of a call, MB"]
    report.table("S/16, float32", columns, rows)

    rows, threads = [], torch.get_num_threads()
    for count in arguments.processes:
        share = (max(1, threads // count), arguments.images // count)
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            pool.starmap(os.getpid, [()] * count)
            start = time.perf_counter()
            pool.starmap(predict_alone, [share] * count, chunksize=1)
            seconds = time.perf_counter() - start
        rows.append([str(count), str(share[0]), f"{arguments.images / seconds:.1f}"])
    report.table(
        f"{arguments.images} images shared by processes, loading included", ["processes", "threads", "images/s"], rows
    )


if __name__ == "__main__":
    main()
