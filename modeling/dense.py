"""Dense layers, by the fastest of PyTorch's exact products for the device, precision and shape at hand.

On a CPU several layers on the same input are one product, bfloat16 goes straight to oneDNN, and float32 does not go to
MKL on processors of others than Intel, of whose width it leaves half unused. What comes out is what the layers
themselves give, to rounding. Everything that is no plain layer (an adapter's, a quantised one, one with hooks), and
everything that is not run but recorded, is called as it is. Most predictions have a path of their own, in
`fast_path.py`, and what is asked and computed here in common with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.nn.modules.module import _has_any_global_hook
from transformers.utils import output_capturing


_CPU = getattr(torch.cpu, "get_capabilities", dict)()  # PyTorch before 2.11 cannot say, and gets the plain layers
HAS_ONEDNN = torch.backends.mkldnn.is_available() and _CPU.get("avx512_f", False)
MKL_IS_SLOW = "Intel" not in _CPU.get("cpu_name", "Intel")


def dense(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """layer(inputs), (..., D_in) -> (..., D_out)."""
    product = _faster_product(inputs)
    if product is None or not _are_plain([layer], inputs):
        return layer(inputs)
    return product(inputs, layer.weight, layer.bias)


def dense_together(layers: Sequence[nn.Linear], inputs: torch.Tensor) -> Sequence[torch.Tensor]:
    """[layer(inputs) for layer in layers]; in training on a CPU by one product, as then is the gradient of `inputs`."""
    together = torch.is_grad_enabled() and _is_on_cpu(inputs)
    if not together or not can_be_joined(layers) or not _are_plain(layers, inputs):
        return [dense(layer, inputs) for layer in layers]
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    product = _faster_product(inputs) or F.linear
    return product(inputs, weight, bias).split([len(layer.weight) for layer in layers], dim=-1)


def can_be_joined(layers: Sequence[nn.Linear]) -> bool:
    """Whether one layer can do the work of these: all of them have biases or none has."""
    return len({layer.bias is None for layer in layers}) == 1


def onednn_is_faster(inputs: torch.Tensor, precision: torch.dtype) -> bool:
    """Whether `onednn_product` beats `F.linear` in this precision, on the device of the inputs, (..., D_in)."""
    gains = precision == torch.bfloat16 or (precision == torch.float32 and MKL_IS_SLOW)
    return gains and HAS_ONEDNN and inputs.device.type == "cpu" and torch._C._get_mkldnn_enabled()


def onednn_product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear without a gradient: (..., D_in), (D_out, D_in) and (D_out) to (..., D_out), all of one precision.

    PyTorch's own way to oneDNN fills the output with the bias first, and takes float32 to MKL.

    Raises:
        RuntimeError: PyTorch's own, of shapes or precisions that do not fit.
    """
    bias = None if bias is None else bias.contiguous()  # oneDNN reads it as if it were
    return torch.ops.mkldnn._linear_pointwise.default(inputs, weight, bias, "none", [], "")


def is_watched(*modules: nn.Module) -> bool:
    """Whether something sees what goes in and comes out of one: a hook, other than those by which transformers collects
    outputs, or a `forward` in place of the class's, as accelerate's offloading has.
    """
    return bool(_has_any_global_hook()) or any(_is_hooked(module) for module in modules)


def is_plain(module: nn.Module, kind: type[nn.Module], inputs: torch.Tensor) -> bool:
    """Whether it is what `kind` built, and its own parameters fit the inputs: nothing replaces it, hooks into it or
    keeps its parameters in another form.

    Parameters on another device or of another precision than the inputs are an error of the module's to tell, unless
    autocast casts both.
    """
    if type(module) is not kind or _is_hooked(module) or module._compiled_call_impl is not None:
        return False
    parameters = module._parameters
    if kind in (nn.Linear, nn.LayerNorm) and not ("weight" in parameters and "bias" in parameters):
        return False  # parametrised, for example by pruning
    for parameter in parameters.values():
        if parameter is not None and not (
            type(parameter) is nn.Parameter
            and parameter.layout is torch.strided
            and parameter.device == inputs.device
            and (parameter.dtype == inputs.dtype or (parameter.dtype != torch.float64 and is_autocast(inputs)))
        ):
            return False
    return True


def is_autocast(inputs: torch.Tensor) -> bool:
    """Whether autocast is on where the inputs are, (..., D_in), so that dense layers may have another precision."""
    kind = inputs.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def precision_of(inputs: torch.Tensor) -> torch.dtype:
    """In which a dense layer computes: autocast's or the inputs' own."""
    casts = is_autocast(inputs) and inputs.dtype != torch.float64  # which autocast leaves alone
    return torch.get_autocast_dtype(inputs.device.type) if casts else inputs.dtype


def are_calls_recorded() -> bool:
    """Whether calls are written down or transformed (compiled, traced, differentiated forwards) and not just made."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def _is_hooked(module: nn.Module) -> bool:
    if module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return True
    hooks = module._forward_hooks
    if hooks and any(hook.__module__ != output_capturing.__name__ for hook in hooks.values()):
        return True
    return "forward" in module.__dict__


def _is_on_cpu(inputs: torch.Tensor) -> bool:
    # The first question comes before all others: a compiler cannot read their answers.
    return (
        not are_calls_recorded() and type(inputs) is torch.Tensor and inputs.device.type == "cpu" and inputs.numel() > 0
    )


def _are_plain(layers: Sequence[nn.Module], inputs: torch.Tensor) -> bool:
    return not _has_any_global_hook() and all(is_plain(layer, nn.Linear, inputs) for layer in layers)


def _faster_product(inputs: torch.Tensor) -> Callable[..., torch.Tensor] | None:
    """What takes an input, a weight and a bias, and is faster than `F.linear` and as precise; None if that is best."""
    if not _is_on_cpu(inputs):
        return None
    precision = precision_of(inputs)
    if not onednn_is_faster(inputs, precision):
        return None
    if precision == torch.bfloat16:
        return _trainable_product if torch.is_grad_enabled() else None
    onednn: Any = torch.backends.mkldnn
    return _convolution if onednn.conv.fp32_precision == onednn.matmul.fp32_precision else None


def _trainable_product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """F.linear in bfloat16, to which it casts, with gradients: (..., D_in) -> (..., D_out)."""
    rows, weight = inputs.reshape(-1, inputs.shape[-1]).bfloat16(), weight.bfloat16()
    outputs = _Product.apply(rows, weight, None if bias is None else bias.bfloat16())
    return cast("torch.Tensor", outputs).view(*inputs.shape[:-1], -1)


class _Product(torch.autograd.Function):
    """`onednn_product` of (rows, D_in), (D_out, D_in) and (D_out), whose gradients have gradients again."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        of_rows, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(rows if of_weight else None, weight if of_rows else None)
        return onednn_product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        of_rows, of_weight, of_bias = ctx.needs_input_grad
        with torch.autocast("cpu", enabled=False):  # another precision's, of who calls this in one
            return (
                gradient @ weight if of_rows else None,
                gradient.T @ rows if of_weight else None,
                gradient.sum(0) if of_bias else None,
            )


def _convolution(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The product as a convolution of one pixel, which PyTorch gives to oneDNN, and so the products of its gradient."""
    pixels = inputs.reshape(1, -1, 1, inputs.shape[-1]).permute(0, 3, 1, 2)  # (1, D_in, rows, 1), channels last
    outputs = F.conv2d(pixels, weight[..., None, None], bias)
    return outputs.permute(0, 2, 3, 1).reshape(*inputs.shape[:-1], -1)
