"""The model card: what was trained on what, and the figures of the very weights that lie beside it."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import SchedulerType
from transformers.training_args import OptimizerNames

from vitrail.modeling import ViTForImageClassification, ViTForMaskedPatchPrediction
from vitrail.training.arguments import ViTTrainingArguments


_SPLITS = {"eval": "validation", "test": "test"}
_METRICS = {
    "accuracy": "Accuracy",
    "commonest_share": "Always the commonest colour",
    "mAP": "Mean average precision",
    "f1_micro": "Micro-F1",
    "f1_macro": "Macro-F1",
    "loss": "Loss",
}

_TEXT = """---
{metadata}
---

# {name}

{purpose} {origin}

{explanation}

## Results

{results}

These figures belong to the weights in this folder{selection}.

## Use

{use}

## Model

{parameters:,} parameters: {layers} layers, {heads} heads, width {width}, MLP {mlp}; {rows}x{columns} patches of \
{patch_height}x{patch_width} pixels in images of {height}x{width_pixels}.

## Training

{training}
"""

_CLASSIFIER_USE = """```python
from transformers import pipeline

classify = pipeline("image-classification", "{location}")
print(classify("path/to/image.png"))
```"""

_PRETRAINED_USE = """Fine-tune it on images with labels; the classification head is new then:

```
vitrail train --model {location} --dataset path/to/labelled/images
```

```python
from vitrail.modeling import ViTForImageClassification

model = ViTForImageClassification.from_pretrained("{location}", num_labels=10)
```"""


@dataclass(frozen=True)
class _Objective:
    """What the card says of a model for what it has learned.

    Attributes:
        task, pipeline: the Hub's names for the figures' task and for what the model can be used for.
        purpose, explanation, use: text.
    """

    task: str
    pipeline: str
    purpose: str
    explanation: str
    use: str


_OBJECTIVES = {
    "classification": _Objective(
        task="image-classification",
        pipeline="image-classification",
        purpose="A Vision Transformer that classifies images into {classes} classes.",
        explanation="![Held-out images, the prediction and where it looked](samples_with_rollout.png)",
        use=_CLASSIFIER_USE,
    ),
    "masked-patch": _Objective(
        task="masked-image-modeling",
        pipeline="image-feature-extraction",
        purpose="A Vision Transformer pre-trained by masked patch prediction, without labels.",
        explanation="It is not a classifier yet. Half of an image's patches are corrupted, and of each the mean colour "
        "is predicted, one of 512 classes ([An Image is Worth 16x16 Words](https://arxiv.org/abs/2010.11929), Appendix "
        "B.1.2). The figures below are of the corrupted patches alone.",
        use=_PRETRAINED_USE,
    ),
}


_MULTI_LABEL = (
    "A Vision Transformer that says of each of {classes} classes whether an image has it; an image may have several "
    "or none. Its scores are sigmoids, each a probability by itself; F1 is measured at one half."
)


@dataclass(frozen=True)
class Provenance:
    """Where a model comes from.

    Attributes:
        dataset: the data set's name as a reader knows it.
        dataset_id: its id on the Hub, if that is where it is.
        base_model: the checkpoint that was fine-tuned; None when trained from scratch.
        base_model_id: its id on the Hub, if that is where it is.
        images: the number of images per split; a stream's is left out where it is not known.
    """

    dataset: str
    dataset_id: str | None
    base_model: str | None
    base_model_id: str | None
    images: dict[str, int]


def model_card(
    model: ViTForImageClassification | ViTForMaskedPatchPrediction,
    arguments: ViTTrainingArguments,
    provenance: Provenance,
    metrics: dict[str, float],
) -> ModelCard:
    """The card of a trained model.

    Args:
        model: its configuration and size are described.
        arguments: how it was trained; `output_dir` gives the name unless `hub_model_id` does.
        provenance: what it was trained from and on.
        metrics: the final evaluation, keyed as the Trainer does: `eval_accuracy`, `test_loss`, ...
    """
    config, objective = model.config, _OBJECTIVES[arguments.objective]
    assert arguments.output_dir is not None  # parse_arguments sees to it
    name = (arguments.hub_model_id or Path(arguments.output_dir).resolve().name).split("/")[-1]
    splits = [prefix for prefix in _SPLITS if f"{prefix}_loss" in metrics]
    figure = "mAP" if config.is_multi_label else "accuracy"
    metadata = ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=objective.pipeline,
        tags=["vitrail", "vit", objective.task],
        datasets=provenance.dataset_id,
        base_model=provenance.base_model_id,
        eval_results=[
            EvalResult(
                task_type=objective.task,
                dataset_type=provenance.dataset_id or "local",
                dataset_name=provenance.dataset,
                dataset_split=_SPLITS[prefix],
                metric_type=figure,
                metric_value=round(metrics[f"{prefix}_{figure}"], 4),
            )
            for prefix in splits
        ],
    )
    origin = (
        f"It was fine-tuned from {provenance.base_model}" if provenance.base_model else "It was trained from scratch"
    )
    best = arguments.load_best_model_at_end and arguments.metric_for_best_model
    text = _TEXT.format(
        metadata=metadata,
        name=name,
        purpose=(_MULTI_LABEL if config.is_multi_label else objective.purpose).format(classes=config.num_labels),
        explanation=objective.explanation,
        origin=f"{origin} on {provenance.dataset} with Vitrail.",
        results=_results(splits, provenance, metrics),
        selection=f", the best of training by `{best}` on the validation split" if best else "",
        use=objective.use.format(location=arguments.hub_model_id or arguments.output_dir),
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
        training=_training(arguments, provenance, metrics),
    )
    return ModelCard(text)


def _results(splits: list[str], provenance: Provenance, metrics: dict[str, float]) -> str:
    measured = {name: title for name, title in _METRICS.items() if f"eval_{name}" in metrics}
    lines = [f"| split | images | {' | '.join(measured.values())} |", f"|---|{'---|' * (len(measured) + 1)}"]
    for prefix in splits:
        figures = " | ".join(f"{metrics[f'{prefix}_{metric}']:.4f}" for metric in measured)
        lines.append(f"| {_SPLITS[prefix]} | {_count(provenance, _SPLITS[prefix])} | {figures} |")
    return "\n".join(lines)


def _count(provenance: Provenance, split: str) -> str:
    return f"{provenance.images[split]:,}" if split in provenance.images else "streamed"


def _training(arguments: ViTTrainingArguments, provenance: Provenance, metrics: dict[str, float]) -> str:
    hardware = torch.cuda.get_device_name() if arguments.device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    rows = {
        "images": _count(provenance, "train"),
        "epochs": f"{metrics['epoch']:g}",
        "batch": f"{arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size}",
        "optimiser": f"{OptimizerNames(arguments.optim).value}, learning rate {arguments.learning_rate:g}, "
        f"weight decay {arguments.weight_decay:g}",
        "schedule": f"{SchedulerType(arguments.lr_scheduler_type).value}, warm-up {arguments.warmup_steps:g}",
        "recipe": arguments.recipe or "none",
        "seed": arguments.seed,
        "time": f"{metrics['train_runtime']:.0f} s on {hardware}",
        "software": f"transformers {transformers.__version__}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}",
    }
    if "train" not in provenance.images:  # then nobody knows how many epochs there were
        rows["epochs"] = f"not known, {arguments.max_steps:,} steps"
    if skipped := {split: metrics.get(f"skipped_images_{split}") for split in ("train", *_SPLITS.values())}:
        left_out = ", ".join(f"{count:,} of {split}" for split, count in skipped.items() if count)
        rows |= {"unreadable images left out": left_out} if left_out else {}
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows.items())])
