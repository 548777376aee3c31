"""The models that the app has loaded."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch

from vitrail.modeling import ViTConfig, ViTForImageClassification, ViTImageProcessor, ViTModel


@dataclass(frozen=True)
class Model:
    """A classifier with its image processor.

    Attributes:
        source: the Hub id or folder that it was loaded from.
        name: what it is called.
        classifier: in evaluation mode.
        processor: its own.
    """

    source: str
    name: str
    classifier: ViTForImageClassification
    processor: ViTImageProcessor

    @cached_property
    def has_classes(self) -> bool:
        """Whether there is a head; a checkpoint without one gets a head of zeros, which says nothing."""
        return bool(self.classifier.classifier.weight.any())

    @property
    def seeing(self) -> ViTForImageClassification | ViTModel:
        """What attention is observed in."""
        return self.classifier if self.has_classes else self.classifier.vit

    @property
    def config(self) -> ViTConfig:
        """The network's."""
        return cast(ViTConfig, self.classifier.config)

    @property
    def labels(self) -> list[str]:
        """The classes' names; none without a head."""
        return self.config.labels if self.has_classes else []


def load_model(source: str, name: str) -> Model:
    """A model on the GPU, if there is one.

    Raises:
        InputError: it cannot be loaded.
    """
    classifier: Any = ViTForImageClassification.from_pretrained(source)
    classifier.to("cuda" if torch.cuda.is_available() else "cpu")
    return Model(source, name, classifier, ViTImageProcessor.from_pretrained(source))
