"""Which class a map or a score is about."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from vitrail.modeling import InputError


def targets_of(logits: torch.Tensor, target: int | Sequence[int] | torch.Tensor | None) -> torch.Tensor:
    """The class of every image, (B,) int64 on the device of `logits`.

    Args:
        logits: (B, num_labels).
        target: a class for all images, or one for each; None for the one that the model says.

    Raises:
        InputError: `target` is not a class, or there are not as many as images.
    """
    batch, num_labels = logits.shape
    if target is None:
        return logits.argmax(dim=-1)
    try:
        targets = torch.as_tensor(target, device=logits.device)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"target is {target!r}; it must be the whole number of a class, or one for each image."
        ) from error
    if targets.is_floating_point() or targets.is_complex() or targets.dtype == torch.bool:
        raise InputError(f"target is {target}; it must be the whole number of a class, or one for each image.")
    if targets.ndim == 0:
        targets = targets.expand(batch)
    if targets.shape != (batch,):
        raise InputError(
            f"target has the shape {tuple(targets.shape)}; it must be one class, or {batch}, one an image."
        )
    for index in targets.tolist():
        if not 0 <= index < num_labels:
            raise InputError(f"target is {index}; the model's labels are 0 to {num_labels - 1}.")
    return targets.long()
