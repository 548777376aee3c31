"""How a ViT learns: data, augmentation, transformers' Trainer, metrics and the model card."""

from vitrail.training.run import train


__all__ = ["train"]
