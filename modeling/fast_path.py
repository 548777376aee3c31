"""The encoder's layers once more, for predictions: Eq. 2 and 3 on bare tensors and in place.

A prediction needs nothing that lies between its layers. So the residual stream and the MLP's activation are changed
where they are: a batch otherwise spends up to a quarter of its time on getting fresh memory from the system. What does
not change between layers is found out once, not in every call of a module. And on a CPU the products go straight to
oneDNN where PyTorch's way to it copies biases first, or leads to MKL on processors on which that is slow.

What comes out is what the layers themselves give. Where anything is not as `ViTLayer` built it (adapters, hooks,
quantised weights, another attention, ...), and where calls are not made but recorded, `fast_path_is_open` says no. It
looks at modules, and takes their classes as they stand: who patches `ViTMLP.forward` subclasses it instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import GELUActivation

from .attention_products import attention_by_products, products_are_faster
from .dense import (
    are_calls_recorded,
    can_be_joined,
    is_autocast,
    is_plain,
    is_watched,
    onednn_is_faster,
    onednn_product,
    precision_of,
)
from .observed_attention import AttentionObserver, ObservedAttention
from .token_merging import MergedTokens, merge_tokens


class Kinds(NamedTuple):
    """The classes whose equations stand here: of a layer and of what is in it."""

    layer: type[nn.Module]
    attention: type[nn.Module]
    mlp: type[nn.Module]
    drop_path: type[nn.Module]


def fast_path_is_open(layers: nn.ModuleList, hidden_states: torch.Tensor, kinds: Kinds) -> bool:
    """Whether `run_fast_path` gives what calling the layers, one after the other, gives.

    Args:
        layers: the encoder's.
        hidden_states: (B, T, D), what the first layer is to read.
        kinds: what the layers have to be of, exactly.
    """
    if torch.is_grad_enabled() or are_calls_recorded() or _has_any_global_hook():
        return False
    if type(hidden_states) is not torch.Tensor or hidden_states.numel() == 0:
        return False
    return all(_is_as_built(layer, kinds, hidden_states) for layer in layers)


def run_fast_path(
    layers: nn.ModuleList,
    hidden_states: torch.Tensor,
    pairs_to_merge: Sequence[int],
    num_queries: int | None = None,
    observer: AttentionObserver | None = None,
) -> tuple[torch.Tensor, MergedTokens | None]:
    """The layers' output, (B, T, D), and which tokens were merged, where any were.

    Args:
        layers: of type `ViTLayer`.
        hidden_states: (B, T, D); it stays as it is.
        pairs_to_merge: r of token merging, for each layer; 0 for none.
        num_queries: of how many tokens, counted from the first, the last layer is computed; None for all.
        observer: sees every layer's attention.

    Raises:
        RuntimeError: PyTorch's own, as the layers would.
    """
    compute = _Compute.like(hidden_states)
    merged: MergedTokens | None = None
    for index, (layer, pairs) in enumerate(zip(layers, pairs_to_merge)):
        queries = num_queries if index == len(layers) - 1 else None
        attended, key = _attention_branch(layer, hidden_states, compute, merged, queries, observer)
        # The first layer's input is others' to keep; everything after it is made here.
        hidden_states = _add(hidden_states[:, :queries], attended, in_place=index > 0)
        if pairs:
            prefix = cast("int", layer.num_prefix_tokens)
            hidden_states, merged = merge_tokens(hidden_states, key, merged, pairs, prefix)
        del attended, key  # of which the MLP, the larger half of a layer, can use the memory
        hidden_states = _add(hidden_states, _mlp_branch(layer, hidden_states, compute), in_place=True)
    return hidden_states, merged


class _Compute(NamedTuple):
    """How a prediction's products are computed.

    Attributes:
        precision: in which they are; hidden states are cast to it once for all products that read them.
        casts: whether autocast is at work, so that what is multiplied may be of another precision.
        directly: whether by oneDNN, without PyTorch between, which takes no notice of autocast.
    """

    precision: torch.dtype
    casts: bool
    directly: bool

    @classmethod
    def like(cls, hidden_states: torch.Tensor) -> _Compute:
        precision = precision_of(hidden_states)
        return cls(precision, is_autocast(hidden_states), onednn_is_faster(hidden_states, precision))

    def norm(self, norm: nn.LayerNorm, inputs: torch.Tensor) -> torch.Tensor:
        normed = F.layer_norm(inputs, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return normed.to(self.precision) if self.casts else normed

    def dense(self, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        return self._product(inputs, layer.weight, layer.bias)

    def dense_together(self, layers: Sequence[nn.Linear], inputs: torch.Tensor) -> Sequence[torch.Tensor]:
        """One product instead of several, where its weights are joined at about the cost of casting them."""
        if not self.directly or self.precision != torch.bfloat16 or not can_be_joined(layers):
            return [self.dense(layer, inputs) for layer in layers]
        weight = self._joined([layer.weight for layer in layers])
        bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers]).to(self.precision)
        return self._product(inputs, weight, bias).split([layer.weight.shape[0] for layer in layers], dim=-1)

    def _product(self, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if not self.directly or inputs.dtype != self.precision:
            return F.linear(inputs, weight, bias)
        if self.casts:
            weight, bias = weight.to(self.precision), None if bias is None else bias.to(self.precision)
        return onednn_product(inputs, weight, bias)

    def _joined(self, weights: list[torch.Tensor]) -> torch.Tensor:
        """One under the other, cast in the same pass."""
        if all(weight.dtype == self.precision for weight in weights):
            return torch.cat(weights)
        rows = [weight.shape[0] for weight in weights]
        joined = weights[0].new_empty(sum(rows), weights[0].shape[1], dtype=self.precision)
        for part, weight in zip(joined.split(rows), weights):
            part.copy_(weight)
        return joined


def _attention_branch(
    layer: Any,
    hidden_states: torch.Tensor,
    compute: _Compute,
    merged: MergedTokens | None,
    num_queries: int | None,
    observer: AttentionObserver | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer's attention adds to the first tokens, (B, num_queries, D), and the keys, (B, k, T, D/k)."""
    attention = layer.attention
    heads = (-1, attention.head_dim)
    normed = compute.norm(layer.layernorm_before, hidden_states)
    if num_queries is None:
        projected = compute.dense_together((attention.q_proj, attention.k_proj, attention.v_proj), normed)
    else:
        keys_and_values = compute.dense_together((attention.k_proj, attention.v_proj), normed)
        projected = compute.dense(attention.q_proj, normed[:, :num_queries]), *keys_and_values
    query, key, value = (part.unflatten(-1, heads).transpose(1, 2) for part in projected)
    bias = None if merged is None else merged.attention_bias.to(query.dtype)
    if products_are_faster(query):
        output, _ = attention_by_products(attention, query, key, value, None, attention.scaling, position_bias=bias)
    else:
        output = F.scaled_dot_product_attention(query, key, value, bias, scale=attention.scaling).transpose(1, 2)
    if observer is not None:
        if num_queries is not None:
            query = compute.dense(attention.q_proj, normed).unflatten(-1, heads).transpose(1, 2)
        observer(ObservedAttention(query, key, attention.scaling, bias, value, output, merged))
    return layer.layer_scale1(compute.dense(attention.o_proj, output.flatten(2))), key


def _mlp_branch(layer: Any, hidden_states: torch.Tensor, compute: _Compute) -> torch.Tensor:
    """What a layer's MLP adds, (B, T, D)."""
    mlp, activation = layer.mlp, layer.mlp.activation_fn
    activated = compute.dense(mlp.fc1, compute.norm(layer.layernorm_after, hidden_states))
    if type(activation) is GELUActivation and activation.act is F.gelu and not is_watched(activation):
        torch.ops.aten.gelu_(activated)
    else:
        activated = activation(activated)
    return layer.layer_scale2(compute.dense(mlp.fc2, activated))


def _add(tokens: torch.Tensor, branch: torch.Tensor, in_place: bool) -> torch.Tensor:
    if in_place and torch.promote_types(tokens.dtype, branch.dtype) == tokens.dtype:
        return tokens.add_(branch)
    return tokens + branch


def _is_as_built(layer: Any, kinds: Kinds, hidden_states: torch.Tensor) -> bool:
    """Whether everything that is read here, and not called, would do in a call what stands here."""
    if type(layer) is not kinds.layer:
        return False
    children: dict[str, Any] = layer._modules
    attention: Any = children.get("attention")
    mlp: Any = children.get("mlp")
    if type(attention) is not kinds.attention or type(mlp) is not kinds.mlp or attention.is_causal:
        return False
    read: list[tuple[Any, type[nn.Module]]] = [(layer, kinds.layer), (attention, kinds.attention), (mlp, kinds.mlp)]
    read += [(children.get("dropout"), nn.Dropout), (mlp._modules.get("dropout"), nn.Dropout)]
    read += [(children.get("drop_path"), kinds.drop_path)]
    read += [(children.get(name), nn.LayerNorm) for name in ("layernorm_before", "layernorm_after")]
    read += [(attention._modules.get(name), nn.Linear) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    read += [(mlp._modules.get(name), nn.Linear) for name in ("fc1", "fc2")]
    return all(is_plain(module, kind, hidden_states) and not module.training for module, kind in read)
