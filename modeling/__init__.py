"""What a ViT is: configuration, model, image processor and other people's checkpoints."""

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification

from vitrail.modeling.configuration_vit import ViTConfig
from vitrail.modeling.errors import InputError
from vitrail.modeling.image_processing_vit import (
    ViTImageProcessor,
    ViTImageProcessorPil,
    VitrailImageProcessor,
    VitrailImageProcessorPil,
)
from vitrail.modeling.masked_patch_prediction import ViTForMaskedPatchPrediction, mean_color_classes
from vitrail.modeling.modeling_vit import (
    ObservedAttention,
    ViTBackbone,
    ViTForImageClassification,
    ViTModel,
    ViTPreTrainedModel,
)
from vitrail.modeling.pictures import read_image
from vitrail.modeling.token_merging import MergedTokens


__all__ = [
    "InputError",
    "MergedTokens",
    "ObservedAttention",
    "ViTBackbone",
    "ViTConfig",
    "ViTForImageClassification",
    "ViTForMaskedPatchPrediction",
    "ViTImageProcessor",
    "ViTImageProcessorPil",
    "ViTModel",
    "ViTPreTrainedModel",
    "mean_color_classes",
    "read_image",
]

# `exist_ok`, because transformers compares classes by name here and has a ViTConfig of its own, which stays as it was.
AutoConfig.register(ViTConfig.model_type, ViTConfig)
AutoModel.register(ViTConfig, ViTModel, exist_ok=True)
AutoModelForImageClassification.register(ViTConfig, ViTForImageClassification, exist_ok=True)
AutoBackbone.register(ViTConfig, ViTBackbone, exist_ok=True)
AutoImageProcessor.register(
    ViTConfig,
    image_processor_classes={"torchvision": VitrailImageProcessor, "pil": VitrailImageProcessorPil},
    exist_ok=True,
)
