"""`ViTConfig`: every choice the paper varies, one field each, and the paper's named variants.

python -c "from vitrail.modeling import ViTConfig; print(ViTConfig.from_variant('B/16', image_size=384))"
"""

import json
import re
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from huggingface_hub.dataclasses import strict
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .checkpoints import read_config, split_hub_kwargs
from .errors import InputError
from .geometry import pair, resnet_stride
from .remote_code import AUTO_MAP, copy_sources


# Table 1 (B, L, H) and "How to train your ViT?", Table 2 (Ti, S): hidden_size, layers, heads, intermediate_size.
_SIZES = {
    "Ti": (192, 12, 3, 768),
    "S": (384, 12, 6, 1536),
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
}
# The hybrids of "How to train your ViT?" and of the paper's code, `configs/models.py`: the encoder's size, the ResNet's
# bottleneck units per stage, and the patch size on its feature map (Section 3.1, "Hybrid Architecture").
_HYBRIDS: dict[str, tuple[str, tuple[int, ...], int]] = {
    "R+Ti/16": ("Ti", (), 8),
    "R26+S/32": ("S", (2, 2, 2, 2), 1),
    "R50+B/16": ("B", (3, 4, 9), 1),
    "R50+L/32": ("L", (3, 4, 6, 3), 1),
}
VARIANTS = ("Ti/16", "S/16", "S/32", "B/32", "B/16", "L/32", "L/16", "H/14", *_HYBRIDS)

# The name that stock transformers gives to the plain ViT; its checkpoints carry it so that anybody can load them.
STOCK_MODEL_TYPE = "vit"
# The fields by which a model computes something that stock transformers' ViT does not know.
_BEYOND_STOCK = (
    "position_embedding",
    "position_placement",
    "use_class_token",
    "use_distillation_token",
    "num_register_tokens",
    "pooling",
    "pool_before_norm",
    "representation_size",
    "use_distillation_head",
    "use_layer_scale",
    "use_swiglu",
    "resnet_depths",
    "merged_tokens_per_layer",
)


@strict
class ViTConfig(BackboneConfigMixin, PreTrainedConfig):
    """What a Vision Transformer is made of. The defaults are ViT-B/16 at 224 pixels (Table 1).

    Args:
        hidden_size: D, the width of every token.
        num_hidden_layers: L, the number of encoder layers.
        num_attention_heads: k, the heads of the self-attention (Eq. 6-8); must divide `hidden_size`.
        intermediate_size: the width of the MLP's hidden layer.
        hidden_act: the MLP's non-linearity; `"gelu"` is the exact one, `"gelu_pytorch_tanh"` the approximation that
            the paper's code computes. A SwiGLU takes no notice of it.
        hidden_dropout_prob: in [0, 1); applied where the paper has it: after the position embeddings and after every
            dense layer except the query, key and value projections (Appendix B.1).
        attention_probs_dropout_prob: in [0, 1); dropout on the attention weights, which the paper leaves at 0.
        drop_path_rate: in [0, 1); stochastic depth: the share of images for which the last layer's two branches are
            left out in training; it grows linearly from 0 in the first layer ("How to train your ViT?", Section 3.3).
        patch_dropout_prob: in [0, 1); the share of patches that are left out in training, drawn for every image.
        initializer_range: standard deviation of the initial learned position embeddings.
        layer_norm_eps: epsilon of every LayerNorm; 1e-6 in the paper's code.
        image_size: the input's side in pixels, or (height, width).
        patch_size: P, a patch's side in pixels, or (height, width); must divide `image_size`. For a hybrid it is
            measured on the ResNet's feature map.
        num_channels: C, the input's colour channels.
        qkv_bias: whether the query, key and value projections have biases.
        position_embedding: Table 8's kinds: `"none"`; `"learned_1d"`, one vector a token in raster order;
            `"learned_2d"`, a row's and a column's half concatenated; `"relative"`, one vector for every offset in
            raster order, scored by the query inside attention (Appendix D.4); `"sincos_2d"`, fixed.
        position_placement: where they act (Table 8): `"input"`; `"every_layer"`, learned separately for each; or
            `"every_layer_shared"`. Relative ones act inside attention: there `"input"` is the first layer's.
        position_resize: how learned position embeddings are brought to another grid: `"bilinear"` with aligned corners
            as in the paper's code, `"bicubic"` as in transformers, `"bicubic_antialias"` as in timm.
        interpolate_pos_encoding: whether every input size that patches can tile is taken without asking for it.
        num_prefix_positions: how many of the tokens before the patches have learned 1-D position embeddings of their
            own; None for the class and distillation tokens there are.
        use_class_token: whether a learned token is put before the patches (Eq. 1).
        use_distillation_token: DeiT's second one.
        num_register_tokens: tokens that store and are not read ("Vision Transformers Need Registers").
        pooling: which output the head reads: `"token"`, the class token (Eq. 4); `"mean"`, the patches' mean
            (Appendix D.3); `"attention"`, a learned query's attention to the patches ("Scaling Vision Transformers");
            `"token_and_mean"`, the class token beside the mean, as DINOv2's linear classifier.
        pool_before_norm: whether the final LayerNorm follows pooling instead of preceding it; for `"mean"`.
        representation_size: width of the pre-training head's hidden layer with tanh (Section 3.1); None for none.
        use_distillation_head: DeiT's second classifier, on the distillation token; the logits are the two's mean.
        use_layer_scale: whether learned factors scale each branch's channels ("Going deeper with Image Transformers").
        layer_scale_init_value: where those factors start.
        use_swiglu: whether the MLP is a SwiGLU ("GLU Variants Improve Transformer").
        resnet_depths: bottleneck units per stage of the ResNet before the patches; () is its root alone, None none.
        resnet_width: channels of the ResNet's root, a multiple of 32.
        resnet_numerics: `"paper"` divides filters by (standard deviation + 1e-5) and has 1e-6 in GroupNorm; `"timm"`
            divides by sqrt(variance + 1e-8) and has 1e-5.
        merged_tokens_per_layer: r, how many pairs of similar patches every layer but the last merges, to be faster
            without being trained for it, or at most half of the patches that it finds ("Token Merging: Your ViT But
            Faster"). It can be set at any time, on a loaded model, too.
        reshape_hidden_states: whether a `ViTBackbone` returns feature maps; otherwise it returns tokens.

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
    drop_path_rate: float | int = 0.0
    patch_dropout_prob: float | int = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-6
    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int | list[int] | tuple[int, int] = 16
    num_channels: int = 3
    qkv_bias: bool = True
    position_embedding: Literal["none", "learned_1d", "learned_2d", "relative", "sincos_2d"] = "learned_1d"
    position_placement: Literal["input", "every_layer", "every_layer_shared"] = "input"
    position_resize: Literal["bilinear", "bicubic", "bicubic_antialias"] = "bilinear"
    interpolate_pos_encoding: bool = False
    num_prefix_positions: int | None = None
    use_class_token: bool = True
    use_distillation_token: bool = False
    num_register_tokens: int = 0
    pooling: Literal["token", "mean", "attention", "token_and_mean"] = "token"
    pool_before_norm: bool = False
    representation_size: int | None = None
    use_distillation_head: bool = False
    use_layer_scale: bool = False
    layer_scale_init_value: float | int = 1.0
    use_swiglu: bool = False
    resnet_depths: list[int] | tuple[int, ...] | None = None
    resnet_width: int = 64
    resnet_numerics: Literal["paper", "timm"] = "paper"
    merged_tokens_per_layer: int = 0
    reshape_hidden_states: bool = True

    def __post_init__(self, **kwargs):
        if self.num_prefix_positions is None:
            self.num_prefix_positions = 0
            if self.position_embedding == "learned_1d":
                self.num_prefix_positions = self.use_class_token + self.use_distillation_token
        self.set_output_features_output_indices(kwargs.pop("out_features", None), kwargs.pop("out_indices", None))
        super().__post_init__(**kwargs)

    @classmethod
    def from_variant(cls, variant: str, **overrides: Any) -> Self:
        """The configuration of one of the paper's models, named as in Section 4.1: `"B/16"` is Base with 16x16 patches.

        Args:
            variant: one of Ti/16, S/16, S/32, B/32, B/16, L/32, L/16, H/14, R+Ti/16, R26+S/32, R50+B/16, R50+L/32.
            overrides: any field of `ViTConfig`, for example `image_size=384` or `num_labels=10`.

        Raises:
            InputError: there is no such variant.
        """
        if variant not in VARIANTS:
            raise InputError(f"There is no variant {variant!r}; the variants are {', '.join(VARIANTS)}.")
        size, patch_size = variant.split("/")
        size, resnet_depths, patch_size = _HYBRIDS.get(variant, (size, None, int(patch_size)))
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size = _SIZES[size]
        fields: dict[str, Any] = {
            "hidden_size": hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "intermediate_size": intermediate_size,
            "patch_size": patch_size,
            "resnet_depths": resnet_depths,
        }
        return cls(**(fields | overrides))

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width) of the input in pixels."""
        return pair(self.image_size)

    @property
    def patch_shape(self) -> tuple[int, int]:
        """(height, width) of the image area in pixels that becomes a token."""
        height, width = pair(self.patch_size)
        return height * self.resnet_stride, width * self.resnet_stride

    @property
    def resnet_stride(self) -> int:
        """Pixels per position of the ResNet's feature map; 1 without a ResNet."""
        return resnet_stride(self.resnet_depths)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """(rows, columns) of the patch grid; N = rows x columns (Section 3.1)."""
        (height, width), (patch_height, patch_width) = self.image_shape, self.patch_shape
        return height // patch_height, width // patch_width

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches: class, distillation, registers, in this order."""
        return self.use_class_token + self.use_distillation_token + self.num_register_tokens

    @property
    def sequence_length(self) -> int:
        """T, the number of tokens of an image: the patches and those before them."""
        rows, columns = self.grid_shape
        return self.num_prefix_tokens + rows * columns

    @property
    def stage_names(self) -> list[str]:
        """What a `ViTBackbone` can return: the embeddings, and every layer's output."""
        return ["stem", *(f"stage{index}" for index in range(1, self.num_hidden_layers + 1))]

    @property
    def is_stock(self) -> bool:
        """Whether stock transformers' ViT computes the same, so that it can load this model."""
        default = type(self)()
        return self.num_prefix_positions == 1 and all(
            getattr(self, name) == getattr(default, name) for name in _BEYOND_STOCK
        )

    @property
    def is_multi_label(self) -> bool:
        """Whether an image may have any number of the classes, each with a probability of its own."""
        return self.problem_type == "multi_label_classification"

    @property
    def labels(self) -> list[str]:
        """The classes' names by index, of length K."""
        return [str(label) for _, label in sorted((self.id2label or {}).items())]

    def validate_architecture(self):
        """Part of `@strict`'s validation: checks the fields against each other."""
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "num_channels"):
            _require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}, but must be at least 1.")
        for name in ("image_size", "patch_size"):
            size = getattr(self, name)
            message = f"{name} is {size}, but must be a positive number or (height, width)."
            _require((isinstance(size, int) or len(size) == 2) and min(pair(size)) >= 1, message)
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate", "patch_dropout_prob"):
            message = f"{name} is {getattr(self, name)}, but must be at least 0 and less than 1."
            _require(0 <= getattr(self, name) < 1, message)
        _require(self.layer_norm_eps > 0, f"layer_norm_eps is {self.layer_norm_eps}, but must be more than 0.")
        _require(
            self.hidden_act in ACT2FN, f"hidden_act is {self.hidden_act!r}, but must be one of {', '.join(ACT2FN)}."
        )
        _require(
            self.hidden_size % self.num_attention_heads == 0,
            f"num_attention_heads ({self.num_attention_heads}) must divide hidden_size ({self.hidden_size}).",
        )
        _require(
            not any(image % patch for image, patch in zip(self.image_shape, self.patch_shape)),
            f"image_size ({self.image_size}) must be a multiple of patch_size ({self.patch_size})"
            f"{f' times the ResNet stride {self.resnet_stride}' if self.resnet_stride > 1 else ''}, "
            "so that patches tile the image.",
        )
        self._validate_tokens()
        self._validate_positions()
        if self.resnet_depths is not None:
            _require(
                all(depth >= 1 for depth in self.resnet_depths)
                and self.resnet_width >= 1
                and self.resnet_width % 32 == 0,
                "resnet_depths must be positive and resnet_width a multiple of 32, the groups of its normalisation.",
            )

    def validate_merging(self):
        """Part of `@strict`'s validation, and asked again by every forward call, as the field is made to be set.

        Raises:
            InputError: tokens cannot be merged so.
        """
        if self.merged_tokens_per_layer < 0:
            raise InputError(f"merged_tokens_per_layer is {self.merged_tokens_per_layer}, but must be at least 0.")
        if self.merged_tokens_per_layer and self.position_embedding == "relative":
            raise InputError(
                f"merged_tokens_per_layer is {self.merged_tokens_per_layer}, but must be 0 with relative position "
                "embeddings: the patches of a merged token have no offset in common."
            )

    def pairs_to_merge(self) -> list[int]:
        """How many pairs of patches each layer merges: none the last, after which no token attends to another.

        Raises:
            InputError: tokens cannot be merged so.
        """
        self.validate_merging()
        return [self.merged_tokens_per_layer] * (self.num_hidden_layers - 1) + [0]

    def _validate_positions(self):
        if self.position_embedding in ("learned_2d", "sincos_2d"):
            divisor = 4 if self.position_embedding == "sincos_2d" else 2
            message = f"hidden_size ({self.hidden_size}) must be a multiple of {divisor} for {self.position_embedding}."
            _require(self.hidden_size % divisor == 0, message)
        count, tokens = self.num_prefix_positions, self.num_prefix_tokens
        _require(
            0 <= (count or 0) <= (tokens if self.position_embedding == "learned_1d" else 0),
            f"num_prefix_positions is {count}, but {tokens} tokens stand before the patches, and only learned_1d gives "
            "them positions.",
        )
        _require(
            not self.patch_dropout_prob
            or (self.position_placement == "input" and self.position_embedding != "relative"),
            "patch_dropout_prob needs position embeddings that are added at the input.",
        )

    def _validate_tokens(self):
        _require(
            self.num_register_tokens >= 0, f"num_register_tokens is {self.num_register_tokens}, but counts tokens."
        )
        _require(
            self.use_class_token or self.pooling in ("mean", "attention"),
            f"pooling {self.pooling!r} reads the class token, so use_class_token must be true.",
        )
        _require(
            self.use_class_token or not self.use_distillation_token,
            "use_distillation_token needs use_class_token: it stands behind the class token.",
        )
        _require(
            not self.use_distillation_head
            or (self.use_distillation_token and self.pooling == "token" and self.representation_size is None),
            "use_distillation_head needs use_distillation_token, token pooling and no representation_size.",
        )
        _require(
            self.representation_size is None or self.representation_size >= 1,
            f"representation_size is {self.representation_size}, but must be at least 1, or None.",
        )
        _require(not self.pool_before_norm or self.pooling == "mean", "pool_before_norm is for pooling 'mean'.")

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        if fields["out_indices"] == [self.num_hidden_layers]:  # the default, which follows a change of depth
            del fields["out_indices"], fields["out_features"]
        return fields

    def to_json_string(self, use_diff: bool = True) -> str:
        """The fields as they are saved; a plain ViT goes by the model type that stock transformers knows."""
        fields = json.loads(super().to_json_string(use_diff))
        fields |= {"model_type": STOCK_MODEL_TYPE} if self.is_stock else {"auto_map": AUTO_MAP}
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path, use_diff: bool = True):
        """Writes config.json and, for a model that stock transformers does not know, the sources that it names."""
        if not self.is_stock:
            copy_sources(Path(json_file_path).parent)
        super().to_json_file(json_file_path, use_diff=use_diff)

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """The configuration of a dictionary with some of its fields changed, and all of them checked together.

        Raises:
            InputError: a field has the wrong type, or the fields contradict each other.
        """
        changed = {name: kwargs.pop(name) for name in ViTConfig.__annotations__ if name in kwargs}
        if "num_labels" in kwargs and "id2label" not in kwargs:  # then the names of other classes mean nothing
            names = config_dict.get("id2label")
            if isinstance(names, dict) and len(names) != kwargs["num_labels"]:
                changed |= {"id2label": None, "label2id": None}
        try:
            return super().from_dict(config_dict | changed, **kwargs)
        except StrictDataclassError as error:
            sentence = str(error).strip().splitlines()[-1].strip()
            raise InputError(re.sub(r"^\w+Error: ", "", sentence)) from error
        except (AttributeError, TypeError, ValueError) as error:  # of fields that transformers itself reads
            reason = " ".join(str(error).split()).rstrip(".")
            raise InputError(f"The configuration's labels, dtype or stages cannot be used: {reason}.") from error

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs):
        hub_kwargs, kwargs = split_hub_kwargs(kwargs)
        source = str(pretrained_model_name_or_path)
        fields = read_config(source, kwargs.get("image_size"), **hub_kwargs)
        return fields | {"model_type": cls.model_type}, kwargs


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
