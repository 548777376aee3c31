"""`ViTConfig`: every choice the paper varies, one field each, and the paper's named variants.

python -c "from vitrail.modeling import ViTConfig; print(ViTConfig.from_variant('B/16', image_size=384))"
"""

from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .errors import InputError


# Table 1 (B, L, H) and "How to train your ViT?", Table 2 (Ti, S): hidden_size, layers, heads, intermediate_size.
_SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}
VARIANTS = ("Ti/16", "S/16", "S/32", "B/32", "B/16", "L/32", "L/16", "H/14")

# The name that stock transformers gives to this very architecture; checkpoints carry it so that anybody can load them.
STOCK_MODEL_TYPE = "vit"
_STOCK_LAYER_NORM_EPS = 1e-12  # what stock transformers takes a config to mean that does not say


@strict
class ViTConfig(PreTrainedConfig):
    """What a Vision Transformer is made of. The defaults are ViT-B/16 at 224 pixels (Table 1).

    Args:
        hidden_size: D, the width of every token.
        num_hidden_layers: L, the number of encoder layers.
        num_attention_heads: k, the heads of the self-attention (Eq. 6-8); must divide `hidden_size`.
        intermediate_size: the width of the MLP's hidden layer.
        hidden_act: the MLP's non-linearity; `"gelu"` is the exact one, `"gelu_pytorch_tanh"` the approximation that
            the paper's code computes.
        hidden_dropout_prob: in [0, 1); applied where the paper has it: after the position embeddings and after every
            dense layer except the query, key and value projections (Appendix B.1).
        attention_probs_dropout_prob: in [0, 1); dropout on the attention weights, which the paper leaves at 0.
        initializer_range: standard deviation of the initial position embeddings.
        layer_norm_eps: epsilon of every LayerNorm; 1e-6 in the paper's code.
        image_size: the input's side in pixels, or (height, width).
        patch_size: P, a patch's side in pixels, or (height, width); must divide `image_size`.
        num_channels: C, the input's colour channels.
        qkv_bias: whether the query, key and value projections have biases.

    Raises:
        StrictDataclassError: a field has the wrong type, or the fields contradict each other (heads do not divide the
            width, patches do not tile the image).
    """

    model_type: ClassVar[str] = "vitrail"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> Self:
        """The configuration of one of the paper's models, named as in Section 4.1: `"B/16"` is Base with 16x16 patches.

        Args:
            variant: one of Ti/16, S/16, S/32, B/32, B/16, L/32, L/16, H/14.
            overrides: any field of `ViTConfig`, for example `image_size=384` or `num_labels=10`.

        Raises:
            InputError: there is no such variant.
        """
        if variant not in VARIANTS:
            raise InputError(f"There is no variant {variant!r}; the variants are {', '.join(VARIANTS)}.")
        size, patch_size = variant.split("/")
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = _SIZES[size]
        fields: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "patch_size": int(patch_size),
        }
        return cls(**(fields | overrides))

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return _pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of a patch in pixels."""
        return _pair(self.patch_size)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid; N = rows x columns (Section 3.1)."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    @property
    def labels(self) -> list[str]:
        """The classes' names by index, of length K."""
        return [str(label) for _, label in sorted((self.id2label or {}).items())]

    def validate_architecture(self):
        """Part of `@strict`'s validation: checks the fields against each other."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name, sides in (("image_size", self.image_shape), ("patch_size", self.patch_shape)):
            if min(sides) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be a positive number or (height, width).")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 0 and less than 1.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act is {self.hidden_act!r}, but must be one of {', '.join(ACT2FN)}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size})."
            )
        if any(image % patch for image, patch in zip(self.image_shape, self.patch_shape)):
            raise ValueError(
                f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size}), "
                "so that patches tile the image."
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as they are saved, under the model type by which stock transformers knows the plain ViT."""
        return super().to_dict() | {"model_type": STOCK_MODEL_TYPE}

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        try:
            config_dict, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        except OSError as error:
            path = Path(pretrained_model_name_or_path, "config.json")
            if path.is_file():
                raise InputError(f"{path} is not valid JSON.") from error
            config_dict = {}  # transformers raises for most of what cannot be found, and returns this for the rest
        if not config_dict:
            raise InputError(
                f"{pretrained_model_name_or_path} is neither a folder with a config.json nor a model on the Hub that "
                "can be reached."
            )
        model_type = config_dict.get("model_type")
        if model_type not in (cls.model_type, STOCK_MODEL_TYPE):
            raise InputError(
                f"{pretrained_model_name_or_path} holds a model of type {model_type!r}; "
                f"vitrail loads models of type {STOCK_MODEL_TYPE!r}."
            )
        if model_type == STOCK_MODEL_TYPE:
            config_dict = {"layer_norm_eps": _STOCK_LAYER_NORM_EPS} | config_dict
        return config_dict | {"model_type": cls.model_type}, kwargs


def _pair(size: int | list[int] | tuple[int, int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width
