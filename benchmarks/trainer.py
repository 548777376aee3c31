"""A whole training job: `vitrail train` beside stock transformers' model and Trainer with torchvision's PIL transforms.

python benchmarks/trainer.py --dataset path/to/fashion-mnist [--images 12800] [--epochs 2] [--rounds 1]

Both train the same architecture from scratch (28 pixels, patches of 4, 6 layers, width 192, a class token) on the same
images in the same batches for the same epochs, with AdamW, warm-up and a cosine, random flips, and evaluate on the same
held-out images after every epoch. The jobs take turns, each in a process of its own; wall time is the whole process's,
imports and saving included. Stock runs as it comes, in float32, and with its own bf16 switched on.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


SHAPE = {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 3, "intermediate_size": 768}
BATCH, LEARNING_RATE, WEIGHT_DECAY, WARM_UP, HELD_OUT = 128, 1e-3, 0.05, 0.05, 2000


def stock(folder: str, dataset: str, images: int, epochs: int, bf16: bool) -> None:
    """The job as the field writes it."""
    import datasets
    import numpy as np
    from torchvision import transforms
    from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

    splits = datasets.load_dataset(dataset)
    train = splits["train"].shuffle(0).select(range(images))
    test = splits["test"].shuffle(0).select(range(HELD_OUT))
    normalise = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    varied = transforms.Compose([transforms.RandomHorizontalFlip(), *normalise])
    plain = transforms.Compose(normalise)
    column = next(name for name, feature in train.features.items() if isinstance(feature, datasets.ClassLabel))

    def with_transform(rows: datasets.Dataset, transform: transforms.Compose) -> datasets.Dataset:
        return rows.with_transform(
            lambda batch: {"pixel_values": [transform(x) for x in batch["image"]], "labels": batch[column]}
        )

    config = ViTConfig(image_size=28, patch_size=4, num_channels=1, num_labels=10, **SHAPE)
    arguments = TrainingArguments(
        folder,
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=256,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        warmup_steps=WARM_UP,
        lr_scheduler_type="cosine",
        eval_strategy="epoch",
        save_strategy="epoch",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        bf16=bf16,
        use_cpu=bf16,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(
        ViTForImageClassification(config),
        arguments,
        train_dataset=with_transform(train, varied),
        eval_dataset=with_transform(test, plain),
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(-1) == p.label_ids))},
    )
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    (Path(folder) / "all_results.json").write_text(json.dumps(metrics))


def commands(arguments: argparse.Namespace, folder: str) -> dict[str, list[str]]:
    """What each job runs."""
    here = [sys.executable, __file__, "--job", folder, "--dataset", arguments.dataset]
    here += ["--images", str(arguments.images), "--epochs", str(arguments.epochs)]
    flags = {
        "dataset": arguments.dataset,
        "model": "Ti/16",
        "image_size": 28,
        "patch_size": 4,
        "config_overrides": json.dumps({**SHAPE, "num_channels": 1}),
        "max_train_samples": arguments.images,
        "max_eval_samples": HELD_OUT,
        "num_train_epochs": arguments.epochs,
        "per_device_train_batch_size": BATCH,
        "per_device_eval_batch_size": 256,
        "learning_rate": LEARNING_RATE,
        "weight_decay": WEIGHT_DECAY,
        "warmup_steps": WARM_UP,
        "crop_scale": 1,
        "output_dir": folder,
        "disable_tqdm": True,
    }
    ours = ["-m", "vitrail.cli.main", "train", *(str(part) for name in flags for part in (f"--{name}", flags[name]))]
    return {"stock, fp32": here, "stock, bf16": [*here, "--bf16"], "vitrail": [sys.executable, *ours]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--images", type=int, default=12800)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--bf16", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        stock(arguments.job, arguments.dataset, arguments.images, arguments.epochs, arguments.bf16)
        return

    taken: dict[str, list[float]] = {}
    accuracy: dict[str, list[float]] = {}
    memory: dict[str, float] = {}
    for _ in range(arguments.rounds):
        for job in ("stock, fp32", "stock, bf16", "vitrail"):
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                with subprocess.Popen(commands(arguments, folder)[job], stdout=subprocess.DEVNULL) as process:
                    _, status, usage = _wait(process)
                if status:
                    raise SystemExit(f"{job} failed.")
                taken.setdefault(job, []).append(time.perf_counter() - start)
                results = json.loads((Path(folder) / "all_results.json").read_text())
            accuracy.setdefault(job, []).append(results.get("test_accuracy", results["eval_accuracy"]))
            memory[job] = usage.ru_maxrss / 1e3

    columns = ["job", "wall time, s", "images/s", "share of stock, fp32", "peak memory, MB", "accuracy"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    reference = statistics.median(taken["stock, fp32"])
    for job in taken:
        wall = statistics.median(taken[job])
        print(
            f"| {job} | {wall:.0f} | {arguments.images * arguments.epochs / wall:.0f} | {wall / reference:.2f} "
            f"| {memory[job]:.0f} | {statistics.median(accuracy[job]):.4f} |"
        )


def _wait(process: subprocess.Popen) -> tuple[int, int, resource.struct_rusage]:
    done = os.wait4(process.pid, 0)
    process.returncode = done[1]
    return done


if __name__ == "__main__":
    main()
