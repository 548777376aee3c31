"""Pictures of what a trained classifier does, saved beside it."""

from pathlib import Path

from datasets import Dataset
from PIL import Image

from vitrail.inspection import attention_rollout, predictions_figure
from vitrail.modeling import ViTForImageClassification, ViTImageProcessor, read_image
from vitrail.training.columns import label_names


_SAMPLES = 8


def save_samples(
    model: ViTForImageClassification, processor: ViTImageProcessor, rows: Dataset, output_dir: Path
) -> list[Path]:
    """Saves a few held-out images, and a figure of what the model says and where it looks."""
    names = label_names(rows.features)
    chosen: dict[str, list] = rows.shuffle(seed=0)[:_SAMPLES]
    images = [read_image(image["bytes"] or image["path"]) for image in chosen["image"]]
    multi_label = model.config.is_multi_label
    truths = [_listed(names, label) if multi_label else names[label] for label in chosen["label"]]
    model.eval()
    out = attention_rollout(model, processor(images, return_tensors="pt").pixel_values.to(model.device))
    assert out.logits is not None  # a classifier has them
    probabilities = model.probabilities(out.logits)
    best = probabilities.max(-1)
    predictions = [names[index] for index in best.indices.tolist()]
    if multi_label:
        predictions = [_listed(names, row.nonzero().flatten().tolist()) for row in probabilities >= 0.5]
    regions = [processor.seen_region(*image.size) for image in images]
    figure = predictions_figure(images, out.heatmap, predictions, best.values.tolist(), truths, regions)
    figure.savefig(output_dir / "samples_with_rollout.png", dpi=120)
    return [_save_sample(image, output_dir / "samples" / f"{i}.png") for i, image in enumerate(images)]


def _listed(names: list[str], classes: list[int]) -> str:
    return ", ".join(names[index] for index in sorted(classes)) or "none"


def _save_sample(image: Image.Image, path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    image.save(path)
    return path
