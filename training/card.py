"""The model card: what was trained on what, and the figures of the very weights that lie beside it."""

import json
import math
import os
import platform
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import SchedulerType, TrainerState
from transformers.training_args import OptimizerNames

from vitrail.modeling import ViTForImageClassification, ViTForMaskedPatchPrediction
from vitrail.training.arguments import ViTTrainingArguments
from vitrail.training.metrics import CALIBRATION_BINS
from vitrail.training.provenance import Provenance


_SPLITS = {"eval": "validation", "test": "test"}
# By their names among the metrics: the columns of the table, and what the Hub calls them.
_METRICS = {
    "accuracy": ("Accuracy", "accuracy"),
    "top5_accuracy": ("Top-5 accuracy", "top-5-accuracy"),
    "mAP": ("Mean average precision", "mAP"),
    "commonest_share": ("Always the commonest colour", "commonest-share"),
    "f1_micro": ("Micro-F1", "f1"),
    "f1_macro": ("Macro-F1", "f1"),
    "calibration_error": ("Calibration error", "expected-calibration-error"),
    "loss": ("Loss", "loss"),
}
_CLASS_COLUMNS = {"average_precision": "average precision", "precision": "precision", "recall": "recall", "f1": "F1"}
_SHOWN_CLASSES = 10  # above which the table of classes is folded
_MOST_CLASSES = 200  # in that table
_LETTERS = 100  # of a name in the text

_TEXT = """---
{metadata}
---

# {name}

{purpose} {origin}

{explanation}

## Results

{results}

## Use

{use}

## Limits

{limits}

## Model

{parameters:,} parameters: {layers} layers, {heads} heads, width {width}, MLP {mlp}; {rows}x{columns} patches of \
{patch_height}x{patch_width} pixels in images of {height}x{width_pixels}.

## Training

{training}

## Licence

{license}
"""

_CLASSIFIER_USE = """from transformers import pipeline
from transformers.utils import cached_file

model = {location}
classify = pipeline("image-classification", model{trust})
image = cached_file(model, "samples/0.png")  # or the path or address of any image
print(classify(image))"""

_PRETRAINED_USE = """from vitrail.modeling import ViTForImageClassification

model = ViTForImageClassification.from_pretrained({location}, num_labels=10)"""

_PICTURES = {
    "confusion_matrix.png": "Confusion matrix of the {split} split: for each true class, the share of its images that "
    "was taken for each class",
    "worst_mistakes.png": "The images of the {split} split that it got wrong with the highest loss: prediction, truth "
    "and attention rollout",
}


@dataclass(frozen=True)
class _Objective:
    """What the card says of a model for what it has learned.

    Attributes:
        task, pipeline: the Hub's names for the figures' task and for what the model can be used for.
        purpose, explanation, limits: text.
    """

    task: str
    pipeline: str
    purpose: str
    explanation: str
    limits: str


_OBJECTIVES = {
    "classification": _Objective(
        task="image-classification",
        pipeline="image-classification",
        purpose="A Vision Transformer that classifies images into {classes:,} classes.",
        explanation="![Held-out images, the prediction and where it looked](samples_with_rollout.png)",
        limits="It was tested on the splits above and on nothing else: not on images from other sources, not on ones "
        "that show none of its classes, for which it names one all the same, and not for fairness or against attacks.",
    ),
    "multi-label": _Objective(
        task="image-classification",
        pipeline="image-classification",
        purpose="A Vision Transformer that says of each of {classes:,} classes whether an image has it; an image may "
        "have several or none. Its scores are sigmoids, each a probability by itself; precision, recall and F1 are "
        "measured at one half.",
        explanation="![Held-out images, what the model says and where it looked](samples_with_rollout.png)",
        limits="It was tested on the splits above and on nothing else: not on images from other sources, and not for "
        "fairness or against attacks.",
    ),
    "masked-patch": _Objective(
        task="masked-image-modeling",
        pipeline="image-feature-extraction",
        purpose="A Vision Transformer pre-trained by masked patch prediction, without labels.",
        explanation="It is not a classifier yet. Half of an image's patches are corrupted, and of each the mean colour "
        "is predicted, one of 512 classes ([An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), Appendix "
        "B.1.2). The figures below are of the corrupted patches alone.",
        limits="It was tested at predicting colours on the splits above and on nothing else: not on images from other "
        "sources, and not at any task that it may be fine-tuned for.",
    ),
}


def model_card(
    model: ViTForImageClassification | ViTForMaskedPatchPrediction,
    arguments: ViTTrainingArguments,
    provenance: Provenance,
    state: TrainerState,
    metrics: dict[str, Any],
    method: dict[str, str],
    remark: str,
    pictures: Sequence[str],
    remote_code: bool,
) -> ModelCard:
    """The card of a trained model, valid YAML and Markdown whatever names are in it.

    Args:
        model: its configuration and size are described.
        arguments: how it was trained; `output_dir` gives the name unless `hub_model_id` does.
        provenance: what it was trained from and on.
        state: how far the training went, and which of its steps was the best.
        metrics: the final evaluation, keyed as the Trainer does: `eval_accuracy`, `test_loss`, `test_per_class`, ...
        method: rows on how the weights came about, where that was not by training all of them.
        remark: sentences on the results.
        pictures: the files beside the card, of `confusion_matrix.png` and `worst_mistakes.png`, that are shown.
        remote_code: whether stock transformers needs the code in the folder to load it.
    """
    config = model.config
    objective = _OBJECTIVES["multi-label" if config.is_multi_label else arguments.objective]
    assert arguments.output_dir is not None  # parse_arguments sees to it
    folder = Path(arguments.output_dir).resolve()
    location = arguments.hub_model_id or str(folder)
    name = _plain((arguments.hub_model_id or folder.name).split("/")[-1]) or "model"
    splits = [prefix for prefix in _SPLITS if f"{prefix}_loss" in metrics]
    results = [_results(splits, provenance, metrics), _weights(arguments, state, splits) + (remark and f" {remark}")]
    if splits and f"{splits[-1]}_calibration_error" in metrics:
        results.append(_calibration(splits[-1], metrics))
    if splits and f"{splits[-1]}_per_class" in metrics:
        results.append(_classes(splits[-1], metrics))
    results += [f"![{_PICTURES[file].format(split=_SPLITS[splits[-1]])}]({file})" for file in pictures]
    text = _TEXT.format(
        metadata=_metadata(name, objective, provenance, splits, metrics, model.model_tags or []),
        name=_markdown(name),
        purpose=objective.purpose.format(classes=config.num_labels),
        explanation=objective.explanation,
        origin=_origin(provenance),
        results="\n\n".join(results),
        use=_use(arguments.objective, location, remote_code),
        limits=objective.limits,
        parameters=model.num_parameters(),
        layers=config.num_hidden_layers,
        heads=config.num_attention_heads,
        width=config.hidden_size,
        mlp=config.intermediate_size,
        rows=config.grid_shape[0],
        columns=config.grid_shape[1],
        patch_height=config.patch_shape[0],
        patch_width=config.patch_shape[1],
        height=config.image_shape[0],
        width_pixels=config.image_shape[1],
        training=_training(arguments, provenance, state, metrics, method),
        license=_license(provenance),
    )
    return ModelCard(text)


def _metadata(
    name: str,
    objective: _Objective,
    provenance: Provenance,
    splits: list[str],
    metrics: dict[str, Any],
    tags: list[str],
) -> str:
    figures = {
        (prefix, metric): metrics[f"{prefix}_{metric}"]
        for prefix in splits
        for metric in _METRICS
        if math.isfinite(metrics.get(f"{prefix}_{metric}", math.nan))
    }
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=objective.pipeline,
        tags=["vitrail", "vit", objective.task, *tags],
        datasets=provenance.dataset_id,
        base_model=provenance.base_model_id,
        eval_results=[
            EvalResult(
                task_type=objective.task,
                dataset_type=provenance.dataset_id or "local",
                dataset_name=_plain(provenance.dataset) or "local",
                dataset_config=provenance.dataset_config,
                dataset_split=_SPLITS[prefix],
                dataset_revision=provenance.dataset_revision,
                metric_type=_METRICS[metric][1],
                metric_name=_METRICS[metric][0],
                metric_value=round(value, 4),
            )
            for (prefix, metric), value in figures.items()
        ],
        **cast("dict[str, Any]", provenance.license),
    ).to_yaml()


def _origin(provenance: Provenance) -> str:
    dataset = _linked(provenance.dataset, provenance.dataset_id, "https://huggingface.co/datasets/")
    if provenance.base_model is None:
        return f"It was trained from scratch on {dataset} with Vitrail."
    base = _linked(provenance.base_model, provenance.base_model_id, "https://huggingface.co/")
    return f"It was fine-tuned from {base} on {dataset} with Vitrail."


def _results(splits: list[str], provenance: Provenance, metrics: dict[str, Any]) -> str:
    measured = [metric for metric in _METRICS if any(f"{prefix}_{metric}" in metrics for prefix in splits)]
    table = [["split", "images", *(_METRICS[metric][0] for metric in measured)]]
    for prefix in splits:
        figures = [f"{metrics[f'{prefix}_{metric}']:.4f}" for metric in measured]
        table.append([_SPLITS[prefix], _count(provenance, _SPLITS[prefix]), *figures])
    return _table(table)


def _count(provenance: Provenance, split: str) -> str:
    return f"{provenance.images[split]:,}" if split in provenance.images else "streamed"


def _weights(arguments: ViTTrainingArguments, state: TrainerState, splits: list[str]) -> str:
    """Whose figures these are, and how the weights were chosen."""
    if not (arguments.load_best_model_at_end and state.best_global_step):
        return "These figures belong to the weights in this folder."
    chosen = (
        f"These figures belong to the weights in this folder, the best of training by "
        f"`{arguments.metric_for_best_model}` on the validation split (step {state.best_global_step:,} of "
        f"{state.global_step:,})."
    )
    if "test" in splits:
        return chosen
    return f"{chosen} Having been chosen there, they are likely to be a little worse on other images."


def _calibration(prefix: str, metrics: dict[str, Any]) -> str:
    return (
        f"On the {_SPLITS[prefix]} split the probability of the predicted class is, on average, "
        f"{100 * metrics[f'{prefix}_calibration_error']:.1f} percentage points away from the share of such predictions "
        f"that are right (expected calibration error, {CALIBRATION_BINS} bins of equal width, "
        "[Guo et al., 2017](https://arxiv.org/abs/1706.04599))."
    )


def _classes(prefix: str, metrics: dict[str, Any]) -> str:
    classes: dict[str, dict[str, Any]] = metrics[f"{prefix}_per_class"]
    shown = list(classes)
    title = f"Each class on the {_SPLITS[prefix]} split"
    if len(shown) > _MOST_CLASSES:
        hardest = sorted(shown, key=lambda name: (classes[name]["f1"] is None, classes[name]["f1"] or 0.0))
        shown = hardest[:_MOST_CLASSES]
        title = f"The {_MOST_CLASSES} classes of lowest F1 on the {_SPLITS[prefix]} split; all are in all_results.json"
    columns = [name for name in _CLASS_COLUMNS if name in classes[shown[0]]]
    rows = [["class", *(_CLASS_COLUMNS[name] for name in columns), "images"]]
    for name in shown:
        figures = (classes[name][column] for column in columns)
        told = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
        rows.append([_markdown(name), *told, f"{classes[name]['support']:,}"])
    if len(shown) > _SHOWN_CLASSES:
        return _folded(title, _table(rows))
    return f"{title}:\n\n{_table(rows)}"


def _use(objective: str, location: str, remote_code: bool) -> str:
    quoted = json.dumps(location, ensure_ascii=False).encode(errors="backslashreplace").decode()
    if objective == "classification":
        snippet = _CLASSIFIER_USE.format(location=quoted, trust=", trust_remote_code=True" if remote_code else "")
        return _code(snippet, "python")
    shell = shlex.quote(location).encode(errors="replace").decode()
    return (
        "Fine-tune it on images with labels; the classification head is new then:\n\n"
        + _code(f"vitrail train --model {shell} --dataset path/to/labelled/images")
        + "\n\n"
        + _code(_PRETRAINED_USE.format(location=quoted), "python")
    )


def _training(
    arguments: ViTTrainingArguments,
    provenance: Provenance,
    state: TrainerState,
    metrics: dict[str, Any],
    method: dict[str, str],
) -> str:
    rows = {"images": ", ".join(f"{count:,} {split}" for split, count in provenance.images.items())}
    skipped = {split: metrics.get(f"skipped_images_{split}", 0) for split in ("train", *_SPLITS.values())}
    if any(skipped.values()):
        rows["unreadable, left out"] = ", ".join(f"{count:,} {split}" for split, count in skipped.items() if count)
    rows |= method
    if state.global_step:  # else it took no steps
        rows |= {
            "epochs": _epochs(arguments, state),
            "batch": _batch(arguments, state),
            "optimiser": f"{OptimizerNames(arguments.optim).value}, learning rate {arguments.learning_rate:g}, "
            f"weight decay {arguments.weight_decay:g}",
            "schedule": f"{SchedulerType(arguments.lr_scheduler_type).value}, warm-up "
            + _amount(arguments.warmup_steps, "step"),
        }
        if arguments.muon_learning_rate is not None:
            rows["optimiser"] += f"; Muon for the layers' matrices, {arguments.muon_learning_rate:g}"
    rows |= {
        "precision": "bfloat16 autocast" if arguments.bf16 else "float16 autocast" if arguments.fp16 else "float32",
        "recipe": _markdown(arguments.recipe or "none"),
        "seed": f"{arguments.seed}",
        "time": f"{_duration(metrics['train_runtime'])} on {_markdown(_hardware(arguments))}",
        "software": f"transformers {transformers.__version__}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    table = _table([["", ""], *([key, value] for key, value in rows.items())])
    if not provenance.settings:
        return table
    settings = [[f"`--{name}`", _setting(value)] for name, value in sorted(provenance.settings.items())]
    return f"{table}\n\n{_folded('Settings', _table([['flag', 'value'], *settings]))}"


def _setting(value: Any) -> str:
    if value is None:
        return "off"
    return f"{value:g}" if isinstance(value, float) else _markdown(f"{value}", letters=1000)


def _epochs(arguments: ViTTrainingArguments, state: TrainerState) -> str:
    if state.epoch is None or arguments.max_steps > 0:
        return f"{state.global_step:,} steps of {state.max_steps:,}"
    stopped = "" if state.global_step >= state.max_steps else f", stopped early of {arguments.num_train_epochs:g}"
    return f"{state.epoch:g}{stopped} ({state.global_step:,} steps)"


def _batch(arguments: ViTTrainingArguments, state: TrainerState) -> str:
    device = state.train_batch_size or arguments.train_batch_size  # auto_find_batch_size may have made it smaller
    parts = {"processes": arguments.world_size, "accumulated": arguments.gradient_accumulation_steps}
    factors = "".join(f" x {count} {what}" for what, count in parts.items() if count > 1)
    total = device * arguments.world_size * arguments.gradient_accumulation_steps
    return f"{total} images" + (f" ({device}{factors})" if factors else "")


def _amount(value: float, unit: str) -> str:
    return f"{value:.0%} of the {unit}s" if 0 < value < 1 else f"{value:g} {unit}s"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _hardware(arguments: ViTTrainingArguments) -> str:
    if arguments.device.type == "cuda":
        return f"{max(arguments.world_size, arguments.n_gpu)} x {torch.cuda.get_device_name(arguments.device)}"
    processes = f" in {arguments.world_size} processes" if arguments.world_size > 1 else ""
    if arguments.device.type != "cpu":
        return f"{arguments.device.type} of {platform.machine()}{processes}"
    return f"{torch.get_num_threads()} of {os.cpu_count()} cores of {_processor()}{processes}"


def _processor() -> str:
    information = Path("/proc/cpuinfo")  # Linux's; platform.processor() says nothing there
    named = re.search(r"^model name\s*:\s*(\S.*)$", information.read_text(), re.M) if information.exists() else None
    return named[1] if named else platform.processor() or platform.machine()


def _license(provenance: Provenance) -> str:
    if not provenance.license:
        base = "" if provenance.base_model is None else " and the card of the model it was fine-tuned from names none"
        return f"Nobody has stated one for these weights{base}."
    name = _markdown(provenance.license.get("license_name", provenance.license["license"]))
    return f"{name}, {'inherited from the base model' if provenance.license_inherited else 'as stated in training'}."


def _table(rows: list[list[str]]) -> str:
    """A Markdown table of cells that are Markdown already, the first row its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:]])


def _folded(title: str, text: str) -> str:
    return f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>"


def _code(text: str, language: str = "") -> str:
    """A block of code, fenced by more backticks than there are in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _linked(name: str, identifier: str | None, site: str) -> str:
    return _markdown(name) if identifier is None else f"[{_markdown(identifier)}]({site}{identifier})"


def _plain(text: str) -> str:
    """A name on one line, without letters that cannot be written; those that join emoji stay."""
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace() or c in "\u200c\u200d").split())


def _markdown(text: str, letters: int = _LETTERS) -> str:
    """A name as running text, whatever its letters mean to Markdown or HTML, and not too long to read."""
    text = _plain(text)
    text = text if len(text) <= letters else f"{text[: letters - 1]}…"
    return re.sub(r"([\\`*\[\]<>|~$&#]|(?<![^\W_])_|_(?![^\W_]))", r"\\\1", text)
