"""The class that a map is of."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitrail.modeling import InputError


def targets_of(logits: torch.Tensor, target: int | Sequence[int] | torch.Tensor | None) -> torch.Tensor:
    """The class index of every image, (B,) int64 on the device of the logits.

    Args:
        logits: (B, num_labels).
        target: None for the model's own predictions, one index for all images, or B of them.

    Raises:
        InputError: the target is no class index of the model, or not one for each image.
    """
    if target is None:
        return logits.argmax(-1)
    batch, num_labels = logits.shape
    try:
        targets = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError) as error:
        raise InputError(f"target is {target!r}; it must be a class index, or one for each image.") from error
    if targets.is_floating_point() or targets.dtype == torch.bool:
        raise InputError(f"target holds {targets.dtype} values; class indices are integers.")
    if targets.ndim > 1 or (targets.ndim == 1 and len(targets) != batch):
        raise InputError(f"target has shape {tuple(targets.shape)}; for {batch} images it is one index, or {batch}.")
    targets = targets.long().expand(batch)
    outside = targets[(targets < 0) | (targets >= num_labels)]
    if len(outside):
        raise InputError(f"target is {outside[0].item()}; the model's labels are 0 to {num_labels - 1}.")
    return targets
