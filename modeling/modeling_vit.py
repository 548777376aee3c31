"""The Vision Transformer, to be read beside Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words", Section 3.1.

Equations 1-4 stand in this order below: embeddings, attention, MLP, layer, model, heads. Shapes are written with
B images, C channels, P the patch side, N patches, T tokens (N and those before them), D the width, k heads. Parameters
have the names of transformers' stock ViT, so that the same file loads in both. The file is as long as it is because
Table 8's ablations stand where they act, and every public thing is documented; the plain ViT is half of it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, is_flash_attention_requested
from transformers.utils.output_capturing import capture_outputs

from .attention_products import attention_by_products, products_are_faster
from .checkpoints import fit_to_model, read_checkpoint, split_hub_kwargs
from .configuration_vit import ViTConfig
from .dense import dense, dense_together, is_watched
from .errors import InputError
from .fast_path import Kinds, fast_path_is_open, run_fast_path
from .geometry import pair
from .observed_attention import AttentionObserver, ObservedAttention
from .position_embeddings import fit_positions, resize_learned_1d, resize_learned_2d, sincos_2d
from .resnet import ResidualGroupNorm, ResNet
from .token_merging import MergedTokens, merge_tokens
from .transformers_checkpoints import from_transformers


logger = logging.getLogger(__name__)


PatchCorruption = Callable[[torch.Tensor], torch.Tensor]


class ViTPatchEmbeddings(nn.Module):
    """Linear projection E of flattened patches. A convolution whose stride is its kernel is exactly that.

    The patches are those of the image or, in a hybrid, of a ResNet's feature map (Section 3.1).
    """

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.resnet = None if config.resnet_depths is None else ResNet(config)
        channels = config.num_channels if self.resnet is None else self.resnet.out_channels
        patch_shape = pair(config.patch_size)
        self.projection = nn.Conv2d(channels, config.hidden_size, kernel_size=patch_shape, stride=patch_shape)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        features = pixel_values if self.resnet is None else self.resnet(pixel_values)
        return self.projection(features).flatten(2).transpose(1, 2)  # (B, N, D)


class ViTEmbeddings(nn.Module):
    """Patches, class token and position embeddings, Eq. 1: z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.config = config
        self.patch_embeddings = ViTPatchEmbeddings(config)
        width = config.hidden_size
        if config.use_class_token:
            self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        if config.use_distillation_token:
            self.distillation_token = nn.Parameter(torch.empty(1, 1, width))
        if config.num_register_tokens:
            self.register_tokens = nn.Parameter(torch.empty(1, config.num_register_tokens, width))
        # Table 8: one table of position embeddings for all layers or one for each.
        tables = config.num_hidden_layers if config.position_placement == "every_layer" else 1
        rows, columns = config.grid_shape
        if config.position_embedding == "learned_1d":
            positions = cast("int", config.num_prefix_positions) + rows * columns
            self.position_embeddings = nn.Parameter(torch.empty(tables, positions, width))
        elif config.position_embedding == "learned_2d":
            self.row_embeddings = nn.Parameter(torch.empty(tables, rows, width // 2))
            self.column_embeddings = nn.Parameter(torch.empty(tables, columns, width // 2))
        elif config.position_embedding == "relative":  # for every offset p_q - p_k from -(N-1) to N-1
            head_dim = width // config.num_attention_heads
            self.relative_embeddings = nn.Parameter(torch.empty(tables, 2 * rows * columns - 1, head_dim))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, pixel_values: torch.Tensor, grid_shape: tuple[int, int], patch_corruption: PatchCorruption | None
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """The tokens, (B, T, D), and the position embeddings that act in each layer, where there are any.

        The latter are read here and nowhere else, because the parameters of a module that is offloaded are there only
        while it runs.
        """
        patches = self.patch_embeddings(pixel_values)
        if patch_corruption is not None:
            patches = patch_corruption(patches)
        tokens = torch.cat((*(token.expand(patches.shape[0], -1, -1) for token in self._prefix()), patches), dim=1)
        layers = self.config.num_hidden_layers
        in_layers: list[torch.Tensor | None] = [None] * layers
        if self.config.position_embedding != "none":
            tables = self.position_tables(grid_shape, patches.device)
            places = 1 if self.config.position_placement == "input" else layers
            in_layers[:places] = [tables[index % len(tables)] for index in range(places)]
        if self.config.position_embedding != "relative" and in_layers[0] is not None:
            tokens, in_layers[0] = tokens + in_layers[0], None
        if self.training and self.config.patch_dropout_prob:
            tokens = self._drop_patches(tokens)
        return self.dropout(tokens), in_layers

    def position_tables(self, grid_shape: tuple[int, int], device: torch.device) -> torch.Tensor:
        """Position embeddings of all tokens for the given grid, (1 or L, T, D); zero for tokens that have none.

        Relative ones are those of all offsets, (1 or L, 2N-1, D/k).
        """
        config = self.config
        if config.position_embedding == "relative":
            return self.relative_embeddings
        prefix = cast("int", config.num_prefix_positions)
        if config.position_embedding == "learned_1d":
            positions = self.position_embeddings
            if grid_shape != config.grid_shape:
                positions = resize_learned_1d(positions, prefix, config.grid_shape, grid_shape, config.position_resize)
        elif config.position_embedding == "learned_2d":  # Appendix D.4: the X- and the Y-embedding, concatenated
            rows = resize_learned_2d(self.row_embeddings, grid_shape[0], config.position_resize)
            columns = resize_learned_2d(self.column_embeddings, grid_shape[1], config.position_resize)
            x = columns[:, None].expand(-1, grid_shape[0], -1, -1)  # (1 or L, rows, columns, D/2)
            y = rows[:, :, None].expand(-1, -1, grid_shape[1], -1)
            positions = torch.cat((x, y), dim=-1).flatten(1, 2)
        else:
            positions = sincos_2d(*grid_shape, config.hidden_size, device)
            positions = positions.to(self.patch_embeddings.projection.weight.dtype)
        if without := config.num_prefix_tokens - prefix:
            zeros = positions.new_zeros(len(positions), without, config.hidden_size)
            positions = torch.cat((positions[:, :prefix], zeros, positions[:, prefix:]), dim=1)
        return positions

    def _prefix(self) -> list[torch.Tensor]:
        """The tokens before the patches."""
        config = self.config
        tokens: list[torch.Tensor] = []
        tokens += [self.cls_token] if config.use_class_token else []
        tokens += [self.distillation_token] if config.use_distillation_token else []
        tokens += [self.register_tokens] if config.num_register_tokens else []
        return tokens

    def _drop_patches(self, tokens: torch.Tensor) -> torch.Tensor:
        """Keeps a random subset of every image's patches, of the same size for all."""
        prefix, patches = tokens.tensor_split([self.config.num_prefix_tokens], dim=1)
        batch, count, width = patches.shape
        kept = max(1, round(count * (1 - self.config.patch_dropout_prob)))
        indices = torch.rand(batch, count, device=tokens.device).argsort(dim=1)[:, :kept, None]
        return torch.cat((prefix, patches.gather(1, indices.expand(-1, -1, width))), dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eq. 6 and 7 spelled out: A = softmax(q k^T / sqrt(D/k)), SA(z) = A v. The only path that returns A."""
    weights = (query @ key.transpose(-1, -2)) * scaling  # (B, k, T, T)
    if position_bias is not None:
        weights = weights + position_bias
    weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights  # (B, T, k, D/k), (B, k, T, T)


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
        relative_embeddings: torch.Tensor | None = None,
        merged: MergedTokens | None = None,
        attention_observer: AttentionObserver | None = None,
        num_queries: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        query, key, value = (  # each (B, k, T, D/k)
            projected.unflatten(-1, (projected.shape[-1] // self.head_dim, self.head_dim)).transpose(1, 2)
            for projected in self._projected(hidden_states, num_queries)
        )
        bias = None
        if merged is not None:  # "Token Merging", Eq. 1
            bias = merged.attention_bias.to(query.dtype)
            if self.config._attn_implementation == "flex_attention":  # which looks it up for every head and query
                bias = bias.expand(-1, query.shape[1], query.shape[2], -1)
        elif relative_embeddings is not None:
            bias = self._relative_logits(query, relative_embeddings)
        if bias is not None and is_flash_attention_requested(self.config):
            raise InputError(
                "Flash attention cannot add relative position embeddings or the sizes of merged tokens to its logits; "
                "use attn_implementation='sdpa'."
            )
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation or "eager", eager_attention_forward
        )
        causal = kwargs.get("is_causal")  # None is the module's
        causal = self.is_causal if causal is None else causal
        if attend is sdpa_attention_forward and products_are_faster(query) and not causal:
            attend = attention_by_products
        output, weights = attend(
            self,
            query,
            key,
            value,
            None,
            position_bias=bias,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        if attention_observer is not None:
            if num_queries is not None:
                query = dense(self.q_proj, hidden_states).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            attention_observer(ObservedAttention(query, key, self.scaling, bias, value, output, merged))
        return dense(self.o_proj, output.flatten(2)), weights, key  # (B, T, D)

    def _projected(self, hidden_states: torch.Tensor, num_queries: int | None) -> Sequence[torch.Tensor]:
        """Queries, keys and values, Eq. 5, each (B, T, D)."""
        if num_queries is None:
            return dense_together((self.q_proj, self.k_proj, self.v_proj), hidden_states)
        query = dense(self.q_proj, hidden_states[:, :num_queries])
        return query, *dense_together((self.k_proj, self.v_proj), hidden_states)

    def _relative_logits(self, query: torch.Tensor, relative_embeddings: torch.Tensor) -> torch.Tensor:
        """Attention to the offsets p_q - p_k, (B, k, T, T), "a bias term" to that to the contents (Appendix D.4).

        It is among patches only; tokens before them have no place in the image.
        """
        prefix = self.config.num_prefix_tokens
        logits = query[:, :, prefix:] @ relative_embeddings.T * self.scaling  # (B, k, N, 2N-1)
        batch, heads, count, _ = logits.shape
        places = torch.arange(count, device=query.device)
        offsets = places[:, None] - places + count - 1  # (N, N), the smallest being 0
        bias = logits.gather(-1, offsets.expand(batch, heads, -1, -1))
        return F.pad(bias, (prefix, 0, prefix, 0))


class ViTMLP(nn.Module):
    """Two dense layers with a GELU between them, and dropout after each (Section 3.1, Appendix B.1)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.dropout(self.activation_fn(dense(self.fc1, hidden_states)))
        return self.dropout(dense(self.fc2, hidden_states))


class ViTSwiGLU(nn.Module):
    """The MLP of DINOv2's giant: SiLU of one half of the first layer gates the other ("GLU Variants", Eq. 6)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        gate, hidden_states = self.fc1(hidden_states).chunk(2, dim=-1)
        return self.dropout(self.fc2(self.dropout(F.silu(gate) * hidden_states)))


class ViTLayerScale(nn.Module):
    """A learned factor for every channel of a branch ("Going deeper with Image Transformers", Eq. 4)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.initial_value = config.layer_scale_init_value
        self.lambda1 = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states * self.lambda1


class ViTDropPath(nn.Module):
    """Leaves a branch out for a random share of the images in training ("Deep Networks with Stochastic Depth")."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not (self.training and self.rate):
            return hidden_states
        keep = hidden_states.new_empty(hidden_states.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return hidden_states * keep / (1 - self.rate)


class ViTLayer(GradientCheckpointingLayer):
    """One encoder layer, pre-norm, Eq. 2 and 3."""

    def __init__(self, config: ViTConfig, drop_path_rate: float):
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.has_relative_positions = config.position_embedding == "relative"
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = ViTAttention(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layer_scale1 = ViTLayerScale(config) if config.use_layer_scale else nn.Identity()
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTSwiGLU(config) if config.use_swiglu else ViTMLP(config)
        self.layer_scale2 = ViTLayerScale(config) if config.use_layer_scale else nn.Identity()
        self.drop_path = ViTDropPath(drop_path_rate)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: torch.Tensor | None = None,
        merged: MergedTokens | None = None,
        pairs_to_merge: int = 0,
        num_queries: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, MergedTokens]:
        """(B, T, D) -> (B, T, D), or of the first `num_queries` tokens alone, which attend to all of them.

        Where tokens were merged, also which.
        """
        if self.has_relative_positions:
            kwargs["relative_embeddings"] = position_embeddings
        elif position_embeddings is not None:  # Table 8, "every layer"
            position_embeddings = position_embeddings.to(hidden_states.device)
            if merged is not None:
                position_embeddings = merged.mean(position_embeddings)
            hidden_states = hidden_states + position_embeddings
        attended, _, key = self.attention(
            self.layernorm_before(hidden_states), merged=merged, num_queries=num_queries, **kwargs
        )
        branch = self.layer_scale1(self.dropout(attended))
        hidden_states = self.drop_path(branch) + hidden_states[:, :num_queries]  # Eq. 2: z' = MSA(LN(z)) + z
        if pairs_to_merge:
            hidden_states, merged = merge_tokens(hidden_states, key, merged, pairs_to_merge, self.num_prefix_tokens)
        branch = self.layer_scale2(self.mlp(self.layernorm_after(hidden_states)))
        hidden_states = self.drop_path(branch) + hidden_states  # Eq. 3: z = MLP(LN(z')) + z'
        return hidden_states if merged is None else (hidden_states, merged)


class ViTAttentionPooling(nn.Module):
    """One learned query's attention to the patches, and an MLP ("Scaling Vision Transformers", Section 3.2)."""

    def __init__(self, config: ViTConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.latent = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = ViTMLP(config)

    def forward(self, patches: torch.Tensor, attention_observer: AttentionObserver | None) -> torch.Tensor:
        query = self.q_proj(self.latent.expand(patches.shape[0], -1, -1))
        query, key, value = (
            tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for tokens in (query, self.k_proj(patches), self.v_proj(patches))
        )
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2)  # (B, 1, k, D/k)
        if attention_observer is not None:
            attention_observer(ObservedAttention(query, key, query.shape[-1] ** -0.5, None, value, attended))
        pooled = self.o_proj(attended.flatten(1))
        return pooled + self.mlp(self.layernorm(pooled))  # (B, D)


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
        """Those of the paper's code (vit_jax `models_vit.py` and flax's defaults), but that every bias is zero, and
        `pre_logits` is like the other dense layers.
        """
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            init.constant_(module.weight, 0.0 if isinstance(module, ResidualGroupNorm) else 1.0)
        elif isinstance(module, nn.Conv2d):
            # flax's lecun_normal: a normal cut at two standard deviations, scaled back to variance 1/fan_in.
            std = math.prod(module.weight.shape[1:]) ** -0.5 / 0.87962566103423978
            init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        elif isinstance(module, ViTEmbeddings):
            for name, parameter in module.named_parameters(recurse=False):
                if name == "cls_token":
                    init.zeros_(parameter)
                else:
                    init.normal_(parameter, std=self.config.initializer_range)
        elif isinstance(module, ViTLayerScale):
            init.constant_(module.lambda1, module.initial_value)
        elif isinstance(module, ViTAttentionPooling):
            init.normal_(module.latent, std=self.config.hidden_size**-0.5)
        if isinstance(module, (nn.Linear, nn.LayerNorm, nn.GroupNorm, nn.Conv2d)) and module.bias is not None:
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
        """Loads a ViT from wherever it comes, strictly: every tensor arrives, or an error names it.

        Args:
            pretrained_model_name_or_path: a Hub id, a folder or a weights file, of vitrail, of transformers' `vit`,
                `deit`, `dinov2` or `dinov2_with_registers`, or of timm; or a `.npz` file of the paper's code. None to
                take `config` and `state_dict` as they are.
            config: a `ViTConfig` to use instead of the checkpoint's own.
            state_dict: tensors to use instead of the checkpoint's own.
            kwargs: fields of the config to change, and the arguments of `PreTrainedModel.from_pretrained`: `dtype` (by
                default the checkpoint's own), `device_map`, `attn_implementation`, ... `num_labels=10` attaches a new
                head in place of the whole pre-trained one, and a warning says so; with `representation_size` as it was,
                the hidden layer stays. `image_size=384` resizes the position embeddings by `position_resize`.

        Raises:
            InputError: not a ViT, a damaged file, or a tensor that is missing, unexpected or of the wrong shape.
        """
        if pretrained_model_name_or_path is None:
            return super().from_pretrained(None, config=config, state_dict=state_dict, **kwargs)
        hub_kwargs, kwargs = split_hub_kwargs(kwargs)
        dtype = kwargs.pop("dtype", None) or kwargs.pop("torch_dtype", None) or "auto"
        image_size = kwargs.get("image_size") if config is None else config.image_size
        checkpoint = read_checkpoint(pretrained_model_name_or_path, image_size, **hub_kwargs)
        own_config = ViTConfig.from_dict(checkpoint.config)
        asked_for_hidden_layer = config is not None or "representation_size" in kwargs
        if config is None:
            config, kwargs = cast(
                "tuple[ViTConfig, dict[str, Any]]",
                ViTConfig.from_dict(checkpoint.config, return_unused_kwargs=True, **kwargs),
            )
        if len(config.labels) != len(own_config.labels) and not asked_for_hidden_layer:
            config.representation_size = None  # "we remove the whole pre-trained prediction head" (Section 3.2)
        tensors = checkpoint.state_dict if state_dict is None else from_transformers(state_dict, "vitrail")
        tensors = fit_positions(tensors, own_config, config)
        with torch.device("meta"):
            expected = cls(config).state_dict()
        tensors, new_head = fit_to_model(tensors, expected, source=str(pretrained_model_name_or_path))
        if checkpoint.left_out:
            logger.info("Nothing here uses %s.", ", ".join(checkpoint.left_out))
        if new_head:
            logger.warning("The head is new and starts at zero: %s.", new_head)
        if dtype == "auto":
            dtype = next(tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
        loaded: Any = super().from_pretrained(None, config=config, state_dict=tensors, dtype=dtype, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info=True
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        return cast("Self", loaded)


class ViTModel(ViTPreTrainedModel):
    """The Transformer encoder of Figure 1, from images to tokens, and the image representation pooled from them."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.embeddings = ViTEmbeddings(config)
        last = max(config.num_hidden_layers - 1, 1)
        rates = [config.drop_path_rate * index / last for index in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([ViTLayer(config, rate) for rate in rates])
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention_pooling = None
        if config.pooling == "attention":
            self.attention_pooling = ViTAttentionPooling(config)
            self._no_split_modules = [*(self._no_split_modules or ()), "ViTAttentionPooling"]
        self.post_init()

    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        interpolate_pos_encoding: bool | None = None,
        attention_observer: AttentionObserver | None = None,
        patch_corruption: PatchCorruption | None = None,
        recompute: bool = False,
        num_tokens: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Images in, tokens out.

        Args:
            pixel_values: (B, C, H, W), normalised by `ViTImageProcessor`; cast to the weights' dtype.
            interpolate_pos_encoding: whether to take images of any size that patches can tile, with position embeddings
                resized to their grid; by default as the config says.
            attention_observer: called by every layer, first to last, with its `ObservedAttention`; this is how
                `vitrail.inspection` sees attention on any backend. With `pooling="attention"` it is called once more.
            patch_corruption: maps the embedded patches, (B, N, D), before the class token and positions join them.
            recompute: whether the backward pass runs every layer again, from its input, instead of keeping what is
                inside it; gradient checkpointing that also works in evaluation.
            num_tokens: of how many tokens, counted from the first, the last layer is computed: of those before the
                patches at least, and of no more than there are; by default of all.
            kwargs: `output_hidden_states`; `output_attentions` with `attn_implementation="eager"`; both have the tokens
                that the layers have, fewer and fewer where they are merged.

        Returns:
            `last_hidden_state` (B, T, D), or (B, `num_tokens`, D): class, distillation and register tokens as there
            are, then the patches, which where they were merged have the same features; `pooler_output` (B, D), the
            image representation y: the class token, the patches' mean or their attention pooling.

        Raises:
            InputError: the images have other channels or another size than the model reads, or `num_tokens` leaves out
                what is read: a token before the patches, or patches that are pooled or merged.
        """
        if num_tokens is not None:
            self._check_num_tokens(num_tokens)
        grid_shape = self._grid_shape(pixel_values, interpolate_pos_encoding)
        pixel_values = pixel_values.to(self.embeddings.patch_embeddings.projection.weight.dtype)
        hidden_states, positions = self.embeddings(pixel_values, grid_shape, patch_corruption)
        pairs_to_merge = self.config.pairs_to_merge()
        merged: MergedTokens | None = None
        if self._takes_fast_path(hidden_states, positions, kwargs):
            hidden_states, merged = run_fast_path(
                self.layers, hidden_states, pairs_to_merge, num_tokens, attention_observer
            )
        else:
            each_layer = zip(self.layers, positions, pairs_to_merge)
            for index, (layer, position_embeddings, pairs) in enumerate(each_layer):
                run = partial(checkpoint, layer, use_reentrant=False) if recompute else layer
                output = run(
                    hidden_states,
                    position_embeddings=position_embeddings,
                    merged=merged,
                    pairs_to_merge=pairs,
                    num_queries=num_tokens if index == len(self.layers) - 1 else None,
                    attention_observer=attention_observer,
                    **kwargs,
                )
                hidden_states, merged = output if isinstance(output, tuple) else (output, None)
        if not self.config.pool_before_norm:
            hidden_states = self.layernorm(hidden_states)
        if merged is not None:
            hidden_states = merged.unmerged(hidden_states)
        pooled = self._pool(hidden_states, attention_observer)
        return BaseModelOutputWithPooling(last_hidden_state=hidden_states, pooler_output=pooled)

    def _takes_fast_path(
        self, hidden_states: torch.Tensor, positions: list[torch.Tensor | None], kwargs: Mapping[str, Any]
    ) -> bool:
        """Whether the layers are as they stand here, and nothing but their output is asked for."""
        implementation = self.config._attn_implementation or "eager"
        return (
            ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward) is sdpa_attention_forward
            and all(position_embeddings is None for position_embeddings in positions)
            and not _outputs_asked_for(self, kwargs)
            and kwargs.keys() <= {f"output_{name}" for name in cast("dict[str, Any]", self._can_record_outputs)}
            and fast_path_is_open(self.layers, hidden_states, Kinds(ViTLayer, ViTAttention, ViTMLP, ViTDropPath))
            and all(layer.attention.config is self.config for layer in cast("Sequence[Any]", self.layers))
        )

    def _pool(self, hidden_states: torch.Tensor, attention_observer: AttentionObserver | None) -> torch.Tensor:
        patches = hidden_states[:, self.config.num_prefix_tokens :]
        if self.attention_pooling is not None:
            return self.attention_pooling(patches, attention_observer)
        if self.config.pooling == "mean":  # Appendix D.3
            pooled = patches.mean(dim=1)
            return self.layernorm(pooled) if self.config.pool_before_norm else pooled
        return hidden_states[:, 0]  # Eq. 4: y = LN(z_L^0)

    def _check_num_tokens(self, num_tokens: int) -> None:
        if self.config.pooling != "token" or self.config.merged_tokens_per_layer:
            raise InputError("This model pools or merges its patches, so that num_tokens cannot leave any out.")
        if num_tokens < self.config.num_prefix_tokens:
            raise InputError(
                f"num_tokens is {num_tokens}, but {self.config.num_prefix_tokens} tokens before the patches are read."
            )

    def _grid_shape(self, pixel_values: torch.Tensor, interpolate: bool | None) -> tuple[int, int]:
        config = self.config
        if pixel_values.ndim != 4:
            raise InputError(f"The images have the shape {tuple(pixel_values.shape)}, which is not (B, C, H, W).")
        channels, height, width = pixel_values.shape[1:]
        if channels != config.num_channels:
            raise InputError(f"The images have {channels} channels, but the model reads {config.num_channels}.")
        rows, columns = config.patch_shape
        if (height, width) == config.image_shape:
            return config.grid_shape
        if not (config.interpolate_pos_encoding if interpolate is None else interpolate):
            raise InputError(
                f"The images are {height}x{width} pixels, but the model reads {config.image_shape[0]}x"
                f"{config.image_shape[1]}; resize them with its processor, or pass interpolate_pos_encoding=True."
            )
        if height % rows or width % columns or not height or not width:
            raise InputError(f"The images are {height}x{width} pixels, which {rows}x{columns} patches do not tile.")
        if config.position_embedding == "relative":
            raise InputError(
                f"The images are {height}x{width} pixels, but relative position embeddings fit only the "
                f"{config.image_shape[0]}x{config.image_shape[1]} of training."
            )
        return height // rows, width // columns


class ViTForImageClassification(ViTPreTrainedModel):
    """The encoder with a classification head: one linear layer or, in pre-training, one hidden layer (Section 3.1)."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        if not config.labels:
            raise InputError("The model has no classes to tell apart; give it id2label, or num_labels of at least 1.")
        self.vit = ViTModel(config)
        width = config.hidden_size * (2 if config.pooling == "token_and_mean" else 1)
        self.pre_logits = None
        if config.representation_size is not None:
            self.pre_logits = nn.Linear(width, config.representation_size)
            width = config.representation_size
        self.classifier = nn.Linear(width, len(config.labels))
        self.distillation_classifier = nn.Linear(width, len(config.labels)) if config.use_distillation_head else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        if module is self.classifier or module is self.distillation_classifier:
            # Section 3.2: "a zero-initialized D x K feedforward layer"
            init.zeros_(cast("nn.Linear", module).weight)
            init.zeros_(cast("nn.Linear", module).bias)
        else:
            super()._init_weights(module)

    def reset_head(self) -> None:
        """Attaches a zero-initialised linear head in place of "the whole pre-trained prediction head" (Section 3.2)."""
        self.config.representation_size = self.pre_logits = None
        width = self.config.hidden_size * (2 if self.config.pooling == "token_and_mean" else 1)
        weight = self.classifier.weight
        self.classifier = nn.Linear(width, len(self.config.labels), device=weight.device, dtype=weight.dtype)
        for head in (self.classifier, self.distillation_classifier):
            if head is not None:
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)

    def features(self, outputs: BaseModelOutputWithPooling) -> torch.Tensor:
        """What `classifier` reads of the encoder's outputs: (B, D), (B, 2D) or (B, representation_size)."""
        features = cast("torch.Tensor", outputs.pooler_output)
        if self.config.pooling == "token_and_mean":
            patches = cast("torch.Tensor", outputs.last_hidden_state)[:, self.config.num_prefix_tokens :]
            features = torch.cat((features, patches.mean(dim=1)), dim=1)
        return features if self.pre_logits is None else torch.tanh(self.pre_logits(features))

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> ImageClassifierOutput:
        """Images in, logits out.

        Args:
            pixel_values: (B, C, H, W), normalised by `ViTImageProcessor`.
            labels: class indices (B,), or probabilities (B, num_labels) as mixing augmentations make them; with
                `problem_type="multi_label_classification"` the probability of each class by itself, (B, num_labels).
            kwargs: passed to `ViTModel.forward`.

        Returns:
            `logits` (B, num_labels) and, with labels, `loss` in nats: the mean cross-entropy or, of a multi-label
            model, the mean of every class's binary one.

        Raises:
            InputError: as `ViTModel.forward`.
        """
        kwargs.setdefault("num_tokens", self._num_tokens_read(kwargs))
        outputs = self.vit(pixel_values, **kwargs)
        logits = self.classifier(self.features(outputs))
        if self.distillation_classifier is not None:  # "Training data-efficient image transformers", Section 4
            logits = (logits + self.distillation_classifier(outputs.last_hidden_state[:, 1])) / 2
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _num_tokens_read(self, kwargs: dict[str, Any]) -> int | None:
        """Of how many tokens the last layer is of any use; None for all of them.

        What is asked for in a call, and what watches a module, sees all tokens, as in any other layer.
        """
        if (
            self.config.pooling != "token"
            or self.config.position_embedding == "relative"
            or self.config.merged_tokens_per_layer
            or _outputs_asked_for(self.vit, kwargs)
            or is_watched(self.vit, self.vit.layernorm, *self.vit.layers[-1].modules())
        ):
            return None
        return self.config.num_prefix_tokens

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """Of each class, (B, num_labels) float32: they sum to 1, or with a multi-label model stand each for itself."""
        return logits.float().sigmoid() if self.config.is_multi_label else logits.float().softmax(dim=-1)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # By the configuration alone: float labels are also what mixing makes of single ones.
        if self.config.is_multi_label:
            return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
        return F.cross_entropy(logits, labels)


def _outputs_asked_for(model: ViTModel, kwargs: Mapping[str, Any]) -> bool:
    """Whether a call is to return what lies between the layers."""
    names = (f"output_{name}" for name in cast("dict[str, Any]", model._can_record_outputs))
    return any(kwargs.get(name, getattr(model.config, name, False)) for name in names)


class ViTBackbone(BackboneMixin, ViTPreTrainedModel):
    """Feature maps for transformers' dense predictors (UperNet, ViTMatte, DETR, ...), as `AutoBackbone` finds them.

    `out_features` or `out_indices` of the config choose the stages: `stem` (0) are the embeddings, `stage1` (1) to
    `stageL` (L) the layers' outputs, each after the final LayerNorm. `reshape_hidden_states=False` is for DPT, which
    takes tokens.
    """

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.vit = ViTModel(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BackboneOutput:
        """Images in, feature maps (B, D, H/P, W/P) out, or tokens (B, T, D), for each chosen stage.

        Args:
            pixel_values: (B, C, H, W), of any size that patches can tile.
            kwargs: passed to `ViTModel.forward`.

        Raises:
            InputError: the model merges tokens, which leaves no map of every patch between the layers.
        """
        if self.config.merged_tokens_per_layer:
            raise InputError("A backbone's feature maps have every patch; set merged_tokens_per_layer to 0.")
        outputs = self.vit(pixel_values, interpolate_pos_encoding=True, **kwargs)
        rows, columns = self.config.patch_shape
        grid_shape = pixel_values.shape[2] // rows, pixel_values.shape[3] // columns
        maps = []
        for stage, hidden_states in zip(self.stage_names, outputs.hidden_states):
            if stage in cast("list[str]", self.out_features):
                tokens = self.vit.layernorm(hidden_states)
                patches = tokens[:, self.config.num_prefix_tokens :]
                reshape = self.config.reshape_hidden_states
                maps.append(patches.transpose(1, 2).unflatten(2, grid_shape) if reshape else tokens)
        return BackboneOutput(
            feature_maps=tuple(maps), hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
