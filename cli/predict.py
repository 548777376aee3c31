"""What images show.

vitrail predict --model runs/digits runs/digits/samples/0.png
"""

import argparse
import csv
import sys
from pathlib import Path

from vitrail.cli.imports import garbage_kept


_BATCH = 32


def add_parser(verbs: argparse._SubParsersAction) -> None:
    """Adds the verb and its flags."""
    parser = verbs.add_parser("predict", help="say what images show")
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    parser.add_argument("--model", required=True, help="a Hub id or folder")
    parser.add_argument("--output", type=Path, help="also write a table: a .csv or .parquet file")
    parser.set_defaults(run=run, takes_more=False)


def run(arguments: argparse.Namespace, rest: list[str]) -> int:
    """Predicts every readable image; an unreadable one is named on stderr, the others go on, and the exit code is 2.

    A multi-label model says every class of at least one half, each in a line of its own, or else the likeliest.
    """
    with garbage_kept():
        import torch
        from tqdm import tqdm

        from vitrail.modeling import InputError, ViTForImageClassification, ViTImageProcessor, read_image

    if arguments.output and arguments.output.suffix not in (".csv", ".parquet"):
        raise InputError(f"--output {arguments.output} must end in .csv or .parquet.")
    if arguments.output:
        _prepare(arguments.output)
    model = ViTForImageClassification.from_pretrained(arguments.model)
    processor = ViTImageProcessor.from_pretrained(arguments.model)
    rows, unreadable = [], 0
    starts = range(0, len(arguments.images), _BATCH)
    for start in tqdm(starts, unit="batch", disable=len(starts) == 1):
        readable = []
        for path in arguments.images[start : start + _BATCH]:
            try:
                readable.append((path, read_image(path)))
            except InputError as error:
                unreadable += 1
                tqdm.write(f"vitrail: {error}", file=sys.stderr)
        if not readable:
            continue
        inputs = processor([image for _, image in readable], return_tensors="pt")
        with torch.inference_mode():
            scores = model.probabilities(model(**inputs).logits).sort(descending=True)
        for (path, _), probabilities, indices in zip(readable, scores.values.tolist(), scores.indices.tolist()):
            said = (
                max(1, sum(probability >= 0.5 for probability in probabilities)) if model.config.is_multi_label else 1
            )
            for probability, index in zip(probabilities[:said], indices):
                rows.append({"image": str(path), "label": model.config.labels[index], "probability": probability})
                tqdm.write(f"{path}\t{rows[-1]['label']}\t{probability:.1%}", file=sys.stdout)
    if arguments.output:
        _write_table(rows, arguments.output)
    return 2 if unreadable else 0


def _prepare(path: Path) -> None:
    """Finds out before any work whether the table can be written."""
    from vitrail.modeling import InputError

    if path.suffix == ".parquet":
        import pyarrow.parquet  # noqa: F401 - its absence is to be said now
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise InputError(f"Cannot write to --output {path}: {error.strerror}.") from error


def _write_table(rows: list[dict], path: Path) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["image", "label", "probability"])
        writer.writeheader()
        writer.writerows(rows)
