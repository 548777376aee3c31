"""Dense layers by the fastest of PyTorch's exact products for the device, precision and shape at hand.

On a CPU, `nn.Linear` copies its bias before it adds the product, and gives float32 to MKL, which on processors of
others than Intel leaves half of their width unused. oneDNN does neither. What comes out is what the plain layers give,
to rounding. Everything that is no plain layer (an adapter's, a quantised one, one with hooks), and everything that is
not run but recorded, is called as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from transformers.utils import output_capturing


Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

_CPU = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.11 cannot say, and gets the plain layers
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and _CPU.get("avx512_f", False)
_MKL_IS_SLOW = "Intel" not in _CPU.get("cpu_name", "Intel")


def dense(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """layer(inputs), (..., D_in) -> (..., D_out)."""
    product = _fastest_product(inputs)
    if product is None or not _is_plain(layer, inputs):
        return layer(inputs)
    return product(inputs, layer.weight, layer.bias)


def dense_together(layers: Sequence[nn.Linear], inputs: torch.Tensor) -> Sequence[torch.Tensor]:
    """[layer(inputs) for layer in layers], by one product of matrices where that gains more than joining them costs.

    In bfloat16 it gains by its size, in training by giving the gradient of `inputs` at once.
    """
    product = _fastest_product(inputs)
    if product is None or not all(_is_plain(layer, inputs) for layer in layers):
        return [layer(inputs) for layer in layers]
    some_have_biases = len({layer.bias is None for layer in layers}) > 1
    if some_have_biases or (not torch.is_grad_enabled() and _precision(inputs) == torch.float32):
        return [product(inputs, layer.weight, layer.bias) for layer in layers]
    weight = _joined([layer.weight for layer in layers], inputs)
    bias = None if layers[0].bias is None else _joined([layer.bias for layer in layers], inputs)
    return product(inputs, weight, bias).split([len(layer.weight) for layer in layers], dim=-1)


def is_watched(module: nn.Module) -> bool:
    """Whether something sees what goes in and comes out: a hook, other than those by which transformers collects
    outputs, or a `forward` in place of the class's, as accelerate's offloading has.
    """
    hooks = module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    if hooks or "forward" in module.__dict__ or _has_any_global_hook():
        return True
    return any(hook.__module__ != output_capturing.__name__ for hook in module._forward_hooks.values())


def _fastest_product(inputs: torch.Tensor) -> Product | None:
    """inputs @ weight.T + bias, (inputs, weight, bias) -> (..., D_out); None where only the layer itself will do."""
    if not _HAS_ONEDNN or _is_recorded() or type(inputs) is not torch.Tensor or inputs.device.type != "cpu":
        return None
    precision = _precision(inputs)
    known = precision in (torch.float32, torch.bfloat16) and inputs.numel() > 0
    if not known or not torch._C._get_mkldnn_enabled():
        return None
    if precision == torch.float32 and not _MKL_IS_SLOW:
        return F.linear
    if not torch.is_grad_enabled():
        return _pointwise
    return _convolution if precision == torch.float32 and _convolutions_are_as_precise() else F.linear


def _precision(inputs: torch.Tensor) -> torch.dtype:
    """In which a dense layer computes on a CPU: autocast's or the inputs' own."""
    casts = torch.is_autocast_enabled("cpu") and inputs.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype("cpu") if casts else inputs.dtype


def _is_recorded() -> bool:
    """Whether calls are written down or transformed (compiled, traced, differentiated forwards) and not just made."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _convolutions_are_as_precise() -> bool:
    """Whether the user lets convolutions in float32 be computed just as products of matrices are."""
    onednn: Any = torch.backends.mkldnn
    return onednn.conv.fp32_precision == onednn.matmul.fp32_precision


def _is_plain(layer: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether it is what `nn.Linear` built: nothing replaces it, watches it or keeps its parameters in another form.

    Parameters on another device or of another precision than the inputs are an error of the layer's to tell, unless
    autocast casts both.
    """
    if type(layer) is not nn.Linear or is_watched(layer) or layer._parameters.keys() != {"weight", "bias"}:
        return False
    any_precision = torch.is_autocast_enabled("cpu")
    for parameter in layer._parameters.values():
        if parameter is not None and (
            type(parameter) is not nn.Parameter
            or parameter.layout is not torch.strided
            or parameter.device != inputs.device
            or not (any_precision or parameter.dtype == inputs.dtype)
        ):
            return False
    return True


def _joined(parameters: list[torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """One under the other; without gradients at once in the precision in which they are used."""
    if torch.is_grad_enabled():
        return torch.cat(parameters)
    rows = [len(parameter) for parameter in parameters]
    joined = parameters[0].new_empty(sum(rows), *parameters[0].shape[1:], dtype=_precision(inputs))
    for part, parameter in zip(joined.split(rows), parameters):
        part.copy_(parameter)
    return joined


def _pointwise(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """oneDNN's product, which has no gradient and takes no notice of autocast."""
    precision = _precision(inputs)
    weight, bias = weight.to(precision), None if bias is None else bias.to(precision)
    return torch.ops.mkldnn._linear_pointwise(inputs.to(precision), weight, bias, "none", [], "")


def _convolution(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product as a convolution of one pixel, which PyTorch gives to oneDNN, and so the products of its gradient."""
    pixels = inputs.reshape(1, -1, 1, inputs.shape[-1]).permute(0, 3, 1, 2)  # (1, D_in, rows, 1), channels last
    outputs = F.conv2d(pixels, weight[..., None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], -1)
