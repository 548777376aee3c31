"""Pictures of what a trained classifier does, saved beside it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from PIL import Image

from vitrail.inspection import attention_rollout, predictions_figure
from vitrail.inspection.figures import MISSING, legible
from vitrail.modeling import ViTForImageClassification, ViTImageProcessor, read_image
from vitrail.training.metrics import Judgements


_SAMPLES = 8
_DPI = 120
_NUMBERED = 30  # classes, above which a cell is too small for numbers
_NAMED = 100  # classes, above which an axis is too short for their names
_CELLS = 400  # a side of the matrix, of which several classes share one when there are more
_CONFUSIONS = 30  # listed when the cells have no numbers
_NAME = 24  # letters of a class's name
_COLORMAP = "Blues"


def save_samples(
    model: ViTForImageClassification, processor: ViTImageProcessor, rows: Dataset, output_dir: Path
) -> None:
    """Saves a few held-out images, and `samples_with_rollout.png` of what the model says and where it looks."""
    for earlier in sample_files(output_dir):
        earlier.unlink()
    chosen = np.random.default_rng(0).permutation(len(rows))[:_SAMPLES]
    images, figure = _looked_at(model, processor, rows, chosen)
    figure.savefig(output_dir / "samples_with_rollout.png", dpi=_DPI)
    (output_dir / "samples").mkdir(exist_ok=True)
    for index, image in enumerate(images):
        image.save(_sample_file(output_dir, index))


def sample_files(output_dir: Path) -> list[Path]:
    """The held-out images that `save_samples` has left."""
    return [path for index in range(_SAMPLES) if (path := _sample_file(output_dir, index)).exists()]


def _sample_file(output_dir: Path, index: int) -> Path:
    return output_dir / "samples" / f"{index}.png"


def save_confusions(judgements: Judgements, labels: Sequence[str], output_dir: Path) -> str:
    """Saves `confusion_matrix.png` of classes with these names; returns the file's name."""
    figure = confusion_figure(judgements.predictions, judgements.references, labels)
    figure.savefig(output_dir / "confusion_matrix.png", dpi=_DPI)
    return "confusion_matrix.png"


def save_mistakes(
    model: ViTForImageClassification,
    processor: ViTImageProcessor,
    rows: Dataset | None,
    judgements: Judgements,
    output_dir: Path,
) -> str | None:
    """Saves `worst_mistakes.png` of the images with the highest loss among those that the model got wrong.

    Args:
        model: the classifier, with its classes' names.
        processor: its own.
        rows: n images, undecoded, with the `label` of each; None of a stream, whose images are gone.
        judgements: of these images.
        output_dir: where the file goes; one of an earlier training is removed.

    Returns:
        the file's name, or None if there are no mistakes to show.
    """
    path = output_dir / "worst_mistakes.png"
    path.unlink(missing_ok=True)
    worst = (-judgements.losses).argsort(kind="stable")
    worst = worst[(judgements.predictions != judgements.references)[worst]][:_SAMPLES]
    if rows is None or not len(worst):
        return None
    _looked_at(model, processor, rows, worst)[1].savefig(path, dpi=_DPI)
    return path.name


def confusion_figure(predictions: np.ndarray, references: np.ndarray, labels: Sequence[str]) -> Figure:
    """The share of every true class's images that was taken for every class.

    Up to 30 classes every cell has its share and its number of images. Above, shares are colours on a scale of square
    roots, which shows single mistakes, and the commonest confusions are listed beside them. Above 400 classes, several
    neighbours share a cell, which has the largest share among them.

    Args:
        predictions: (n,) class indices.
        references: (n,) the true ones.
        labels: the K classes' names.
    """
    names = [_name(index, label) for index, label in enumerate(labels)]
    number, longest = len(names), max(map(len, names))
    confusions = _Confusions.of(predictions, references, number)
    numbered, named = number <= _NUMBERED, number <= _NAMED
    mistaken = confusions.truths != confusions.guesses
    listed = mistaken.any() and not numbered
    side = float(np.clip(number * (0.45 if numbered else 0.11), 3, 11)) if named else 8.0  # inches
    margin = (0.085 if numbered else 0.06) * longest + 0.5 if named else 0.8
    width = side + margin + (0.3 if numbered else 1)
    figure = Figure(figsize=(width + 5.5 * listed, side + margin + 0.4), layout="constrained")
    axes = figure.subplots(1, 1 + listed, squeeze=False, width_ratios=[width, 2.5][: 1 + listed])[0]
    axis = axes[0]
    norm = Normalize(0, 1) if numbered else PowerNorm(0.5, 0, 1)
    axis.imshow(
        confusions.matrix(number),
        cmap=_COLORMAP,
        norm=norm,
        extent=(-0.5, number - 0.5, number - 0.5, -0.5),
        aspect="equal" if numbered else "auto",  # beside a list, squares would leave the labels no room
    )
    axis.set_xlabel("predicted class")
    axis.set_ylabel("true class")
    if named:
        style = {"fontsize": 9 if numbered else 6, "parse_math": False}  # a class may be called $x^$
        axis.set_xticks(range(number), names, rotation=0 if longest <= 3 and numbered else 90, **style)
        axis.set_yticks(range(number), names, **style)
    if numbered:
        _number_cells(axis, confusions, fontsize=7 if number > 5 else 11)
    else:
        ticks = [0, 0.01, 0.05, 0.1, 0.25, 0.5, 1]
        bar = figure.colorbar(ScalarMappable(norm, _COLORMAP), ax=axis, fraction=0.04, pad=0.02, aspect=30)
        bar.set_ticks(ticks, labels=[f"{tick:.0%}" for tick in ticks])
    if listed:
        _list_confusions(axes[1], confusions.chosen(mistaken), names)
    axis.set_title(f"{(predictions == references).mean():.2%} of {len(references):,} images are right", fontsize=11)
    return figure


class _Confusions(NamedTuple):
    """The pairs of true and predicted class that occur, and how often; shares are of the true class's images."""

    truths: np.ndarray
    guesses: np.ndarray
    counts: np.ndarray
    shares: np.ndarray

    @classmethod
    def of(cls, predictions: np.ndarray, references: np.ndarray, number: int) -> "_Confusions":
        pairs = np.stack([references, predictions])
        (truths, guesses), counts = np.unique(pairs, axis=1, return_counts=True)
        return cls(truths, guesses, counts, counts / np.bincount(references, minlength=number)[truths])

    def chosen(self, index: np.ndarray) -> "_Confusions":
        return _Confusions(*(values[index] for values in self))

    def matrix(self, number: int) -> np.ndarray:
        """The shares, and 0 elsewhere, of this number of classes or, if they are too many, the largest in each cell."""
        cells = min(number, _CELLS)
        matrix = np.zeros((cells, cells))
        np.maximum.at(matrix, (self.truths * cells // number, self.guesses * cells // number), self.shares)
        return matrix


def _number_cells(axis: Axes, confusions: _Confusions, fontsize: int) -> None:
    for truth, guess, count, share in zip(*confusions):
        colour = "white" if share > 0.5 else "black"
        axis.text(guess, truth, f"{share:.0%}\n{count:,}", ha="center", va="center", fontsize=fontsize, color=colour)


def _list_confusions(axis: Axes, mistakes: _Confusions, names: Sequence[str]) -> None:
    """The commonest, as bars of their number of images."""
    truths, guesses, counts, shares = mistakes.chosen((-mistakes.counts).argsort(kind="stable")[:_CONFUSIONS])
    bars = axis.barh(range(len(counts)), counts, color="firebrick", height=0.7)
    axis.bar_label(bars, [f" {count:,} ({share:.0%})" for count, share in zip(counts, shares)], fontsize=8)
    pairs = [f"{names[truth]} → {names[guess]}" for truth, guess in zip(truths, guesses)]
    axis.set_yticks(range(len(counts)), pairs, fontsize=8, parse_math=False)
    axis.set_ylim(_CONFUSIONS - 0.5, -0.5)
    axis.set_xlim(0, 1.8 * counts.max())
    axis.set_xticks([])
    axis.spines[:].set_visible(False)
    axis.tick_params(left=False)
    axis.set_title("commonest mistakes:\nimages (share of class)", fontsize=9, loc="left")


def _name(index: int, label: str) -> str:
    """A class's name as an axis shows it; one that the font cannot write goes by its number, too."""
    name = legible(label, _NAME)
    return f"{index}: {name}" if MISSING in name or not name else name


def _looked_at(
    model: ViTForImageClassification,
    processor: ViTImageProcessor,
    rows: Dataset,
    chosen: np.ndarray,
) -> tuple[list[Image.Image], Figure]:
    """These rows' images, and the figure of what the model says of them and where it looks."""
    labels = model.config.labels
    found: dict[str, list] = rows[chosen.tolist()]
    images = [read_image(image["bytes"] or image["path"]) for image in found["image"]]
    model.eval()
    out = attention_rollout(model, processor(images, return_tensors="pt").pixel_values.to(model.device))
    assert out.logits is not None  # a classifier has them
    probabilities = model.probabilities(out.logits).cpu()
    best, regions = probabilities.max(-1), [processor.seen_region(*image.size) for image in images]
    if model.config.is_multi_label:
        said = [_listed(labels, row.nonzero().flatten().tolist()) for row in probabilities >= 0.5]
        truths = [_listed(labels, classes) for classes in found["label"]]
        return images, predictions_figure(images, out.heatmap, said, best.values.tolist(), truths, regions)
    true = probabilities.gather(-1, torch.tensor(found["label"])[:, None])[:, 0]
    figure = predictions_figure(
        images,
        out.heatmap,
        [labels[index] for index in best.indices],
        best.values.tolist(),
        [labels[label] for label in found["label"]],
        regions,
        true.tolist(),
    )
    return images, figure


def _listed(labels: Sequence[str], classes: Sequence[int]) -> str:
    return ", ".join(labels[index] for index in sorted(classes)) or "none"
