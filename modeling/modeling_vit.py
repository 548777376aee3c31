"""The Vision Transformer, to be read beside Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words", Section 3.1.

Equations 1-4 stand in this order below: embeddings, attention, MLP, layer, model, head. Shapes are written with
B images, C channels, P the patch side, N patches, D the width, k heads. Parameters have the names of transformers'
stock ViT, so that the same file loads in both.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoints import fit_to_model, read_state_dict, split_hub_kwargs
from .configuration_vit import ViTConfig
from .errors import InputError


logger = logging.getLogger(__name__)

# Called by every layer with its query and key, each (B, k, 1+N, D/k), and the scale of their product.
AttentionObserver = Callable[[torch.Tensor, torch.Tensor, float], None]


class ViTPatchEmbeddings(nn.Module):
    """Linear projection E of flattened patches. A convolution whose stride is its kernel is exactly that."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_shape, stride=config.patch_shape
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.projection(pixel_values).flatten(2).transpose(1, 2)  # (B, N, D)


class ViTEmbeddings(nn.Module):
    """Patches, class token and position embeddings, Eq. 1: z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.image_shape = config.image_shape
        num_patches = math.prod(config.grid_shape)
        self.patch_embeddings = ViTPatchEmbeddings(config)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.position_embeddings = nn.Parameter(torch.empty(1, 1 + num_patches, config.hidden_size))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.shape[-2:] != self.image_shape:
            raise InputError(
                f"The images are {pixel_values.shape[-2]}x{pixel_values.shape[-1]} pixels, "
                f"but the model reads {self.image_shape[0]}x{self.image_shape[1]}; resize them with its processor."
            )
        patches = self.patch_embeddings(pixel_values)
        cls_token = self.cls_token.expand(patches.shape[0], -1, -1)
        embeddings = torch.cat((cls_token, patches), dim=1) + self.position_embeddings  # (B, 1+N, D)
        return self.dropout(embeddings)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 6 and 7 spelled out: A = softmax(q k^T / sqrt(D/k)), SA(z) = A v. The only path that returns A."""
    weights = (query @ key.transpose(-1, -2)) * scaling  # (B, k, 1+N, 1+N)
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (B, 1+N, k, D/k), (B, k, 1+N, 1+N)


class ViTAttention(nn.Module):
    """Multi-head self-attention, Appendix A, Eq. 5-8."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_observer: AttentionObserver | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_proj(hidden_states).view(heads).transpose(1, 2)  # (B, k, 1+N, D/k)
        key = self.k_proj(hidden_states).view(heads).transpose(1, 2)
        value = self.v_proj(hidden_states).view(heads).transpose(1, 2)
        if attention_observer is not None:
            attention_observer(query, key, self.scaling)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(output.reshape(hidden_states.shape)), weights  # (B, 1+N, D)


class ViTMLP(nn.Module):
    """Two dense layers with a GELU between them, and dropout after each (Section 3.1, Appendix B.1)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(self.fc1(hidden_states)))
        return self.dropout(self.fc2(hidden_states))


class ViTLayer(GradientCheckpointingLayer):
    """One encoder layer, pre-norm, Eq. 2 and 3."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = self.dropout(attended) + hidden_states  # Eq. 2: z' = MSA(LN(z)) + z
        return self.mlp(self.layernorm_after(hidden_states)) + hidden_states  # Eq. 3: z = MLP(LN(z')) + z'


class ViTPreTrainedModel(PreTrainedModel):
    """What every ViT here shares: initial weights, and loading from anybody's checkpoint."""

    config_class = ViTConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch; the Trainer averages accumulated steps itself
    _no_split_modules = ["ViTEmbeddings", "ViTLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": ViTLayer, "attentions": ViTAttention}
    _input_embed_layer = "patch_embeddings"

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """Those of the paper's code (vit_jax `models_vit.py` and flax's defaults), with every bias at zero."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            # flax's lecun_normal: a normal cut at two standard deviations, scaled back to variance 1/fan_in.
            std = math.prod(module.weight.shape[1:]) ** -0.5 / 0.87962566103423978
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, ViTEmbeddings):
            init.zeros_(module.cls_token)
            init.normal_(module.position_embeddings, std=self.config.initializer_range)
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.Conv2d)) and module.bias is not None:
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None,
        *,
        config: ViTConfig | None = None,
        state_dict: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> Self:
        """Loads a ViT: a folder or Hub repository written by vitrail or by stock transformers' ViT of any version.

        Args:
            pretrained_model_name_or_path: a Hub id or a folder; None to take `config` and `state_dict` as they are.
            config: a `ViTConfig` to use instead of the checkpoint's own.
            state_dict: tensors to use instead of the checkpoint's own.
            kwargs: fields of the config to change (`num_labels=10` attaches a new head, and a warning says so), and the
                arguments of `PreTrainedModel.from_pretrained`: `dtype` (by default the checkpoint's own), `device_map`,
                `attn_implementation`, ...

        Raises:
            InputError: not a ViT, a damaged file, or a tensor that is missing, unexpected or of the wrong shape.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, config=config, state_dict=state_dict, **kwargs)
        hub_kwargs, kwargs = split_hub_kwargs(kwargs)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or "auto"
        if config is None:
            config, kwargs = cast(
                "tuple[ViTConfig, dict[str, Any]]",
                ViTConfig.from_pretrained(
                    pretrained_model_name_or_path, return_unused_kwargs=True, **hub_kwargs, **kwargs
                ),
            )
        if state_dict is None:
            state_dict = read_state_dict(pretrained_model_name_or_path, **hub_kwargs)
        with torch.device("meta"):
            expected = cls(config).state_dict()
        state_dict, new_head = fit_to_model(state_dict, expected, source=str(pretrained_model_name_or_path))
        if new_head:
            logger.warning("The classification head is new and starts at zero: %s.", new_head)
        if dtype == "auto":
            dtype = next(tensor.dtype for tensor in state_dict.values() if tensor.is_floating_point())
        loaded: Any = super().from_pretrained(None, config=config, state_dict=state_dict, dtype=dtype, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return cast("Self", loaded)


class ViTModel(ViTPreTrainedModel):
    """Embeddings, L layers and the final LayerNorm: the Transformer encoder of Figure 1."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        self.layers = nn.ModuleList([ViTLayer(config) for _ in range(config.num_hidden_layers)])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        attention_observer: AttentionObserver | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Images in, tokens out.

        Args:
            pixel_values: (B, C, H, W), normalised by `ViTImageProcessor`; cast to the weights' dtype.
            attention_observer: called by every layer, first to last, with its query and key, each (B, k, 1+N, D/k),
                and the scale of their product; this is how `vitrail.inspection` sees attention on any backend.
            kwargs: `output_hidden_states`; `output_attentions` with `attn_implementation="eager"`.

        Returns:
            `last_hidden_state` (B, 1+N, D), the class token first; `pooler_output` (B, D), the image representation y.

        Raises:
            InputError: the images do not have the size that the position embeddings were made for.
        """
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states = self.embeddings(pixel_values)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_observer=attention_observer, **kwargs)
        hidden_states = self.layernorm(hidden_states)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=hidden_states[:, 0],  # Eq. 4: y = LN(z_L^0)
        )


class ViTForImageClassification(ViTPreTrainedModel):
    """The encoder with a linear classification head on the class token (Section 3.1)."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.vit = ViTModel(config)
        self.classifier = nn.Linear(config.hidden_size, len(config.labels))
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if module is self.classifier:
            # Section 3.2: "a zero-initialized D x K feedforward layer"
            init.zeros_(self.classifier.weight)
            init.zeros_(self.classifier.bias)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Images in, logits out.

        Args:
            pixel_values: (B, C, H, W), normalised by `ViTImageProcessor`.
            labels: class indices (B,), or probabilities (B, num_labels) as mixing augmentations make them.
            kwargs: passed to `ViTModel.forward`.

        Returns:
            `logits` (B, num_labels) and, with labels, `loss`, the mean cross-entropy in nats.

        Raises:
            InputError: the images do not have the size that the position embeddings were made for.
        """
        outputs = self.vit(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        return ImageClassifierOutput(
            loss=None if labels is None else F.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )
