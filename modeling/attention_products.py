"""Attention as two products of matrices with a softmax between them, for where PyTorch's fused one is slower."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


_HAS_AMX = getattr(torch.cpu, "get_capabilities", dict)().get("amx_tile", False)
# Of more tokens the attention matrices cost more memory than they save time.
_MOST_TOKENS = 600


def products_are_faster(query: torch.Tensor) -> bool:
    """Whether two products beat `scaled_dot_product_attention` on a query, (B, k, T, D/k).

    In bfloat16 on a CPU, the fused kernel's backward pass takes about three times as long, and its forward pass one and
    a half times without AMX (at 197 tokens; in float32 it is the faster one).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.shape[2] > _MOST_TOKENS:
        return False
    return query.requires_grad or not _HAS_AMX


def attention_by_products(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Eq. 6 and 7, with the weights in the precision of the query; what is inside a softmax is in float32 anyway."""
    batch, heads, queries, width = query.shape
    query, key, value = (tensor.reshape(batch * heads, -1, width) for tensor in (query, key, value))
    nothing = query.new_empty(1)  # to which beta=0 adds the product
    weights = torch.baddbmm(nothing, query, key.transpose(1, 2), beta=0, alpha=scaling)  # (B k, T, T)
    if position_bias is not None:
        weights = (weights.unflatten(0, (batch, heads)) + position_bias).flatten(0, 1)
    weights = F.dropout(F.softmax(weights, dim=-1), dropout, module.training)
    return (weights @ value).view(batch, heads, queries, width).transpose(1, 2), None  # (B, T, k, D/k)
