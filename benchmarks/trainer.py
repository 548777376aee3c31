"""A whole training job: `vitrail train` beside stock transformers' model and Trainer with torchvision's PIL transforms.

python benchmarks/trainer.py [--dataset path/to/fashion-mnist] [--images 12800] [--epochs 2] [--rounds 1]

All train one architecture from scratch (28 pixels, patches of 4, 6 layers, width 192, a class token) on the same
images in the same batches for the same epochs, and are evaluated on the same 2,000 others after every epoch and at the
end. Stock runs as it comes, in float32, and with its own bf16 switched on; vitrail with stock's settings (AdamW,
warm-up and a cosine, random flips), and with those of its recipe `scratch-small` instead. The jobs take turns, each in
a process of its own; wall time is the whole process's, imports, saving and vitrail's card and pictures included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from PIL import Image
from side_by_side import Report
from sklearn.datasets import load_digits


SHAPE = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
BATCH, EVALUATION_BATCH, LEARNING_RATE, WEIGHT_DECAY, WARM_UP, HELD_OUT = 128, 256, 1e-3, 0.05, 0.05, 2000
JOBS = ("stock, fp32", "stock, bf16", "vitrail, stock's settings", "vitrail, its recipe")


def prepare(dataset: str | None, images: int, folder: Path) -> int:
    """The images of all jobs as train.parquet and validation.parquet; returns how many the former has."""
    splits = datasets.load_dataset(dataset) if dataset else digits()
    for split, source, most in (("train", "train", images), ("validation", "test", HELD_OUT)):
        count = min(most, len(splits[source]))
        splits[source].shuffle(0).select(range(count)).to_parquet(folder / f"{split}.parquet")
    return min(images, len(splits["train"]))


def digits() -> datasets.DatasetDict:
    """scikit-learn's, eight times over and enlarged to 28 pixels, for a machine without a data set."""
    found = load_digits()
    pictures = [Image.fromarray((picture * 15).astype("uint8")).resize((28, 28)) for picture in found.images]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=[str(digit) for digit in range(10)])}
    )
    rows = {"image": pictures, "label": found.target.tolist()}
    splits = datasets.Dataset.from_dict(rows, features=features).train_test_split(0.2, seed=0)
    splits["train"] = datasets.concatenate_datasets([splits["train"]] * 8)
    return splits


def stock(dataset: str, folder: str, epochs: int, bf16: bool) -> None:
    """The job as the field writes it."""
    import numpy as np
    from torchvision import transforms
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

    splits = datasets.load_dataset(dataset)
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    varied = transforms.Compose([transforms.RandomHorizontalFlip(), *normalise])
    plain = transforms.Compose(normalise)

    def with_transform(rows: datasets.Dataset, transform: transforms.Compose) -> datasets.Dataset:
        return rows.with_transform(
            lambda batch: {"pixel_values": [transform(x) for x in batch["image"]], "labels": batch["label"]}
        )

    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=EVALUATION_BATCH,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=WARM_UP,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        bf16=bf16,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        ViTForImageClassification(ViTConfig(image_size=28, patch_size=4, num_channels=1, num_labels=10, **SHAPE)),
        arguments,
        train_dataset=with_transform(splits["train"], varied),
        eval_dataset=with_transform(splits["validation"], plain),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    (Path(folder) / "all_results.json").write_text(json.dumps(metrics))


def command(job: str, dataset: str, folder: str, epochs: int) -> list[str]:
    """What runs a job."""
    if job.startswith("stock"):
        own = [sys.executable, __file__, "--dataset", dataset, "--job", folder, "--epochs", str(epochs)]
        return [*own, "--bf16"] if job.endswith("bf16") else own
    flags = {
        "dataset": dataset,
        "recipe": "scratch-small",
        "model": "Ti/16",
        "image_size": 28,
        "patch_size": 4,
        "config_overrides": json.dumps({**SHAPE, "num_channels": 1}),
        "num_train_epochs": epochs,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": EVALUATION_BATCH,
        "use_cpu": True,
        "load_best_model_at_end": False,
        "output_dir": folder,
    }
    if not job.endswith("its recipe"):
        flags |= {
            "learning_rate": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "warmup_steps": WARM_UP,
            "lr_scheduler_type": "cosine",
            "adam_beta2": 0.999,
            "muon_learning_rate": 0,
            "ema_decay": 0,
            "label_smoothing_factor": 0,
            "patch_dropout_prob": 0,
            "padding": 0,
            "erasing": 0,
        }
    flat = [str(part) for name, value in flags.items() for part in (f"--{name}", value)]
    return [sys.executable, "-m", "vitrail.cli.main", "train", *flat]


def run(job: str, arguments: argparse.Namespace, dataset: str) -> tuple[float, float, float]:
    """Seconds, the largest memory of one of its processes in MB, and accuracy on the held-out images."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        with subprocess.Popen(command(job, dataset, folder, arguments.epochs), stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise SystemExit(f"{job} failed.")
        seconds = time.perf_counter() - start
        return seconds, usage.ru_maxrss / 1e3, json.loads(Path(folder, "all_results.json").read_text())["eval_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", help="scikit-learn's digits by default")
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        stock(arguments.dataset, arguments.job, arguments.epochs, arguments.bf16)
        return

    with TemporaryDirectory() as dataset:
        images = prepare(arguments.dataset, arguments.images, Path(dataset))
        rounds = [{job: run(job, arguments, dataset) for job in JOBS} for _ in range(arguments.rounds)]
    columns = ["job", "wall time, s", "images/s", *(f"of {job}" for job in JOBS[:2]), "peak memory, MB", "accuracy"]
    medians = {job: [statistics.median(figures) for figures in zip(*(r[job] for r in rounds))] for job in JOBS}
    rows = []
    for job, (seconds, memory, accuracy) in medians.items():
        rows.append([job, f"{seconds:.1f}", f"{images * arguments.epochs / seconds:.0f}"])
        rows[-1] += [f"{seconds / medians[reference][0]:.2f}" for reference in JOBS[:2]]
        rows[-1] += [f"{memory:.0f}", f"{accuracy:.4f}"]
    Report("trainer").table(f"{images:,} images, {arguments.epochs} epoch{'s' * (arguments.epochs > 1)}", columns, rows)


if __name__ == "__main__":
    main()
