"""Self-supervision by masked patch prediction (Appendix B.1.2): guess the mean colours of patches that were hidden.

vitrail train --objective masked-patch --dataset FOLDER --model B/16 --output_dir pretrained
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_vit import ViTConfig
from .errors import InputError
from .modeling_vit import ViTModel, ViTPreTrainedModel


def mean_color_classes(images: torch.Tensor, patch_shape: tuple[int, int]) -> torch.Tensor:
    """The targets of masked patch prediction: every patch's mean colour in 3 bits a channel (Appendix B.1.2).

    Args:
        images: (B, 3, H, W), in [0, 1].
        patch_shape: (height, width) of a patch in pixels.

    Returns:
        classes (B, N) in [0, 512): 64 x red + 8 x green + blue, each in [0, 8).
    """
    levels = (F.avg_pool2d(images.float(), patch_shape) * 8).long().clamp(0, 7).flatten(2)  # (B, 3, N)
    return 64 * levels[:, 0] + 8 * levels[:, 1] + levels[:, 2]


@dataclass
class MaskedPatchPredictionOutput(ModelOutput):
    """What `ViTForMaskedPatchPrediction` returns.

    Attributes:
        loss: the mean cross-entropy over the corrupted patches in nats, with labels.
        logits: (B, N, 512), of every patch's colour class.
        bool_masked_pos: (B, N), which patches were corrupted.
        hidden_states, attentions: as of `ViTModel`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class ViTForMaskedPatchPrediction(ViTPreTrainedModel):
    """Self-supervised pre-training: the mean colours of corrupted patches are predicted (Appendix B.1.2).

    Half of an image's patch embeddings are corrupted: 80 % of them give way to a learned mask embedding, 10 % to
    another patch's embedding and 10 % stay as they are. Raises `InputError` for a model that does not read 3 channels,
    or that leaves out patches in training.
    """

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        if config.num_channels != 3:
            raise InputError(f"Masked patch prediction is about colours, but num_channels is {config.num_channels}.")
        if config.patch_dropout_prob:
            raise InputError(
                f"Masked patch prediction needs every patch, but patch_dropout_prob is {config.patch_dropout_prob}."
            )
        self.vit = ViTModel(config)
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.color_classifier = nn.Linear(config.hidden_size, 8**3)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        super()._init_weights(module)
        if module is self:
            init.zeros_(self.mask_token)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MaskedPatchPredictionOutput:
        """Images in, colour classes out.

        Args:
            pixel_values: (B, 3, H, W), normalised by `ViTImageProcessor`.
            labels: the patches' colour classes (B, N), from `mean_color_classes`; those of corrupted patches count.
            bool_masked_pos: (B, N), the patches to corrupt; by default a random half of every image's.
            kwargs: passed to `ViTModel.forward`.

        Raises:
            InputError: the images have other channels or another size than the model reads.
        """
        masks: list[torch.Tensor] = []

        def corrupt(patches: torch.Tensor) -> torch.Tensor:
            masks.append(_random_half(patches) if bool_masked_pos is None else bool_masked_pos.bool())
            return self._corrupted(patches, masks[0])

        outputs = self.vit(pixel_values, patch_corruption=corrupt, **kwargs)
        (mask,) = masks
        logits = self.color_classifier(outputs.last_hidden_state[:, self.config.num_prefix_tokens :])
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.transpose(1, 2), labels.masked_fill(~mask, -100))
        return MaskedPatchPredictionOutput(loss, logits, mask, outputs.hidden_states, outputs.attentions)

    def _corrupted(self, patches: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        batch, count, width = patches.shape
        steps = torch.randint(1, max(count, 2), (batch, count), device=patches.device)
        others = (torch.arange(count, device=patches.device) + steps) % count  # never the patch itself
        swapped = patches.gather(1, others[..., None].expand(-1, -1, width))
        fate = torch.rand(batch, count, 1, device=patches.device)
        corrupted = torch.where(fate < 0.8, self.mask_token, torch.where(fate < 0.9, swapped, patches))
        return torch.where(mask[..., None], corrupted, patches)


def _random_half(patches: torch.Tensor) -> torch.Tensor:
    """(B, N, D) -> (B, N): true for a random half of every image's patches."""
    batch, count, _ = patches.shape
    ranks = torch.rand(batch, count, device=patches.device).argsort(dim=1).argsort(dim=1)
    return ranks < max(1, count // 2)
