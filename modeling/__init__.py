"""What a ViT is: configuration, model, image processor and other people's checkpoints."""

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from vitrail.modeling.configuration_vit import ViTConfig
from vitrail.modeling.errors import InputError
from vitrail.modeling.image_processing_vit import (
    ViTImageProcessor,
    ViTImageProcessorPil,
    VitrailImageProcessor,
    VitrailImageProcessorPil,
    read_image,
)
from vitrail.modeling.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel


__all__ = [
    "InputError",
    "ViTConfig",
    "ViTForImageClassification",
    "ViTImageProcessor",
    "ViTImageProcessorPil",
    "ViTModel",
    "ViTPreTrainedModel",
    "read_image",
]

# `exist_ok`, because transformers compares classes by name here and has a ViTConfig of its own, which stays as it was.
AutoConfig.register(ViTConfig.model_type, ViTConfig)
AutoModel.register(ViTConfig, ViTModel, exist_ok=True)
AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification, exist_ok=True)
AutoImageProcessor.register(
    ViTConfig,
    image_processor_classes={"torchvision": VitrailImageProcessor, "pil": VitrailImageProcessorPil},
    exist_ok=True,
)
