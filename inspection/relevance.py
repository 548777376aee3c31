"""What spoke for one class: attention weighted by its gradient, in little memory.

The gradient of the class's logit with respect to a layer's attention A, whose output is O = A v, is dO v^T. So neither
A nor its gradient need be kept, and no backend needs to return them: from the query, key, value and the gradient of the
output both are made in blocks of rows. The backward pass meets the layers from the last to the first, as the row of the
head goes through them, and recomputes one layer at a time; what is kept of the others is their input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from vitrail.inspection.observation import (
    AttentionBlock,
    attention_blocks,
    config_of,
    observed_call,
    patch_grids,
    product,
    read_by_head,
    uncompiled,
)
from vitrail.inspection.rollout import rows_times_normalised
from vitrail.inspection.targets import targets_of
from vitrail.modeling import InputError, ObservedAttention, ViTConfig


RelevanceMethod = Literal["chefer", "gradient_rollout"]


@dataclass(frozen=True)
class RelevanceOutput:
    """What the model said and which patches spoke for the target.

    Attributes:
        logits: (B, num_labels), the model's own, but for the rounding of a backend that works otherwise where there are
            gradients, as sdpa does with relative position embeddings, and of compilation.
        target: (B,) int64, the classes that the map is about.
        heatmap: (B, H/P, W/P) float32, at least 0, or (B, L, H/P, W/P). Its scale is that of the logit's gradient:
            compare places of a map, not maps.
    """

    logits: torch.Tensor
    target: torch.Tensor
    heatmap: torch.Tensor


def relevance(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    target: int | Sequence[int] | torch.Tensor | None = None,
    method: RelevanceMethod = "chefer",
) -> RelevanceOutput:
    """Class-specific relevance of the patches, from one forward and one backward pass on any attention backend.

    With A of each head, its gradient ∇A and their product by element, for the layers from first to last:

    - "chefer", "Generic Attention-model Explainability" (Chefer et al., 2021), Eq. 5 and 6: R <- R + Ā R with
      Ā = mean over heads of (∇A A)^+, and R = I before the first.
    - "gradient_rollout": attention rollout of (mean over heads of ∇A A)^+ in place of the fused attention.

    The map is what the head reads of R, as in `attention_rollout`; attention pooling's row is its own Ā, or its own
    fused row with sum 1.

    Args:
        model: a classifier of `vitrail.modeling`, in evaluation mode.
        pixel_values: (B, C, H, W), as the model takes them.
        target: a class for all images, or one for each; by default what the model says.
        method: "chefer" or "gradient_rollout".

    Raises:
        InputError: an argument is out of its range, the model has no class logits, is not one of `vitrail.modeling` or
            is in training mode, or the images or weights hold NaN.
    """
    by_depth = relevance_by_depth(model, pixel_values, target, method)
    return replace(by_depth, heatmap=by_depth.heatmap[:, -1])


def relevance_by_depth(
    model: PreTrainedModel,
    pixel_values: torch.Tensor,
    target: int | Sequence[int] | torch.Tensor | None = None,
    method: RelevanceMethod = "chefer",
) -> RelevanceOutput:
    """How relevance spreads with depth: R after every layer, from one forward and one backward pass.

    Args:
        model, pixel_values, target, method: as of `relevance`.

    Returns:
        `heatmap` is (B, L, H/P, W/P); entry l is what the head would read of R after the first l + 1 layers, whose
        attention is weighted by the gradient of the whole model's logit. The last one is that of `relevance`.

    Raises:
        InputError: as `relevance`.
    """
    config = config_of(model)
    if method not in get_args(RelevanceMethod):
        raise InputError(f"method is {method!r}; it must be 'chefer' or 'gradient_rollout'.")
    flow = _Flow(config, method)
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise InputError("The weights were made under torch.inference_mode() and have no gradients; load them outside.")
    with uncompiled(), torch.inference_mode(False), torch.enable_grad():
        pixels = pixel_values.detach().to(torch.promote_types(pixel_values.dtype, torch.float32), copy=True)
        pixels.requires_grad_()  # the weights may be frozen
        try:
            outputs = observed_call(model, pixels, flow.observe, recompute=True)
        except NotImplementedError as error:  # of flex attention on a CPU
            raise InputError(f"{error} Relevance needs gradients: model.set_attn_implementation('sdpa').") from error
        logits = outputs.get("logits")
        if logits is None or logits.ndim != 2:
            raise InputError(f"{type(model).__name__} has no class logits; relevance is about a class.")
        classes = targets_of(logits, target)
        score = logits.gather(1, classes[:, None]).sum()  # each image's gradient is that of its own logit
        torch.autograd.grad(score, flow.first_output)
    return RelevanceOutput(logits.detach(), classes, patch_grids(flow.rows, config, pixel_values))


class _Flow:
    """What the head reads, on its way with the backward pass from the last layer to the first.

    Every layer starts a row of its own, which the layers before it take on: R after that layer.

    Attributes:
        rows: (B, m, T), what has come out of the m layers passed so far, first the row that started last.
        first_output: of the first layer's attention, where the backward pass may end.
    """

    rows: torch.Tensor
    first_output: torch.Tensor

    def __init__(self, config: ViTConfig, method: RelevanceMethod):
        self._config = config
        self._method = method

    def observe(self, index: int, attention: ObservedAttention) -> None:
        """Sees every attention in the forward pass and, but for attention pooling, again when it is recomputed."""
        self._latest = attention
        if index == 0:
            self.first_output = attention.output
            if self._config.pooling != "attention":
                self._start(read_by_head(self._config, self._config.pooling, attention.query))
        if index < self._config.num_hidden_layers:
            attention.output.register_hook(self._pass_layer)
        elif index == self._config.num_hidden_layers and self._config.pooling == "attention":
            attention.output.register_hook(self._pass_pooling)

    def _start(self, read: torch.Tensor) -> None:
        """Takes what the head reads, (B, 1, t); of the T tokens those after the first t are not read."""
        self._read, self.rows = read, read[:, :0]

    def _pass_layer(self, gradient: torch.Tensor) -> None:
        """Takes the gradient of a layer's attention output, (B, <= T, k, D/k), just after it was recomputed."""
        if self._latest.merged is not None:
            gradient = self._latest.merged.unmerged(gradient)
        rows = torch.cat((self._read, self.rows), dim=1)
        blocks = self._weighted(gradient, rows.shape[2])
        rows = F.pad(rows, (0, self._latest.key.shape[2] - rows.shape[2]))
        self._read = rows[:, :1]
        if self._method == "gradient_rollout":
            self.rows = rows_times_normalised(rows, blocks)
            return
        self.rows = rows.clone()
        for images, queries, fused in blocks:
            self.rows[images] += product(rows[images, :, queries], fused)

    def _pass_pooling(self, gradient: torch.Tensor) -> None:
        """Takes the gradient of attention pooling's output, (B, 1, k, D/k); nothing was recomputed since."""
        fused = torch.cat([block.weights for block in self._weighted(gradient, 1)])  # (B, 1, N)
        if self._method == "gradient_rollout":
            fused = F.normalize(fused, p=1, dim=-1)
        self._start(F.pad(fused, (self._config.num_prefix_tokens, 0)))

    def _weighted(self, gradient: torch.Tensor, num_queries: int) -> Iterator[AttentionBlock]:
        """The latest attention, weighted by its gradient dO v^T, cleared of what spoke against, its heads fused."""
        query, key, scaling, bias, value = self._latest[:5]
        gradient, value = gradient.float().transpose(1, 2), value.float().transpose(2, 3)
        for images, queries, weights in attention_blocks(query, key, scaling, bias, slice(num_queries)):
            weights *= product(gradient[images, :, queries], value[images])  # (images, k, queries, T)
            fused = weights.clamp_(min=0).mean(1) if self._method == "chefer" else weights.mean(1).clamp_(min=0)
            yield AttentionBlock(images, queries, fused)
