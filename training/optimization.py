"""Which parameter learns how fast: decay, layer-wise learning rates, and Muon for the matrices of the encoder.

vitrail train --dataset FOLDER --model B/16 --layer_lr_decay 0.75 --muon_learning_rate 0.02
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from vitrail.modeling import ViTModel


_MOMENTUM = 0.95  # Muon's


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    layer_lr_decay: float = 1.0,
    muon_learning_rate: float | None = None,
) -> list[dict[str, Any]]:
    """The trainable parameters of a ViT, grouped for any optimiser of torch's kind.

    Weight decay acts on the weights of dense layers and convolutions alone: not on biases, norms, position embeddings,
    tokens and layer-scale. The learning rate of layer l of L is `learning_rate * layer_lr_decay ** (L + 1 - l)`; the
    embeddings are l = 0, and all that follows the last layer, the head too, has the full rate ("BEiT", Appendix; as in
    "ELECTRA", Section 3.1).

    Args:
        model: any model with one `ViTModel` in it, wrapped (by PEFT, say) or not.
        learning_rate: of the head.
        weight_decay: of the parameters that decay.
        layer_lr_decay: in (0, 1]; 1 gives all layers the same rate.
        muon_learning_rate: if given, the rate of the matrices inside the layers, which then are groups with `"muon"`
            true, for `Muon`.

    Returns:
        groups with `params`, `lr`, `weight_decay` and `muon`, the head's first: its rate is what the Trainer logs.
    """
    vit = next(module for module in model.modules() if isinstance(module, ViTModel))
    depths = dict.fromkeys(vit.embeddings.parameters(), 0)
    for depth, layer in enumerate(vit.layers, start=1):
        depths |= dict.fromkeys(layer.parameters(), depth)
    top = len(vit.layers) + 1
    groups: dict[tuple[bool, float, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The mask token stands in for embedded patches, though it is the objective's and not the encoder's.
            depth = 0 if name.endswith("mask_token") else depths.get(parameter, top)
            muon, rate = False, learning_rate
            if muon_learning_rate is not None and 0 < depth < top and parameter.ndim == 2:
                muon, rate = True, muon_learning_rate
            decays = name.endswith("weight") and parameter.ndim > 1
            groups[muon, rate * layer_lr_decay ** (top - depth), decays].append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": weight_decay if decays else 0.0, "muon": muon}
        for (muon, rate, decays), parameters in sorted(groups.items(), key=lambda item: (item[0][0], -item[0][1]))
    ]


class Muon(torch.optim.Optimizer):
    """Muon for the matrices of hidden layers and another optimiser for all else, to the outside as one optimiser.

    Muon replaces a matrix's momentum by the nearest semi-orthogonal matrix, which five steps of a Newton-Schulz
    iteration approximate (Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks",
    https://kellerjordan.github.io/posts/muon/). This computes what `torch.optim.Muon` does with its defaults, but
    matrices of one shape go through the iteration together, which is faster where they are small.

    Args:
        params: groups as of `parameter_groups`; those with `"muon"` true are Muon's.
        rest: makes the optimiser of the other groups.
        kwargs: for `rest`.
    """

    def __init__(self, params: Iterable[dict[str, Any]], rest: Callable[..., torch.optim.Optimizer], **kwargs: Any):
        super().__init__(params, {})
        self.rest = rest(self._groups(muon=False), **kwargs)  # it adds its own settings to the same dictionaries

    def _groups(self, muon: bool) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["muon"] == muon]

    @torch.no_grad()
    # torch declares it as two overloads, with a closure and without.
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.rest.param_groups = self._groups(muon=False)  # both are other objects once a state was loaded
        self.rest.state = self.state
        self.rest.step()
        shapes: dict[torch.Size, list[tuple[nn.Parameter, torch.Tensor, dict[str, Any]]]] = defaultdict(list)
        for group in self._groups(muon=True):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._momentum(parameter, parameter.grad)
                    wide = update if update.shape[0] <= update.shape[1] else update.T
                    shapes[wide.shape].append((parameter, wide, group))
        for matrices in shapes.values():
            parameters, updates, groups = zip(*matrices)
            for parameter, direction, group in zip(parameters, orthogonalized(torch.stack(updates)), groups):
                rows, columns = parameter.shape
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                step = group["lr"] * math.sqrt(max(1, rows / columns))
                parameter.add_(direction if rows <= columns else direction.T, alpha=-step)
        return loss

    def _momentum(self, parameter: nn.Parameter, gradient: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM)
        return gradient.lerp(state["momentum_buffer"], _MOMENTUM)  # Nesterov's


def orthogonalized(matrices: torch.Tensor) -> torch.Tensor:
    """(n, rows, columns), rows <= columns -> the same in bfloat16, every singular value of each brought near to 1.

    The quintic iteration and its coefficients are those of the post cited by `Muon`.
    """
    matrices = matrices.bfloat16()
    matrices = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        gram = matrices @ matrices.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        matrices = torch.baddbmm(matrices, polynomial, matrices, beta=3.4445)
    return matrices
